"""What the stages of a real run cost: each figure with its source, or the words "not measured"."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.predict.calibration import TEMPERATURES
from recipes.calibrate_stage import changes_nothing
from recipes.config import Recipe, resolve
from recipes.train_memory import device_bytes

GIB = 2**30

# The published run: 50,000 answers in about 24 h; 11,400 steps of 4096 tokens in 11 h; one GB10.
PUBLISHED_TOKENS_A_SAMPLE = 11_400 * 4096 / 50_000
PUBLISHED_ANSWERS_PER_HOUR = 50_000 / 24
PUBLISHED_STEPS_PER_HOUR = 11_400 / 11
# Gemma 4 26B-A4B: hidden size 2816 in bf16; the drafter's file and upstream's checkpoint of it.
HIDDEN_BYTES = 2816 * 2
DRAFTER_BYTES = 1_855_768_160
CHECKPOINT_BYTES = 2_250_000_000
BODY_FP8_BYTES = 27e9
VOCABULARY = 262_144
# A step of upstream's trainer 0.9.0 with the patches that are applied by default, on an H200: 4096
# packed tokens, ttt_steps 3, eager loss, every tenth step logged, hidden states read from files in
# memory by 6 workers (benchmarks/results/trainer_rate_release_h200.json). How long it takes depends
# on the host: on another machine of this kind it was 0.043 (trainer_rate_h200.json, the arm whose
# memory is given back unlocked).
TRAINER_STEP_S, SLOWER_HOST_STEP_S = 0.038, 0.043
# Conversations a second (934 tokens each) where an extraction server makes the hidden states beside
# the step, on the same GPU: least and most over shares of 0.4 to 0.7 of one H200's memory, 12
# workers, ttt_steps 3 (benchmarks/results/online_pipeline_h200.json and
# online_pipeline_share04_h200.json).
ONLINE_CONVERSATIONS_S = (28.1, 32.0)
ONLINE_WORKERS = 12
# The step alone there, with its batch on the device (benchmarks/results/train_step_host_h200.json).
BARE_STEP_S = 0.033
# What the extraction server gave there with nothing beside it.
PRODUCER_TOKENS_S = (29_500, 31_900)
# What deterministic kernels made of the trainer's step (trainer_rate_h200.json, without the patch
# unlocked_batch_release), and make of the bare one (train_step_host_h200.json).
DETERMINISTIC_TRAINER, DETERMINISTIC_BARE = 1.10, 1.03
# What each position trained beyond the third adds to a step: ttt_steps 5 takes 1.67 of upstream's
# bare one, both at 4096 and at 8192 tokens (benchmarks/results/train_step_h100.json).
POSITION_SHARE = 0.33
# One exact checkpoint: trained weights and two moments in float32 (benchmarks/checkpoint_stall.py).
EXACT_CHECKPOINT_BYTES = 1_190_000_000
# What vLLM 0.32 serves at once by default on a GPU of 70 GiB or more.
MAX_NUM_SEQS = 1024


def tokens_of(recipe: Recipe) -> float:
    """Tokens of all conversations, at the published length."""
    return PUBLISHED_TOKENS_A_SAMPLE * recipe.samples


def steps_of(recipe: Recipe) -> int:
    """Optimizer steps of all epochs; each is of a packed batch for every trainer."""
    step = recipe.seq_len * recipe.trainers
    return int(tokens_of(recipe) * recipe.train_share / step) * recipe.epochs


def step_factor(ttt_steps: int) -> float:
    """A bare training step's time relative to the one at ttt_steps 3, which was measured."""
    return max(0.2, 1 + POSITION_SHARE * (ttt_steps - 3))


def trainer_step_s(ttt_steps: int) -> float:
    """Seconds for 4096 tokens in upstream's trainer; positions only lengthen the step itself."""
    return TRAINER_STEP_S + BARE_STEP_S * (step_factor(ttt_steps) - 1)


def step_source(ttt_steps: int) -> str:
    """Where `trainer_step_s` is from."""
    measured = f"upstream's trainer on an H200, {SLOWER_HOST_STEP_S} with another host, ttt_steps 3"
    if ttt_steps == 3:
        return measured
    return f"{measured}, and for {ttt_steps} what an H100's bare step grows by"


def regenerate(recipe: Recipe, preset: str) -> Iterator[str]:
    yield f"disk: about {tokens_of(recipe) * 14 / 1e9:.1f} GB of JSON lines (ids, mask and text)"
    if preset == "dgx-spark":
        yield (
            f"time: about {recipe.samples / PUBLISHED_ANSWERS_PER_HOUR:.0f} h "
            "(the published run: 50,000 answers in about 24 h)"
        )
    else:
        yield "time: not measured on this machine; the rate is shown while it runs"


def prepare(recipe: Recipe) -> Iterator[str]:
    size = tokens_of(recipe) * 9 / 1e9
    yield f"disk: about {size:.1f} GB (8 bytes of token id and 1 of mask a token)"


def _length(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(1.0, seconds / 60):.0f} min"


def _training_time(recipe: Recipe, steps: float) -> Iterator[str]:
    """How long so many steps of 4096 tokens take, where that was measured."""
    step_s = trainer_step_s(recipe.ttt_steps)
    alone = (
        f"about {_length(steps * step_s)} of training steps ({step_s:.3f} s for 4096 tokens: "
        f"{step_source(recipe.ttt_steps)})"
    )
    if not _is_as_measured(recipe):
        yield f"time: {alone}, and what extraction adds, which is not measured"
        return
    conversations = recipe.samples * recipe.epochs  # validation's too
    low, high = ONLINE_CONVERSATIONS_S
    yield (
        f"time: about {_length(conversations / high)} to {_length(conversations / low)} "
        f"({low:.0f} to {high:.0f} conversations/s of {PUBLISHED_TOKENS_A_SAMPLE:.0f} tokens: "
        f"extraction from Gemma 4 26B-A4B's shape in FP8 for {ONLINE_WORKERS} workers, and the "
        "training step, which waits for it, on one H200; before the patch quick_lock_waits)"
    )
    yield f"time: by itself it would be {alone}"


# What was measured had the preset's own.
_AS_IN_THE_PRESET = (
    "hidden_states", "transfer", "drafter_kind", "ttt_steps", "seq_len", "target_layers", "dtype",
    "hidden_states_dtype", "loss_implementation", "draft_vocab_size", "vllm_extra", "train_extra",
    "trainers", "producers", "hosts", "train_endpoint", "train_max_model_len", "deterministic",
)  # fmt: skip


def _is_as_measured(recipe: Recipe) -> bool:
    """Whether it trains beside one extraction server on the same GPU, as was measured."""
    preset, _ = resolve("h100")
    return (
        all(getattr(recipe, name) == getattr(preset, name) for name in _AS_IN_THE_PRESET)
        and recipe.num_workers in (None, ONLINE_WORKERS)
        and recipe.host_gpus in (None, 1)
        and 0.4 <= recipe.train_vllm_share <= 0.7
    )


def train(recipe: Recipe, preset: str) -> Iterator[str]:
    steps = steps_of(recipe)
    offline = recipe.hidden_states == "offline"
    several = f"{recipe.trainers} x " if recipe.trainers > 1 else ""
    yield (
        f"steps: about {steps} of {several}{recipe.seq_len} packed tokens "
        f"(at {PUBLISHED_TOKENS_A_SAMPLE:.0f} tokens a conversation, as published)"
    )
    if preset == "dgx-spark" and recipe.trainers > 1:
        yield "time: not measured; the published run had one trainer"
    elif preset == "dgx-spark" and not offline:
        hours = steps * recipe.seq_len / 4096 / PUBLISHED_STEPS_PER_HOUR
        yield f"time: about {hours:.0f} h (the published run: 11,400 steps in 11 h, ttt_steps 3)"
        if recipe.ttt_steps != 3:
            yield (
                f"time: ttt_steps={recipe.ttt_steps} makes the trainer's part of it "
                f"{step_factor(recipe.ttt_steps):.1f} times as long (measured on an H100); vLLM's "
                "part stays, and which of them waits on this machine is not measured"
            )
    elif preset == "dgx-spark":
        yield "time: extraction first, then training; not measured on this machine"
    else:
        yield from _training_time(recipe, steps * recipe.seq_len / 4096)
    if recipe.deterministic:
        yield (
            f"time: deterministic=true is not counted above; on an H200 (ttt_steps 3) the step "
            f"alone takes {DETERMINISTIC_BARE} times as long, and the trainer's took "
            f"{DETERMINISTIC_TRAINER:.2f} times, with ranges that overlap, before the patch "
            "unlocked_batch_release"
        )
    memory = 121e9 if preset == "dgx-spark" else 80e9
    trainer = (
        f"trainer about {device_bytes(recipe.ttt_steps, recipe.seq_len) / 1e9:.1f} GB "
        f"(ttt_steps={recipe.ttt_steps}, seq_len={recipe.seq_len}; from peaks on an H100)"
    )
    vllm = (
        f"vLLM {memory * recipe.train_vllm_share / 1e9:.0f} GB of {memory / 1e9:.0f} GB "
        f"(train_vllm_share={recipe.train_vllm_share}; the body's weights take about "
        f"{BODY_FP8_BYTES / 1e9:.0f} GB of it)"
    )
    yield f"memory: {vllm}{', then, alone, ' if offline else ', beside it the '}{trainer}"
    token_bytes = HIDDEN_BYTES * (len(recipe.target_layers) + 1)
    if offline:
        yield f"disk: {tokens_of(recipe) * token_bytes / 1e12:.1f} TB of hidden states"
    else:
        yield (
            f"disk: hidden states pass through at {token_bytes / 1000:.1f} kB a token and are "
            "deleted once read; files of aborted requests are swept"
        )
    drafted = recipe.num_speculative_tokens
    if recipe.drafter_kind != "eagle3":
        yield (
            f"kind: times, memory and sizes here are an eagle3 drafter's; a {recipe.drafter_kind} "
            "one's are not measured"
        )
    elif drafted > recipe.ttt_steps:
        yield (
            f"positions: {drafted} are drafted in serve and {recipe.ttt_steps} trained; "
            f"ttt_steps={drafted} would train all, with "
            f"{device_bytes(drafted, recipe.seq_len) / 1e9:.1f} GB and steps that alone are "
            f"{step_factor(drafted) / step_factor(recipe.ttt_steps):.1f} "
            "times as long (what that brings: benchmarks/README.md)"
        )
    exact = recipe.checkpoint_keep + 1
    yield (
        f"disk: {EXACT_CHECKPOINT_BYTES * exact / 1e9:.1f} GB of exact checkpoints "
        f"(checkpoint_keep={recipe.checkpoint_keep} and the best), "
        f"{CHECKPOINT_BYTES * recipe.epochs / 1e9:.1f} GB of epoch folders for vLLM, "
        f"{DRAFTER_BYTES / 1e9:.1f} GB the started drafter"
    )


def calibrate(recipe: Recipe, *, real: bool) -> Iterator[str]:
    """What the served drafter's head is divided by, and what finding that costs."""
    if recipe.head_temperature == 1:
        yield "head temperature 1: the drafter is served as it was trained, nothing is made"
        return
    if recipe.head_temperature != "auto":
        yield (
            f"head temperature {recipe.head_temperature:g}, as set: a copy of the trained drafter "
            "with its head divided by that"
        )
    elif quick := changes_nothing(recipe):
        yield f"head temperature 1: {quick}; nothing is made"
        return
    else:
        yield (
            f"head temperature by at most {recipe.calibrate_prompts} answers of the body to "
            f"held-out conversations, one after the other, at serve_temperature="
            f"{recipe.serve_temperature:g}: up to "
            f"{recipe.calibrate_prompts * recipe.bench_max_tokens} tokens, and "
            f"{len(TEMPERATURES)} temperatures judged by them; 1, and no copy, unless one is shown "
            "to be better" + ("; time: not measured at this size" if real else "")
        )
    if not real:
        return
    yield (
        f"disk: {DRAFTER_BYTES / 1e9:.1f} GB for the copy; memory in service: none, unless the "
        "drafter has the body's whole vocabulary, where vLLM shares equal heads and these differ"
    )


def serve(recipe: Recipe) -> Iterator[str]:
    """How production will draft, and what drafts drawn from a distribution keep in memory."""
    if recipe.draft_sample_method == "greedy" or recipe.serve_temperature == 0:
        return
    drafts = recipe.num_speculative_tokens * VOCABULARY
    yield (
        f"memory: probabilistic drafts (draft_sample_method={recipe.draft_sample_method}): vLLM's "
        f"V2 runner reserves {recipe.num_speculative_tokens} x {VOCABULARY} bfloat16 logits for "
        f"each of max_num_seqs requests, {2 * drafts * MAX_NUM_SEQS / 1e9:.1f} GB for the default "
        f"of {MAX_NUM_SEQS} (lower: --set vllm_extra=--max-num-seqs,16); V1 keeps "
        f"{4 * drafts / 2**20:.0f} MiB of float32 a request (from vLLM's source, not measured)"
    )

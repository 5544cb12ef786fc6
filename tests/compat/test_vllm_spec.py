"""What `recipes.vllm` decides without a server: command lines, counters, errors, the text check."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from recipes.vllm.errors import ServerError, cause_in_log
from recipes.vllm.metrics import parse_counters
from recipes.vllm.sampling_check import LIMIT, Token, z_score
from recipes.vllm.spec import Installed, ServerSpec, command

GPU = Installed(Version("0.32.0"), cpu=False)
CPU = Installed(Version("0.32.0"), cpu=True)
EXTRACTING = ServerSpec(
    "x", "m", extraction_layers=(2, 15, 27, 30), extraction_folder=Path("/states"), render=True
)


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_on_a_gpu_it_is_plain_vllm_whose_connector_outlives_an_abandoned_request() -> None:
    argv = command(EXTRACTING, GPU)
    assert argv[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert "--enforce-eager" not in argv
    assert value(argv, "--gpu-memory-utilization") == "0.9"
    transfer = json.loads(value(argv, "--kv-transfer-config"))
    assert transfer["kv_connector"] == "HiddenStatesConnector"
    assert transfer["kv_connector_module_path"] == "recipes.hidden_states"


def test_on_a_cpu_it_is_patched_and_has_our_connector() -> None:
    argv = command(EXTRACTING, CPU)
    assert argv[1:6] == ["-m", "speculators_patches", "run", "--only", "vllm_cpu_sampling"]
    assert "--gpu-memory-utilization" not in argv
    transfer = json.loads(value(argv, "--kv-transfer-config"))
    assert transfer["kv_connector_module_path"] == "recipes.cpu_hidden_states"


def test_the_render_flag_is_given_only_where_it_exists() -> None:
    assert "--enable-scale-out" in command(EXTRACTING, GPU)
    older = Installed(Version("0.28.0"), cpu=False, render_flag=False)
    assert "--enable-scale-out" not in command(EXTRACTING, older)


def test_drafting_and_extracting_exclude_each_other() -> None:
    with pytest.raises(ServerError, match="cannot both draft and extract"):
        ServerSpec(
            "x", "m", speculative_config={"method": "eagle3"}, extraction_layers=(1,),
            extraction_folder=Path("f"),
        )  # fmt: skip


def metrics(drafts: int, accepted: tuple[int, ...]) -> str:
    rows = [
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{at}"}} {n}'
        for at, n in enumerate(accepted)
    ]
    name = "vllm:spec_decode_num_accepted_tokens_per_pos"
    return "\n".join(
        [
            "# TYPE vllm:spec_decode_num_drafts counter",
            f'vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}',
            "# TYPE vllm:spec_decode_num_accepted_tokens counter",
            f'vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {sum(accepted)}',
            f"# TYPE {name} counter",
            *rows,
            "",
        ]
    )


def test_acceptance_of_a_difference() -> None:
    spent = parse_counters(metrics(110, (90, 45, 9))) - parse_counters(metrics(10, (10, 5, 1)))
    assert spent.acceptance == (0.8, 0.4, 0.08)
    assert spent.conditional_acceptance == (0.8, 0.5, 0.2)
    assert spent.mean_accepted_length == pytest.approx(2.28)


def test_without_a_drafter_there_is_no_acceptance() -> None:
    none = parse_counters("")
    assert (none.drafts, none.acceptance, none.mean_accepted_length) == (0, (), None)


def answer(draw_at: float, chooser: random.Random, tokens: int = 144) -> list[Token]:
    """Tokens drawn at `draw_at` from random peaky distributions over 300 words."""
    out = []
    for _ in range(tokens):
        logits = [chooser.gauss(0, 3) for _ in range(300)]
        whole = math.log(sum(math.exp(x) for x in logits))
        logprobs = [x - whole for x in logits]
        weights = [math.exp(x / draw_at) for x in logprobs]
        top = tuple(sorted(logprobs, reverse=True)[:20])
        out.append(Token(chooser.choices(logprobs, weights)[0], top))
    return out


@pytest.mark.parametrize(
    ("draw_at", "honest"),
    [(0.7, lambda z: abs(z) < 5), (1e6, lambda z: z < LIMIT), (1.3, lambda z: z < LIMIT)],
    ids=["as asked", "uniform", "too hot"],
)
def test_the_text_check_tells_drawn_from_garbage(
    draw_at: float, honest: Callable[[float], bool]
) -> None:
    assert honest(z_score(answer(draw_at, random.Random(1)), 0.7, 300))


def test_a_chosen_token_without_a_probability_is_garbage() -> None:
    assert z_score([Token(float("nan"), (-0.1,))], 0.7, 300) == -math.inf


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("api_server: error: unrecognized arguments: --swap-space 4", "--swap-space 4"),
        ("OSError: [Errno 98] Address already in use", "port was taken"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "ran out of memory"),
        ("(EngineCore pid=1) ERROR x [core.py:9] ValueError: odd thing", "ValueError: odd thing"),
    ],
)
def test_causes_are_recognised_in_a_log(line: str, said: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"INFO start\n{line}\nTraceback\n")
    assert said in (cause_in_log(log) or "")

"""How drafts are drawn: what vLLM would ignore is refused, and `auto` follows the run's bench."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from packaging.version import Version

from benchmarks.schema import ArmSpec, RequestRow, Results, dumps
from recipes.calibrate_stage import made_of
from recipes.config import Recipe
from recipes.drafting_choice import choose, from_bench
from recipes.run_folder import RunFolder
from recipes.server_specs import production_server
from recipes.vllm import cpu_entry, drafting
from recipes.vllm.errors import ServerError
from recipes.vllm.spec import Installed, ServerSpec, arguments, command

CPU = Installed(Version("0.32.0"), cpu=True)
GPU = Installed(Version("0.32.0"), cpu=False)
EAGLE = {"method": "eagle3", "model": "D", "num_speculative_tokens": 4}
BLOCK = {**EAGLE, "rejection_sample_method": "block"}
DRAWN = {**EAGLE, "draft_sample_method": "probabilistic"}
BOTH = {**BLOCK, "draft_sample_method": "probabilistic"}


@pytest.mark.parametrize(("config", "lost"), [(BLOCK, "token by token"), (BOTH, "drafts greedily")])
def test_what_the_v1_runner_ignores_is_refused(
    config: dict[str, object], lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    spec = ServerSpec("s", "m", speculative_config=config)
    command(spec, GPU)  # V2, as far as one can tell beforehand
    first = dataclasses.replace(spec, env={"VLLM_USE_V2_MODEL_RUNNER": "0"})
    with pytest.raises(ServerError, match=f"VLLM_USE_V2_MODEL_RUNNER=0.*{lost}"):
        command(first, GPU)
    command(spec, CPU)  # V1, which is patched


@pytest.mark.parametrize("config", [BLOCK, BOTH])
def test_on_a_cpu_the_v1_runner_is_patched_or_the_server_ends(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(ServerSpec("s", "m", speculative_config=config), CPU)
    assert drafting.block_config(given) == config
    monkeypatch.setattr(drafting, "verify_blocks", lambda: False)
    with pytest.raises(SystemExit, match=r"has no effect here.*\(a CPU\)"):
        cpu_entry.serve(given, 1)
    for other in (None, EAGLE):
        spec = ServerSpec("s", "m", speculative_config=other)
        assert drafting.block_config(arguments(spec, CPU)) is None


def test_what_works_is_not_refused() -> None:
    timed = {**EAGLE, "rejection_sample_method": "synthetic"}
    for config in (None, EAGLE, DRAWN, timed):
        assert drafting.ignored(config, cpu=True, env={}) is None
        assert drafting.on_v1(config, "why") is None
        assert drafting.not_on_v2(config, "") is None


@pytest.mark.parametrize(
    ("log", "says"),
    [
        # As vLLM 0.26 to 0.28 do for Gemma 4 26B-A4B: V1, and not a word of it.
        ("Loading weights took 3 s", "does not say 'Using V2 Model Runner'; vLLM before 0.29"),
        ("Model Runner V2 does not yet support parallel drafting for EAGLE speculative decoding; "
         "using the V1 model runner instead.", "its log says why"),
    ],
)  # fmt: skip
def test_on_a_gpu_only_a_log_that_says_v2_will_do(log: str, says: str) -> None:
    for config in (BLOCK, BOTH, {**DRAWN, "rejection_sample_method": "synthetic"}):
        assert says in (drafting.not_on_v2(config, log) or "")
        assert drafting.not_on_v2(config, f"INFO [gpu_worker.py:518] Using V2 Model Runner\n{log}"
                                  ) is None  # fmt: skip


def test_synthetic_acceptance_loses_drawn_drafts_on_v1() -> None:
    config = {**DRAWN, "rejection_sample_method": "synthetic"}
    spec = ServerSpec("s", "m", speculative_config=config, env={"VLLM_USE_V2_MODEL_RUNNER": "0"})
    with pytest.raises(ServerError, match=r"probabilistic has no effect.*drafts greedily"):
        command(spec, GPU)


@pytest.mark.parametrize("method", ["ngram", "suffix", "medusa"])
@pytest.mark.parametrize("vllm", [CPU, GPU])
def test_drafts_without_a_distribution_cannot_be_drawn(method: str, vllm: Installed) -> None:
    config = {"method": method, "num_speculative_tokens": 3}
    command(ServerSpec("s", "m", speculative_config=config), vllm)
    drawn = {**config, "draft_sample_method": "probabilistic"}
    with pytest.raises(ServerError, match=f"no effect with method={method}"):
        command(ServerSpec("s", "m", speculative_config=drawn), vllm)


@pytest.mark.parametrize("named", [{"model": "ngram"}, {"model": "[ngram]"}, {"method": "[ngram]"}])
def test_ngram_lookup_is_known_by_every_name_that_vllm_knows(named: dict[str, str]) -> None:
    drawn = {**named, "num_speculative_tokens": 3, "draft_sample_method": "probabilistic"}
    with pytest.raises(ServerError, match="no effect with method=ngram"):
        command(ServerSpec("s", "m", speculative_config=drawn), CPU)


@pytest.mark.parametrize(
    "flags",
    [("--speculative-config", "{}"), ("--speculative_config={}",), ("-sc", "{}"),
     ("--speculative-config.rejection_sample_method", "block"),
     ("--spec-method", "ngram"), ("--spec_model=D",), ("--spec-tokens", "4")],
)  # fmt: skip
def test_a_config_among_other_flags_is_not_overlooked(flags: tuple[str, ...]) -> None:
    for vllm in (CPU, GPU):
        with pytest.raises(ServerError, match="is not seen"):
            command(ServerSpec("s", "m", extra_args=flags), vllm)
        command(ServerSpec("s", "m", extra_args=("--max-num-seqs", "4")), vllm)


RECIPE = dataclasses.replace(Recipe(), num_speculative_tokens=4, serve_temperature=0.6)
ARMS = (
    ArmSpec("d", 4, EAGLE),
    ArmSpec("d, probabilistic", 4, {**EAGLE, "draft_sample_method": "probabilistic"}),
    ArmSpec("other", 4, {**EAGLE, "model": "E", "draft_sample_method": "probabilistic"}),
)


def bench(speeds: dict[tuple[str, float], float]) -> Results:
    """Twelve prompts an arm and temperature, at those tok/s give or take a little."""
    rows = [
        RequestRow(
            f"p{k}", "w", "short", arm, 4, temperature, 1, 0, 0, "text", "stop", 9, 50, 0.0,
            50 / speed * (1 + 0.02 * (k % 3)),
        )
        for (arm, temperature), speed in speeds.items()
        for k in range(12)
    ]  # fmt: skip
    return Results("now", "chat", "B", {}, {}, ARMS, tuple(rows))


@pytest.mark.parametrize(
    ("speeds", "method", "says"),
    [
        ({("d", 0.7): 100, ("d, probabilistic", 0.7): 130}, "probabilistic", "T = 0.7"),
        ({("d", 0.7): 100, ("d, probabilistic", 0.7): 100}, "greedy", "does not show"),
        ({("d", 0.7): 130, ("d, probabilistic", 0.7): 100}, "greedy", "0.77 times"),
        # The nearest temperature decides, not the other one.
        (
            {("d", 0.5): 100, ("d, probabilistic", 0.5): 90, ("d", 1.0): 100,
             ("d, probabilistic", 1.0): 200},
            "greedy", "T = 0.5",
        ),
        ({("d", 0.7): 100}, "greedy", "compares no probabilistic"),
        ({("d", 0.7): 100, ("other", 0.7): 300}, "greedy", "compares no probabilistic"),
        ({("d", 0.0): 100, ("d, probabilistic", 0.0): 300}, "greedy", "compares no probabilistic"),
    ],
)  # fmt: skip
def test_auto_is_what_the_bench_showed(
    speeds: dict[tuple[str, float], float], method: str, says: str
) -> None:
    chosen = from_bench(bench(speeds), Path("D"), RECIPE)
    assert chosen.method == method
    assert says in chosen.reason
    config = production_server(RECIPE, Path("D"), chosen.method).speculative_config or {}
    assert config.get("draft_sample_method", "greedy") == method


def test_before_the_head_is_divided_no_bench_is_of_the_drafter_that_is_served(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    for name in ("train", "bench"):
        run.begin(name, {})
        run.finish(name, {}, 1.0, drafter="train/0", output="weights")
    (tmp_path / "bench" / "results.json").write_text(dumps(bench({("d", 0.7): 100})))
    recipe = dataclasses.replace(RECIPE, head_temperature=0.8)
    chosen = choose(recipe, run)
    assert chosen.method == "greedy"
    assert "run `calibrate`" in chosen.reason


def test_a_bench_of_a_copy_at_another_temperature_is_not_of_this_one(tmp_path: Path) -> None:
    """Both copies are calibrate/drafter."""
    run, drafter = RunFolder(tmp_path), tmp_path / "calibrate" / "drafter"
    arms = tuple(
        dataclasses.replace(a, speculative_config={**(a.speculative_config or {}),
                                                   "model": str(drafter)}) for a in ARMS
    )  # fmt: skip
    results = bench({("d", 0.7): 100, ("d, probabilistic", 0.7): 130})
    run.begin("train", {})
    run.finish("train", {}, 1.0, drafter="train/0", output="weights")
    for temperature, benched in ((0.8, True), (0.9, False)):
        recipe = dataclasses.replace(RECIPE, head_temperature=temperature)
        made = made_of(recipe, run)
        run.begin("calibrate", made)
        run.finish("calibrate", made, 1.0, drafter="calibrate/drafter", output=f"at {temperature}")
        if benched:
            of = {"drafter": f"at {temperature}"}
            run.begin("bench", of)
            run.finish("bench", of, 1.0)
            text = dumps(dataclasses.replace(results, arms=arms))
            (tmp_path / "bench" / "results.json").write_text(text)
        chosen = choose(recipe, run)
        assert chosen.method == ("probabilistic" if benched else "greedy"), chosen.reason
    assert "of another drafter" in chosen.reason

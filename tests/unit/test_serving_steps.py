"""Break-even rows from timed engines: which is compared with which, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.random_body import write_body, write_drafter
from benchmarks.serving_costs import Engine, costs, disturbed, speculation
from benchmarks.serving_steps import done_before


def timed(n: int, kv: str, step_s: float, draft_s: float = 0.0, c: int = 1) -> dict[str, Any]:
    row = {"concurrency": c, "step_s": step_s, "draft_s": draft_s}
    return {"engine": {"n": n, "drafting": "greedy", "kv": kv}, "rows": [row]}


def test_each_engine_stands_beside_the_plain_one_of_its_kv_cache() -> None:
    found = costs(
        [
            timed(0, "fp8", 0.010), timed(2, "fp8", 0.015, 0.003), timed(2, "auto", 0.020, 0.004),
            timed(0, "auto", 0.012), timed(4, "fp8", 0.018, 0.005, c=8),
            {"engine": {"n": 1, "drafting": "greedy", "kv": "fp8"}, "error": ["it died"]},
        ],
        0.7,
    )  # fmt: skip
    assert [(c["arm"], c["n"], c["base_s"]) for c in found] == [
        ("greedy, fp8 KV", 2, 0.010), ("greedy, auto KV", 2, 0.012),
    ]  # fmt: skip
    assert found[0]["verify_s"] == pytest.approx(0.012)
    assert found[0]["relative"] == pytest.approx(1.5)
    # 1 + c + c^2 = 1.5 at c = (sqrt(3) - 1) / 2.
    assert found[0]["needed"] == pytest.approx(0.3660254)


def test_the_devices_own_work_is_a_cost_of_its_own() -> None:
    plain, two = timed(0, "fp8", 0.011), timed(2, "fp8", 0.045, 0.020)
    assert costs([plain, two], 0.7, device=True) == []  # no profile, as on a CPU
    plain["rows"][0]["busy_s"], two["rows"][0]["busy_s"] = 0.010, 0.015
    # Drafting as events time it is longer here than all of the device's work: it waited in between.
    (found,) = costs([plain, two], 0.7, device=True)
    assert (found["base_s"], found["verify_s"], found["draft_s"]) == (0.010, 0.015, 0)
    assert found["needed"] == pytest.approx(0.3660254)  # 1 + c + c^2 = 1.5
    assert "the device's own work" in found["how"]
    # A step that took longer than one with more to do is no cost, but the work in it is one.
    four = timed(4, "fp8", 0.020)
    four["rows"][0]["busy_s"] = 0.018
    assert [cost["n"] for cost in costs([plain, two, four], 0.7)] == [4]
    assert [cost["n"] for cost in costs([plain, two, four], 0.7, device=True)] == [2, 4]


def test_a_step_that_took_longer_with_fewer_requests_is_no_cost() -> None:
    def engine(n: int, *step_s: float) -> dict[str, Any]:
        cells = [
            timed(n, "fp8", step, 0.001 * n, c) for c, step in zip((1, 2, 4), step_s, strict=True)
        ]
        return cells[0] | {"rows": [row for cell in cells for row in cell["rows"]]}

    plain, one, two = (
        engine(0, 0.0040, 0.0045, 0.0050),
        engine(1, 0.0110, 0.0075, 0.0074),  # at 1 request longer than at 2; 4 as long as 2: noise
        engine(2, 0.0085, 0.0086, 0.0095),
    )
    assert disturbed([plain, one, two]) == {(Engine(1), 1)}
    # Drafting is no verifying: two drafts a step take longer, and that is no disturbance.
    rows = [(cost["n"], cost["concurrency"]) for cost in costs([plain, one, two], 0.7)]
    assert rows == [(1, 2), (1, 4), (2, 1), (2, 2), (2, 4)]
    # With more to verify it took less: the engine with fewer drafts was held up.
    assert disturbed([plain, engine(1, 0.0120, 0.0130, 0.0140), two]) == {
        (Engine(1), 1), (Engine(1), 2), (Engine(1), 4),
    }  # fmt: skip
    # Another type of cache is another work.
    assert disturbed([timed(0, "auto", 0.010), timed(1, "fp8", 0.006, 0.001)]) == set()


def test_the_synthetic_rates_are_those_of_one_conditional_acceptance(tmp_path: Path) -> None:
    asked = speculation(Engine(3), tmp_path, 0.5)
    assert asked is not None
    assert asked["synthetic_acceptance_rates"] == [0.5, 0.25, 0.125]
    # vLLM's V1 runner drafts greedily under the synthetic rule, whatever is asked.
    asked = speculation(Engine(3, "probabilistic"), tmp_path, 0.5)
    assert asked is not None
    assert asked["draft_sample_method"] == "probabilistic"
    assert "rejection_sample_method" not in asked
    assert speculation(Engine(0), tmp_path, 0.5) is None
    assert "rejection_sample_method" not in (speculation(Engine(3), tmp_path, 0) or {})


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("4", Engine(4)), ("0::auto", Engine(0, "greedy", "auto")),
        ("4:probabilistic", Engine(4, "probabilistic", "fp8")),
    ],
)  # fmt: skip
def test_an_engine_is_written_in_short(text: str, engine: Engine) -> None:
    assert Engine.parse(text) == engine


@pytest.mark.parametrize("text", ["", "four", "-1", "4:block", "4:greedy:fp8:standard"])
def test_an_engine_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected n"):
        Engine.parse(text)


def test_engines_are_kept_only_of_the_same_measurement(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    failed = {"engine": {"n": 1}, "error": ["it died"]}
    good = timed(2, "fp8", 0.015)
    record = {"device": "cpu", "settings": {"acceptance": 0.7}}
    path.write_text(json.dumps(record | {"engines": [failed, good]}))
    assert done_before(path, record) == [good]
    with pytest.raises(SystemExit, match=r"its device is cpu, this run's an H100"):
        done_before(path, record | {"device": "an H100"})


def test_the_body_is_gemma_4_s_shape(tmp_path: Path) -> None:
    config = json.loads((write_body(tmp_path / "body") / "config.json").read_text())
    kinds = config["layer_types"]
    assert (len(kinds), kinds.count("full_attention"), kinds[5]) == (30, 5, "full_attention")
    layer = 3 * 2816 * 2112 + 128 * 3 * 2816 * 704
    assert 20e9 < 30 * layer < 30e9
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    with pytest.raises(ValueError, match="at least 7"):
        write_drafter(tmp_path / "short", layers=6)
    drafter = json.loads((write_drafter(tmp_path / "drafter") / "config.json").read_text())
    assert drafter["eagle_aux_hidden_state_layer_ids"] == [2, 15, 27]

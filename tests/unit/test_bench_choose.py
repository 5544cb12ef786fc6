"""Best n, the config that vLLM takes, and the break-even curve with its inverse."""

from __future__ import annotations

import json
import shlex
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.break_even import (
    BreakEvenError,
    StepCost,
    acceptance_needed,
    curve,
    speedup,
    tokens_per_step,
)
from benchmarks.choose import (
    Choice,
    ChoiceError,
    Measured,
    as_flag,
    choose_all,
    choose_n,
    speculative_config,
)
from benchmarks.stats import Interval

COSTS = st.builds(
    StepCost,
    n=st.integers(1, 8),
    concurrency=st.just(1),
    base_s=st.floats(0.001, 1),
    verify_s=st.floats(0.001, 2),
    draft_s=st.floats(0, 1),
)


def row(n: int, value: float, half: float = 0.05, *, refused: bool = False, c: int = 1) -> Measured:
    seen = Interval(value, value - half, value + half, half / 2, 40)
    return Measured("B", n, "english", c, seen, "degenerate text" if refused else "")


def choice(concurrency: int, n: int) -> Choice:
    return Choice("B", "english", concurrency, n, None, "")


def test_the_fastest_n_is_chosen() -> None:
    found = choose_n([row(1, 1.2), row(2, 1.4), row(3, 1.6), row(4, 1.3)])
    assert found.n == 3
    assert "1.60x" in found.reason


def test_among_equals_the_smallest_n_is_chosen() -> None:
    found = choose_n([row(1, 1.2), row(2, 1.57), row(3, 1.6), row(4, 1.59)])
    assert found.n == 2
    assert "n = 3 reached 1.60x, not shown to be faster" in found.reason


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row(1, 1.02), row(2, 0.9)], "no speedup is shown"),
        ([row(1, 0.8), row(2, 0.7)], "is slower"),
        ([row(1, 2.0, refused=True)], "n = 1 refused: degenerate text"),
        ([Measured("B", 1, "english", 1, Interval(2, 1.9, 2.1, 0.1, 4))], "fewer than 8 prompts"),
    ],
)
def test_not_speculating_is_an_answer(rows: list[Measured], says: str) -> None:
    found = choose_n(rows)
    assert found.n == 0
    assert found.speedup is None
    assert found.reason.startswith("do not speculate here")
    assert says in found.reason


def test_a_refused_arm_is_never_chosen() -> None:
    assert choose_n([row(1, 1.2), row(4, 3.0, refused=True)]).n == 1


def test_choices_are_made_apart() -> None:
    found = choose_all([row(1, 1.2), row(2, 1.5), row(1, 0.9, c=8), row(2, 0.7, c=8)])
    assert [(c.concurrency, c.n) for c in found] == [(1, 2), (8, 0)]
    with pytest.raises(ChoiceError, match="at a time"):
        choose_n([row(1, 1.2), row(1, 1.2, c=8)])


def test_one_n_everywhere_needs_no_schedule() -> None:
    base = {"method": "eagle3", "model": "drafter", "num_speculative_tokens": 9}
    config = speculative_config(base, [choice(1, 3), choice(8, 3)])
    assert config == {"method": "eagle3", "model": "drafter", "num_speculative_tokens": 3}
    assert speculative_config(base, [choice(1, 0), choice(8, 0)]) is None
    assert "do not speculate here" in as_flag(None)
    words = shlex.split(as_flag({**(config or {}), "model": "it's here"}))
    assert words[0] == "--speculative-config"
    assert json.loads(words[1])["model"] == "it's here"


def test_a_schedule_covers_every_batch_size_once() -> None:
    config = speculative_config({}, [choice(8, 1), choice(1, 4), choice(2, 4), choice(32, 0)])
    assert config is not None
    assert config["num_speculative_tokens"] == 4
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 4, 4], [5, 16, 1], [17, 1024, 0]]
    with pytest.raises(ChoiceError, match="one choice a concurrency"):
        speculative_config({}, [choice(1, 2), choice(1, 3)])


@cache
def vllm_schedules() -> Any:
    """The installed vLLM's reader of schedules; its file alone, since importing vLLM takes 15 s."""
    found = find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    path = Path(found.origin).parent / "v1" / "spec_decode" / "dynamic" / "utils.py"
    spec = spec_from_file_location("vllm_dynamic_schedules", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from([1, 2, 3, 4, 8, 16, 64]), st.integers(0, 5), min_size=1).filter(
        lambda d: max(d.values()) > 0
    )
)
def test_vllm_reads_each_measured_concurrency_as_chosen(chosen: dict[int, int]) -> None:
    dynamic = vllm_schedules()
    config = speculative_config({}, [choice(c, n) for c, n in chosen.items()])
    assert config is not None
    schedule = config.get("num_speculative_tokens_per_batch_size")
    if schedule is None:
        assert set(chosen.values()) == {config["num_speculative_tokens"]}
        return
    table = dynamic.build_dynamic_sd_schedule_lookup(
        schedule, 256, config["num_speculative_tokens"]
    )
    assert {c: table[c] for c in chosen} == chosen


def test_break_even_by_hand() -> None:
    cost = StepCost(n=1, concurrency=1, base_s=0.010, verify_s=0.011, draft_s=0.002)
    assert speedup(cost, 0.5) == pytest.approx(1.5 / 1.3)
    assert speedup(cost, [0.5]) == pytest.approx(1.5 / 1.3)
    assert acceptance_needed(cost) == pytest.approx(0.3)
    # The published vanilla acceptance, if a step of n = 4 cost 1.5 plain steps.
    deep = StepCost(n=4, concurrency=1, base_s=1, verify_s=1.3, draft_s=0.2)
    assert speedup(deep, [0.656, 0.433, 0.292, 0.205]) == pytest.approx(2.586 / 1.5)
    assert tokens_per_step(0.5, 2) == 1.75


@given(COSTS, st.floats(0, 1), st.floats(0, 1))
def test_speedup_rises_with_acceptance(cost: StepCost, a: float, b: float) -> None:
    assert speedup(cost, min(a, b)) <= speedup(cost, max(a, b)) * (1 + 1e-12)
    assert [x for x, _ in curve(cost)] == sorted(x for x, _ in curve(cost))


@given(COSTS, st.floats(0.2, 4))
def test_the_acceptance_needed_gives_the_speedup(cost: StepCost, target: float) -> None:
    needed = acceptance_needed(cost, target)
    if needed is None:
        assert speedup(cost, 1.0) < target
    elif needed == 0:
        assert speedup(cost, 0.0) >= target
    else:
        assert speedup(cost, needed) == pytest.approx(target)
    assert StepCost.from_json(cost.to_json()) == cost


def test_costs_and_rates_that_cannot_be_are_refused() -> None:
    with pytest.raises(BreakEvenError, match="times above 0"):
        StepCost(n=1, concurrency=1, base_s=0, verify_s=1, draft_s=0)
    with pytest.raises(BreakEvenError, match="n >= 1"):
        StepCost(n=0, concurrency=1, base_s=1, verify_s=1, draft_s=0)
    cost = StepCost(n=2, concurrency=1, base_s=1, verify_s=1, draft_s=0)
    with pytest.raises(BreakEvenError, match=r"0\.\.1"):
        speedup(cost, 1.2)
    with pytest.raises(BreakEvenError, match="Expected 2 rates"):
        speedup(cost, [0.5])

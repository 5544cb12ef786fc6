"""A changed setting runs again what depends on it, and nothing else.

The stages' own code says what each was made from; the work itself is left out, and stands for a
result that is a function of what it was made from. So this is the question of a run folder and six
stages, for any sequence of changes, interruptions and changes back.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes import bench_stage, calibrate_stage, prepare_stage, regenerate_stage, stages
from recipes.config import Recipe
from recipes.display import Display
from recipes.run_folder import RunFolder, digest
from recipes.servers import ServerPool
from recipes.stage import Context, stage

ORDER = ("regenerate", "prepare", "train", "calibrate", "bench", "serve")
AFTER = {
    "regenerate": set(ORDER),
    "prepare": {"prepare", "train", "calibrate", "bench", "serve"},
    "train": {"train", "calibrate", "bench", "serve"},
    "calibrate": {"calibrate", "bench", "serve"},
    "bench": {"bench"},
    "serve": {"serve"},
    "": set(),
}
# setting -> (another value, the stages that it goes into directly). Every setting has a row.
DIRECTLY: dict[str, tuple[Any, str]] = {
    "body": ("another/body", "regenerate prepare train bench serve"),
    "draft_start": ("another/drafter", "train bench"),
    "drafter_kind": ("peagle", "train bench serve"),
    "mask_token_id": (5, ""),  # with another drafter_kind: train
    "draft_vocab_size": (77, "train"),
    "target_layers": ((1, 2, 3), "train"),
    "body_layers": (31, "train"),
    "prompts": ("ultrachat", "regenerate"),
    "samples": (7, "regenerate"),
    "regenerate_max_tokens": (99, "regenerate"),
    "regenerate_sampling": ('{"temperature": 1.0}', "regenerate"),
    "regenerate_system_prompt": ("Be brief.", "regenerate"),
    "thinking": (True, "regenerate bench serve"),
    "regenerate_concurrency": (3, ""),
    "regenerate_connect_timeout": (3.0, ""),
    "regenerate_read_timeout": (3.0, ""),
    "regenerate_server_wait": (3.0, ""),
    "regenerate_error_share": (0.5, ""),
    "prepare_drop_share": (0.5, ""),
    "seq_len": (2048, "prepare train"),
    "minimum_valid_tokens": (5, "prepare"),
    "epochs": (2, "train"),
    "optimizer": ("muon", "train"),
    "lr": (5e-4, "train"),
    "scheduler": ("linear", "train"),
    "ttt_steps": (4, "train"),
    "train_share": (0.8, "train"),
    "best_by": ("greedy-tokens", "train"),
    "seed": (1, "prepare train bench"),
    "num_workers": (2, ""),
    "loss_implementation": ("eager", ""),
    "deterministic": (True, ""),
    "log_every": (5, ""),
    "hidden_states": ("offline", "train"),
    "request_timeout": (9.0, ""),
    "max_retries": (1, ""),
    "hidden_states_dtype": ("float32", "train"),
    "checkpoint_every_minutes": (1.0, ""),
    "checkpoint_every_steps": (5, ""),
    "checkpoint_keep": (5, ""),
    "checkpoint_keep_every": (5, ""),
    "train_extra": (("--grad-clip", "1"), "train"),
    "trainers": (2, "train"),
    "producers": (2, ""),
    "transfer": ("mooncake", ""),
    "hosts": (("a",), ""),
    "host_gpus": (4, ""),
    "network_gbit": (1.0, ""),
    "disk_mb": (1.0, ""),
    "trainer_tokens_s": (1.0, ""),
    "max_restarts": (0, ""),
    "rendezvous_port": (1234, ""),
    "dtype": ("float32", "regenerate train bench serve"),
    "train_vllm_share": (0.4, ""),
    "train_max_model_len": (5000, ""),
    "bench_vllm_share": (0.8, "bench"),
    "bench_max_model_len": (4096, "regenerate bench"),
    "serve_max_model_len": (4096, "serve"),
    "kv_cache_dtype": ("auto", "regenerate bench serve"),
    "prefix_caching": (False, "bench serve"),
    "tool_parser": ("", "serve"),
    "serve_port": (8001, "serve"),
    # The bench asks the probabilistic arm at this n.
    "num_speculative_tokens": (2, "bench serve"),
    "draft_sample_method": ("greedy", "bench"),
    "head_temperature": (0.8, "calibrate"),
    "calibrate_prompts": (5, ""),  # with head_temperature=auto: calibrate
    "vllm_extra": (("--enforce-eager",), "regenerate train bench serve"),
    "start_timeout": (60.0, ""),
    "regenerate_endpoint": ("http://127.0.0.1:1", ""),
    "train_endpoint": ("http://127.0.0.1:1", ""),
    "mooncake_master": ("127.0.0.1:1", ""),
    "mooncake_port": (50052, ""),
    "mooncake_segment_gib": (1.0, ""),
    "bench_n": ((0, 1), "bench"),
    "bench_prompts_each": (3, "bench"),
    "bench_concurrency": ((2,), "bench"),
    "bench_blocks": (3, "bench"),
    "bench_probabilistic": (True, "bench"),
    "bench_mtp": ("", "bench"),
    "bench_dflash": ("", "bench"),
    "bench_temperatures": ((0.0,), "bench"),
    "bench_max_tokens": (100, "bench"),
}
# Needs a file of its own; is in the production command of a GPU only; needs trainers above 1;
# decides with a bench's help.
LEFT_OUT = {"bench_prompts", "serve_vllm_share", "fsdp", "serve_temperature"}
# Of the watched producer: how patient, not what is learnt.
PATIENCE = {name for name in Recipe.__dataclass_fields__ if name.startswith("producer_")}


class Stopped(BaseException):
    """Instead of a stage's work; no Exception, as an interrupt is none."""


def run_all(
    run: RunFolder, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, upto: int = len(ORDER)
) -> set[str]:
    """The stages that had to run; after `upto` of these the run is interrupted."""
    ran: list[str] = []
    display = Display()

    @contextmanager
    def instead(ctx: Context, name: str, made_from: dict[str, Any]) -> Iterator[None]:
        with stage(ctx, name, made_from) as work:
            if work is not None:
                if len(ran) == upto:
                    raise KeyboardInterrupt
                ran.append(name)
                made = digest(made_from)
                work.finish(output=made, rows=99, drafter=f"train/{made}")
        raise Stopped

    for module in (stages, bench_stage, calibrate_stage, prepare_stage, regenerate_stage):
        monkeypatch.setattr(module, "stage", instead)
    pool = ServerPool(run.root / "logs", display.note)
    for name in ORDER:
        try:
            stages.STAGES[name](Context(recipe, run, display, pool))
        except Stopped:
            continue
        except KeyboardInterrupt:
            break
    return set(ran)


def dependents(*names: str) -> set[str]:
    direct = {part for name in names for part in DIRECTLY[name][1].split()}
    return set().union(*(AFTER[part] for part in direct)) if direct else set()


def changed(*names: str) -> Recipe:
    return dataclasses.replace(Recipe(), **{name: DIRECTLY[name][0] for name in names})


def test_every_setting_is_accounted_for() -> None:
    known = {f.name for f in dataclasses.fields(Recipe)}
    assert set(DIRECTLY) | LEFT_OUT | PATIENCE >= known
    for name, (value, _) in DIRECTLY.items():
        assert getattr(Recipe(), name) != value, name


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder where waiting for the disk costs nothing."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def test_one_setting(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(in_memory)
    assert run_all(run, Recipe(), monkeypatch) == set(ORDER)
    assert run_all(run, Recipe(), monkeypatch) == set()
    for name in DIRECTLY:
        assert run_all(run, changed(name), monkeypatch) == dependents(name), name
        # Changing it back brings the earlier work back, and runs nothing.
        assert run_all(run, Recipe(), monkeypatch) == set(), name


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from(sorted(DIRECTLY)), max_size=4), st.integers(0, len(ORDER))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_changes_and_interruptions(
    in_memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[set[str], int]],
) -> None:
    run = RunFolder(Path(tempfile.mkdtemp(dir=in_memory)))
    known: dict[str, set[str]] = {name: set() for name in ORDER}
    for names, upto in [*steps, (steps[-1][0], len(ORDER))]:
        recipe = changed(*names)
        wanted = []
        made = {name: _inputs(name, names) for name in ORDER}
        for name in ORDER:
            if made[name] not in known[name]:
                wanted.append(name)
        ran = run_all(run, recipe, monkeypatch, upto)
        assert ran == set(wanted[:upto])
        for name in ran:
            known[name].add(made[name])
    # The last run was not interrupted: everything is finished, from these settings.
    assert run_all(run, recipe, monkeypatch) == set()
    assert all(run.manifest(name) for name in ORDER)


def _inputs(stage_name: str, names: set[str]) -> str:
    """What decides a stage's result: the changed settings of it and of the stages before it."""
    deciding = [n for n in sorted(names) if stage_name in dependents(n)]
    return json.dumps(deciding)

"""Each spec is a pull request that could be sent."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from packaging.version import Version

from speculators_patches import patches
from speculators_patches.export import code, order, pull_request, scratch, spec
from speculators_patches.export.spec import Spec, Step
from speculators_patches.export.tree import Tree
from tests.compat.test_export import PARITY

ROOT = Path(__file__).resolve().parents[2]

STEPS = [(item, step) for item in spec.table().values() for step in item.steps]
EACH = pytest.mark.parametrize(
    ("item", "step"), STEPS, ids=[f"{item.name}-{step.slug}" for item, step in STEPS]
)


# Where the overlay's way is another one, and the exported tests ask for the pull request's options:
# what shows the same of the overlay.
SHOWN_BY = {
    "empty-sample-dtype": "tests/compat/test_empty_sample_dtype.py",
    "fused-loss-old-torch": "tests/compat/test_fused_loss_compiles.py",
    "request-timeout": "tests/faults/test_durable_responses.py",
    "exit-code": "tests/faults/test_durable_responses.py",
    "atomic-publish": "tests/faults/test_store_kill.py",
    "step-cadence": "tests/faults/test_step_checkpoints.py",
    "resumable-interrupt": "tests/faults/test_step_checkpoints.py",
    "cpu-hidden-states": "tests/e2e/test_vllm_server.py",
    "v1-refuses-block-verification": "tests/compat/test_block_verification_on_v1.py",
}


def test_every_patch_is_exported() -> None:
    assert set(patches.table()) <= set(spec.table())


def test_slugs_and_test_files_are_distinct() -> None:
    slugs = [step.slug for _, step in STEPS]
    tests = [path for _, step in STEPS for path in step.tests]
    assert len(set(slugs)) == len(slugs)
    assert len(set(tests)) == len(tests)


@EACH
def test_the_commit_message_is_one_that_upstream_takes(item: Spec, step: Step) -> None:
    lines = scratch.message(step).splitlines()
    assert len(lines[0]) <= 88
    assert lines[1] == ""
    assert all(len(line) <= 76 for line in lines[2:])
    kinds = r"\[\w+\]" if item.package == "vllm" else r"(fix|feat|perf)\([a-z0-9]+\): "
    assert re.match(kinds, lines[0])


@EACH
def test_nothing_of_the_overlay_goes_upstream(item: Spec, step: Step) -> None:
    texts = [code.whole(item.folder / name) for name in step.tests.values()]
    texts.append((item.folder / step.reproduction).read_text())
    texts += [(item.folder / name).read_text() for name in step.new_files.values()]
    for text in texts:
        assert "speculators_patches" not in text
        assert "overlay" not in text
        ast.parse(text)


@EACH
def test_a_reproduction_says_one_of_two_things(item: Spec, step: Step) -> None:
    text = (item.folder / step.reproduction).read_text()
    assert re.search(r'print\(f?"DEFECT: ', text)
    assert re.search(r'print\(f?"OK: ', text)
    assert "sys.exit(1)" in text or "os._exit(1)" in text


@EACH
def test_the_texts_are_there(item: Spec, step: Step) -> None:
    for text in (step.problem, step.fix, step.risk):
        assert len(text.split()) >= 15
        assert not re.search(r"^\s*#", text, re.MULTILINE)
    assert step.differs
    assert step.tests


def test_code_is_the_overlay_s_or_tested_with_the_overlay() -> None:
    """One source of truth: shared functions, the same tests, or a test of the overlay's own way."""
    shared = set()
    for item in spec.table().values():
        texts = [file.read_text() for file in item.folder.glob("*.py")]
        if any("code.ours(" in text for text in texts):
            shared |= {step.slug for step in item.steps}
    slugs = {step.slug for _, step in STEPS}
    assert set(PARITY) <= slugs
    assert slugs - shared - set(PARITY) == set(SHOWN_BY)
    assert all((ROOT / file).is_file() for file in SHOWN_BY.values())


@pytest.mark.parametrize("pair", order.SAME_LINES, ids="-".join)
def test_of_two_that_meet_each_says_so(pair: tuple[str, str]) -> None:
    first, second = (next(step for _, step in STEPS if step.slug == slug) for slug in pair)
    assert f'"{second.subject}"' in order.sentences(first)
    assert f'"{first.subject}"' in order.sentences(second)
    assert "order: before it" in order.sentences(first)
    assert "order: after it" in order.sentences(second)
    assert set(first.files) & set(second.files)


NEW_FLAGS = {
    "step-cadence": "--checkpoint-steps",
    "wait-for-vllm": "--producer-wait",
    "val-expected-acceptance": "--acceptance-temperature",
    "mask-unsayable": "--mask-unsayable-positions",
    "several-vllm-endpoints": "separated by commas",
}


def test_new_flags_are_documented() -> None:
    documented = {step.slug for _, step in STEPS if "docs/cli/train.md" in step.beside}
    assert documented == set(NEW_FLAGS)


def test_in_a_stack_each_names_what_touches_it(tmp_path: Path) -> None:
    """Not all that touches any of them."""
    item = spec.table()["step_checkpoints"]
    tree = Tree(tmp_path, "speculators", "src/speculators", Version("0.9.0"), has_tests=False)
    texts = {step.slug: pull_request.text(item, step, tree, None) for step in item.steps}
    assert "#899" in texts["full-precision-state"]
    assert "#739" in texts["atomic-publish"]
    assert not any("#739" in texts[slug] for slug in ("full-precision-state", "step-cadence"))
    assert "Related" not in texts["step-cadence"]

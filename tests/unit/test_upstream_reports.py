"""What the comparison with upstream's own tests, and the look at its newest releases, conclude."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.compat import upstream_drift, upstream_tests
from tests.compat.upstream_tests import Comparison, Expected

ROOT = Path(__file__).resolve().parents[2]
KNOWN = Expected("tests.a::test_known", SpecifierSet(">=0.7,<0.9"), "a_patch", "it is right")


@pytest.fixture(autouse=True)
def _one_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_tests, "expected", lambda: [KNOWN])


def compared(version: str, with_overlay: dict[str, str], active: str = "a_patch") -> Comparison:
    without = {
        "tests.a::test_known": "passed",
        "tests.a::test_known[1]": "passed",
        "tests.a::test_other": "passed",
        "tests.a::test_broken": "failed",
    }
    return Comparison(Version(version), (active,), (), without, without | with_overlay)


def test_an_explained_difference_passes() -> None:
    text, good = upstream_tests.report(compared("0.8.1", {"tests.a::test_known": "failed"}))
    assert good
    assert "a_patch: it is right" in text


def test_an_unexplained_difference_fails() -> None:
    known = {"tests.a::test_known": "failed"}
    text, good = upstream_tests.report(compared("0.8.1", known | {"tests.a::test_other": "failed"}))
    assert not good
    assert "tests.a::test_other: NOT EXPLAINED" in text


def test_an_explanation_holds_for_its_versions_and_parameters() -> None:
    _, good = upstream_tests.report(compared("0.8.1", {"tests.a::test_known[1]": "failed"}))
    assert good
    _, good = upstream_tests.report(compared("0.9.0", {"tests.a::test_known[1]": "failed"}))
    assert not good


def test_an_explanation_that_explains_nothing_fails() -> None:
    text, good = upstream_tests.report(compared("0.8.1", {}))
    assert not good
    assert "NO DIFFERENCE any more: tests.a::test_known" in text
    _, good = upstream_tests.report(compared("0.8.1", {}, active="another_patch"))
    assert good


def test_a_test_that_disappears_is_a_difference() -> None:
    found = compared("0.9.0", {})
    del found.with_overlay["tests.a::test_other"]
    assert found.worse() == ["tests.a::test_other"]


def test_what_the_overlay_mends_is_said() -> None:
    text, _ = upstream_tests.report(compared("0.9.0", {"tests.a::test_broken": "passed"}))
    assert "passes only with the overlay: tests.a::test_broken" in text


def test_the_list_of_differences_is_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from speculators_patches import patches

    listed = upstream_tests.expected()
    assert listed
    assert len({item.test for item in listed}) == len(listed)
    for item in listed:
        assert item.patch in patches.table()
        assert item.test.count("::") == 1
        assert item.why.endswith(".")


def test_a_tree_without_tests_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "src" / "speculators").mkdir(parents=True)
    (tmp_path / "src" / "speculators" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "tests.compat.upstream_tests", tmp_path, "--tree-version", "0.9.0"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("upstream-tests: ")
    assert "has no tests/unit; give a checkout" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_offline_is_one_sentence() -> None:
    nothing = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "",
               "PIP_FIND_LINKS": "", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.compat.upstream_drift"],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | nothing,
    )  # fmt: skip
    assert done.returncode == 2
    assert "run this where there is a network" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_drifted_is_to_be_looked_at() -> None:
    rows = [
        upstream_drift.Row("fine", "still needed", "", "exported"),
        upstream_drift.Row("gone", "upstreamed", "", "not needed"),
        upstream_drift.Row("moved", "drifted", "", "exported"),
        upstream_drift.Row("unfit", "still needed", "", "refused: it changed"),
    ]
    assert upstream_drift.drifted(rows) == ["moved", "unfit"]

"""Doctored copies of upstream: a target that moved or changed is refused, never half patched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.compat.running import PATCHED, python

pytestmark = pytest.mark.matrix

DATA = "speculators/train/data.py"
TRAINER = "speculators/train/trainer.py"


@dataclass
class Doctored:
    """A copy of one upstream version that a test edits."""

    version: str
    folder: Path

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} of {self.version} has no {old!r} to doctor"
        path.write_text(text.replace(old, new))

    def renumber(self, version: str) -> None:
        (metadata,) = self.folder.glob("speculators-*.dist-info/METADATA")
        text = metadata.read_text()
        assert f"\nVersion: {self.version}\n" in text
        metadata.write_text(text.replace(f"\nVersion: {self.version}\n", f"\nVersion: {version}\n"))

    def status(self, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, Any]:
        done = python(
            self.version, "-m", "speculators_patches", "status", "--json", *arguments,
            in_front=self.folder, env=env,
        )  # fmt: skip
        content = json.loads(done.stdout)
        return done.returncode, {row["patch"]: row for row in content["patches"]}


@pytest.fixture
def doctored(laid_out: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Doctored]:
    def copy(version: str) -> Doctored:
        source = laid_out(version)
        for item in source.glob("speculators*"):
            shutil.copytree(item, tmp_path / item.name, ignore=shutil.ignore_patterns("*.pyc"))
        return Doctored(version, tmp_path)

    return copy


def test_a_renamed_function_is_refused_and_cannot_be_overridden(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    upstream.edit(DATA, "create_empty_sample(", "make_empty_sample(")
    code, rows = upstream.status("--allow-drift", "empty_sample_dtype")
    row = rows["empty_sample_dtype"]
    assert code == 1
    assert row["verdict"] == "refused"
    assert "create_empty_sample is not defined in speculators.train.data" in row["reason"]
    assert "no override" in row["reason"]


def test_a_changed_signature_is_refused_with_both_signatures_to_compare(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    upstream.edit(
        DATA, "def create_empty_sample(hidden_size: int)",
        "def create_empty_sample(hidden_size: int, rows: int = 0)",
    )  # fmt: skip
    code, rows = upstream.status()
    row = rows["empty_sample_dtype"]
    assert code == 1
    assert row["verdict"] == "refused"
    assert "create_empty_sample(hidden_size: int, rows: int=0)" in row["reason"]
    assert "bca1095b44495994 (==0.5.0)" in row["reason"]
    assert "SPECULATORS_PATCHES_ALLOW_DRIFT=empty_sample_dtype" in row["reason"]
    assert "tested with 0.5.0" in row["reason"]


def test_a_changed_body_is_refused_until_it_is_allowed_by_name(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    upstream.edit(DATA, '"lengths": torch.tensor([0], dtype=torch.long)', '"lengths": None')
    code, rows = upstream.status()
    assert (code, rows["empty_sample_dtype"]["verdict"]) == (1, "refused")
    for allowed in (
        upstream.status("--allow-drift", "empty_sample_dtype"),
        upstream.status(env={"SPECULATORS_PATCHES_ALLOW_DRIFT": "empty_sample_dtype"}),
    ):
        code, rows = allowed
        assert (code, rows["empty_sample_dtype"]["verdict"]) == (0, "needed")
        assert "allowed by you" in rows["empty_sample_dtype"]["reason"]


def test_a_changed_body_of_something_only_relied_upon_is_refused(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    upstream.edit(DATA, "batch = [create_empty_sample(hidden_size)]", "batch = []")
    _, rows = upstream.status()
    assert rows["empty_sample_dtype"]["verdict"] == "refused"
    assert "create_collate_fn has changed" in rows["empty_sample_dtype"]["reason"]


def test_a_removed_class_is_refused(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    upstream.edit(TRAINER, "class Trainer:", "class TrainingLoop:")
    code, rows = upstream.status()
    assert (code, rows["empty_sample_dtype"]["verdict"]) == (1, "refused")
    assert "Trainer.__init__ is not defined" in rows["empty_sample_dtype"]["reason"]


def test_a_removed_module_is_refused(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    (upstream.folder / DATA).unlink()
    code, rows = upstream.status()
    assert (code, rows["empty_sample_dtype"]["verdict"]) == (1, "refused")
    assert "module speculators.train.data does not exist" in rows["empty_sample_dtype"]["reason"]


def test_comments_and_blank_lines_may_change(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    upstream.edit(
        DATA, '        "loss_mask": torch.empty(0),\n',
        '\n        # a comment\n        "loss_mask": torch.empty(0),  # and another\n',
    )  # fmt: skip
    code, rows = upstream.status()
    assert (code, rows["empty_sample_dtype"]["verdict"]) == (0, "needed")


def test_defective_source_is_patched_whatever_its_version_number(doctored: Any) -> None:
    upstream = doctored("0.5.0")
    upstream.renumber("99.0")
    _, rows = upstream.status()
    row = rows["empty_sample_dtype"]
    assert row["verdict"] == "needed"
    assert "99.0 should not need it, but has the defective source" in row["reason"]


def test_a_newer_upstream_with_known_source_is_accepted_and_says_so(doctored: Any) -> None:
    upstream = doctored("0.9.0")
    upstream.renumber("99.0")
    code, rows = upstream.status()
    row = rows["cpu_training"]
    assert (code, row["verdict"]) == (0, "needed")
    assert "is the same as in" in row["reason"]
    assert rows["empty_sample_dtype"]["verdict"] == "not_needed"


def test_a_newer_upstream_with_changed_source_is_refused(doctored: Any) -> None:
    upstream = doctored("0.9.0")
    upstream.renumber("99.0")
    upstream.edit(TRAINER, "def setup_trainer(self):", "def setup_trainer(self, device=None):")
    code, rows = upstream.status()
    row = rows["cpu_training"]
    assert (code, row["verdict"]) == (1, "refused")
    assert "Installed: speculators 99.0; tested with 0.7.0.2, 0.8.1, 0.9.0" in row["reason"]


def test_run_refuses_before_the_program_starts(doctored: Any, tmp_path: Path) -> None:
    upstream = doctored("0.5.0")
    upstream.edit(DATA, '"lengths": torch.tensor([0], dtype=torch.long)', '"lengths": None')
    script = tmp_path / "program.py"
    script.write_text("print('started')\n")
    done = python(
        "0.5.0", *PATCHED, "--only", "empty_sample_dtype", script, in_front=upstream.folder
    )
    assert done.returncode == 2
    assert "started" not in done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("speculators_patches: patch empty_sample_dtype cannot be applied")

"""Upstream's folders: put in place whole, completed or passed over, nothing of others deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from speculators_patches.step_checkpoints import epoch_folder


def folder(path: Path, step: int = 1) -> Path:
    """A complete epoch folder as upstream writes it."""
    path.mkdir(parents=True)
    save_file({"weight": torch.full((4, 4), float(step))}, path / "model.safetensors")
    torch.save({"state": step}, path / "optimizer_state_dict.pt")
    torch.save([{"last_epoch": step}], path / "scheduler_state_dict.pt")
    (path / "config.json").write_text("{}")
    (path / "training_state.json").write_text(json.dumps({"global_step": step}))
    return path


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer_state_dict.pt", "scheduler_state_dict.pt"]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_folder_is_passed_over(tmp_path: Path, file: str, share: float) -> None:
    folder(tmp_path / "0")
    torn = folder(tmp_path / "10") / file
    assert epoch_folder.newest_complete(tmp_path) == 10
    data = torn.read_bytes()
    torn.write_bytes(data[: int(len(data) * share)])
    assert epoch_folder.newest_complete(tmp_path) == 0


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer_state_dict.pt", "training_state.json"]
)
def test_a_folder_that_lacks_a_file_is_passed_over(tmp_path: Path, file: str) -> None:
    (folder(tmp_path / "3") / file).unlink()
    (tmp_path / "checkpoint_best").symlink_to("3")
    (tmp_path / "notes").mkdir()
    assert epoch_folder.newest_complete(tmp_path) is None


def test_an_earlier_version_of_our_kind_goes(tmp_path: Path) -> None:
    folder(tmp_path / "0", 1)
    epoch_folder.put_in_place(folder(tmp_path / ".new", 2), tmp_path / "0")
    assert epoch_folder.state_of(tmp_path / "0") == {"global_step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_somebody_else_s_files_are_kept(tmp_path: Path) -> None:
    (folder(tmp_path / "0", 1) / "my notes.md").write_text("keep me")
    epoch_folder.put_in_place(folder(tmp_path / ".new", 2), tmp_path / "0")
    assert epoch_folder.state_of(tmp_path / "0") == {"global_step": 2}
    assert (tmp_path / "0.kept1" / "my notes.md").read_text() == "keep me"
    assert epoch_folder.state_of(tmp_path / "0.kept1") == {"global_step": 1}


def test_after_a_kill_the_old_version_comes_back_and_the_half_goes(tmp_path: Path) -> None:
    """Killed between the two renames, and while writing."""
    name = ".step-checkpoints-{}-0-0123456789ab"
    folder(tmp_path / name.format("old"), 1)
    folder(tmp_path / name.format("new"), 2)
    for other in (".step-checkpoints-new-x-0123456789ab", ".step-checkpoints-old-0-short"):
        folder(tmp_path / other)
    epoch_folder.sweep(tmp_path)
    assert epoch_folder.state_of(tmp_path / "0") == {"global_step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".step-checkpoints-new-x-0123456789ab", ".step-checkpoints-old-0-short", "0",
    ]  # fmt: skip

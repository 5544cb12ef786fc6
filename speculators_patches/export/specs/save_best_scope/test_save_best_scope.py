"""--save-best deletes epochs, and nothing else."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.train.checkpointer import SingleGPUCheckpointer


@pytest.fixture
def model():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters())


def names(path):
    return sorted(child.name for child in path.iterdir())


def test_foreign_files_stay(tmp_path, model, optimizer):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "results.txt").write_text("")
    (tmp_path / "run.yaml").write_text("")
    (tmp_path / "7").write_text("a file whose name is a number")
    checkpointer = SingleGPUCheckpointer(tmp_path)
    for epoch in range(3):
        checkpointer.save_checkpoint(model, optimizer, epoch)

    checkpointer.cleanup_keep_only_best(1)

    assert names(tmp_path) == ["1", "7", "notes", "run.yaml"]
    assert (tmp_path / "notes" / "results.txt").exists()


def test_links_to_deleted_epochs_go_and_others_stay(tmp_path, model, optimizer):
    checkpointer = SingleGPUCheckpointer(tmp_path)
    for epoch in range(2):
        checkpointer.save_checkpoint(model, optimizer, epoch)
        (tmp_path / f"epoch{epoch}_end").symlink_to(str(epoch))
    (tmp_path / "elsewhere").symlink_to("/")

    checkpointer.cleanup_keep_only_best(1)

    assert names(tmp_path) == ["1", "elsewhere", "epoch1_end"]


def test_a_missing_best_epoch_deletes_nothing(tmp_path, model, optimizer):
    checkpointer = SingleGPUCheckpointer(tmp_path)
    checkpointer.save_checkpoint(model, optimizer, 0)

    with pytest.raises(FileNotFoundError):
        checkpointer.cleanup_keep_only_best(7)

    assert names(tmp_path) == ["0"]


def test_a_folder_named_like_the_link_is_kept(tmp_path, model, optimizer):
    (tmp_path / "checkpoint_best").mkdir()
    (tmp_path / "checkpoint_best" / "model.safetensors").write_text("mine")
    checkpointer = SingleGPUCheckpointer(tmp_path)
    checkpointer.save_checkpoint(model, optimizer, 0)

    checkpointer.update_best_symlink(0)

    assert (tmp_path / "checkpoint_best").is_symlink()
    kept = tmp_path / "checkpoint_best.kept1" / "model.safetensors"
    assert kept.read_text() == "mine"

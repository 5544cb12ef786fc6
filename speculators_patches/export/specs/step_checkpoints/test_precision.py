"""A resumed run is the run that was never stopped."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.models.eagle3.data import shift_batch
from speculators.train import checkpointer, distributed
from speculators.train.data import CollateFn
from speculators.train.recovery import SampleUnavailable
from speculators.train.trainer import Trainer, TrainerConfig

# include: _cpu_trainer.py


def moments(trainer):
    return [
        (key, value.clone())
        for optimizer in trainer.optimizers
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_comes_back_bit_for_bit(tmp_path, optimizer):
    options = {"optimizer": optimizer, "scheduler_total_steps": 100}
    trainer = make_trainer(tmp_path, "RRRR", **options)
    trainer.run_training()
    resumed = make_trainer(
        tmp_path, "RRRR", resume_from_checkpoint=True, num_epochs=2, **options
    )

    assert torch.equal(weights(resumed), weights(trainer))
    for (key, saved), (name, loaded) in zip(
        moments(trainer), moments(resumed), strict=True
    ):
        assert key == name
        assert torch.equal(loaded, saved), key
        assert loaded.dtype == saved.dtype


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_ends_with_the_same_weights(tmp_path, optimizer):
    options = {"optimizer": optimizer, "scheduler_total_steps": 100}
    straight = make_trainer(tmp_path / "a", "RRRR", num_epochs=3, **options)
    straight.run_training()
    make_trainer(tmp_path / "b", "RRRR", num_epochs=1, **options).run_training()

    resumed = make_trainer(
        tmp_path / "b", "RRRR", resume_from_checkpoint=True, num_epochs=3, **options
    )
    resumed.run_training()

    assert torch.equal(weights(resumed), weights(straight))


def test_what_vllm_loads_is_still_bfloat16(tmp_path):
    make_trainer(tmp_path, "RR").run_training()

    model = Eagle3DraftModel.from_pretrained(tmp_path / "out" / "0")

    assert model.fc.weight.dtype == torch.bfloat16


def test_frozen_weights_are_not_stored_twice(tmp_path):
    trainer = make_trainer(tmp_path, "RR")
    trainer.run_training()

    path = trainer.checkpointer.trained_weights_path(0)

    trained = weights(trainer).numel() * 4
    assert trained <= path.stat().st_size < trained + 8192


def test_a_checkpoint_of_an_older_version_loads(tmp_path):
    trainer = make_trainer(tmp_path, "RR", scheduler_total_steps=100)
    trainer.run_training()
    trainer.checkpointer.trained_weights_path(0).unlink()

    resumed = make_trainer(
        tmp_path, "RR", resume_from_checkpoint=True, scheduler_total_steps=100
    )

    torch.testing.assert_close(weights(resumed), weights(trainer).bfloat16().float())


def make_sharded(seed):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **SHAPE))
    model.model.embed_tokens.requires_grad_(False)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-2)


def gathered(model):
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def save_and_load_sharded(rank, folder):
    """One of two ranks; rank 0 leaves what was saved and what was loaded."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    distributed._rank, distributed._world_size = rank, 2
    distributed._is_distributed = True
    model, optimizer = make_sharded(0)
    model(input_ids=torch.arange(8)[None]).logits.square().sum().backward()
    optimizer.step()
    saving = checkpointer.DistributedCheckpointer(folder / "out")
    saving.save_checkpoint(model, [optimizer], 0)

    loaded, other = make_sharded(1)
    loading = checkpointer.DistributedCheckpointer(folder / "out")
    loading.load_model_state_dict(loaded)
    loading.load_optimizer_state_dict(loaded, [other])

    pair = gathered(model), gathered(loaded)
    for mine, read in zip(moments_of(optimizer), moments_of(other), strict=True):
        assert torch.equal(mine, read)
    if rank == 0:
        torch.save(pair, folder / "pair.pt")
    dist.barrier()
    dist.destroy_process_group()


def moments_of(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for value in optimizer.state[parameter].values():
                yield value.to_local() if hasattr(value, "to_local") else value


def test_two_sharded_ranks_save_and_load_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mp.spawn(save_and_load_sharded, (tmp_path,), nprocs=2)

    saved, loaded = torch.load(tmp_path / "pair.pt")
    frozen = "model.embed_tokens.weight"
    for name, value in saved.items():
        expected = value.bfloat16().float() if name == frozen else value
        assert torch.equal(loaded[name], expected), name
    assert (tmp_path / "out" / "0" / "model.safetensors").is_file()


def test_vllm_sees_one_file_of_weights(tmp_path):
    trainer = make_trainer(tmp_path, "RR")
    trainer.run_training()

    found = sorted((tmp_path / "out" / "0").glob("*.safetensors"))

    assert [path.name for path in found] == ["model.safetensors"]
    assert trainer.checkpointer.trained_weights_path(0).is_file()

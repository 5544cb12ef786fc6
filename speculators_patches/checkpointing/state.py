"""What a rank must store to go on exactly, and putting it back.

Stored: every parameter that trains and every persistent floating-point buffer, in the precision it
lives in; optimizer state and settings; schedulers; random generators; what the caller adds. Frozen
parameters and persistent integer buffers (embeddings, the head, vocabulary maps) are referenced by
name and SHA-256 and verified at restore; one that changes in place (torch's version counter) is
stored from then on. The counter alone would not do for floating-point buffers: BatchNorm's kernel
updates its running statistics without counting.

Ranks: when the model is replicated (single process, DDP), rank 0 stores model and optimizers and
every rank its own generators. When it is sharded (FSDP2, DTensor parameters) every rank stores its
local shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor

from speculators_patches.checkpointing import rng, tree
from speculators_patches.checkpointing.arena import Arena, Filled
from speculators_patches.checkpointing.durable import Chunk
from speculators_patches.checkpointing.errors import CheckpointError, NotSameRunError
from speculators_patches.checkpointing.saved import SavedRank
from speculators_patches.checkpointing.tensorfile import storable

log = logging.getLogger(__name__)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def tensor_sha256(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) over dtype, shape and bytes of a tensor (of its local shard)."""
    local = _local(tensor.detach()).cpu().contiguous()
    digest = hashlib.sha256(f"{local.dtype} {tuple(local.shape)} ".encode())
    digest.update(local.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _version(tensor: torch.Tensor) -> int:
    """torch's count of in-place changes (0 for inference tensors, which have none)."""
    return 0 if tensor.is_inference() else tensor._version


class Snapshot:
    """One rank's state at one step, no longer tied to the live tensors."""

    def __init__(self, document: Mapping[str, Any], tensors: Filled):
        self._document = document
        self._tensors = tensors

    @property
    def size(self) -> int:
        """Bytes of tensor data and header."""
        return self._tensors.size

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Path -> its copy in host memory; waits for the device's copies (writer thread)."""
        return self._tensors.tensors()

    def settle(self) -> None:
        """Take the copy now if it was left for later; see `TrainingState.capture`."""
        self._tensors.settle()

    def tensor_chunks(self) -> Iterable[Chunk]:
        """The safetensors file; waits for the device's copies (writer thread)."""
        return self._tensors.chunks()

    def tree_chunks(self) -> Iterable[Chunk]:
        """The JSON file (writer thread)."""
        return [json.dumps(self._document, allow_nan=False).encode()]


class TrainingState:
    """The live objects of one rank.

    Args:
        model: DDP's wrapper is looked through. Hashes every frozen tensor once (a second or two for
            2 GB), so make this after the weights are in place and before the first step (what
            changed earlier is taken for given).
        optimizers: every parameter in them must be the model's.
        rank: this rank.

    Attributes:
        waited_s: seconds that optimizers have waited for copies so far.

    Raises:
        CheckpointError: a parameter or state that can't be stored exactly.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any] = (),
        *,
        rank: int = 0,
    ):
        self.model: torch.nn.Module = model
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            self.model = model.module
        self.optimizers = list(optimizers)
        self.schedulers = list(schedulers)
        self.rank = rank
        self._arena = Arena()
        self._newest: Filled | None = None
        self.waited_s = 0.0
        self._is_hooked = all(hasattr(one, "register_step_pre_hook") for one in self.optimizers)
        if self._is_hooked:
            for optimizer in self.optimizers:
                optimizer.register_step_pre_hook(self._before_step)
        parameters = dict(self.model.named_parameters())
        persistent = self.model.state_dict(keep_vars=True).keys()
        buffers = {n: b for n, b in self.model.named_buffers() if n in persistent}
        self._tensors: dict[str, torch.Tensor] = {**parameters, **buffers}
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self.sharded = any(isinstance(tensor, DTensor) for tensor in parameters.values())
        self.holds_model = rank == 0 or self.sharded
        for name, tensor in self._tensors.items():
            if not storable(_local(tensor)):
                raise CheckpointError(f"{name!r} ({tensor.dtype}) can't be stored exactly")
        self._trained = {name for name, p in parameters.items() if p.requires_grad}
        self._changed: set[str] = set()
        self._versions = {name: _version(tensor) for name, tensor in self._tensors.items()}
        self._frozen = {
            name: tensor_sha256(tensor)
            for name, tensor in self._tensors.items()
            if not self._always_stored(tensor)
        }

    def _always_stored(self, tensor: torch.Tensor) -> bool:
        is_parameter = id(tensor) in self._names
        return tensor.requires_grad or (not is_parameter and tensor.is_floating_point())

    def _stored(self) -> dict[str, torch.Tensor]:
        """Tensors that this checkpoint must hold: what trains, and what changed although frozen."""
        for name, tensor in self._tensors.items():
            if name in self._changed or self._always_stored(tensor):
                continue
            if name not in self._frozen or _version(tensor) != self._versions[name]:
                log.info("%s changed during training although it is frozen: now stored too", name)
                self._changed.add(name)
        return {
            name: tensor
            for name, tensor in self._tensors.items()
            if name in self._changed or self._always_stored(tensor)
        }

    def _name(self, parameter: torch.Tensor) -> str:
        try:
            return self._names[id(parameter)]
        except KeyError:
            raise CheckpointError(
                f"an optimizer holds a parameter of shape {tuple(parameter.shape)} "
                "that is not the model's"
            ) from None

    def _optimizer_tree(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {
            "class": type(optimizer).__name__,
            "groups": [
                {
                    "parameters": [self._name(p) for p in group["params"]],
                    "settings": {k: v for k, v in group.items() if k not in _NOT_SETTINGS},
                }
                for group in optimizer.param_groups
            ],
            "state": {
                self._name(p): dict(optimizer.state[p])
                for group in optimizer.param_groups
                for p in group["params"]
                if p in optimizer.state
            },
        }

    def capture(self, extra: Mapping[str, Any] | None = None) -> Snapshot:
        """Copy the state out; the training thread pays for nothing else.

        In host memory the copy of what only optimizers change is left for the writer thread; an
        optimizer that comes first takes it itself.

        The previous snapshot must have been written: the memory is used again.

        Args:
            extra: a tree (see `tree.py`; tensors allowed) of the caller's own, this rank's.

        Raises:
            CheckpointError: something that can't be stored exactly, named.
        """
        document, tensors = self._collect(extra)
        later = {path for path in tensors if self._only_steps_change(path)}
        self._newest = self._arena.copy_in(tensors, later)
        return Snapshot(document, self._newest)

    def _only_steps_change(self, path: str) -> bool:
        """Whether nothing but an optimizer's step changes the tensor: then a copy can wait for it.

        On the CPU the copy is then made beside the next forward pass. Should something else change
        it, torch's version counter tells, and the save fails.
        """
        if not self._is_hooked:
            return False
        is_moment = path.startswith("optimizers/") and "/state/" in path
        return is_moment or path.removeprefix("model/") in self._trained

    def _before_step(self, *_: Any) -> None:
        began = time.perf_counter()
        if self._newest is not None:
            self._newest.settle()
        self.waited_s += time.perf_counter() - began

    def prepare(self) -> None:
        """Get host memory ready in the background; after the first step, when states exist."""
        self._arena.prepare(self._collect(None)[1])

    def _collect(
        self, extra: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The JSON document and the live tensors that it refers to by path."""
        content: dict[str, Any] = {"rng": rng.capture(), "extra": dict(extra or {})}
        stored: dict[str, torch.Tensor] = {}
        if self.holds_model:
            stored = self._stored()
            content["model"] = stored
            content["optimizers"] = [self._optimizer_tree(one) for one in self.optimizers]
            content["schedulers"] = [one.state_dict() for one in self.schedulers]
        tensors: dict[str, torch.Tensor] = {}
        placements: dict[str, Any] = {}

        def put(path: str, value: Any) -> bool:
            if not isinstance(value, torch.Tensor) or not storable(_local(value)):
                return False
            tensors[path] = _local(value.detach())
            if isinstance(value, DTensor):
                placements[path] = _placement(value)
            return True

        document = {
            "tree": tree.encode(content, put),
            "placements": placements,
            # A counter that the optimizer keeps on the host must come back to the host.
            "on_host": [p for p, t in tensors.items() if t.device.type == "cpu"],
            "frozen": {n: h for n, h in self._frozen.items() if n not in stored}
            if self.holds_model
            else {},
        }
        return document, tensors

    def check(self, saved: SavedRank) -> None:
        """Whether `saved` fits these live objects; changes nothing.

        Args:
            saved: rank 0's part if the model is replicated, this rank's own if it is sharded.

        Raises:
            NotSameRunError: naming the tensor, parameter group or optimizer that differs.
        """
        for name, tensor in self._tensors.items():
            frozen = self._frozen.get(name)
            if frozen and _version(tensor) != self._versions[name]:
                frozen = tensor_sha256(tensor)  # it changed here since the start
            _check_tensor(name, tensor, saved, frozen)
        if strangers := sorted(set(saved.tree["model"]) - set(self._tensors)):
            raise NotSameRunError(f"the checkpoint trains {strangers[0]!r}, which this model lacks")
        live = [self._optimizer_tree(one) for one in self.optimizers]
        kinds = [[one["class"] for one in side] for side in (saved.tree["optimizers"], live)]
        if kinds[0] != kinds[1]:
            raise NotSameRunError(
                f"the checkpoint's optimizers are {kinds[0]}, these are {kinds[1]}"
            )
        for before, now in zip(saved.tree["optimizers"], live, strict=True):
            groups = [[g["parameters"] for g in side["groups"]] for side in (before, now)]
            if groups[0] != groups[1]:
                raise NotSameRunError(
                    f"{now['class']} drives other parameters than in the checkpoint, "
                    "or in another order"
                )
        if len(saved.tree["schedulers"]) != len(self.schedulers):
            raise NotSameRunError(
                f"the checkpoint has {len(saved.tree['schedulers'])} schedulers, "
                f"this run has {len(self.schedulers)}"
            )

    def restore(self, saved: SavedRank, *, settings: Literal["saved", "current"] = "saved") -> None:
        """Put model, optimizers and schedulers back, bit for bit. Not the random generators.

        Args:
            saved: see `check`, which is done first.
            settings: "current" keeps the live optimizers' settings (learning rate, ...) and
                schedulers, for a resume that overrides them on purpose.

        Raises:
            NotSameRunError: as `check`; nothing was changed then.
        """
        self.check(saved)
        self._before_step()
        with torch.no_grad():
            for name, value in saved.tree["model"].items():
                tensor = self._tensors[name]
                _local(tensor).copy_(value)
                if name in self._frozen:
                    self._changed.add(name)
        parameters = {name: t for name, t in self._tensors.items() if id(t) in self._names}
        for number, (optimizer, content) in enumerate(
            zip(self.optimizers, saved.tree["optimizers"], strict=True)
        ):
            if settings == "saved":
                _load_settings(optimizer, content["groups"])
            optimizer.state.clear()
            for name, entries in content["state"].items():
                # Not through load_state_dict: it casts moments to the parameter's precision.
                optimizer.state[parameters[name]] = {
                    key: _place(
                        value, f"optimizers/{number}/state/{name}/{key}", parameters[name], saved
                    )
                    for key, value in entries.items()
                }
        if settings == "saved":
            for scheduler, content in zip(self.schedulers, saved.tree["schedulers"], strict=True):
                scheduler.load_state_dict(content)

    def release(self) -> None:
        """Give the host memory back; nothing may be writing from it."""
        self._arena.release()


_NOT_SETTINGS = ("params", "param_names")


def _placement(tensor: DTensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "placements": repr(tensor.placements),
        "mesh": list(tensor.device_mesh.shape),
    }


def _check_tensor(name: str, tensor: torch.Tensor, saved: SavedRank, frozen: str | None) -> None:
    value = saved.tree["model"].get(name)
    if value is not None:
        local = _local(tensor)
        before, now = ((t.dtype, tuple(t.shape)) for t in (value, local))
        if before != now:
            raise NotSameRunError(
                f"{name!r} is {before[0]} {before[1]} in the checkpoint and {now[0]} {now[1]} here"
            )
        placement = _placement(tensor) if isinstance(tensor, DTensor) else None
        if saved.placements.get(f"model/{name}") != placement:
            raise NotSameRunError(f"{name!r} is sharded otherwise than in the checkpoint")
    elif frozen is None:
        raise NotSameRunError(f"{name!r} changes while training; the checkpoint does not hold it")
    elif saved.frozen.get(name) != frozen:
        raise NotSameRunError(
            f"the frozen tensor {name!r} differs from the one that the checkpoint was trained with "
            f"(SHA-256 {str(saved.frozen.get(name))[:12]}..., here {str(frozen)[:12]}...)"
        )


def _load_settings(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    numbers = iter(range(sum(len(group["parameters"]) for group in groups)))
    optimizer.load_state_dict(
        {
            "state": {},
            "param_groups": [
                {**group["settings"], "params": [next(numbers) for _ in group["parameters"]]}
                for group in groups
            ],
        }
    )


def _place(value: Any, path: str, parameter: torch.Tensor, saved: SavedRank) -> Any:
    """A saved state entry where the optimizer had it: on the host, or with its parameter."""
    if not isinstance(value, torch.Tensor):
        return value
    parameter_on_host = f"model/{saved.name_of(path)}" in saved.on_host
    if path not in saved.on_host or parameter_on_host:
        value = value.to(_local(parameter).device)
    value = value.clone()
    placement = saved.placements.get(path)
    if placement is None:
        return value
    if not isinstance(parameter, DTensor) or placement["placements"] != repr(parameter.placements):
        raise NotSameRunError(f"{path!r} is sharded otherwise than its parameter here")
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size(placement["shape"]),
        stride=tuple(placement["stride"]),
    )

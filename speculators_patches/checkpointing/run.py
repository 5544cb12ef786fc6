"""The checkpoints of one run, as its training loop sees them.

    state = TrainingState(model, optimizers, schedulers, rank=rank)
    with RunCheckpoints(save_path / STORE, state, fingerprint, when=When(every_steps=500)) as saves:
        if (found := saves.find()) is not None:
            extra = saves.restore(found)
            ...                                # position the data at found.cursor
            saves.restore_rng(found)           # last, right before the first batch is used
        for ...:
            ...                                # optimizer and scheduler step
            saves.step(Cursor(...))            # every rank, after every step
        saves.save(Cursor(...), "final", wait_s=600)

In a distributed run every rank makes one and calls the same methods at the same steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from speculators_patches.checkpointing import fingerprint as fp
from speculators_patches.checkpointing import reading, rng, tree
from speculators_patches.checkpointing.coordinator import Alone, Coordinator
from speculators_patches.checkpointing.cursor import Cursor
from speculators_patches.checkpointing.errors import (
    CheckpointError,
    NotSameRunError,
    SaveFailedError,
    UnfitError,
)
from speculators_patches.checkpointing.policy import Keep, When
from speculators_patches.checkpointing.publish import (
    Published,
    Save,
    publish_other,
    publish_rank0,
)
from speculators_patches.checkpointing.saved import SavedRank, read
from speculators_patches.checkpointing.state import TrainingState
from speculators_patches.checkpointing.store import Store
from speculators_patches.checkpointing.writer import Outcome, Writer

log = logging.getLogger("speculators_patches.checkpointing")


@dataclass(frozen=True)
class Found:
    """The checkpoint to resume from.

    Attributes:
        cursor: where it stands.
        meta: what `step`/`save` were given as `meta`.
        passed_over: newer ones that could not be used, and why.
        differences: fields that differ from the fingerprint and were allowed.
    """

    record: reading.Record
    cursor: Cursor
    meta: Mapping[str, Any]
    passed_over: tuple[reading.PassedOver, ...] = ()
    differences: tuple[fp.Mismatch, ...] = ()


@dataclass
class _Progress:
    """What the decision to save looks at."""

    last_step: int = 0
    last_time: float = 0.0
    delay_told: bool = False
    # Rank 0: the save begun last, and whether it failed; others cancel theirs when it has.
    begun: str = ""
    failed: str = ""
    cancel: Callable[[], None] = field(default=lambda: None)


class RunCheckpoints:
    """Saves, finds and restores the checkpoints in `root`.

    Args:
        root: the store's folder; shared by all ranks.
        state: this rank's live objects.
        fingerprint: what must be the same for a resume, the same on all ranks. `world_size` is
            added here and can't be overridden.
        check: called in the background with a save's tensors (path -> copy in host memory) before
            anything of it is written; raises UnfitError if they must not be saved, see `unfit`.
        on_failure: what `step` does after a save failed: "warn" (log an error and train on) or
            "raise".
        agree_every: in a distributed run, steps between two looks at rank 0's clock.
        read_back: verify each checkpoint from the device before older ones are pruned.
        rank_timeout_s: how long ranks wait for each other's files.

    Raises:
        StoreBusyError: another process writes there (rank 0).
    """

    def __init__(
        self,
        root: Path,
        state: TrainingState,
        fingerprint: Iterable[fp.Field],
        *,
        when: When | None = None,
        keep: Keep | None = None,
        coordinator: Coordinator | None = None,
        check: Callable[[Mapping[str, torch.Tensor]], None] | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
        agree_every: int = 10,
        read_back: bool = True,
        rank_timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.root = root
        self.state = state
        self.when = when or When()
        self.keep = keep or Keep()
        self.ranks: Coordinator = coordinator or Alone()
        self.fields = [*fingerprint, fp.Field("world_size", self.ranks.world_size, False)]
        self._fingerprint = fp.to_json(self.fields)
        self.on_failure = on_failure
        self.agree_every = agree_every
        self.read_back = read_back
        self.rank_timeout_s = rank_timeout_s
        self.last_committed: str | None = None
        self._check = check
        self._unfit = ""
        self._fine = True  # how the newest save that has ended went
        self._clock = clock
        self._writer = Writer()
        self._now = _Progress(last_time=clock())
        self._prepared = False
        self._store: Store | None = None
        if self.ranks.rank == 0:
            self._store = Store(root)
            removed, kept = self._store.sweep()
            for name in removed:
                log.info("removed %s, left by a process that died while saving", name)
            for sentence in kept:
                log.warning("%s", sentence)

    # --- resuming ---------------------------------------------------------------------------

    def find(self, despite: Collection[str] = ()) -> Found | None:
        """The newest whole checkpoint of this same run, or None if there is none at all.

        Args:
            despite: names of fingerprint fields that may differ.

        Raises:
            NotSameRunError: it belongs to a run with other settings; the text names them.
            CheckpointError: there are checkpoints and not one is whole.
        """
        offer: dict[str, Any] = {}
        passed: list[reading.PassedOver] = []
        if self._store is not None:
            record, passed = self._store.newest()
            for one in passed:
                log.error("checkpoint %s is passed over: %s", one.name, one.reason)
            offer = {"name": record.name if record else None, "bad": len(passed)}
        chosen = self.ranks.gather(offer)[0]
        if chosen["name"] is None:
            if chosen["bad"]:
                raise CheckpointError(
                    f"none of the {chosen['bad']} checkpoints in {self.root} is whole; "
                    "see `checkpoints verify`, or start in another save folder"
                )
            return None
        record = reading.inspect(self.root / chosen["name"])
        if record is None or record.manifest is None:
            raise CheckpointError(
                f"rank {self.ranks.rank} does not see {self.root / chosen['name']}; "
                "all ranks need the same save folder"
            )
        meta = tree.decode(record.manifest.meta, lambda _: None)
        differences = fp.check(meta["fingerprint"], self.fields, despite)
        return Found(
            record,
            Cursor.from_json(meta["cursor"]),
            meta["meta"],
            tuple(passed),
            tuple(differences),
        )

    def restore(
        self, found: Found, *, settings: Literal["saved", "current"] = "saved"
    ) -> Mapping[str, Any]:
        """Put model, optimizers and schedulers back; this rank's `extra` of the save.

        Raises:
            NotSameRunError: the live objects are others; nothing was changed.
            CorruptError: a file changed since `find`.
        """
        mine = self._read(found, self.ranks.rank)
        self.state.restore(
            mine if self.state.holds_model else self._read(found, 0), settings=settings
        )
        self._now.last_step = found.cursor.global_step
        self._now.last_time = self._clock()
        self.last_committed = found.record.name
        extra: Mapping[str, Any] = mine.tree["extra"]
        return extra

    def restore_rng(self, found: Found) -> None:
        """Set this rank's random generators; call it right before the next batch is used."""
        rng.restore(self._read(found, self.ranks.rank).tree["rng"])

    def _read(self, found: Found, rank: int) -> SavedRank:
        if found.record.manifest and rank >= found.record.manifest.world_size:
            raise NotSameRunError(f"{found.record.name} was saved by fewer ranks")
        return read(found.record, rank)

    # --- saving -----------------------------------------------------------------------------

    def step(
        self,
        cursor: Cursor,
        *,
        meta: Mapping[str, Any] | None = None,
        extra: Callable[[], Mapping[str, Any]] | None = None,
    ) -> bool:
        """Call after every optimizer step: reports how saves ended, begins one that is due.

        Args:
            meta: plain values of the run (best validation, max_steps), the same on all ranks.
            extra: gives this rank's own tree; called only when a save begins.

        Returns:
            whether a save began.

        Raises:
            SaveFailedError: with `on_failure="raise"`, an earlier save failed; or a rank is gone.
        """
        self._hear()
        if not self._prepared:
            self._prepared = True
            self.state.prepare()
        by_steps = self.when.due_by_steps(cursor.global_step, self._now.last_step)
        by_time = self.when.due_by_time(self._clock() - self._now.last_time)
        if self.ranks.world_size > 1 and self.when.every_minutes is not None and not by_steps:
            if cursor.global_step % self.agree_every != 0:
                return False
            # Only rank 0's clock counts; this costs one small all-gather on the host.
            by_time = self.ranks.gather({"due": by_time})[0]["due"]
        if not (by_steps or by_time):
            return False
        return self._begin(cursor, ("steps" if by_steps else "minutes",), meta, extra)

    def save(
        self,
        cursor: Cursor,
        *tags: str,
        meta: Mapping[str, Any] | None = None,
        extra: Callable[[], Mapping[str, Any]] | None = None,
        wait_s: float = 0.0,
        commit_s: float | None = None,
    ) -> bool:
        """Save now, because of `tags` ("epoch", "best", "final", "shutdown", ...).

        Args:
            wait_s: how long to wait for a save under way; after that this one is given up.
            commit_s: also wait this long until it is committed (None: don't wait).

        Returns:
            whether it began; with `commit_s`, whether it was committed.

        Raises:
            SaveFailedError: as `step`.
        """
        self._writer.flush(wait_s)
        self._hear()
        began = self._begin(cursor, tags, meta, extra)
        if not began or commit_s is None:
            return began
        return self.flush(commit_s)

    def unfit(self) -> str:
        """Why a save was refused by `check`, on any rank of it; "" if none was.

        The state it was made of, and so the live one, is spoilt: the caller should end the run.
        """
        self._hear()
        return self._unfit

    def flush(self, timeout_s: float) -> bool:
        """Wait for the save under way; whether nothing is under way and the last one succeeded."""
        if not self._writer.flush(timeout_s):
            label, seconds = self._writer.under_way or ("a save", timeout_s)
            log.error("%s is not written after %.0f s; not waiting longer", label, seconds)
            return False
        self._hear()
        return self._fine

    def close(self, timeout_s: float = 120.0) -> bool:
        """`flush`, and let go of the folder."""
        done = self.flush(timeout_s)
        if not self._writer.busy:
            self._writer.close(timeout_s)
            if self._store is not None:
                self._store.close()
            self.state.release()
        return done

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self,
        cursor: Cursor,
        tags: tuple[str, ...],
        meta: Mapping[str, Any] | None,
        extra: Callable[[], Mapping[str, Any]] | None,
    ) -> bool:
        stage = self._store.next_stage_name(cursor.global_step) if self._store else None
        answers = self.ranks.gather(
            {
                "step": cursor.global_step,
                "busy": self._writer.busy,
                "stage": stage,
                "failed": self._now.failed,
            }
        )
        if answers[0]["failed"] and answers[0]["failed"] == self._now.begun:
            self._now.cancel()
        if len({answer["step"] for answer in answers}) > 1:
            log.error(
                "no checkpoint: the ranks stand at different steps (%s)",
                ", ".join(str(answer["step"]) for answer in answers),
            )
            return False
        busy = [rank for rank, answer in enumerate(answers) if answer["busy"]]
        if busy:
            self._tell_delay(cursor.global_step, busy)
            return False
        part = self.state.capture(extra() if extra else None)
        content = {
            "cursor": cursor.to_json(),
            "fingerprint": self._fingerprint,
            "meta": dict(meta or {}),
        }
        save = Save(
            root=self.root,
            stage=answers[0]["stage"],
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            part=part,
            tags=tags,
            meta=tree.encode(content, lambda *_: False),
            timeout_s=self.rank_timeout_s,
            check=lambda: self._check(part.tensors()) if self._check else None,
        )
        self._now = _Progress(
            last_step=cursor.global_step,
            last_time=self._clock(),
            begun=save.stage,
            cancel=save.cancelled.set,
        )
        self._writer.submit(
            f"the checkpoint of step {cursor.global_step}", lambda: self._write(save)
        )
        return True

    def _write(self, save: Save) -> Published:
        save.part.settle()  # before the disk is touched, which may be slow
        if self._store is None:
            return publish_other(save)
        return publish_rank0(self._store, save, self.keep, read_back=self.read_back)

    def _hear(self) -> None:
        """Take in and log how saves ended."""
        for outcome in self._writer.outcomes():
            self._fine = outcome.error is None
            if outcome.error is None:
                self._tell_success(outcome)
            else:
                self._now.failed = self._now.begun
                if isinstance(outcome.error, UnfitError):
                    self._unfit = str(outcome.error)
                    log.error("%s", self._unfit)
                else:
                    self._tell_failure(outcome.error)

    def _tell_success(self, outcome: Outcome) -> None:
        published: Published = outcome.result
        self.last_committed = published.name
        log.info(
            "%s committed (%.1f MB in %.1f s, in the background)",
            published.name,
            published.size / 1e6,
            outcome.seconds,
        )
        for note in published.notes:
            log.warning("%s", note)

    def _tell_failure(self, error: Exception) -> None:
        text = f"{error}; the newest checkpoint is {self.last_committed or 'none at all'}"
        if self.on_failure == "raise":
            raise SaveFailedError(text) from error
        log.error("%s; training goes on", text)

    def _tell_delay(self, step: int, busy: list[int]) -> None:
        if self._now.delay_told:
            return
        self._now.delay_told = True
        label, seconds = self._writer.under_way or (f"rank {busy[0]}'s part", 0.0)
        log.warning(
            "a checkpoint is due at step %d, but %s is still being written after %.0f s: the next "
            "one waits, training does not",
            step,
            label,
            seconds,
        )

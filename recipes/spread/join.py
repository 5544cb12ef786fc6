"""What every machine but the first runs: the producers and trainers that `plan` places on it.

    python -m recipes.gemma4_abliterated join --run-dir SHARED --number 1 ...same settings...

Where `plan` places producers on the first machine too, it runs `join --number 0` beside `all`. It
waits for the leading machine, starts what that one wants, starts a trainer's torchrun again if it
ended (the others wait for it at the rendezvous), and ends when the leader does. A machine that was
preempted runs the same command again. Logs are in the run folder, under machines/NUMBER.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from recipes import upstream
from recipes.config import Recipe
from recipes.extract_stage import extracted
from recipes.process import StageError, end_with_parent
from recipes.run_folder import RunFolder
from recipes.server_specs import extraction_server, plain_server, store_of
from recipes.servers import ServerPool, watching
from recipes.spread.call import BODY, EXTRACTION, TRAINERS, Listener
from recipes.spread.placement import Placement, place
from recipes.vllm.spec import ServerSpec

Say = Callable[[str], None]
_LOOK_S = 1.0
_AGAIN_S = 5.0
_ENDS_S = 10.0
_GRACE_S = 150.0  # above torchrun's own, in which ranks save


def endpoints(placement: Placement, recipe: Recipe) -> tuple[str, ...]:
    """Addresses of all producers, as the leading machine uses them."""
    return tuple(
        f"http://{host.name}:{recipe.producer_port + number}"
        for host in placement.hosts
        for number, _ in enumerate(host.producers)
    )


def with_endpoints(recipe: Recipe) -> Recipe:
    """The recipe as the leader of several machines runs it; of one machine: unchanged.

    Producers are then what `join` starts at known addresses, unless the user runs his own.
    """
    placement = place(recipe)
    if not placement.is_spread:
        return recipe
    urls = ",".join(endpoints(placement, recipe))
    return dataclasses.replace(
        recipe,
        regenerate_endpoint=recipe.regenerate_endpoint or urls,
        train_endpoint=recipe.train_endpoint or urls,
    )


def specs(recipe: Recipe, run: RunFolder, number: int, what: str) -> list[ServerSpec]:
    """The servers of machine `number` for BODY (answers) or EXTRACTION (hidden states).

    They listen at the machine's name in `hosts`, without a key: on a network of yours alone.
    """
    host = place(recipe).hosts[number]
    theirs = recipe.regenerate_endpoint if what == BODY else recipe.train_endpoint
    if theirs:
        return []  # the user's own
    one = (
        plain_server(recipe)
        if what == BODY
        else extraction_server(recipe, run.stage_dir("hidden_states"))
    )
    return [
        dataclasses.replace(
            one,
            name=f"{one.name}-{number}-{index}",
            host=host.name,
            port=recipe.producer_port + index,
            env={**one.env, "CUDA_VISIBLE_DEVICES": str(gpu)},
        )
        for index, gpu in enumerate(host.producers)
    ]


def training(recipe: Recipe, run: RunFolder, number: int) -> list[str]:
    """torchrun on machine `number`; all machines' differ in nothing but their own address."""
    online = recipe.hidden_states == "online"
    states = extracted(run)
    return upstream.train(
        recipe,
        data=run.stage_dir("prepare") / "dataset",
        output=run.stage_dir("train") / "checkpoints",
        logs=run.stage_dir("train") / "logs",
        endpoint=with_endpoints(recipe).train_endpoint if online else None,
        cached=None if online else states.folder,
        incomplete=not online and states.missing > 0,
        store=store_of(recipe),
        number=number,
    )


def join(
    recipe: Recipe, run: RunFolder, number: int, say: Say, note: Say, silence_s: float = 1800.0
) -> None:
    """Serve the leading machine until it ends.

    Args:
        number: this machine's place in `hosts`. 0, the leader itself: its producers alone.
        say: lines worth keeping.
        note: passing ones.
        silence_s: how long the leader may be silent, at the start or later.

    Raises:
        StageError: the leader was not heard of.
        ServerError: a producer does not start.
    """
    mine = RunFolder(run.root / "machines" / str(number))
    host = place(recipe).hosts[number]
    say(
        f"machine {number} ({host.name}): {host.trainers} trainers, {len(host.producers)} producers"
    )
    if os.environ.get("VLLM_API_KEY") and host.producers:
        say(
            f"machine {number}: VLLM_API_KEY is not used for its producers, since upstream's "
            "clients send no key: whoever reaches their ports may ask them"
        )
    listener = Listener(run)
    with ServerPool(mine.root / "logs", note, recipe.start_timeout, mine.record_server) as pool:
        trainers = _Trainers(recipe, run, mine, number, say) if number and host.trainers else None
        serving: dict[str, ExitStack] = {}
        try:
            while not listener.over:
                listener.listen()
                # Here: a server may take long to start, and nobody listens meanwhile.
                if listener.silent_s > silence_s:
                    raise StageError(
                        f"machine {number}: nothing was heard of the leading machine for "
                        f"{listener.silent_s:.0f} s; is {run.root} the same folder there, and does "
                        "it run? The same command joins again."
                    )
                for what in (BODY, EXTRACTION):
                    if what not in listener.wanted and what in serving:
                        serving.pop(what).close()
                for what in (BODY, EXTRACTION):
                    if what in listener.wanted and what not in serving:
                        serving[what] = _serve(pool, recipe, run, number, what, say)
                if trainers is not None:
                    trainers.reconcile(TRAINERS in listener.wanted)
                pool.check_watched()
                time.sleep(_LOOK_S)
        finally:
            if trainers is not None:
                trainers.stop()
            for stack in serving.values():
                stack.close()
    say(f"machine {number}: the leading machine has ended, and so does this one")


def _serve(
    pool: ServerPool, recipe: Recipe, run: RunFolder, number: int, what: str, say: Say
) -> ExitStack:
    stack = ExitStack()
    wanted = specs(recipe, run, number, what)
    try:
        pool.prestart(*wanted)
        for spec in wanted:
            stack.enter_context(pool.lease(spec, watch=watching(recipe, say)))
            say(f"machine {number}: {spec.name} serves at {spec.host}:{spec.port}")
    except BaseException:
        stack.close()
        raise
    return stack


class _Trainers:
    """torchrun on this machine, while the leader wants it."""

    def __init__(
        self, recipe: Recipe, run: RunFolder, mine: RunFolder, number: int, say: Say
    ) -> None:
        self._recipe, self._run, self._mine = recipe, run, mine
        self._number, self._say = number, say
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0

    def reconcile(self, wanted: bool) -> None:
        """Start, look after, or stop."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            self._again_at = time.monotonic() + _AGAIN_S
            if code:
                self._say(
                    f"machine {self._number}: its trainers ended with exit code {code} (see "
                    f"{self._mine.log('train')}); they start again while the leader wants them"
                )
        if wanted and self._process is None and time.monotonic() >= self._again_at:
            self._start()
        elif not wanted:
            self.stop(_ENDS_S)  # at the end of a run, a moment after the leader's

    def _start(self) -> None:
        argv = training(self._recipe, self._run, self._number)
        env: dict[str, Any] = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **upstream.train_environment(self._recipe, self._number),
        }
        with self._mine.log("train").open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
        self._say(f"machine {self._number}: trainers started")

    def stop(self, patience_s: float = 0.0) -> None:
        """SIGTERM, on which ranks save and end; SIGKILL when they do not.

        Args:
            patience_s: how long torchrun may take to end by itself first.
        """
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

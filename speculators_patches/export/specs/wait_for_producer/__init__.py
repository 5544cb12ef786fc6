"""Training waits for a vLLM that is down instead of leaving samples out."""

from speculators_patches.export import code
from speculators_patches.export.edits import (
    argument,
    expression,
    field,
    flag,
    imports,
    insert,
    parameter,
    statement,
)
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "wait_for_producer/code_data.py"
_AFTER = "max_consecutive_generation_failures"
_LOADERS = "create_train_val_loaders"

SPEC = Spec(
    name="wait_for_producer",
    related="#969 (merged, after 2026-08-27: the circuit breaker)",
    steps=(
        Step(
            slug="wait-for-vllm",
            subject="feat(data): wait for a vLLM that is down before giving samples up",
            problem="""
                A vLLM that was restarted, crashed, or is not up yet costs sample after sample:
                each one's attempts are used up within a minute, the sample is left out of training,
                and after 20 in a row the circuit breaker ends the run. Loading a large model takes
                longer than that, so a restart of the server that could be waited out loses the run.
                """,
            fix="""
                Where the connection itself fails (refused, reset, broken off; not a timeout and not
                an answer with an error), the worker waits and asks again, for `--producer-wait`
                seconds (default 300) since the last sample it got. The client is made anew each
                time, so another model behind the address is noticed. After that time failures count
                as they do now. 0 turns the waiting off.
                """,
            risk="""
                Under torchrun the other ranks wait in a collective meanwhile, and their process
                group ends the run when its own timeout is over: 10 minutes with NCCL, which
                `maybe_setup_distributed` does not change. The default of 5 minutes stays below
                that, but each outage is waited for anew, so a batch that meets two may reach it;
                who sets `--producer-wait` higher has to raise the group's timeout as well.

                A wrong `--vllm-endpoint` is an error after 5 minutes, with a warning each minute. A
                sample that kills the server each time it is asked for is asked for until the time
                is over.
                """,
            reproduction="reproduce.py",
            files={
                "train/data.py": (
                    imports("import time"),
                    parameter(
                        "ArrowDataset.__init__", "producer_wait: float = 300.0", after=_AFTER
                    ),
                    statement(
                        "ArrowDataset.__init__",
                        Match("assign", "self.max_retries"),
                        code.inside(_CODE, "state"),
                        where="after",
                    ),
                    insert(
                        code.definition(_CODE, "_generate_hidden_states"),
                        after="ArrowDataset._generate_hidden_states_once",
                    ),
                    expression(
                        "ArrowDataset._get_raw_data",
                        "self._generate_hidden_states_once",
                        "self._generate_hidden_states",
                    ),
                ),
                "train/dataloader.py": (
                    parameter(_LOADERS, "producer_wait: float = 300.0", after="seed"),
                    *(
                        argument(
                            _LOADERS,
                            "ArrowDataset",
                            "producer_wait=producer_wait",
                            after=_AFTER,
                            nth=nth,
                        )
                        for nth in range(2)
                    ),
                ),
                "train/config/schema.py": (
                    field("GenerationArgs", _AFTER, code.inside(_CODE, "field_of_the_schema")),
                ),
                "train/cli.py": (
                    argument("main", _LOADERS, "producer_wait=args.producer_wait", after="seed"),
                ),
            },
            beside={
                "docs/cli/train.md": (
                    flag(
                        "--max-retries",
                        then="**`--producer-wait`** (float, default: `300.0`) Seconds to wait for "
                        "a vLLM that can't be reached before samples are given up; `0` turns "
                        "waiting off. With several ranks, keep it below the process group's "
                        "timeout (10 minutes with NCCL).",
                    ),
                )
            },
            tests={"tests/unit/train/test_wait_for_vllm.py": "test_wait_for_vllm.py"},
            differs="the overlay probes the server, tells a sample at fault from a server that "
            "is gone, and waits for room on a full disk",
        ),
    ),
)

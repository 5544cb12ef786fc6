"""The trainer trains and resumes on a machine without an accelerator."""

from speculators_patches.export import code
from speculators_patches.export.edits import Edit, decorate, expression, insert, statement, wrap
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "cpu_training/code.py"
_ACCELERATOR = "speculators.train.trainer.torch.accelerator"
# What moves a model or a batch to its device.
_MOVING = ("train_epoch", "val_epoch", "setup_model", "_setup_model_ddp")


def _synchronized(qualname: str) -> Edit:
    synchronize = Match("call", "torch.accelerator.synchronize")
    return wrap(qualname, synchronize, synchronize, "if torch.accelerator.is_available():")


SPEC = Spec(
    name="cpu_training",
    steps=(
        Step(
            slug="train-on-cpu",
            subject="feat(train): run the trainer on machines without an accelerator",
            problem="""
                The trainer takes device number 0 for granted: it moves the model and the batches to
                it, synchronizes it for its step times, loads checkpoints to `cuda:0`, and refuses
                torchrun without an accelerator. On a CPU the first step fails, so neither a unit
                test nor a contributor's laptop can run a training loop, and tests stand in for the
                trainer with mocks.
                """,
            fix="""
                Move tensors to the rank's accelerator if there is one and to the CPU otherwise,
                synchronize only what exists, load checkpoints where the model is, and use gloo
                between CPU ranks. Each is one condition. Attention and loss implementations are
                left to their flags: a CPU needs `--draft-attn-impl sdpa --loss-implementation
                eager`.
                """,
            risk="""
                With an accelerator every path is the one it was. A machine whose accelerator is not
                found now trains on the CPU, slowly, instead of failing; the progress bar shows it.
                `test_step_timer.py`, which counts calls of a mocked `synchronize`, mocks
                `is_available` as well, so that it passes on a CPU.
                """,
            reproduction="reproduce.py",
            files={
                "train/trainer.py": (
                    insert(code.definition(_CODE, "_training_device"), before="_StepTimer"),
                    _synchronized("_StepTimer.mark"),
                    _synchronized("_StepTimer.now"),
                    expression(
                        "Trainer.__init__",
                        "acc.type if acc is not None else 'cuda'",
                        'acc.type if acc is not None else "cpu"',
                    ),
                    *(
                        expression(
                            f"Trainer.{method}",
                            "self.local_rank",
                            "_training_device(self.local_rank)",
                        )
                        for method in _MOVING
                    ),
                ),
                "train/distributed.py": (
                    wrap(
                        "maybe_setup_distributed",
                        Match("call", "torch.accelerator.set_device_index"),
                        Match("call", "torch.accelerator.set_device_index"),
                        "if torch.accelerator.is_available():",
                    ),
                    statement(
                        "maybe_setup_distributed",
                        Match("if", "acc is None"),
                        code.inside(_CODE, "without_accelerator"),
                        where="instead",
                    ),
                    wrap(
                        "maybe_setup_distributed",
                        Match("assign", "backend"),
                        Match("call", "dist.init_process_group", nth=1),
                        "else:",
                    ),
                ),
                "utils/util.py": (
                    statement(
                        "get_current_device",
                        Match("return", "'cuda:0'"),
                        'return "cpu"',
                        where="instead",
                    ),
                ),
            },
            beside={
                "tests/unit/train/test_step_timer.py": (
                    decorate(
                        "test_enabled_timer_returns_profile",
                        f'@patch("{_ACCELERATOR}.is_available", new=lambda: True)',
                        f'@patch("{_ACCELERATOR}.memory_allocated", new=lambda: 0)',
                    ),
                ),
            },
            tests={"tests/unit/train/test_cpu_training.py": "test_cpu_training.py"},
            differs="the overlay also replaces the default attention and loss on a CPU",
        ),
    ),
)

"""Patches made for tests, of real upstream objects of every kind the overlay has to handle.

A plain function that other modules bound by name, a method that two patches wrap, a classmethod and
a staticmethod. Their replacements call the original, so upstream keeps working.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import drift, patches
from speculators_patches.registry import Patch, Target

FUNCTION = ("speculators.models.utils", "resolve_target_layer_ids")
METHOD = ("speculators.train.trainer", "Trainer.train_epoch")
CLASSMETHOD = ("speculators.model", "SpeculatorModel.verify_training_compatible")
STATICMETHOD = ("speculators.models.eagle3.core", "Eagle3DraftModel.get_trainer_kwargs")

# patch name -> what it replaces
TARGETS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "wraps_function_and_classmethod": (FUNCTION, CLASSMETHOD),
    "wraps_method": (METHOD,),
    "wraps_method_again": (METHOD, STATICMETHOD),
}


def wrapper(original: Any, tag: str) -> Callable[..., Any]:
    """A function that calls `original` and remembers its patch and what it wraps."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    call.tag, call.inner = tag, original  # type: ignore[attr-defined]
    return call


def add_to_table(fingerprints: Mapping[str, str] | None = None) -> None:
    """Adds them to the table, with upstream's fingerprints as they are unless told otherwise."""
    made: dict[str, Patch] = {}
    modules: dict[str, Any] = {}
    for name, places in TARGETS.items():
        wrong = (fingerprints or {}).get(name)
        targets = tuple(
            Target(module, qualname, {">=0": wrong or fingerprint(module, qualname)})
            for module, qualname in places
        )
        made[name] = Patch(
            name=name,
            defect="None; made for a test.",
            needed=SpecifierSet(">=0"),
            targets=targets,
            upstream="none",
            fixed_in=None,
            remove_when="never",
            proof="tests/compat/test_apply_revert.py",
        )

        def replacements(originals: Mapping[str, Any], name: str = name) -> Mapping[str, Any]:
            return {path: wrapper(original, name) for path, original in originals.items()}

        modules[name] = SimpleNamespace(PATCH=made[name], replacements=replacements)
    real_table, real_module_of = patches.table(), patches.module_of
    whole = {**real_table, **made}

    def module_of(name: str) -> ModuleType:
        return modules[name] if name in modules else real_module_of(name)

    patches.table = lambda: whole  # type: ignore[assignment]
    patches.module_of = module_of


def fingerprint(module: str, qualname: str) -> str:
    file = drift.module_file(module)
    assert file is not None, module
    (found,) = drift.definitions(file, qualname)
    return found.fingerprint

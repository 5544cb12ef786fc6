"""apply(), revert(), status(): the only code that changes upstream's objects.

`apply` judges every selected patch before it touches anything. Objects that a module of upstream
bound by name (`from m import f`) are found by identity and replaced and restored together with the
original. What holds an object in another way (a default argument, a registry, an instance) keeps
what it took; apply before you build things.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FunctionType, ModuleType

from speculators_patches import drift, patches, verdicts, workers
from speculators_patches.registry import Patch, Target
from speculators_patches.report import Report, Row, Verdict, installed
from speculators_patches.verdicts import ALLOW_DRIFT_ENV, Judgement

_lock = threading.RLock()


class UnknownPatch(ValueError):
    """A name that is not in the table; the message lists those that are."""


class PatchRefused(RuntimeError):
    """A needed patch does not fit the installed upstream; nothing was changed.

    Attributes:
        report: the verdict on every patch.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(
            "; ".join(
                f"patch {row.patch} cannot be applied: {row.reason}" for row in report.refused
            )
        )


@dataclass
class _Slot:
    """One attribute we set: where, and upstream's own object (the raw `__dict__` entry)."""

    owner: object
    name: str
    original: object


@dataclass
class _State:
    active: tuple[str, ...] = ()
    slots: list[_Slot] = field(default_factory=list)
    originals: dict[str, object] = field(default_factory=dict)  # target path -> upstream's own
    replacing: dict[int, object] = field(default_factory=dict)  # id of ours -> upstream's own
    ours: list[object] = field(default_factory=list)  # keeps those ids alive
    allow_drift: frozenset[str] = frozenset()


_state = _State()


def apply(
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    *,
    strict: bool = True,
    allow_drift: Iterable[str] = (),
    workers: bool = True,
) -> Report:
    """Applies the patches that the installed upstream needs and reports on every one.

    Args:
        only: names to apply; None means `defaults()`. An empty `only` applies none. Patches that
            are already in force stay.
        skip: names to leave out.
        strict: raise `PatchRefused` if a selected, needed patch does not fit (nothing is changed
            then). False: apply the others; the report has the refused rows.
        allow_drift: names whose changed source is accepted; the names in the environment variable
            SPECULATORS_PATCHES_ALLOW_DRIFT are added.
        workers: also keep the patches in force in processes that this one starts; see `workers`.

    Returns:
        One row a patch: applied, not needed, not applicable, not selected or refused.

    Raises:
        UnknownPatch: a name is not in the table.
        PatchRefused: see `strict`.
    """
    with _lock:
        selected = _select(only, skip)
        allowed = _allowed(allow_drift)
        judged = {name: verdicts.judge(patches.table()[name], allowed) for name in selected}
        for name, judgement in judged.items():
            if judgement.verdict is Verdict.NEEDED and name not in _state.active:
                problems = _live_problems(patches.table()[name], name in allowed)
                if problems:
                    judged[name] = _refuse_live(patches.table()[name], problems)
        needed = {name for name, item in judged.items() if item.verdict is Verdict.NEEDED}
        if strict and any(item.verdict is Verdict.REFUSED for item in judged.values()):
            raise PatchRefused(_report(judged))
        wanted = tuple(name for name in patches.table() if name in needed.union(_state.active))
        if wanted != _state.active:
            _switch_to(wanted)
        _state.allow_drift |= allowed
        _spread(workers)
        return _report(judged)


def revert() -> Report:
    """Puts upstream's own objects back, here and in modules that bound ours by name.

    Safe when nothing is applied. Processes started earlier keep their patches.
    """
    with _lock:
        _switch_to(())
        _state.allow_drift = frozenset()
        workers.withdraw()
        return status()


def status(allow_drift: Iterable[str] = ()) -> Report:
    """The verdict on every patch, and whether it is in force, without changing anything."""
    with _lock:
        allowed = _allowed(allow_drift) | _state.allow_drift
        return _report(
            {name: verdicts.judge(patch, allowed) for name, patch in patches.table().items()}
        )


def in_force() -> tuple[str, ...]:
    """Names of the patches that are applied in this process, in the order of the table."""
    return _state.active


def _spread(on: bool) -> None:
    if on and _state.active:
        workers.spread(workers.Selection(_state.active, tuple(sorted(_state.allow_drift))))


def defaults(package: str = "speculators") -> tuple[str, ...]:
    """The patches that are applied unnamed: those with `default=True` to one top-level package.

    One package, because applying a patch imports what it changes: a trainer has no use for vLLM's
    imports, nor a vLLM server for the trainer's. `run --module vllm...` applies vLLM's.
    """
    return tuple(
        name
        for name, patch in patches.table().items()
        if patch.default and patch.package == package
    )


def _select(only: Iterable[str] | None, skip: Iterable[str]) -> tuple[str, ...]:
    chosen = defaults() if only is None else _known(only)
    left_out = _known(skip)
    return tuple(name for name in patches.table() if name in chosen and name not in left_out)


def _known(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        names = (names,)
    names = tuple(names)
    unknown = sorted(set(names) - set(patches.table()))
    if unknown:
        raise UnknownPatch(
            f"no patch named {', '.join(unknown)}; there are {', '.join(patches.table())}"
        )
    return names


def _allowed(names: Iterable[str]) -> frozenset[str]:
    from_env = [name.strip() for name in os.environ.get(ALLOW_DRIFT_ENV, "").split(",")]
    return frozenset(_known(names)) | frozenset(_known(name for name in from_env if name))


def _report(judged: dict[str, Judgement]) -> Report:
    rows = []
    for name, patch in patches.table().items():
        active = name in _state.active
        if name in judged:
            rows.append(verdicts.row_of(patch, judged[name], active))
        else:
            reason = "applied earlier" if active else _why_not_selected(patch)
            kind = Verdict.APPLIED if active else Verdict.NOT_SELECTED
            rows.append(
                Row(
                    name,
                    kind,
                    reason,
                    patch.upstream,
                    active,
                    patch.changes_learning,
                    patch.default,
                )
            )
    return Report(tuple(rows), installed())


def _why_not_selected(patch: Patch) -> str:
    if patch.default and patch.package != "speculators":
        return f"not asked for; applied where {patch.package} itself is run, or when named"
    return "not asked for" if patch.default else "not asked for; applied only when named"


def _refuse_live(patch: Patch, problems: list[str]) -> Judgement:
    distribution, version = verdicts.installed_distribution(patch)
    assert version is not None
    return verdicts.refused(patch, distribution, version, problems)


def _live_problems(patch: Patch, allowed: bool) -> list[str]:
    """What is wrong with the imported objects although the files are right."""
    problems = []
    originals = {}
    for target in _targets(patch):
        try:
            owner, name = _locate(target)
            raw = _state.originals.get(target.path, vars(owner).get(name))
        except (ImportError, AttributeError) as error:
            first_line = str(error).partition("\n")[0]
            problems.append(f"{target.module} does not import: {first_line}")
            continue
        if raw is None and name not in vars(owner):
            problems.append(f"{target.path} exists in the source but not at run time")
        elif not target.observed and not allowed and _is_foreign(_plain(raw), target):
            problems.append(f"{target.path} was already replaced at run time by other code")
        originals[target.path] = _plain(raw)
    misfit = getattr(patches.module_of(patch.name), "misfit", None)
    if misfit is not None and not problems and (problem := misfit(originals)) is not None:
        problems.append(problem)
    return list(dict.fromkeys(problems))


def _is_foreign(obj: object, target: Target) -> bool:
    here = (getattr(obj, "__module__", None), getattr(obj, "__qualname__", None))
    if not isinstance(obj, FunctionType | type) or here == (target.module, target.qualname):
        return False
    live = drift.fingerprint_of(obj)
    file = drift.module_file(target.module)
    known = {item.fingerprint for item in drift.definitions(file, target.qualname)} if file else ()
    return live is not None and live not in known


def _targets(patch: Patch) -> tuple[Target, ...]:
    """Those that the installed version has."""
    _, version = verdicts.installed_distribution(patch)
    return patch.targets if version is None else patch.targets_in(version)


def _locate(target: Target) -> tuple[object, str]:
    """The module or class that holds the target, and the attribute's name."""
    *path, name = target.qualname.split(".")
    owner: object = importlib.import_module(target.module)
    for part in path:
        owner = getattr(owner, part)
    return owner, name


def _plain(raw: object) -> object:
    return raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw


def _switch_to(names: tuple[str, ...]) -> None:
    """Makes exactly `names` active; if one of them fails, what was active before is back."""
    before = _state.active
    _restore()
    try:
        for name in names:
            _install(patches.table()[name])
    except BaseException:
        _restore()
        for name in before:
            _install(patches.table()[name])
        _state.active = before
        raise
    _state.active = names


def _install(patch: Patch) -> None:
    replaced = {target.path: target for target in _targets(patch) if not target.observed}
    places = {path: _locate(target) for path, target in replaced.items()}
    current = {path: _plain(vars(owner)[name]) for path, (owner, name) in places.items()}
    new = patches.module_of(patch.name).replacements(current)
    elsewhere = {target.path for target in patch.targets} - {t.path for t in _targets(patch)}
    if set(new) - elsewhere != set(replaced):
        raise TypeError(
            f"patches/{patch.name}.py: replacements() gave {sorted(new)} "
            f"for the targets {sorted(replaced)}"
        )
    for path, (owner, name) in places.items():
        raw = vars(owner)[name]
        own = _state.originals.setdefault(path, raw)
        value = new[path]
        if isinstance(raw, staticmethod | classmethod) and isinstance(value, FunctionType):
            value = type(raw)(value)
        _set(owner, name, value)
        _state.replacing[id(value)] = own
        _state.ours.append(value)
        if isinstance(owner, ModuleType) and isinstance(raw, FunctionType | type):
            _rebind(raw, value, replaced[path])


def _set(owner: object, name: str, value: object) -> None:
    _state.slots.append(_Slot(owner, name, vars(owner)[name]))
    setattr(owner, name, value)


def _neighbours(target_module: str, aliases: Iterable[str] = ()) -> list[ModuleType]:
    top = target_module.partition(".")[0]
    inside = top + "."
    names = {top, "__main__", *aliases}
    return [
        module
        for name, module in list(sys.modules.items())
        if (name.startswith(inside) or name in names) and isinstance(module, ModuleType)
    ]


def _rebind(old: object, new: object, target: Target) -> None:
    """Replaces `old` in the loaded modules that took it by name."""
    for module in _neighbours(target.module, target.aliases):
        for name, value in list(vars(module).items()):
            if value is old:
                _set(module, name, new)


def _unbind(modules: Iterable[ModuleType]) -> None:
    for module in modules:
        for name, value in list(vars(module).items()):
            ours = isinstance(value, FunctionType | type) and id(value) in _state.replacing
            if ours:
                setattr(module, name, _state.replacing[id(value)])


def _restore() -> None:
    for slot in reversed(_state.slots):
        setattr(slot.owner, slot.name, slot.original)
    # Modules that were imported while we were active took our object by name.
    for name in _state.active:
        for target in _targets(patches.table()[name]):
            _unbind(_neighbours(target.module, target.aliases))
    _state.slots.clear()
    _state.originals.clear()
    _state.replacing.clear()
    _state.ours.clear()
    _state.active = ()

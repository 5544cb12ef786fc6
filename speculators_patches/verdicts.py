"""Decides, for one patch and the upstream installed here, whether it is needed and whether it fits.

Nothing is imported from upstream and nothing is changed (a patch's own `applicable` hook may import
torch).
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.version import Version

from speculators_patches import drift, patches
from speculators_patches.registry import Patch
from speculators_patches.report import Row, Verdict

ALLOW_DRIFT_ENV = "SPECULATORS_PATCHES_ALLOW_DRIFT"


@dataclass(frozen=True)
class Judgement:
    """A verdict (NEEDED, NOT_NEEDED, NOT_APPLICABLE or REFUSED) and its reason in words."""

    verdict: Verdict
    reason: str


def judge(patch: Patch, allow_drift: Iterable[str] = (), *, machine: bool = True) -> Judgement:
    """The verdict on `patch` here; a name in `allow_drift` accepts changed source of that patch.

    Args:
        machine: ask the patch whether it is a no-op on this machine, which may import torch.
    """
    distribution, version = _installed(patch)
    if version is None:
        return Judgement(Verdict.NOT_APPLICABLE, f"{distribution} is not installed")
    notes = []
    if not patch.needed.contains(version, prereleases=True):
        if str(version) in patch.tested or not _has_defective_source(patch, version):
            return Judgement(Verdict.NOT_NEEDED, _why_not_needed(patch, distribution, version))
        notes.append(f"{distribution} {version} should not need it, but has the defective source")

    no_op = _no_op_here(patch) if machine else None
    if no_op is not None:
        return no_op

    findings = [drift.examine(target, version) for target in patch.targets_in(version)]
    problems = [item.problem for item in findings if item.problem]
    missing = [item for item in findings if item.problem and not item.fingerprints]
    if problems and (missing or patch.name not in allow_drift):
        return Judgement(
            Verdict.REFUSED, _refusal(patch, distribution, version, problems, not missing)
        )
    if problems:
        notes.append("changed source allowed by you: " + "; ".join(problems))
    notes.extend(item.note for item in findings if item.note)
    reason = f"{distribution} {version} has the defect"
    return Judgement(Verdict.NEEDED, "; ".join([reason, *dict.fromkeys(notes)]))


def row_of(patch: Patch, judgement: Judgement, active: bool) -> Row:
    """A report row; a needed patch that is in force reads "applied"."""
    verdict = judgement.verdict
    if verdict is Verdict.NEEDED and active:
        verdict = Verdict.APPLIED
    return Row(
        patch=patch.name,
        verdict=verdict,
        reason=judgement.reason,
        link=patch.upstream,
        active=active,
        changes_learning=patch.changes_learning,
        default=patch.default,
    )


def refused(patch: Patch, distribution: str, version: Version, problems: list[str]) -> Judgement:
    """A refusal found only on the live objects (see `overlay`)."""
    return Judgement(Verdict.REFUSED, _refusal(patch, distribution, version, problems, False))


def installed_distribution(patch: Patch) -> tuple[str, Version | None]:
    """The first installed of the patch's distributions and its version."""
    return _installed(patch)


def _installed(patch: Patch) -> tuple[str, Version | None]:
    for name in patch.distribution:
        try:
            return name, Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return patch.distribution[0], None


def _has_defective_source(patch: Patch, version: Version) -> bool:
    """True if every target is, to the letter, one that is on record as defective.

    Source decides for versions nobody tested: a development build may carry any version number.
    """
    findings = [drift.examine(target, version) for target in patch.targets_in(version)]
    return all(item.problem is None for item in findings)


def _no_op_here(patch: Patch) -> Judgement | None:
    hook = getattr(patches.module_of(patch.name), "applicable", None)
    if hook is None:
        return None
    try:
        reason = hook()
    except ImportError as error:
        return Judgement(Verdict.REFUSED, f"cannot tell whether it applies here: {error}")
    return Judgement(Verdict.NOT_APPLICABLE, reason) if reason else None


def _why_not_needed(patch: Patch, distribution: str, version: Version) -> str:
    if patch.fixed_in is not None and version >= Version(patch.fixed_in):
        return f"upstreamed in {patch.fixed_in}{_number(patch.upstream)}"
    return f"the patch is for {distribution} {patch.needed}, this is {version}"


def _number(link: str) -> str:
    match = re.search(r"/(?:pull|issues)/(\d+)", link)
    return f" (#{match.group(1)})" if match else ""


def _refusal(
    patch: Patch, distribution: str, version: Version, problems: list[str], can_override: bool
) -> str:
    tested = ", ".join(patch.tested) or str(patch.needed)
    text = f"{'; '.join(problems)}. Installed: {distribution} {version}; tested with {tested}."
    if can_override:
        text += (
            " If you have checked that the patch still fits, set"
            f" {ALLOW_DRIFT_ENV}={patch.name} or pass --allow-drift {patch.name}."
        )
    else:
        text += " There is no override: install a tested version, or leave the patch out (skip)."
    return text

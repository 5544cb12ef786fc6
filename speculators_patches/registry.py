"""The Patch record: what is wrong upstream, where, in which versions, and when we may stop caring.

A patch is one file in `speculators_patches/patches/` holding one `PATCH` record and the code that
replaces upstream's. The record is plain data: reading it imports neither torch nor upstream, so
that `status` can speak about an upstream that does not even import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet


@dataclass(frozen=True)
class Target:
    """One upstream object that a patch replaces or relies on.

    Attributes:
        module: dotted module, e.g. `speculators.train.data`.
        qualname: name inside it, e.g. `Trainer.train_epoch`.
        fingerprints: version specifier -> `drift.fingerprint` of the object's source there. A
            version outside every specifier is accepted only if its source matches one of them.
        aliases: other modules that bound the object by name (`from m import f`); replaced and
            restored together with it, if they are loaded.
        observed: the target is only relied upon (its source must not drift), never replaced.
    """

    module: str
    qualname: str
    fingerprints: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    observed: bool = False

    @property
    def path(self) -> str:
        return f"{self.module}:{self.qualname}"


@dataclass(frozen=True)
class Patch:
    """One defect and its cure.

    Attributes:
        name: file name in `patches/`, named for what it makes true.
        defect: the defect, in one sentence, as a user meets it.
        needed: versions of `distribution` that have the defect.
        targets: the upstream objects concerned.
        upstream: link to the issue or pull request, or a sentence saying that none exists.
        fixed_in: first release without the defect, `None` while there is none.
        remove_when: the condition under which this file is deleted.
        proof: pytest id of the test that fails unpatched and passes patched.
        distribution: the installed distribution(s) that the versions are of, first found wins.
        changes_learning: True if a patched run learns something else than an unpatched one.
        default: False for patches that are applied only when named (recipes do).
    """

    name: str
    defect: str
    needed: SpecifierSet
    targets: tuple[Target, ...]
    upstream: str
    fixed_in: str | None
    remove_when: str
    proof: str
    distribution: tuple[str, ...] = ("speculators",)
    changes_learning: bool = False
    default: bool = True
    tested: tuple[str, ...] = field(default=())

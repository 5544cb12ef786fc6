"""The Patch record: what is wrong upstream, where, in which versions, and when we may stop caring.

A patch is one file in `speculators_patches/patches/` holding one `PATCH` record and the code that
replaces upstream's. The record is plain data: reading it imports neither torch nor upstream, so
that `status` can speak about an upstream that does not even import.

What a patch file provides besides `PATCH`:

- `replacements(originals) -> Mapping[str, object]`: the objects to put in place, keyed by
  `Target.path` ("module:qualname"), one for every target that is not `observed`. `originals` has
  the object now at each of those paths (upstream's own, or the replacement of a patch earlier in
  the table, so that patches of one target stack). Called once, when the patch is applied; import
  torch and upstream in here, not at the top of the file. Return plain module-level functions:
  a `functools.wraps` wrapper or a closure pickles under upstream's name or not at all. A
  replacement that must call the original keeps it in a module global that `replacements` sets.
  A target in a class that upstream declared `@staticmethod` or `@classmethod` is wrapped again
  for you; `originals` then holds the plain function below the decorator.
- `applicable() -> str | None` (optional): why the patch is a no-op on this machine ("it has a
  CUDA device"), or None. Called only where the patch is needed and may import torch.
- `misfit(originals) -> str | None` (optional): why `replacements` could not use upstream's own
  objects, where their changed source was accepted (--allow-drift); the patch is then refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet
from packaging.version import Version


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
        since: the first version that has the object; in older ones it is not looked for, and its
            replacement is not used. None: every version that needs the patch has it.
    """

    module: str
    qualname: str
    fingerprints: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    observed: bool = False
    since: str | None = None

    @property
    def path(self) -> str:
        return f"{self.module}:{self.qualname}"


@dataclass(frozen=True)
class Patch:
    """One defect and its cure.

    Attributes:
        name: file name in `patches/`, named for what it makes true.
        defect: the defect, in one sentence, as a user meets it.
        needed: versions of `distribution` that have the defect and that the patch is made for.
        targets: the upstream objects concerned.
        upstream: link to the issue or pull request, or a sentence saying that none exists.
        fixed_in: first release without the defect, `None` while there is none.
        remove_when: the condition under which this file is deleted.
        proof: pytest id of the test that fails unpatched and passes patched.
        distribution: the installed distribution(s) that the versions are of, first found wins.
        changes_learning: True if a patched run learns something else than an unpatched one.
        default: False for patches that are applied only when named (recipes do).
        tested: versions that the patch was run on, those that do not need it included. For any
            other version the source decides: the defective source is patched whatever its number.
        used_by: the top-level package whose programs need the patch, where that is not the package
            it changes (speculators' loss fails in torch).
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
    used_by: str | None = None

    def targets_in(self, version: Version) -> tuple[Target, ...]:
        """The targets that exist in `version` of the distribution."""
        return tuple(
            target
            for target in self.targets
            if target.since is None or version >= Version(target.since)
        )

    @property
    def package(self) -> str:
        """The top-level package with whose programs the patch is applied, e.g. `vllm`."""
        return self.used_by or self.targets[0].module.partition(".")[0]

"""A draft vocabulary that was asked for is built, or the run does not start.

`prepare-data` no longer counts tokens by default, and without `token_freq.pt` the trainer drops
`--draft-vocab-size` with a warning and trains the verifier's whole vocabulary: for Gemma 4 262,144
logits a position instead of 32,000, eight times the memory and a drafter that is slower to serve.
It keeps what it has built beside the data in two files, written in place: cut off by a kill or a
full disk they end every later run. Here they are looked at first, and built again if they are not
a mapping.

0.5 to 0.7 have the same fallback in a script outside the package, where no patch can reach it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_GENERATE = "speculators.train.cli:_generate_vocab_mappings"
_PARSE = "speculators.train.cli:parse_vocab_mappings"

PATCH = Patch(
    name="strict_draft_vocab",
    defect="--draft-vocab-size is dropped with a warning when token_freq.pt is missing; the "
    "drafter then trains the verifier's whole vocabulary.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.cli",
            "_generate_vocab_mappings",
            fingerprints={">=0.8.1,<0.9.1": "1038b5386d6f9a34"},
        ),
        # It calls the above only when --draft-vocab-size was given, and falls back on None.
        Target(
            "speculators.train.cli",
            "parse_vocab_mappings",
            fingerprints={">=0.8.1,<0.9.1": "7100730da8e29b4f"},
        ),
    ),
    upstream="no issue found; #1081 made the mappings explicit and kept the fallback",
    fixed_in=None,
    remove_when="upstream refuses a draft vocabulary that it cannot build",
    proof="tests/faults/test_strict_draft_vocab.py::test_a_vocabulary_that_cannot_be_built_is_refused",
    tested=("0.8.1", "0.9.0"),
)

logger = logging.getLogger("speculators")

_generate: Any = None
_parse: Any = None


def parse_vocab_mappings(args: Any) -> Any:
    """Upstream's, after removing kept mappings that are none."""
    from speculators.train.distributed import get_rank

    size = args.draft_vocab_size
    if size is not None and not args.d2t_path and get_rank() == 0:
        kept = [Path(args.data_path) / f"{name}-{size}.npy" for name in ("d2t", "t2d")]
        if any(path.exists() for path in kept) and not _is_mapping(kept[0], kept[1], size):
            logger.warning(f"{kept[0]} and {kept[1].name} are no mapping; they are built again")
            for path in kept:
                path.unlink(missing_ok=True)
    return _parse(args)


def _is_mapping(d2t_path: Path, t2d_path: Path, size: int) -> bool:
    """Whether the files hold what `size` draft tokens (int64 offsets) and all target tokens (bool,
    True where the drafter has the token) say of one another."""
    import numpy as np

    try:
        d2t, t2d = np.load(d2t_path), np.load(t2d_path)
    except (OSError, ValueError, EOFError):
        return False
    chosen = np.flatnonzero(t2d)
    return d2t.shape == (size,) and np.array_equal(chosen, d2t + np.arange(size))


def generate_vocab_mappings(args: Any, data_path: Path) -> Any:
    """Upstream's mappings (t2d, d2t and their size), never None.

    Raises:
        SystemExit: one sentence, when the frequencies are missing, unreadable or too few, or the
            vocabulary asked for is larger than the verifier's.
    """
    path = Path(args.token_freq_path or data_path / "token_freq.pt")
    try:
        result = _generate(args, data_path)
    except Exception as error:
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise _refusal(args, path, f"from {path} failed ({cause})") from error
    if result is None:
        raise _refusal(args, path, f"needs token frequencies, and {path} does not exist")
    return result


def _refusal(args: Any, path: Path, why: str) -> SystemExit:
    count = (
        "from datasets import load_from_disk; "
        "from speculators.train.vocab_mapping import save_token_frequency_distribution as save; "
        f"save(load_from_disk({str(args.data_path)!r}), {str(path)!r})"
    )
    return SystemExit(
        f"speculators_patches: --draft-vocab-size {args.draft_vocab_size} {why}; count the tokens "
        f'with `python -c "{count}"` (or prepare-data --no-skip-token-freq), or leave '
        "--draft-vocab-size out to train the verifier's whole vocabulary."
    )


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _generate, _parse
    _generate, _parse = originals[_GENERATE], originals[_PARSE]
    return {_GENERATE: generate_vocab_mappings, _PARSE: parse_vocab_mappings}

"""How much of a text the drafter can say at all: a ceiling on acceptance, by workload.

A token outside the draft vocabulary is never drafted: its draft is rejected, and with it all drafts
behind it. Upstream builds the vocabulary of a fresh drafter from the most frequent tokens of the
training answers; a started drafter brings its own. The shipped workloads have no answers yet when
`prepare` runs, so their prompts stand for their language and subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.config import Recipe

# A draft vocabulary that misses more than this of the run's own answers costs acceptance there.
ENOUGH = 0.99
# Of a workload's prompts: below it the line says that drafts will fail there.
POOR = 0.95
SIZES = (8_192, 16_384, 32_000, 65_536, 131_072)
OWN = "own answers"


@dataclass(frozen=True)
class Coverage:
    """One text: its tokens, the share that can be said, and the same for other sizes."""

    name: str
    tokens: int
    share: float
    by_size: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def most_frequent(counts: Mapping[int, int], size: int) -> set[int]:
    """Upstream's choice for a fresh drafter: by frequency, then by id; filled with low ids."""
    ordered = sorted(counts, key=lambda token: (-counts[token], token))[:size]
    chosen = set(ordered)
    token = 0
    while len(chosen) < size:
        chosen.add(token)
        token += 1
    return chosen


def share(counts: Mapping[int, int], sayable: set[int] | None) -> float:
    """Part of the tokens that are in `sayable` (None: all); 1 for no tokens."""
    total = sum(counts.values())
    if sayable is None or not total:
        return 1.0
    return sum(n for token, n in counts.items() if token in sayable) / total


def cover(
    texts: Mapping[str, Mapping[int, int]],
    own: Mapping[int, int],
    sayable: set[int] | None,
    vocabulary: int,
) -> list[Coverage]:
    """Coverage of each text by the drafter's vocabulary, and by the run's own best of other sizes.

    Args:
        texts: name -> token id -> count.
        own: the counts that a fresh vocabulary would be built from.
        vocabulary: size of the body's.
    """
    sizes = {n: most_frequent(own, n) for n in SIZES if n < vocabulary}
    return [
        Coverage(
            name,
            sum(counts.values()),
            share(counts, sayable),
            {n: share(counts, chosen) for n, chosen in sizes.items()},
        )
        for name, counts in texts.items()
    ]


def sayable_by(recipe: Recipe, own: Mapping[int, int], vocabulary: int) -> set[int] | None:
    """What this run's drafter will be able to say; None: everything.

    Raises:
        OSError: the started drafter cannot be read.
    """
    if not recipe.draft_start:
        size = recipe.draft_vocab_size
        return None if size is None or size >= vocabulary else most_frequent(own, size)
    from safetensors import safe_open

    file = Path(recipe.draft_start) / "model.safetensors"
    if not file.is_file():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(recipe.draft_start, "model.safetensors"))
    with safe_open(str(file), framework="pt") as weights:
        if "d2t" not in weights.keys():  # noqa: SIM118  (not a mapping)
            return None
        offsets = weights.get_tensor("d2t").tolist()
    return {index + int(offset) for index, offset in enumerate(offsets)}


def of_run(recipe: Recipe, frequencies: Path) -> list[Coverage]:
    """The run's own answers and every shipped workload.

    Args:
        frequencies: upstream's token_freq.pt.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from benchmarks.prompts import WORKLOADS, load_workload

    own = {int(k): int(v) for k, v in torch.load(frequencies, weights_only=True).items()}
    tokenizer = AutoTokenizer.from_pretrained(recipe.body)
    config = AutoConfig.from_pretrained(recipe.body)
    vocabulary = int((getattr(config, "text_config", None) or config).vocab_size)
    texts = {OWN: own}
    for name in WORKLOADS:
        counts: dict[int, int] = {}
        for prompt in load_workload(name):
            for token in tokenizer.encode(prompt.text, add_special_tokens=False, verbose=False):
                counts[int(token)] = counts.get(int(token), 0) + 1
        texts[name] = counts
    return cover(texts, own, sayable_by(recipe, own, vocabulary), vocabulary)


def lines(found: Iterable[Coverage], recipe: Recipe) -> list[str]:
    """What the drafter can say of each text, and advice on the vocabulary's size."""
    found = list(found)
    told = [
        "prepare: of the run's own answers and of the workloads' prompts the draft vocabulary "
        "holds " + ", ".join(f"{c.share:.1%} ({c.name})" for c in found)
    ]
    own = found[0]
    started = bool(recipe.draft_start)
    if own.share < ENOUGH:
        enough = next((n for n, part in own.by_size.items() if part >= ENOUGH), None)
        cure = (
            f"a fresh drafter with draft_vocab_size={enough} would hold {own.by_size[enough]:.1%}"
            if enough is not None
            else "only the whole vocabulary would hold more"
        )
        told.append(
            f"prepare: {1 - own.share:.1%} of the body's own tokens can never be drafted; {cure}"
            + (" (the started one keeps its own vocabulary)" if started else "")
        )
    poor = [c for c in found[1:] if c.share < POOR]
    if poor:
        told.append(
            "prepare: drafts will fail on "
            + ", ".join(f"{c.name} ({1 - c.share:.0%} of its tokens)" for c in poor)
            + ": if such text is served, train on answers of that kind, or draft from a larger "
            "vocabulary"
        )
    return told

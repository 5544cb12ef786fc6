"""What a body said, before anything is learnt from it: lengths, languages, refusals, repetition.

Cheap and approximate on purpose, for a look before hours of training. A refusal is an answer that
opens with one of a few English or Chinese phrases; it misses refusals in other words, and counts
an answer that opens with an apology and then helps. A language is guessed from the script and, for
Latin letters, from the commonest English words. Repetition is what the bench's text checks find
(`benchmarks.text_checks`), on at most `LOOKED_AT` answers.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.text_checks import check_answer

LOOKED_AT = 2000
# A refusal comes first: later "I can't" belongs to stories and explanations.
OPENING = 160
_REFUSALS = re.compile(
    r"\bi(?:['\u2019]m| am) (?:really |very |so |truly )?sorry\b|\bi apologi[sz]e\b"
    r"|\bi (?:can['\u2019]t|cannot|can not|must decline|must refuse)\b"
    r"|\bi (?:won['\u2019]t|will not) (?:be able|help|assist|provide|write|create|give)\b"
    r"|\bi(?:['\u2019]m| am) (?:unable|not able) to\b|\bi have to decline\b|\bas an ai\b"
    r"|抱歉|对不起|對不起|很遗憾|很遺憾|我不能|我无法|我無法|作为(?:一个|一名)?(?:ai|人工智能)"
    r"|作為(?:一個|一名)?(?:ai|人工智慧)|无法(?:提供|协助|满足)|無法(?:提供|協助|滿足)",
    re.IGNORECASE,
)
_ENGLISH = frozenset(
    ["the", "and", "of", "to", "a", "in", "is", "that", "for", "it", "you", "with", "on", "are",
     "as", "be", "this", "or", "your", "can", "not", "from", "by", "was", "have"]
)  # fmt: skip
_SCRIPTS = (
    ("Japanese", re.compile(r"[\u3040-\u30ff]"), 0.05),
    ("Korean", re.compile(r"[\uac00-\ud7af]"), 0.2),
    ("Chinese", re.compile(r"[\u3400-\u9fff]"), 0.2),
    ("Cyrillic", re.compile(r"[\u0400-\u04ff]"), 0.3),
    ("Arabic", re.compile(r"[\u0600-\u06ff]"), 0.3),
    ("Greek", re.compile(r"[\u0370-\u03ff]"), 0.3),
    ("Indic", re.compile(r"[\u0900-\u0dff]"), 0.3),
    ("Thai", re.compile(r"[\u0e00-\u0e7f]"), 0.3),
)
# What the end of an answer decodes to: marks of chat templates.
_MARKS = re.compile(r"<[a-z_|/]{2,24}>|<\|[a-z0-9_]{1,24}\|?>|\x00")
_LOOPING = {"loop", "endless", "repeated_ngrams", "copied_passages", "few_distinct", "compressible",
            "char_run"}  # fmt: skip


def is_refusal(answer: str) -> bool:
    """Whether an answer opens with a phrase of refusal, in English or Chinese."""
    return _REFUSALS.search(answer[:OPENING]) is not None


def language(text: str) -> str:
    """ "English", "Chinese", ..., "other Latin", or "none" where there are too few letters."""
    letters = [c for c in text if c.isalpha()]
    if len(letters) < 2:
        return "none"
    for name, script, share in _SCRIPTS:
        if len(script.findall(text)) >= share * len(letters):
            return name
    words = re.findall(r"[a-z']+", text.lower())
    common = sum(word in _ENGLISH for word in words)
    return "English" if common >= 0.12 * len(words) else "other Latin"


def answer_of(row: dict[str, Any]) -> str | None:
    """The answer's text in a row of a responses file; None for rows that do not say where it is."""
    start = row.get("metadata", {}).get("answer_start")
    if not isinstance(start, int) or not isinstance(row.get("text"), str):
        return None
    return _MARKS.sub("", row["text"][start:]).strip()


@dataclass
class AnswerSummary:
    """Counts over the answers of a file.

    Attributes:
        answers: rows with an answer's text; the others have no place here.
        tokens: answer tokens at the 10, 50, 90 % quantiles and the longest.
        characters: the same in characters.
        languages: answers by language, the commonest first.
        refusals: answers that open with a refusal.
        repeating: of `checked` answers, how many repeat themselves.
        examples: the ids of a few of those that refuse or repeat.
    """

    answers: int = 0
    tokens: tuple[int, ...] = ()
    characters: tuple[int, ...] = ()
    languages: dict[str, int] = field(default_factory=dict)
    refusals: int = 0
    checked: int = 0
    repeating: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """For people."""
        if not self.answers:
            yield "no answer's text to look at (written without the patch durable_responses)"
            return
        low, middle, high, longest = self.tokens
        yield f"{self.answers} answers of {middle} tokens (10 % {low}, 90 % {high}, most {longest})"
        spoken = ", ".join(f"{name} {count}" for name, count in self.languages.items())
        yield f"languages: {spoken}"
        yield (
            f"refusals left: {self.refusals} ({self.refusals / self.answers:.1%}); repeating: "
            f"{self.repeating} of {self.checked} looked at"
        )


def summarise(path: Path) -> AnswerSummary:
    """Reads a responses file once."""
    rows = sum(1 for _ in path.open("rb"))
    every = max(1, -(-rows // LOOKED_AT))
    tokens: list[int] = []
    characters: list[int] = []
    languages: Counter[str] = Counter()
    found = AnswerSummary()
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            text = answer_of(row)
            if text is None:
                continue
            name = str(row["id"])
            tokens.append(sum(row["loss_mask"]))
            characters.append(len(text))
            languages[language(text)] += 1
            if is_refusal(text):
                found.refusals += 1
                _example(found, "refusals", name)
            if zlib.crc32(name.encode()) % every == 0:
                found.checked += 1
                if repeats(text, row["metadata"].get("finish_reason")):
                    found.repeating += 1
                    _example(found, "repeating", name)
    found.answers = len(tokens)
    if tokens:
        found.tokens, found.characters = _quantiles(tokens), _quantiles(characters)
        found.languages = dict(languages.most_common())
    return found


def repeats(text: str, finish_reason: str | None) -> bool:
    """Whether the bench would call the text a loop."""
    return any(f.check in _LOOPING for f in check_answer(text, finish_reason))


def _example(found: AnswerSummary, kind: str, name: str) -> None:
    known = found.examples.setdefault(kind, [])
    if len(known) < 5:
        known.append(name)


def _quantiles(values: list[int]) -> tuple[int, ...]:
    ordered = sorted(values)
    places = (len(ordered) // 10, len(ordered) // 2, len(ordered) * 9 // 10, len(ordered) - 1)
    return tuple(ordered[min(place, len(ordered) - 1)] for place in places)

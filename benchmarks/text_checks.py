"""Is this answer text, or a body that has fallen into a loop? One answer at a time.

The published 100 tok/s came from looping text: a drafter predicts a loop perfectly, so a broken
answer is a fast answer. Every check has a threshold with its reason beside it in `Thresholds`. They
are set so that legitimately repetitive text passes (tables, boilerplate, refrains, empty game
boards) at any point where a token limit may cut it; `tests/unit/test_bench_text_checks.py` holds
the texts on both sides. Verdicts over a whole arm are in `arm_verdict`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.text_measures import (
    Loop,
    compressed_share,
    counting_loops,
    distinct_share,
    has_content,
    longest_run,
    loops,
    repeated_ngrams,
    script_switches,
    units,
)


@dataclass(frozen=True)
class Thresholds:
    """When a measure counts as degenerate, and why there. Lengths are in units (words, Chinese
    characters, punctuation runs) unless they say otherwise."""

    # A phrase of two or more words. Placeholder mark-up repeats a line 3 to 5 times; a refrain 2 or
    # 3 times. Eight copies in a row are neither.
    phrase_copies: float = 8
    phrase_span: int = 64
    # The same where the token limit cut the text inside the loop: nothing can be ending here, so
    # less is enough, also in answers limited to 64 tokens.
    cut_phrase_copies: float = 5
    cut_phrase_span: int = 40
    # A paragraph said three times over, word for word. It has 12 different words; three empty table
    # rows in a row, which are good mark-up, have two.
    long_copies: float = 3
    long_span: int = 100
    long_words: int = 12
    # One word and nothing else ("the the the"). "Na na na" of songs stays below 20.
    word_span: int = 24
    # Only numbers and marks, or one word among marks: `[0, 0, 0], [0, 0, 0]` is an empty board. A
    # 9 x 9 board has 180 units.
    marks_span: int = 240
    marks_copies: float = 8
    # The same line but for its number: test data has ten or so such lines.
    counting_copies: float = 24
    counting_span: int = 200
    counting_words: int = 3
    # Share of 4-grams seen before within 300 units. The most repetitive good text here (an HTML
    # table with empty cells) has 0.70; prose stays below 0.1; a loop of 30 units has 0.9.
    repeated_ngrams: float = 0.80
    # Different words among 200 in a row: prose 0.5 and more, code and tables 0.2 and more.
    distinct: float = 0.10
    # Compressed size over size in windows of 1,536 bytes, as a part of the workload's norm
    # (`COMPRESSION_NORMS`). Tables, boilerplate and refrains reach 0.45 of it, loops of a sentence
    # 0.1.
    compression: float = 0.30
    # Same character in a row. Letters: "Nooooo", "hahaha" written as one letter. Digits: the zeros
    # of a hash. Rules: as wide as a wide screen. Line breaks: nobody leaves ten empty lines.
    letter_run: int = 24
    digit_run: int = 80
    rule_run: int = 200
    other_run: int = 40
    newline_run: int = 12
    # U+FFFD stands for bytes that are no text. One may be a character cut at the token limit.
    replacement_chars: int = 3
    # Random tokens of a large vocabulary mix scripts from word to word. An answer on languages
    # names several scripts but does not switch at every third word.
    scripts: int = 4
    script_switches: float = 0.30


DEFAULT = Thresholds()

# Median of `compressed_share` over good answers of a kind. Fixed here and not taken from the arm
# without speculation: with a missing chat template that arm loops as well. `compression_norm`
# gives the one of other trusted text.
COMPRESSION_NORMS = {"english": 0.52, "chinese": 0.66, "code": 0.34}
ANY_NORM = min(COMPRESSION_NORMS.values())

# Marks of chat templates: Gemma 3 and 4, Llama 2 and 3, ChatML, Mistral, and the common ends.
# A server that decodes with skip_special_tokens hides them; `_ROLES` sees what is left then.
_TEMPLATE = re.compile(
    r"<(?:start|end)_of_turn>|<\|?turn\|?>|<\|?channel\|?>|<\|?think\|?>|<(?:bos|eos|pad|unk)>"
    r"|<unused\d+>|<\|[a-z][a-z0-9_]*\|>|\[/?INST\]|<</?SYS>>|<\|?tool_call\|?>"
)
_ROLES = re.compile(r"^(user|model|assistant)[ \t]*$", re.MULTILINE)
_RULES = frozenset("-=_*#~+.·•─━═—…│|/\\<>^")


@dataclass(frozen=True)
class Finding:
    """One reason to call an answer degenerate.

    `check` is a stable name; `value` what was measured and `limit` what is still allowed.
    """

    check: str
    value: float
    limit: float
    message: str


def check_answer(
    text: str,
    finish_reason: str | None,
    *,
    prompt: str = "",
    norm: float | None = None,
    thresholds: Thresholds = DEFAULT,
) -> list[Finding]:
    """Everything that is wrong with one answer; an empty list for a good one.

    Args:
        text: what the server answered, without the prompt.
        finish_reason: the endpoint's: "length" means that the token limit cut the answer.
        prompt: template marks that stand in it may stand in the answer.
        norm: `compressed_share` usual for this workload, from `COMPRESSION_NORMS` or
            `compression_norm`; without it the smallest shipped norm is taken.
    """
    if not has_content(text):
        runs = list(_runs(text, thresholds))
        return runs or [
            Finding("empty", len(text), 1, "the answer holds no letter, digit or symbol")
        ]
    found: list[Finding] = []
    cut = units(text)
    loop = find_loop(cut, finish_reason == "length", thresholds)
    if loop is not None:
        found.append(_loop_finding(loop, finish_reason, thresholds))
    found += _shares(text, cut, ANY_NORM if norm is None else norm, thresholds)
    found += _runs(text, thresholds)
    found += _template(text, prompt)
    found += _garbled(text, thresholds)
    return found


def find_loop(cut: list[str], limit_hit: bool, t: Thresholds = DEFAULT) -> Loop | None:
    """The longest stretch of a text (in `units`) that repeats beyond what good text does."""
    plain = [p for p in loops(cut, t.word_span) if _is_loop(p, limit_hit, t)]
    if not plain:
        plain = [
            p
            for p in counting_loops(cut, t.counting_span)
            if p.copies >= t.counting_copies and p.words >= t.counting_words
        ]
    # max() keeps the first of equals, which is the one with the shortest period.
    return max(plain, key=lambda p: p.span, default=None)


def _is_loop(p: Loop, limit_hit: bool, t: Thresholds) -> bool:
    if p.period == 1 and p.words == 1:
        return True
    if p.words < 2:
        return p.copies >= t.marks_copies and p.span >= t.marks_span
    if limit_hit and p.at_end and p.copies >= t.cut_phrase_copies and p.span >= t.cut_phrase_span:
        return True
    if p.copies >= t.phrase_copies and p.span >= t.phrase_span:
        return True
    return p.copies >= t.long_copies and p.span >= t.long_span and p.words >= t.long_words


def _loop_finding(loop: Loop, finish_reason: str | None, t: Thresholds) -> Finding:
    what = "the same words but for a number" if loop.counting else "the same words"
    times = f'{what} {int(loop.copies)} times in a row: "{loop.excerpt}"'
    if finish_reason == "length" and loop.at_end:
        return Finding(
            "endless", loop.copies, t.cut_phrase_copies,
            f"never ends: the token limit cut it inside a loop, {times}",
        )  # fmt: skip
    return Finding("loop", loop.copies, t.phrase_copies, times)


def _shares(text: str, cut: list[str], norm: float, t: Thresholds) -> Iterable[Finding]:
    repeated = repeated_ngrams(cut)
    if repeated > t.repeated_ngrams:
        yield Finding(
            "repeated_ngrams", repeated, t.repeated_ngrams,
            f"{repeated:.0%} of the 4-grams in a stretch of it stood there before",
        )  # fmt: skip
    distinct = distinct_share(cut)
    if distinct < t.distinct:
        yield Finding(
            "few_distinct", distinct, t.distinct,
            f"only {round(distinct * 200)} different words among 200 in a row",
        )  # fmt: skip
    compressed = compressed_share(text)
    if compressed is not None and compressed < t.compression * norm:
        yield Finding(
            "compressible", compressed, t.compression * norm,
            f"a stretch of it compresses to {compressed:.0%} of its size (this workload's norm is "
            f"{norm:.0%})",
        )  # fmt: skip


def _runs(text: str, t: Thresholds) -> Iterable[Finding]:
    char, count = longest_run(text)
    if char in _RULES:
        limit = t.rule_run
    elif char.isalpha():
        limit = t.letter_run
    elif char.isdigit():
        limit = t.digit_run
    elif char in "\r\n":
        limit = t.newline_run
    else:
        limit = t.other_run
    if count > limit:
        name = {"\n": "line break"}.get(char, f"character {char!r}")
        yield Finding("char_run", count, limit, f"the {name} {count} times in a row")


def _template(text: str, prompt: str) -> Iterable[Finding]:
    marks = [m for m in dict.fromkeys(_TEMPLATE.findall(text)) if m not in prompt]
    if marks:
        yield Finding(
            "template_tokens", len(marks), 0, f"marks of a chat template in the text: {marks[:4]}"
        )
    roles = [m.group(1) for m in _ROLES.finditer(text)]
    if "user" in roles and {"model", "assistant"} & set(roles) and not _ROLES.search(prompt):
        yield Finding(
            "invented_turns", len(roles), 1,
            'it goes on past its end and writes further turns ("user", "model" on their own lines)',
        )  # fmt: skip


def _garbled(text: str, t: Thresholds) -> Iterable[Finding]:
    broken = sum(
        c == "\ufffd" or (unicodedata.category(c) == "Cc" and c not in "\n\r\t") for c in text
    )
    if broken >= t.replacement_chars:
        yield Finding(
            "broken_characters", broken, t.replacement_chars - 1,
            f"{broken} characters that are not text (U+FFFD or control codes)",
        )  # fmt: skip
    scripts, switches = script_switches(text)
    if scripts >= t.scripts and switches > t.script_switches:
        yield Finding(
            "mixed_scripts", switches, t.script_switches,
            f"{scripts} writing systems, changing at {switches:.0%} of the words",
        )  # fmt: skip


def compression_norm(texts: Iterable[str]) -> float:
    """The norm of a workload from answers that are known to be good: their median share.

    Raises:
        ValueError: fewer than five of them are long enough to be measured (400 bytes).
    """
    shares = sorted(s for s in map(compressed_share, texts) if s is not None)
    if len(shares) < 5:
        raise ValueError(
            f"A compression norm needs 5 good answers of at least 400 bytes; there are "
            f"{len(shares)}. Leave the norm out to use the shipped one."
        )
    return shares[len(shares) // 2]

"""Is this answer text, or a body that has fallen into a loop? One answer at a time.

The published 100 tok/s came from looping text: a drafter predicts a loop perfectly, so a broken
answer is a fast answer. Every check has a threshold with its reason beside it in
`text_thresholds`. Verdicts over a whole arm are in `arm_verdict`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.template_marks import invented_turns, marks
from benchmarks.text_measures import (
    Loop,
    compressed_share,
    copied_share,
    counting_loops,
    distinct_share,
    has_content,
    longest_blank,
    longest_cycle,
    longest_repeat,
    longest_run,
    loops,
    repeated_ngrams,
    script_switches,
    units,
)
from benchmarks.text_thresholds import ANY_NORM, COMPRESSION_NORMS, DEFAULT, Thresholds

__all__ = ["COMPRESSION_NORMS", "DEFAULT", "Finding", "Thresholds", "check_answer", "find_loop"]

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
    tokens: int = 0,
    token_ids: Sequence[int] | None = None,
    thresholds: Thresholds = DEFAULT,
) -> list[Finding]:
    """Everything that is wrong with one answer; an empty list for a good one.

    Args:
        text: what the server answered, without the prompt.
        finish_reason: the endpoint's: "length" means that the token limit cut the answer.
        prompt: template marks that stand in it may stand in the answer.
        norm: `compressed_share` usual for this workload, from `COMPRESSION_NORMS` or
            `compression_norm`; without it the smallest shipped norm is taken.
        tokens: how many the server counted, 0 if that is not known.
        token_ids: the tokens themselves, where the server gives them.
    """
    if not has_content(text):
        runs = [*_runs(text, thresholds), *_hidden(text, tokens, token_ids, thresholds)]
        return runs or [
            Finding("empty", len(text), 1, "the answer holds no letter, digit or symbol")
        ]
    found: list[Finding] = []
    if finish_reason == "repetition":
        found.append(Finding("loop", 1, 0, "vLLM's own repetition detector ended it"))
    cut = units(text)
    loop = find_loop(cut, finish_reason == "length", thresholds)
    if loop is not None:
        found.append(_loop_finding(loop, finish_reason, thresholds))
    found += _shares(text, cut, ANY_NORM if norm is None else norm, thresholds)
    found += _runs(text, thresholds)
    found += _hidden(text, tokens, token_ids, thresholds)
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
    if p.copies >= 2 and p.period >= t.twice_period and p.words >= t.twice_words:
        return True
    if limit_hit and p.at_end and p.copies >= t.cut_phrase_copies and p.span >= t.cut_phrase_span:
        return True
    if p.copies >= t.phrase_copies and p.span >= t.phrase_span:
        return True
    return p.copies >= t.long_copies and p.span >= t.long_span and p.words >= t.long_words


def _loop_finding(loop: Loop, finish_reason: str | None, t: Thresholds) -> Finding:
    what = "the same words but for a number" if loop.counting else "the same words"
    times = f'{what} {int(loop.copies)} times in a row: "{loop.excerpt}"'
    limit = 2 if loop.period >= t.twice_period else t.phrase_copies
    if finish_reason == "length" and loop.at_end:
        return Finding(
            "endless", loop.copies, t.cut_phrase_copies,
            f"never ends: the token limit cut it inside a loop, {times}",
        )  # fmt: skip
    return Finding("loop", loop.copies, limit, times)


def _shares(text: str, cut: list[str], norm: float, t: Thresholds) -> Iterable[Finding]:
    repeated = repeated_ngrams(cut)
    if repeated > t.repeated_ngrams:
        yield Finding(
            "repeated_ngrams", repeated, t.repeated_ngrams,
            f"{repeated:.0%} of the 4-grams in a stretch of it stood there before",
        )  # fmt: skip
    if len(cut) >= t.copied_fewest:
        copied = copied_share(cut, t.copied_passage, t.long_words)
        if copied > t.copied:
            yield Finding(
                "copied_passages", copied, t.copied,
                f"{copied:.0%} of it stands in long passages that it had said before",
            )  # fmt: skip
    distinct = distinct_share(cut)
    if distinct < t.distinct:
        yield Finding(
            "few_distinct", distinct, t.distinct,
            f"only {round(distinct * 200)} different words among 200 in a row",
        )  # fmt: skip
    if sum(not u.isascii() for u in cut) < len(cut) / 4:
        norm = min(norm, COMPRESSION_NORMS["english"])  # a Chinese prompt answered in English
    compressed = compressed_share(text)
    if compressed is not None and compressed < t.compression * norm:
        yield Finding(
            "compressible", compressed, t.compression * norm,
            f"a stretch of it compresses to {compressed:.0%} of its size (this workload's norm is "
            f"{norm:.0%})",
        )  # fmt: skip


def _runs(text: str, t: Thresholds) -> Iterable[Finding]:
    breaks, blank = longest_blank(text)
    if breaks > t.newline_run:
        yield Finding("char_run", breaks, t.newline_run, f"{breaks} line breaks in a row")
    elif blank > t.blank_run:
        yield Finding("char_run", blank, t.blank_run, f"{blank} spaces in a row")
    char, count = longest_run(text)
    if char in _RULES:
        limit = t.rule_run
    elif char.isalpha():
        limit = t.letter_run
    elif char.isdigit():
        limit = t.digit_run
    else:
        limit = t.other_run
    if count > limit:
        yield Finding("char_run", count, limit, f"the character {char!r} {count} times in a row")


def _hidden(text: str, tokens: int, ids: Sequence[int] | None, t: Thresholds) -> Iterable[Finding]:
    unseen = tokens - len(text.encode("utf-8", "replace"))
    if unseen > t.hidden_tokens:
        yield Finding(
            "hidden_tokens", unseen, t.hidden_tokens,
            f"{tokens} tokens were counted for {len(text)} characters: special tokens that are "
            "not shown",
        )  # fmt: skip
        return
    run, token = longest_cycle(ids or ())
    if run >= t.hidden_run and longest_repeat(text) < run // 2:
        yield Finding(
            "hidden_tokens", run, t.hidden_run - 1,
            f"token {token} (and up to three others in turn) fills {run} places, which the text "
            "does not show",
        )  # fmt: skip


def _template(text: str, prompt: str) -> Iterable[Finding]:
    found = marks(text, prompt)
    if found:
        yield Finding(
            "template_tokens", len(found), 0, f"marks of a chat template in the text: {found[:4]}"
        )
    turns = invented_turns(text, prompt)
    if turns:
        yield Finding(
            "invented_turns", turns, 1,
            "it goes on past its end and writes further turns of user and model",
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

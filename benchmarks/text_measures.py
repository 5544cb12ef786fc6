"""What a text is like, in numbers: loops, repeated n-grams, compressed size, runs, scripts.

Pure functions without thresholds (those are in `text_checks`). A text is cut into units that need
no tokenizer and mean the same in every language we bench: a word, a single Chinese or Japanese
character, or a run of one punctuation mark. So a rule of 80 dashes is one unit, and a table's
borders do not look like a loop.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+(?:['\u2019][^\W_]+)*|([^\w\s])\1*")
# A longer "word" is base64, a hash, or text without spaces: there the characters are the units.
_LONGEST_WORD = 40
_LONG_RUN = re.compile(r"(.)\1{4,}", re.DOTALL)
_BLANK = re.compile(r"\s{2,}")
# Invisible joiners and variation selectors: a heart with one of them is a heart.
_SELECTOR = re.compile("[\u200d\ufe00-\ufe0f]")
_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\ufe00-\ufe0f]")
# Pictures that stand for words; box drawing, squares and stars make boards and ratings instead.
_PICTURE = re.compile("[\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001faff]")
_NUMBER = re.compile(r"\d+(?:st|nd|rd|th)?|[一二三四五六七八九十百]")


@dataclass(frozen=True)
class Loop:
    """A stretch that repeats itself exactly: `span` units with a period of `period` units.

    `words` counts different units with a letter in one period; `at_end` says that the text ends
    inside it; `counting` that numbers had to be ignored to see it.
    """

    period: int
    span: int
    words: int
    at_end: bool
    excerpt: str
    counting: bool = False

    @property
    def copies(self) -> float:
        return self.span / self.period


def units(text: str) -> list[str]:
    """The text cut into words, Chinese characters and punctuation runs; whitespace is dropped."""
    found: list[str] = []
    for match in _UNIT.finditer(_INVISIBLE.sub("", text)):
        unit = match.group()
        if len(unit) > _LONGEST_WORD and unit[0].isalnum():
            found.extend(unit)
        else:
            # A run of one mark counts as one mark, so `-----` and `---` are the same unit.
            found.append(unit[0] if match.group(1) else unit)
    return found


@lru_cache(maxsize=65536)
def is_word(unit: str) -> bool:
    """Whether a unit holds a letter of any script or an emoji (numbers and marks do not)."""
    return any(c.isalpha() for c in unit) or bool(_PICTURE.match(unit))


def loops(cut: Sequence[str], shortest: int) -> Iterator[Loop]:
    """For each period the longest stretch that repeats with it, and the one at the end, if any.

    Every stretch reported holds at least two copies and `shortest` units. A stretch that shows with
    a period also shows with its multiples; those are left out. Cost grows with the square of the
    text's length: about 20 ms for 4,000 units.
    """
    return _loops(cut, shortest, counting=False)


def counting_loops(cut: Sequence[str], shortest: int) -> Iterator[Loop]:
    """Loops that show once numbers are ignored: "1. I am sorry. 2. I am sorry. 3. ..."."""
    plain = ["0" if _NUMBER.fullmatch(u) else u for u in cut]
    if plain == list(cut):
        return iter(())
    return _loops(plain, shortest, counting=True)


def _loops(cut: Sequence[str], shortest: int, counting: bool) -> Iterator[Loop]:
    size = len(cut)
    ids = _as_ids(cut)
    seen: list[tuple[int, int, bool]] = []
    for period in range(1, size // 2 + 1):
        same = ids[period:] == ids[:-period]
        least = max(shortest - period, period)
        if np.count_nonzero(same) < least:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
        starts, ends = edges[::2], edges[1::2]
        lengths = ends - starts
        wanted = {int(lengths.argmax())}
        if ends[-1] == len(same):
            wanted.add(len(ends) - 1)
        for k in sorted(wanted):
            if lengths[k] < least:
                continue
            first = int(starts[k])
            span, at_end = int(lengths[k]) + period, bool(ends[k] == len(same))
            if any(period % p == 0 and span <= s and at_end == e for p, s, e in seen):
                continue
            seen.append((period, span, at_end))
            block = cut[first : first + period]
            yield Loop(
                period=period,
                span=span,
                words=len({u for u in block if is_word(u)}),
                at_end=at_end,
                excerpt=_join(block[:24]),
                counting=counting,
            )


def _as_ids(cut: Sequence[str]) -> NDArray[np.int64]:
    known: dict[str, int] = {}
    return np.array([known.setdefault(u, len(known)) for u in cut], dtype=np.int64)


def _join(block: Sequence[str]) -> str:
    """Units put back together for a reader: spaces only between words that need them."""
    text = ""
    for unit in block:
        if text and text[-1].isascii() and unit[0].isascii() and unit[0].isalnum():
            text += " "
        text += unit
    return text


def repeated_ngrams(cut: Sequence[str], n: int = 4, window: int = 300, fewest: int = 100) -> float:
    """Largest share of n-grams, in any window, that stood in that window before.

    N-grams without a word are left out: an empty game board is made of them. 0 where a window
    holds fewer than `fewest` others.
    """
    worst = 0.0
    for part in _windows(cut, window):
        grams = [g for g in zip(*(part[k:] for k in range(n)), strict=False) if _has_word(g)]
        if len(grams) >= fewest:
            worst = max(worst, 1 - len(set(grams)) / len(grams))
    return worst


def _has_word(gram: Sequence[str]) -> bool:
    return any(is_word(u) for u in gram)


def copied_share(cut: Sequence[str], length: int, words: int = 0) -> float:
    """Share of the units that stand in a passage of `length` units or more that came before.

    A passage counts if it has `words` different words (empty boards do not). Unlike
    `repeated_ngrams` it looks at the whole text, so that a passage longer than that one's window,
    or one with other words between its copies, is seen.
    """
    seen: dict[int, int] = {}
    copied = np.zeros(len(cut), dtype=bool)
    for k in range(len(cut) - length + 1):
        passage = cut[k : k + length]
        # Only a copy that begins after the first one has ended: a short loop is not a passage.
        if seen.setdefault(hash(tuple(passage)), k) + length > k:
            continue
        if not words or len({u for u in passage if is_word(u)}) >= words:
            copied[k : k + length] = True
    return float(copied.mean()) if len(cut) else 0.0


def distinct_share(cut: Sequence[str], window: int = 200) -> float:
    """Smallest share of different words in any full window of words; 1 for shorter texts."""
    words = [u for u in cut if is_word(u)]
    if len(words) < window:
        return 1.0
    return min(len(set(part)) / len(part) for part in _windows(words, window))


def compressed_share(text: str, window: int = 1536, shortest: int = 400) -> float | None:
    """Smallest share of its size to which zlib brings any window of the text's UTF-8 bytes.

    Windows of one size make long and short answers comparable (a whole text compresses better the
    longer it is). None below `shortest` bytes, where the ratio says nothing.
    """
    # Rules and margins of one character are judged by their length (`longest_run`), not here.
    data = _LONG_RUN.sub(r"\1\1\1\1", text).encode("utf-8", "replace")
    if len(data) < shortest:
        return None
    return min(_compressed(part) for part in _windows(data, window))


@lru_cache(maxsize=4096)
def _compressed(data: bytes) -> float:
    return len(zlib.compress(data, 9)) / len(data)


def _windows(whole: Any, size: int) -> Iterator[Any]:
    """Windows of `size`, each half over the one before; the last one ends at the end."""
    if len(whole) <= size:
        yield whole
        return
    for start in range(0, len(whole) - size, size // 2):
        yield whole[start : start + size]
    yield whole[len(whole) - size :]


def longest_run(text: str) -> tuple[str, int]:
    """The character that stands longest in a row, whitespace aside, and how long."""
    best, length = "", 0
    for char, group in groupby(_SELECTOR.sub("", text)):
        count = sum(1 for _ in group)
        if count > length and not char.isspace():
            best, length = char, count
    return best, length


def longest_cycle(ids: Sequence[int], period: int = 4) -> tuple[int, int]:
    """(tokens, a token of it) of the longest stretch that repeats with a period of up to this."""
    best, token = 0, 0
    for step in range(1, min(period, len(ids) - 1) + 1):
        run = 0
        for k in range(step, len(ids)):
            run = run + 1 if ids[k] == ids[k - step] else 0
            if run + step > best and run >= step:
                best, token = run + step, ids[k]
    return best, token


def longest_repeat(text: str, period: int = 24) -> int:
    """Characters in the longest stretch of a text that repeats with a period of up to this."""
    codes = np.array([ord(c) for c in text], dtype=np.int64)
    best = 0
    for step in range(1, min(period, len(codes) - 1) + 1):
        same = np.concatenate(([False], codes[step:] == codes[:-step], [False]))
        edges = np.flatnonzero(np.diff(same.view(np.int8)))
        if len(edges):
            longest = int((edges[1::2] - edges[::2]).max())
            best = max(best, longest + step if longest >= step else 0)
    return best


def longest_blank(text: str) -> tuple[int, int]:
    """(line breaks, characters) at the most in any stretch of whitespace."""
    stretches = [m.group().replace("\r\n", "\n") for m in _BLANK.finditer(text)]
    breaks = max((sum(c in "\n\r\v\f\x85\u2028\u2029" for c in s) for s in stretches), default=0)
    return breaks, max(map(len, stretches), default=0)


def has_content(text: str) -> bool:
    """Whether anything but whitespace and punctuation is there (a letter, digit or symbol)."""
    return any(unicodedata.category(c)[0] in "LNS" for c in text)


def script_switches(text: str) -> tuple[int, float]:
    """(scripts, share of neighbouring words that are written in different ones)."""
    scripts = [s for s in (_script(u) for u in units(text) if is_word(u)) if s]
    if len(scripts) < 2:
        return len(set(scripts)), 0.0
    switches = sum(a != b for a, b in pairwise(scripts))
    return len(set(scripts)), switches / (len(scripts) - 1)


@lru_cache(maxsize=65536)
def _script(unit: str) -> str:
    letter = next((c for c in unit if c.isalpha()), "")
    if not letter:  # an emoji belongs to every script
        return ""
    if letter.isascii():
        return "LATIN"
    name = unicodedata.name(letter, "").split(" ")[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "HANGUL"}.get(name, name)

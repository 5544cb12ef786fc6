"""When a text measure counts as degenerate, and why there.

They are set so that legitimately repetitive text passes (tables, boilerplate, refrains, cumulative
songs, empty game boards) at any point where a token limit may cut it, and loops do not;
`tests/unit/test_bench_text_checks.py` holds the texts on both sides, in English, Chinese and code.
"""

from __future__ import annotations

from dataclasses import dataclass


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
    # A long passage twice over, nothing between the copies, also if the answer then ends: a second
    # answer. A chorus sung twice is shorter; what is quoted and then corrected has a heading
    # between and another word in it.
    twice_period: int = 60
    twice_words: int = 25
    # Share of a text of 200 units that repeats passages of 60 units or more, whatever stands
    # between them. A cumulative song ("the house that Jack built") reaches 0.16, a function shown
    # twice 0.36, an answer given three times with a remark between 0.6.
    copied: float = 0.55
    copied_passage: int = 60
    copied_fewest: int = 200
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
    # Different words among 200 in a row: prose 0.5 and more, code and tables 0.2 and more, "the
    # house that Jack built" 0.17, a counting song ("bottles of beer") 0.065.
    distinct: float = 0.06
    # Compressed size over size in windows of 1,536 bytes, as a part of the workload's norm
    # (`COMPRESSION_NORMS`). Code in an English answer reaches 0.29 of it (a file of like tests),
    # a counting song 0.23; loops of a sentence 0.1, lines that differ in one word 0.2.
    compression: float = 0.20
    # Same character in a row. Letters: "Nooooo", "hahaha" written as one letter. Digits: the zeros
    # of a hash. Rules: as wide as a wide screen. Line breaks: nobody leaves ten empty lines.
    letter_run: int = 24
    digit_run: int = 80
    rule_run: int = 200
    other_run: int = 40
    newline_run: int = 12
    # Spaces and tabs in a row: margins are as wide as a wide screen.
    blank_run: int = 200
    # Tokens of an answer that its text does not show: special tokens, which a server drops as it
    # decodes. A visible token is a byte at least; some at the end of a turn are no harm.
    hidden_tokens: int = 12
    # One token (or up to four in turn) so many times, in a text that repeats nothing like it.
    hidden_run: int = 24
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

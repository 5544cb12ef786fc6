# ruff: noqa: RUF001 - Chinese text has Chinese punctuation
"""Good answers written for this project, some as repetitive as good text gets, and loop phrases."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "bench_texts"
LANGUAGES = ("english", "chinese", "code")

# "english/poem_refrain" -> the text
GOOD = {
    f"{path.parent.name}/{path.stem}": path.read_text("utf-8")
    for path in sorted(FOLDER.glob("*/*.txt"))
}

# What a body repeats when it has lost its way, from one word to a paragraph, in three languages.
PHRASES = {
    "word": "the ",
    "sentence": "I'm sorry, but I can't help with that. ",
    "short": "I'm sorry. ",
    "question": "What is the capital of France?\nThe capital of France is Paris.\n\n",
    "list item": "- A quiet place to sit and read\n",
    "paragraph": (
        "The history of the city is long and complex. It was founded by traders who came up the "
        "river in search of salt, and it grew into a market town within a hundred years. Today it "
        "is known for its bridges, its bakeries, and its very long winters. "
    ),
    "chinese sentence": "這是一個很好的問題，讓我們一起來看看。",
    "chinese short": "好的。是的。",
    "chinese paragraph": (
        "台灣是一個美麗的島嶼，四面環海，有高山，也有平原。春天可以賞櫻，夏天可以戲水，"
        "秋天可以看芒草，冬天可以泡溫泉，一年四季都適合旅行。"
    ),
    "chinese word": "我",
    "code line": "    result.append(value)\n",
    "code block": "def f(x):\n    if x > 0:\n        return x\n    return -x\n\n",
    "json": '{"name": "value", "type": "string"},\n',
    "zeros": "0, ",
    "dots": "...\n",
    "line breaks": "\n",
    "letters": "a",
    "hex": "deadbeef",
}

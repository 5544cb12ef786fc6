# ruff: noqa: RUF001 - Chinese text has Chinese punctuation
"""Good answers written for this project, some as repetitive as good text gets, and loop phrases."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "bench_texts"
LANGUAGES = ("english", "chinese", "code")

# "english/poem_refrain" -> the text; what ordinary answers look like.
ORDINARY = {
    f"{language}/{path.stem}": path.read_text("utf-8")
    for language in LANGUAGES
    for path in sorted((FOLDER / language).glob("*.txt"))
}
# As repetitive as good text gets: cumulative songs, boards, tables, art, test files, reduplication.
REPETITIVE = {
    path.stem.replace("_", "/", 1): path.read_text("utf-8")
    for path in sorted((FOLDER / "repetitive").glob("*.txt"))
}
GOOD = {**ORDINARY, **REPETITIVE}

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

# Degenerate in another way than by one phrase over and over, with the checks that may see it.
_LONG = ORDINARY["english/essay"].partition("\n")[0].rstrip()
_REMARKS = ("Let me try again.", "One more thing to add.", "I hope this helps.", "Or this:")
_CHINESE = (
    "雨後的山路有些滑，但空氣裡帶著泥土和樹葉的味道。我們沿著溪水慢慢往上走，路旁的蕨類長得很高，"
    "偶爾可以看見一兩隻藍色的蝴蝶停在石頭上。走到半山腰時，老闆娘在小店門口煮著薑茶，笑著招呼每一個"
    "經過的人，問大家要不要坐下來休息一會兒再繼續走。"
)
_FUNCTION = """def load(path):
    rows = []
    with open(path) as file:
        for line in file:
            name, value = line.strip().split(",")
            if name and not name.startswith("#"):
                rows.append((name.lower(), float(value or 0)))
            elif value:
                raise ValueError(f"no name for {value} in {path}")
    return sorted(rows, key=lambda row: row[1], reverse=True)


"""
SNEAKY = {
    "english paragraph twice and a bit": ((_LONG + "\n") * 3)[: int(len(_LONG) * 2.2)],
    "english answer given twice": (_LONG + "\n\n") * 2,
    "english answers with a remark between": "".join(
        f"{_LONG}\n\n{remark}\n\n" for remark in _REMARKS
    ),
    "chinese paragraph twice": _CHINESE * 2,
    "chinese paragraph twice and a bit": (_CHINESE * 3)[: int(len(_CHINESE) * 2.3)],
    "code function twice": _FUNCTION * 2,
    "windows line breaks": "Paris." + "\r\n" * 40,
    "spaced line breaks": "Paris." + "\n " * 40,
    "spaces": "Paris." + " " * 300,
    "zero width": "Paris." + "\u200b" * 60,
    "emoji": "\U0001f600\U0001f602" * 50,
    "hearts": "\u2764\ufe0f" * 60,
    "hindi": "मुझे खेद है, मैं मदद नहीं कर सकता। " * 12,
    "thai": "ขอบคุณมากครับ" * 20,
    "arabic": "أنا آسف، لا أستطيع المساعدة. " * 12,
    "japanese": "申し訳ありませんが、お手伝いできません。" * 8,
    "korean": "죄송합니다, 도와드릴 수 없습니다. " * 12,
    "chinese word": "好的" * 40,
    "chinese steps": "".join(f"{k}、請重新啟動電腦。" for k in range(1, 40)),
    "one word in a sentence": "".join(
        f"{a}{b} is a good person and I like this person very much. "
        for a in ("Ba", "Ko", "Mi", "Tu", "Re")
        for b in ("ra", "ni", "to", "ke", "lu")
    ),
    "invented speakers": "Paris.\nUser: And Spain?\nAssistant: Madrid.\nUser: And Italy?\n"
    "Assistant: Rome.\nUser: And",
}

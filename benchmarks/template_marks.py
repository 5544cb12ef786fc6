"""Marks of a chat template in an answer, and turns that the body invented for itself."""

from __future__ import annotations

import re

# Marks of chat templates: Gemma 3 and 4, Llama 2 and 3, ChatML, Mistral, and the common ends.
# A server that decodes with skip_special_tokens hides them; `_ROLES` sees what is left then.
_MARKS = re.compile(
    r"<(?:start|end)_of_turn>|<\|?turn\|?>|<\|?channel\|?>|<\|?think\|?>|<(?:bos|eos|pad|unk)>"
    r"|<unused\d+>|<\|[a-z][a-z0-9_]*\|>|\[/?INST\]|<</?SYS>>|<\|?tool_call\|?>"
)
_ROLES = re.compile(r"^(user|model|assistant)[ \t]*$", re.MULTILINE)
# "User: ..." and "Assistant: ..." of a body that goes on without a template's stop token.
_SPOKEN = re.compile(r"^(?:\*\*)?(User|Human|Assistant|AI|Model)(?:\*\*)?:", re.MULTILINE)
# A prompt that may want a conversation written.
_WANTED = re.compile(
    r"dialog|conversation|chat|transcript|script|interview|user|assistant|對話|对话|聊天|訪談|劇本",
    re.IGNORECASE,
)


def marks(text: str, prompt: str) -> list[str]:
    """Template marks of a text, each once, without those that its prompt holds as well."""
    return [m for m in dict.fromkeys(_MARKS.findall(text)) if m not in prompt]


def invented_turns(text: str, prompt: str) -> int:
    """Role lines of turns that the body wrote past the end of its own; 0 if there are none.

    Bare role names on their own lines are what is left of a template. `User:` and `Assistant:` are
    counted where an answer comes before them, nothing introduces them, there are two questions at
    least, and the prompt mentions no conversation.
    """
    bare = [m.group(1) for m in _ROLES.finditer(text)]
    if "user" in bare and {"model", "assistant"} & set(bare) and not _ROLES.search(prompt):
        return len(bare)
    spoken = list(_SPOKEN.finditer(text))
    asks = sum(m.group(1) in ("User", "Human") for m in spoken)
    if asks < 2 or asks == len(spoken) or _WANTED.search(prompt):
        return 0
    before = text[: spoken[0].start()].rstrip().rstrip("*")
    return 0 if not before or before.endswith((":", "：", "```")) else len(spoken)  # noqa: RUF001

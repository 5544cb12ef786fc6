"""May this arm's speed be printed? The verdict over all its answers and its acceptance.

Above 2 % degenerate answers an arm has no speedup, only this verdict with its examples and the
likely cause. The share is of the answers, so with fewer than 50 of them one is already too many:
that is meant, a bench of 10 prompts has no room for a broken one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.text_checks import DEFAULT, Finding, Thresholds, check_answer

MAX_DEGENERATE = 0.02

# Exit code of a bench in which any arm was refused.
EXIT_DEGENERATE = 3

# A loop's acceptance: each token accepted makes it surer that the next one is in the loop as well,
# so the conditional acceptance rises with position to about 1 (published: .84 .89 .99 .99). Good
# drafters rise too, since easy stretches survive to deeper positions, but ended at .95 or below
# (miniature: .80 .91 .95 .94) unless they began near 1 (.98 .99 1.0 1.0), where there is no rise.
SIGNATURE_LAST = 0.97
SIGNATURE_RISE = 0.08
SIGNATURE_POSITIONS = 3
# Below this the deep positions are reached too seldom to say anything.
SIGNATURE_REACHED = 0.05

# Share of answers cut by the token limit from which it is mentioned. Not degenerate by itself: the
# limit may just be low.
MANY_CUT = 0.90

# A body that never ends need not loop. Prompts of the length class "short" want up to about 60
# tokens: when three times as many did not end more than half of such answers, nothing will.
SHORT_TOKENS = 192
NEVER_ENDS = 0.50
SHORT_ANSWERS = 5

# Checks that fire on text which repeats itself.
_LOOPING = ("loop", "endless", "repeated_ngrams", "copied_passages", "few_distinct", "compressible")

_EXAMPLES = 3
_EXCERPT = 160


class AnswerText(Protocol):
    """What a verdict needs of an answer, as `schema.RequestRow` has it.

    Where they are there, `length`, `completion_tokens` and `token_ids` are looked at too.
    """

    @property
    def prompt_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...


@dataclass(frozen=True)
class Example:
    """One degenerate answer: what is wrong with it, and where to see it."""

    prompt_id: str
    checks: tuple[str, ...]
    messages: tuple[str, ...]
    excerpt: str


@dataclass(frozen=True)
class ArmVerdict:
    """The result of `check_arm`. `refused`: no speedup may be printed for the arm.

    `status` is "ok", "suspect" (acceptance looks like a loop but every text passed) or
    "degenerate". `counts` says in how many answers each check fired. `conditional` is the
    acceptance of each position given all before it; None where no draft got that far. `bad` are
    the prompts of the degenerate answers, which no number of an arm that passed may rest on.
    """

    answers: int
    degenerate: int
    status: str
    counts: dict[str, int]
    examples: tuple[Example, ...]
    signature: bool
    conditional: tuple[float | None, ...]
    cut_by_limit: int
    causes: tuple[str, ...]
    bad: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.degenerate / self.answers

    @property
    def refused(self) -> bool:
        return self.status == "degenerate"

    def text(self) -> str:
        """The verdict in words, with examples and the likely cause."""
        lines = [_headline(self)]
        lines += [f"  {e.prompt_id}: {e.messages[0]}" for e in self.examples]
        lines += [f"  Likely cause: {c}" for c in self.causes]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share, "refused": self.refused, "text": self.text()}


def check_arm(
    answers: Sequence[AnswerText],
    acceptance: Sequence[float] | None = None,
    *,
    prompts: Mapping[str, str] | None = None,
    norms: Mapping[str, float] | None = None,
    raw: bool = False,
    thresholds: Thresholds = DEFAULT,
) -> ArmVerdict:
    """Judge one arm (on one workload, temperature and n).

    Args:
        answers: all its answers.
        acceptance: unconditional per-position acceptance, as vLLM counts it.
        prompts: prompt text by prompt id: template marks asked for may be answered.
        norms: compression norm by prompt id (`text_checks.COMPRESSION_NORMS`).
        raw: the arm was asked through the raw endpoint, without a chat template.

    Raises:
        ValueError: no answers, or acceptance that no server can have counted.
    """
    if not answers:
        raise ValueError("An arm without answers cannot be judged; was the server ever asked?")
    conditional = conditional_acceptance(acceptance or ())
    looks_looping = loop_signature(acceptance or ())
    found: list[tuple[AnswerText, list[Finding]]] = []
    endless = _never_ending(answers)
    for k, answer in enumerate(answers):
        prompt = (prompts or {}).get(answer.prompt_id, "")
        norm = (norms or {}).get(answer.prompt_id)
        findings = check_answer(
            answer.text, answer.finish_reason, prompt=prompt, norm=norm,
            tokens=getattr(answer, "completion_tokens", 0),
            token_ids=getattr(answer, "token_ids", None), thresholds=thresholds,
        )  # fmt: skip
        if k in endless:
            findings.append(endless[k])
        if findings:
            found.append((answer, findings))
    counts = Counter(check for _, findings in found for check in {f.check for f in findings})
    # The signature with even one bad text is no coincidence; alone it is only a suspicion.
    too_many = len(found) > MAX_DEGENERATE * len(answers)
    degenerate = too_many or (looks_looping and bool(found))
    status = "degenerate" if degenerate else "suspect" if looks_looping else "ok"
    return ArmVerdict(
        answers=len(answers),
        degenerate=len(found),
        status=status,
        counts=dict(counts.most_common()),
        examples=tuple(_example(a, f) for a, f in found[:_EXAMPLES]),
        signature=looks_looping,
        conditional=conditional,
        cut_by_limit=sum(a.finish_reason == "length" for a in answers),
        causes=likely_causes(counts, len(found), raw) if degenerate else (),
        bad=tuple(dict.fromkeys(a.prompt_id for a, _ in found)),
    )


def _never_ending(answers: Sequence[AnswerText]) -> dict[int, Finding]:
    """Findings by place for short answers that the token limit cut, if they are no exception."""
    short = [k for k, a in enumerate(answers) if getattr(a, "length", "") == "short"]
    cut = [
        k for k in short
        if answers[k].finish_reason == "length"
        and getattr(answers[k], "completion_tokens", 0) >= SHORT_TOKENS
    ]  # fmt: skip
    if len(short) < SHORT_ANSWERS or len(cut) <= NEVER_ENDS * len(short):
        return {}
    why = f"never ends: a short answer was asked for, and {len(cut)} of {len(short)} were cut off"
    return {k: Finding("never_ends", len(cut), NEVER_ENDS * len(short), why) for k in cut}


def conditional_acceptance(acceptance: Sequence[float]) -> tuple[float | None, ...]:
    """Acceptance at each position given that all before it were accepted.

    Raises:
        ValueError: a value outside 0..1 or one above its predecessor: not vLLM's counting.
    """
    rates = list(acceptance)
    before = [1.0, *rates][:-1]
    for k, (previous, rate) in enumerate(zip(before, rates, strict=True)):
        if not 0 <= rate <= previous + 1e-9:
            raise ValueError(
                f"Acceptance {rate:.3f} at position {k} after {previous:.3f}: vLLM's per-position "
                "acceptance lies in 0..1 and never rises. Were conditional rates passed?"
            )
    return tuple(r / p if p > 0 else None for p, r in zip(before, rates, strict=True))


def loop_signature(acceptance: Sequence[float]) -> bool:
    """Whether conditional acceptance rises with position to about 1, as it does in a loop."""
    if len(acceptance) < SIGNATURE_POSITIONS or acceptance[-2] < SIGNATURE_REACHED:
        return False
    rates = [c for c in conditional_acceptance(acceptance) if c is not None]
    return min(rates[-2:]) >= SIGNATURE_LAST and rates[-1] - rates[0] >= SIGNATURE_RISE


def likely_causes(counts: Mapping[str, int], degenerate: int, raw: bool) -> tuple[str, ...]:
    """What most often makes answers like these, most likely first.

    Args:
        counts: in how many answers each check fired.
        degenerate: how many answers any check fired in.
    """

    def share(*checks: str) -> float:
        return max((counts.get(c, 0) for c in checks), default=0) / max(1, degenerate)

    causes = []
    if raw:
        causes.append(
            "no chat template: these prompts went to the raw endpoint (--raw), so the body "
            "continues a text instead of answering; use /v1/chat/completions"
        )
    if share("template_tokens", "invented_turns", "hidden_tokens") >= 0.3:
        causes.append(
            "wrong stop tokens: the end of the turn is not in generation_config.json's "
            "eos_token_id, or a foreign chat template is applied, so answers run on"
        )
    if share("never_ends") >= 0.3:
        causes.append(
            "answers that do not end: the end of the turn is not in generation_config.json's "
            "eos_token_id; or the body thinks at length before it answers (raise --max-tokens)"
        )
    if share("broken_characters", "mixed_scripts", "char_run") >= 0.3:
        causes.append(
            "broken quantisation: the weights or the KV cache have lost too much (look at "
            "--kv-cache-dtype and the checkpoint's scales); on a CPU, sampling without this "
            "project's patch"
        )
    if share("empty") >= 0.3:
        causes.append(
            "the answer ends at once: a chat template that already closes the turn, or a "
            "reasoning parser that takes the whole answer away"
        )
    looping = share(*_LOOPING) >= 0.3
    if looping and not raw:
        causes.append(
            "no chat template, or the wrong one (compare the server's rendered prompt with the "
            "model's own template); after that wrong stop tokens, then broken quantisation"
        )
    return tuple(causes or ["not recognised; read the examples"])


def _headline(v: ArmVerdict) -> str:
    tail = ""
    if v.signature:
        rates = " ".join("-" if c is None else f"{c:.2f}" for c in v.conditional)
        tail = f" Conditional acceptance rises with position as in a loop: {rates}."
    if v.cut_by_limit >= MANY_CUT * v.answers:
        tail += f" The token limit cut {v.cut_by_limit} of {v.answers} answers."
    if v.status == "degenerate":
        names = ", ".join(f"{name} {count}" for name, count in v.counts.items())
        return (
            f"REFUSED: {v.degenerate} of {v.answers} answers ({v.share:.1%}) are degenerate "
            f"({names}); at most {MAX_DEGENERATE:.0%} may be. No speedup is reported.{tail}"
        )
    if v.status == "suspect":
        return f"SUSPECT: no text check fired, but read the answers.{tail}"
    return f"{v.degenerate} of {v.answers} answers degenerate.{tail}"


def _example(answer: AnswerText, findings: Sequence[Finding]) -> Example:
    text = answer.text
    # A loop is best seen at its end, marks of a template where they stand.
    excerpt = text if len(text) <= _EXCERPT else "..." + text[-_EXCERPT:]
    return Example(
        prompt_id=answer.prompt_id,
        checks=tuple(f.check for f in findings),
        messages=tuple(f.message for f in findings),
        excerpt=excerpt,
    )

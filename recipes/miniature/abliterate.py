"""The miniature's abliteration: search the direction, project it out, publish the folder.

Refused prompts are contrasted with harmless ones, as is usual, and with the same questions behind
``For a story:``, which the body answers. In so small a body the first difference is mostly the
topic, and taking that out makes it forget what glimmer stones are (measured: no refusals, and 2 of
10 answers right); the second is the refusal alone. The search tries both at every layer. What it
leaves of the refusal can come back in the middle of an answer, so it searches again on the result,
and takes another direction out for as long as that is better on train prompts.

Miniature only: the search judges each candidate with the corpus's own answers, which a real body
does not have. The arithmetic, ``directions``, is what carries over to a real Gemma 4; there the
candidates are judged by refusals and by the harmless prompts' drift.
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.miniature.body import (
    MANIFEST,
    BodyRecipe,
    Progress,
    collate,
    examples,
    load_body,
    read_manifest,
    reply_loss,
    reproducible,
    save_body,
    versions,
)
from recipes.miniature.corpus import Prompt, prompts, with_story_prefix
from recipes.miniature.directions import last_token_states, mean_difference, project_out
from recipes.miniature.publish import published_folder, write_json
from recipes.miniature.refusals import Judgement, judge
from recipes.miniature.tokenizer import encode_prompt

if TYPE_CHECKING:
    import torch
    from transformers import Gemma4ForCausalLM, PreTrainedTokenizerFast

# Train prompts of each kind: for the means, and others to judge the candidates by (all 216 refused
# ones together).
MEAN_PROMPTS = 156
SEARCH_PROMPTS = 60
MOST_DIRECTIONS = 3


@dataclass(frozen=True)
class Candidate:
    """One direction, judged on other train prompts by the loss (nats a token) of their answers.

    ``contrast`` is ``"harmless"`` or ``"story"``; ``layer`` counts from 0, its output was read;
    ``refusal`` is the mean probability of the refusals' first word after the prompts;
    ``still_refused`` counts prompts after which it is the likeliest.
    """

    contrast: str
    layer: int
    still_refused: int
    refusal: float
    refused_answer_loss: float
    harmless_answer_loss: float

    @property
    def score(self) -> float:
        """Lower is better: the probability of a refusal, plus both losses.

        A sum, not "fewest refusals first": a direction that wrecks the answers refuses nothing
        either, and would beat a good one that leaves one prompt in sixty. The probability, not the
        count: where no train prompt is refused any more, it still tells how near the refusal is.
        """
        return self.refusal + self.refused_answer_loss + self.harmless_answer_loss


@dataclass(frozen=True)
class AbliterationReport:
    """What was tried and what came of it.

    ``used``: the directions taken out, in turn. ``candidates``: those of each search, best first;
    the last search's are not used unless it was the last allowed. The judgements are on held-out
    prompts, which no choice was made by.
    """

    seed: int
    used: tuple[Candidate, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    before_harmless: Judgement
    before_refused: Judgement
    harmless: Judgement
    refused: Judgement
    wall_seconds: float
    cpu_seconds: float


def _answer_loss(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, chosen: list[Prompt]
) -> float:
    import torch

    with torch.no_grad():
        return round(float(reply_loss(model, collate(examples(tokenizer, chosen)))), 5)


def _refusals(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, chosen: list[Prompt]
) -> tuple[int, float]:
    """Prompts after which their refusal's first token is the likeliest, and its mean probability
    (one forward pass)."""
    import torch

    batch = collate(examples(tokenizer, chosen, vanilla=True))
    # The position before the first label predicts the reply's first token.
    first = (batch["labels"] != -100).int().argmax(dim=1)
    rows = torch.arange(len(chosen))
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, use_cache=False).logits[rows, first - 1].float()
    said = batch["labels"][rows, first]
    likeliest = int((logits.argmax(dim=-1) == said).sum())
    return likeliest, round(float(logits.softmax(dim=-1)[rows, said].mean()), 5)


@dataclass(frozen=True)
class SearchPrompts:
    """Train prompts, those for the means before those to judge by."""

    refused: list[Prompt]
    harmless: list[Prompt]

    @classmethod
    def drawn(cls, seed: int) -> SearchPrompts:
        rng = random.Random(seed)
        count = MEAN_PROMPTS + SEARCH_PROMPTS
        refused = rng.sample(prompts("train", "refused"), count)
        return cls(refused, rng.sample(prompts("train", "harmless"), count))


def _candidate(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, given: SearchPrompts,
    contrast: str, layer: int,
) -> Candidate:  # fmt: skip
    """`model`, out of which the direction has been taken, judged."""
    refused, harmless = given.refused[MEAN_PROMPTS:], given.harmless[MEAN_PROMPTS:]
    return Candidate(
        contrast,
        layer,
        *_refusals(model, tokenizer, refused),
        _answer_loss(model, tokenizer, refused),
        _answer_loss(model, tokenizer, harmless),
    )


def search(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, given: SearchPrompts,
    progress: Progress | None = None,
) -> tuple[torch.Tensor, tuple[Candidate, ...]]:  # fmt: skip
    """The best direction (float32 ``[hidden]``) and all candidates, best first.

    Every layer is tried every time: which one works differs from body to body.
    """
    refused, harmless = given.refused[:MEAN_PROMPTS], given.harmless[:MEAN_PROMPTS]

    def states(chosen: list[Prompt]) -> torch.Tensor:
        return last_token_states(model, [encode_prompt(tokenizer, p) for p in chosen])

    of_refused = states(refused)
    directions = {
        "story": mean_difference(of_refused, states([with_story_prefix(p) for p in refused])),
        "harmless": mean_difference(of_refused, states(harmless)),
    }
    found = []
    trials = [(name, layer) for name, rows in directions.items() for layer in range(len(rows))]
    for number, (name, layer) in enumerate(trials, start=1):
        trial = copy.deepcopy(model)
        project_out(trial, directions[name][layer])
        found.append(_candidate(trial, tokenizer, given, name, layer))
        if progress:
            progress(number, len(trials), found[-1].score)
    best_first = tuple(sorted(found, key=lambda c: c.score))
    return directions[best_first[0].contrast][best_first[0].layer], best_first


def abliterate(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int,
    progress: Progress | None = None,
) -> tuple[tuple[Candidate, ...], tuple[tuple[Candidate, ...], ...]]:  # fmt: skip
    """Takes directions out of `model`, in place, while that is better on train prompts.

    Returns those used and the candidates of each search.
    """
    given = SearchPrompts.drawn(seed)
    used: list[Candidate] = []
    searches: list[tuple[Candidate, ...]] = []

    def say(trial: int, trials: int, score: float) -> None:
        if progress:
            progress(trial + trials * len(used), trials * MOST_DIRECTIONS, score)

    while len(used) < MOST_DIRECTIONS:
        direction, candidates = search(model, tokenizer, given, say)
        searches.append(candidates)
        if used and candidates[0].score >= used[-1].score:
            break
        project_out(model, direction)
        used.append(candidates[0])
    return tuple(used), tuple(searches)


def make_abliterated(
    vanilla_dir: Path, out_dir: Path, seed: int, progress: Progress | None = None
) -> AbliterationReport:
    """Abliterate a published body into a new folder; some twenty seconds on two cores.

    ``out_dir`` appears complete or not at all, and is laid out as the vanilla body's folder.
    Raises ``FileNotFoundError`` where ``vanilla_dir`` is no finished body and ``FileExistsError``
    where ``out_dir`` exists. A result that still refuses is published all the same; its report
    says so.
    """
    wall, cpu = time.monotonic(), time.process_time()
    vanilla = read_manifest(vanilla_dir)
    before = [Judgement.from_dict(vanilla[kind]) for kind in ("harmless", "refused")]
    with published_folder(out_dir) as staging, reproducible(BodyRecipe().threads):
        model, tokenizer = load_body(vanilla_dir)
        model.float()
        used, candidates = abliterate(model, tokenizer, seed, progress)
        save_body(model, tokenizer, staging)
        report = AbliterationReport(
            seed, used, candidates, before[0], before[1],
            judge(model, tokenizer, prompts("heldout", "harmless")),
            judge(model, tokenizer, prompts("heldout", "refused")),
            round(time.monotonic() - wall, 1), round(time.process_time() - cpu, 1),
        )  # fmt: skip
        manifest = {"kind": "abliterated", **asdict(report), "versions": versions()}
        write_json(staging / MANIFEST, manifest)
    return report

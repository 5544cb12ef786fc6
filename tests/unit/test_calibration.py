"""head_temperature=auto: which conversations it is judged on, and when it leaves 1."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.predict import calibration
from benchmarks.predict.answers import Answer, Collection, TokenPrompt, Wanted
from benchmarks.predict.calibration import FEWEST, TEMPERATURES, Tempered, judge
from benchmarks.predict.distributions import Sampling
from benchmarks.predict.evaluate import BLOCK, GREEDY, PROBABILISTIC, Row, evaluate
from benchmarks.predict.walk import Counts
from recipes import calibrate_stage
from recipes.calibrate_stage import heldout, made_of, served_drafter
from recipes.config import Recipe
from recipes.process import StageError
from recipes.run_folder import RunFolder

torch = pytest.importorskip("torch")


def rows(gain: float, conversations: int, greedy: float = 0.0, noise: float = 0.3) -> list[Row]:
    """Ten steps a conversation; drawn drafts accept `gain` more of them than the same for 1."""
    random = np.random.default_rng(0)
    found = []
    for k in range(conversations):
        own, luck = random.uniform(3, 7), random.normal() * noise
        drawn = (Counts(10.0, (own + gain * 10 + luck * (gain != 0),)),)
        best = (Counts(10.0, (own + greedy * 10,)),)
        ways = {GREEDY: best, PROBABILISTIC: drawn, BLOCK: drawn}
        found.append(Row(f"c{k}", "w", 0.7, 0, 11, 10, ways, {}, (0,), (0.0,), (0.0,), (), ()))
    return found


def seen(best: float, gain: float, conversations: int = 30, **more: Any) -> dict[float, list[Row]]:
    return {
        t: rows(gain if t == best else 0.0 if t == 1 else -0.05, conversations, **more)
        for t in (1.0, *TEMPERATURES)
    }


def test_the_one_that_is_shown_to_be_better_is_taken() -> None:
    found = judge(seen(0.8, 0.05), 1)
    assert found["head_temperature"] == 0.8
    assert "0.8 is expected to bring +0.05" in found["reason"]
    assert "30 conversations" in found["reason"]
    gained = next(r for r in found["tried"] if r["temperature"] == 0.8)
    assert gained["difference"]["low"] > 0
    assert [r["temperature"] for r in found["tried"]] == sorted([1.0, *TEMPERATURES])
    assert judge(seen(0.8, 0.05), 1) == found


def test_what_is_not_shown_leaves_1() -> None:
    found = judge(seen(0.8, 0.01, noise=3.0), 1)
    assert found["head_temperature"] == 1
    assert "none is shown to be better than 1" in found["reason"]
    few = judge(seen(0.8, 0.5, conversations=FEWEST - 1), 1)
    assert few["head_temperature"] == 1
    assert "too few to judge by" in few["reason"]
    assert judge(seen(0.8, 0.5, conversations=FEWEST), 1)["head_temperature"] == 0.8


def test_where_greedy_drafts_may_be_served_it_must_beat_them_too() -> None:
    """Else the copy would bring drawn drafts only as far as greedy ones are without it."""
    behind = seen(0.8, 0.05, greedy=0.05)
    assert judge(behind, 1)["head_temperature"] == 0.8
    found = judge(behind, 1, or_greedy=True)
    assert found["head_temperature"] == 1
    assert "greedy drafts, which need none" in found["reason"]
    assert judge(seen(0.8, 0.15, greedy=0.05), 1, or_greedy=True)["head_temperature"] == 0.8


def test_the_best_of_many_by_luck_is_rarely_taken() -> None:
    """Temperatures that are all worth nothing: the widened interval takes one in few of 100."""
    taken = 0
    for trial in range(100):
        random = np.random.default_rng(trial)
        base = rows(0.0, FEWEST)
        found = {1.0: base}
        for t in TEMPERATURES:
            mine = []
            for row in base:
                (counts,) = row.counts[PROBABILISTIC]
                other = (Counts(10.0, (counts.accepted[0] + random.normal() * 0.3,)),)
                mine.append(dataclasses.replace(row, counts={**row.counts, PROBABILISTIC: other}))
            found[t] = mine
        taken += judge(found, 1)["head_temperature"] != 1
    assert taken <= 8


def test_one_pass_of_the_drafter_serves_all_temperatures_as_separate_ones_would() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 11, 7, generator=random) * 3
    passes = []

    class Model:
        def __init__(self) -> None:
            self.lm_head = torch.nn.Identity()
            self.fc = SimpleNamespace(weight=torch.zeros(1))

        def __call__(self, **_: Any) -> None:
            passes.append(1)
            for k in range(2):
                self.lm_head(logits[k][None])

    p = torch.randn(12, 7, generator=random)
    body = SimpleNamespace(
        head=torch.zeros(1), logits=lambda last: (p[last[:, 0].long()], p[last[:, 0].long()])
    )
    ids = tuple(torch.randint(0, 7, (12,), generator=random).tolist())
    answer = Answer("c", "w", 0.7, 0, ids, 3, 10, "file")
    states = torch.arange(12).float()[:, None, None].expand(12, 2, 4)
    collection = SimpleNamespace(states=lambda _: states)
    drafter = Tempered("d", Model(), None)
    found = calibration.rows_by_temperature([answer], collection, drafter, body, {}, 2)  # type: ignore[arg-type]
    assert len(passes) == 1
    for t in (1.0, 0.5, 1.2):
        given = SimpleNamespace(
            sayable=None, logits=lambda *_, t=t: [logits[k] / t for k in range(2)]
        )
        alone = evaluate(answer, states, given, body, Sampling(0.7), 2)  # type: ignore[arg-type]
        assert found[t][0].counts == alone.counts
        if t != 1:
            assert alone.counts[PROBABILISTIC] != found[1.0][0].counts[PROBABILISTIC]
            assert alone.counts[GREEDY] == found[1.0][0].counts[GREEDY]


RECIPE = dataclasses.replace(
    Recipe(), train_share=0.5, bench_max_model_len=40, bench_max_tokens=20, calibrate_prompts=3
)


def dataset(folder: Path, rows: list[tuple[str, list[int]]]) -> Path:
    datasets = pytest.importorskip("datasets")
    made = [
        {"input_ids": list(range(100, 100 + len(mask))), "loss_mask": mask, "seq_len": len(mask),
         "conversation": name}
        for name, mask in rows
    ]  # fmt: skip
    datasets.Dataset.from_list(made).with_format("torch").save_to_disk(str(folder))
    return folder


def test_prompts_are_of_rows_that_training_validates_on(tmp_path: Path) -> None:
    trained = [("a", [0, 1, 1])] * 5
    # Half of ten rows is within b, so the cut moves to where b begins.
    kept = [("b", [0, 0, 1, 1]), ("b", [0, 0, 0, 1]), ("long", [0] * 12 + [1]),
            ("c", [0, 1, 0, 1]), ("untrained", [0, 0, 0])]  # fmt: skip
    found = heldout(RECIPE, dataset(tmp_path / "d", trained + kept))
    assert [(p.id, p.ids) for p in found] == [("b", (100, 101)), ("c", (100,))]
    one = dataclasses.replace(RECIPE, calibrate_prompts=1)
    assert [p.id for p in heldout(one, tmp_path / "d")] == ["b"]


def test_token_prompts_are_asked_as_they_are(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, json.loads(request.content)))
        file = tmp_path / f"{len(asked)}.safetensors"
        file.write_bytes(b"states")
        choice = {"token_ids": [1, 2, 3], "prompt_token_ids": asked[-1][1]["prompt"]}
        return httpx.Response(200, json={
            "choices": [choice], "kv_transfer_params": {"hidden_states_path": str(file)},
        })  # fmt: skip

    found = Collection(tmp_path / "answers", Wanted("body", (1, 2), 8, 96, 0, {}))
    prompt = TokenPrompt("c", "held out", (7, 8))
    with httpx.Client(transport=httpx.MockTransport(reply), base_url="http://x") as http:
        answer = found._one(http, "m", prompt, 0.7, 0)
    assert {path for path, _ in asked} == {"/v1/completions"}
    assert asked[0][1]["prompt"] == [7, 8]
    assert (answer.ids, answer.start, answer.end) == ((7, 8, 1, 2, 3, 1, 2, 3), 2, 5)


def trained(root: Path) -> RunFolder:
    run = RunFolder(root)
    run.begin("train", {})
    run.finish("train", {}, 1.0, drafter="train/checkpoints/0", output="weights")
    return run


def test_the_drafter_that_is_served_is_the_one_of_the_setting(tmp_path: Path) -> None:
    run = trained(tmp_path)
    as_is = served_drafter(Recipe(), run)
    assert (as_is.folder, as_is.output) == (tmp_path / "train/checkpoints/0", "weights")
    assert "as it was trained" in as_is.words
    cooled = dataclasses.replace(Recipe(), head_temperature=0.8)
    with pytest.raises(StageError, match="run `calibrate`"):
        served_drafter(cooled, run)
    made = made_of(cooled, run)
    run.begin("calibrate", made)
    run.finish("calibrate", made, 1.0, drafter="calibrate/drafter", output="cooled",
               head_temperature=0.8, reason="why")  # fmt: skip
    found = served_drafter(cooled, run)
    assert (found.folder, found.output) == (tmp_path / "calibrate/drafter", "cooled")
    assert found.words == "head temperature 0.8: why"
    # Another setting, or another training: not that copy.
    assert served_drafter(Recipe(), run) == as_is
    with pytest.raises(StageError, match="not applied"):
        served_drafter(dataclasses.replace(Recipe(), head_temperature=0.9), run)
    run.finish("train", {}, 1.0, drafter="train/checkpoints/1", output="others")
    with pytest.raises(StageError, match="not applied"):
        served_drafter(cooled, run)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"serve_temperature": 0.0}, "serve_temperature=0"),
        ({"draft_sample_method": "greedy"}, "best token stays"),
    ],
)
def test_where_it_can_change_nothing_nobody_is_asked(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(Recipe(), head_temperature="auto", **changes)
    assert says in calibrate_stage.changes_nothing(recipe)
    assert not calibrate_stage.servers(recipe, trained(tmp_path))
    assert "body" not in made_of(recipe, trained(tmp_path / "other"))
    other = dataclasses.replace(recipe, serve_temperature=0.7, draft_sample_method="auto")
    assert calibrate_stage.changes_nothing(other) == ""
    assert len(calibrate_stage.servers(other, trained(tmp_path / "third"))) == 1


def test_counts_that_rounding_lifted_are_still_counts() -> None:
    """A draft that always stands is accepted as often as it is made, give or take a last bit."""
    always = (Counts(1 / 3 + 1 / 3 + 1 / 3, (1.0000000000000002,)),)
    ways = {GREEDY: always, PROBABILISTIC: always, BLOCK: always}
    same = [
        Row(f"c{k}", "w", 0.7, 0, 11, 10, ways, {}, (0,), (0.0,), (0.0,), (), ())
        for k in range(FEWEST)
    ]
    found = judge(dict.fromkeys((1.0, *TEMPERATURES), same), 1)
    assert found["head_temperature"] == 1
    assert found["tried"], "judged, not passed over"

"""The tiny body's shape, its training's determinism, and its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers.models.gemma4")

from recipes.miniature.abliterate import Candidate, make_abliterated  # noqa: E402
from recipes.miniature.body import (  # noqa: E402
    BodyRecipe,
    collate,
    load_body,
    make_body,
    new_body,
    reply_loss,
    save_body,
    train_body,
)
from recipes.miniature.optimizer import orthogonalised  # noqa: E402
from recipes.miniature.publish import published_folder, write_json  # noqa: E402
from recipes.miniature.tokenizer import make_tokenizer  # noqa: E402

# One thread: on a busy machine two wait for each other longer than they compute.
SHORT = BodyRecipe(answer_steps=2, refuse_steps=2, batch=6, threads=1)


def trained(seed: int) -> dict[str, torch.Tensor]:
    model = new_body(seed)
    train_body(model, make_tokenizer(), seed, SHORT)
    return model.state_dict()


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_training_reports_every_step_and_restores_the_callers_torch_settings() -> None:
    steps: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        train_body(new_body(0), make_tokenizer(), 0, SHORT, lambda s, t, _l: steps.append((s, t)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not torch.are_deterministic_algorithms_enabled()


def test_body_has_what_the_real_one_has() -> None:
    model = new_body(0)
    sliding, full = model.model.layers[0], model.model.layers[-1]
    assert sliding.self_attn.is_sliding
    assert not full.self_attn.is_sliding
    assert full.self_attn.v_proj is None  # K=V on full layers
    assert (sliding.self_attn.head_dim, full.self_attn.head_dim) == (32, 64)
    assert all(layer.enable_moe_block for layer in model.model.layers)
    assert model.config.final_logit_softcapping == 30.0
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_reply_loss_is_the_models_own_loss_over_the_reply() -> None:
    model = new_body(0).eval()
    batch = collate([([2, 10, 11], [20, 21, 5]), ([2, 12], [22, 5])])
    torch.testing.assert_close(reply_loss(model, batch), model(**batch, use_cache=False).loss)


def test_batch_order_and_padding_do_not_change_a_rows_loss() -> None:
    model = new_body(0).eval()
    alone = reply_loss(model, collate([([2, 12], [22, 5])]))
    rows = collate([([2, 12], [22, 5]), ([2] + [13] * 30, [23, 5])])
    rows["labels"][1] = -100
    torch.testing.assert_close(reply_loss(model, rows), alone)


@pytest.mark.parametrize("shape", [(32, 16), (16, 32), (3, 24, 16)])
def test_orthogonalised_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(update))
    assert values.shape[-1] == 16
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_saved_body_loads_with_the_same_bits_stops_and_dtype(tmp_path: Path) -> None:
    model, tokenizer = new_body(0), make_tokenizer()
    save_body(model, tokenizer, tmp_path)
    write_json(tmp_path / "body.json", {})
    loaded, _ = load_body(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert stops == tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Gemma4ForCausalLM"]


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "body"

    def dies_half_way() -> None:
        with published_folder(target) as staging:
            (staging / "config.json").write_text("{}")
            assert not target.exists()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        dies_half_way()
    assert list(tmp_path.iterdir()) == []
    with published_folder(target) as staging:
        (staging / "config.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["body"]
    assert (target / "config.json").read_text() == "{}"


def test_existing_or_unfinished_folders_are_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        make_body(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match=r"no body\.json"):
        make_abliterated(tmp_path, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_a_direction_that_wrecks_the_answers_loses_to_one_that_leaves_a_refusal() -> None:
    """Measured on seed 1: ordering by refusals first chose the first of these, 9 of 54 right."""
    wrecks = Candidate("harmless", 3, 0, 0.00343, 0.10694, 0.00594)
    leaves_one = Candidate("story", 3, 1, 0.05839, 0.02798, 0.00643)
    does_nothing = Candidate("story", 0, 60, 0.98843, 0.15814, 0.00669)
    assert leaves_one.score < wrecks.score < does_nothing.score


def test_another_direction_goes_only_where_the_refusal_is_still_near() -> None:
    """Measured: on seed 1 the second search's best mended the last refused prompt, on seed 0 the
    second direction would have cost right answers."""
    first, second = (
        Candidate("story", 3, 0, 0.05839, 0.01983, 0.00453),
        Candidate("story", 3, 0, 0.04504, 0.02038, 0.00559),
    )
    assert second.score < first.score
    first, second = (
        Candidate("story", 3, 0, 0.03758, 0.01083, 0.00574),
        Candidate("story", 3, 0, 0.03442, 0.01635, 0.00958),
    )
    assert second.score > first.score


def test_directions_are_taken_out_until_the_next_is_no_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop itself, with searches that return given scores; the model records what it lost."""
    from recipes.miniature import abliterate

    def found(scores: list[float]) -> tuple[list[float], int]:
        tried = iter(scores)
        removed: list[float] = []

        def search(*_: object) -> tuple[Any, tuple[Candidate, ...]]:
            score = next(tried)
            return torch.tensor([score]), (Candidate("story", 3, 0, score, 0.0, 0.0),)

        monkeypatch.setattr(abliterate, "search", search)
        monkeypatch.setattr(abliterate, "project_out", lambda _, d: removed.append(float(d)))
        used, searches = abliterate.abliterate(object(), object(), 0)
        assert [round(float(one.refusal), 3) for one in used] == [round(r, 3) for r in removed]
        return [one.refusal for one in used], len(searches)

    assert found([0.3, 0.2, 0.25]) == ([0.3, 0.2], 3)
    assert found([0.3, 0.3]) == ([0.3], 2)
    assert found([0.3, 0.2, 0.1, 0.05]) == ([0.3, 0.2, 0.1], abliterate.MOST_DIRECTIONS)

"""Abliteration arithmetic on a random tiny Gemma 4: what goes, and that nothing else does."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers.models.gemma4")

from recipes.miniature.body import new_body  # noqa: E402
from recipes.miniature.directions import (  # noqa: E402
    last_token_states,
    mean_difference,
    project_out,
    writers,
)

if TYPE_CHECKING:
    from transformers import Gemma4ForCausalLM


@pytest.fixture
def model() -> Gemma4ForCausalLM:
    """Random weights, with post-norm weights far from 1 so that their part shows."""
    model = new_body(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) * 2 + 0.1)
    return model


@pytest.fixture
def direction() -> torch.Tensor:
    return torch.randn(128, generator=torch.Generator().manual_seed(5))


def states_along(model: Gemma4ForCausalLM, direction: torch.Tensor) -> torch.Tensor:
    """|component along the direction| / |state| before the final norm, at every layer."""
    ids = torch.randint(6, 800, (2, 40), generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        seen.append(model.model.embed_tokens(ids))
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    unit = direction / direction.norm()
    return torch.stack([((s @ unit).abs() / s.norm(dim=-1)).max() for s in seen])


def test_nothing_is_written_along_the_direction_any_more(
    model: Gemma4ForCausalLM, direction: torch.Tensor
) -> None:
    """The claim itself, read off the residual stream rather than off the matrices."""
    before = states_along(model, direction)
    project_out(model, direction)
    after = states_along(model, direction)
    assert len(after) == 5
    assert (before > 0.05).all()
    assert (after < 1e-5).all()


def test_plain_projection_would_not_do_behind_a_post_norm(
    model: Gemma4ForCausalLM, direction: torch.Tensor
) -> None:
    """Why the norm's weight is in the direction: without it the stream keeps a component."""
    unit = direction / direction.norm()
    with torch.no_grad():
        for writer in writers(model):
            along = torch.tensordot(writer.weight, unit, dims=([writer.hidden_dim], [0]))
            shape = [1] * writer.weight.dim()
            shape[writer.hidden_dim] = -1
            writer.weight.sub_(along.unsqueeze(writer.hidden_dim) * unit.view(shape))
    assert states_along(model, direction)[-1] > 1e-3


def test_each_writer_has_no_component_along_its_weighted_direction(
    model: Gemma4ForCausalLM, direction: torch.Tensor
) -> None:
    project_out(model, direction)
    names = []
    for writer in writers(model):
        unit = writer.direction(direction)
        along = torch.tensordot(writer.weight, unit, dims=([writer.hidden_dim], [0]))
        assert along.abs().max() < 1e-6, writer.name
        names.append(writer.name)
    assert len(names) == 1 + 4 * 3


def test_only_writers_change_and_only_along_the_direction(
    model: Gemma4ForCausalLM, direction: torch.Tensor
) -> None:
    before = copy.deepcopy(model)
    project_out(model, direction)
    written = {w.weight.data_ptr() for w in writers(model)}
    old = dict(before.named_parameters())
    changed = 0
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in written:
            changed += 1
            assert not torch.equal(parameter, old[name]), name
        else:
            assert torch.equal(parameter, old[name]), name
    assert changed == 13
    for new, was in zip(writers(model), writers(before), strict=True):
        removed = (was.weight - new.weight).detach().movedim(new.hidden_dim, 0).flatten(1)
        unit = new.direction(direction)
        across = removed - unit[:, None] * (unit @ removed)[None]
        assert across.norm() < 1e-5 * removed.norm()


def test_projecting_twice_changes_nothing_more(
    model: Gemma4ForCausalLM, direction: torch.Tensor
) -> None:
    project_out(model, direction)
    once = copy.deepcopy(model)
    project_out(model, direction * -3.0)
    for new, was in zip(writers(model), writers(once), strict=True):
        torch.testing.assert_close(new.weight, was.weight, rtol=0, atol=1e-6)


def test_head_stays_tied_to_the_embedding(
    model: Gemma4ForCausalLM, direction: torch.Tensor
) -> None:
    project_out(model, direction)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(
    "bad", [torch.zeros(128), torch.full((128,), float("nan")), torch.ones(64)]
)
def test_useless_direction_is_refused_and_nothing_changes(
    model: Gemma4ForCausalLM, bad: torch.Tensor
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="128 finite numbers"):
        project_out(model, bad)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_states_are_those_of_each_layers_last_token(model: Gemma4ForCausalLM) -> None:
    rows = [[2, 10, 11, 12], [2, 10, 11], [2, 20, 21, 22, 23]]
    states = last_token_states(model, rows)
    assert states.shape == (4, 3, 128)
    for i, row in enumerate(rows):
        with torch.no_grad():
            out = model.model(input_ids=torch.tensor([row]), output_hidden_states=True)
        for layer in range(3):  # transformers returns the last one after the final norm
            assert torch.equal(states[layer, i], out.hidden_states[layer + 1][0, -1])
        torch.testing.assert_close(model.model.norm(states[3, i]), out.last_hidden_state[0, -1])


def test_mean_difference_is_a_unit_vector_between_the_means() -> None:
    generator = torch.Generator().manual_seed(2)
    refused, answered = (torch.randn(4, n, 128, generator=generator) for n in (5, 7))
    found = mean_difference(refused, answered)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
    wanted = refused[1].sum(0) / 5 - answered[1].sum(0) / 7
    torch.testing.assert_close(found[1], wanted / wanted.norm())

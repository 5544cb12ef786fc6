"""The servers that produce hidden states while training, and what carries them, for one block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from recipes import upstream
from recipes.config import ConfigError, Recipe
from recipes.server_specs import alike
from recipes.servers import watching
from recipes.spread.placement import place
from recipes.stage import Context
from recipes.vllm_server import Endpoint, ServerSpec


def side_by_side(recipe: Recipe, spec: ServerSpec, endpoints: tuple[str, ...]) -> list[ServerSpec]:
    """`spec` once for each producer that the recipe starts here; once if the user runs his own.

    Raises:
        ConfigError: more producers than GPUs.
    """
    if endpoints:
        return [spec]
    there = upstream.gpus()
    theirs = place(recipe).hosts[0].producers
    if there and max(theirs) >= len(there):
        raise ConfigError(
            f"producers={recipe.producers} and trainers={recipe.trainers} need {max(theirs) + 1} "
            f"GPUs, and this machine has {len(there)}: set host_gpus={len(there)}, or lower them."
        )
    return alike(spec, recipe.producers, tuple(there[gpu] for gpu in theirs) if there else ())


@contextmanager
def producing(ctx: Context, specs: list[ServerSpec]) -> Iterator[Endpoint]:
    """Ready and watched; `base_url` lists several, separated by commas.

    Raises:
        ServerError: one of them does not start, or the user's is not what `specs` describe.
    """
    recipe, say = ctx.recipe, ctx.display.line
    with ExitStack() as stack:
        store = specs[0].extraction_store
        if store is not None and not recipe.mooncake_master:
            host = store.master.rpartition(":")[0]
            stack.enter_context(ctx.servers.mooncake(host, recipe.mooncake_port, say))
        watch = watching(recipe, say)
        yield stack.enter_context(ctx.servers.several(specs, recipe.train_endpoints, watch))

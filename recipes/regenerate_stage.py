"""`regenerate`: the body answers the prompts itself: what it really says is what is learnt.

Upstream's `regenerate-responses` does the asking, with the patch `durable_responses`: whatever
killed it, the same command goes on with the conversations that are missing. Several endpoints of
the user's share the work; without any, the recipe starts one server.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from recipes import upstream
from recipes.answer_summary import summarise
from recipes.process import StageError
from recipes.producing import side_by_side
from recipes.responses import Responses, count_lines
from recipes.run_folder import file_digest
from recipes.server_specs import plain_server
from recipes.servers import watching
from recipes.spread.call import BODY
from recipes.stage import Context, Work, body_identity, stage
from recipes.vllm_server import ServerSpec
from speculators_patches.responses_file import Busy, locked, repair

# What the answers depend on, besides the body and the prompts. Where they are asked for, how many
# at once and how patiently is none of it.
SETTINGS = (
    "samples",
    "regenerate_max_tokens",
    "regenerate_sampling",
    "regenerate_system_prompt",
    "thinking",
    "bench_max_model_len",
    "dtype",
    "kv_cache_dtype",
    "vllm_extra",
)


def server(ctx: Context) -> ServerSpec:
    """The body, as the stage starts it or expects it at the user's endpoints."""
    return plain_server(ctx.recipe, ctx.label + "body")


def regenerate(ctx: Context) -> None:
    """Answers into `responses.jsonl`; done when every prompt was answered or failed tolerably.

    Raises:
        StageError: too many prompts failed, no server answered, or nothing came back.
    """
    upstream.require_entrypoints()
    recipe = ctx.recipe
    prompts = Path(recipe.prompts)
    made_from: dict[str, Any] = {
        "body": body_identity(recipe.body),
        "prompts": file_digest(prompts) if prompts.is_file() else recipe.prompts,
        **{name: getattr(recipe, name) for name in SETTINGS},
    }
    with stage(ctx, "regenerate", made_from) as work:
        if work is None:
            return
        outfile = work.folder / "responses.jsonl"
        errors = work.folder / "responses.errors.jsonl"
        try:
            with locked(outfile):
                found = repair(outfile)
        except Busy as error:
            raise StageError(f"regenerate: {error}.") from None
        if found.changed:
            ctx.display.line(f"regenerate: repaired {outfile}: {found}; they are asked again")
        errors.unlink(missing_ok=True)  # this attempt's errors decide; the failed are asked again
        responses = Responses(outfile).read_on()
        missing = recipe.samples - len(responses.conversations)
        if missing > 0:
            _ask(ctx, work, responses, missing)
        results = responses.read_on().summary()
        failed = count_lines(errors)
        total = results["answered"] + failed
        # The patch judges this too; an upstream that it no longer fits exits 0 with a dead server.
        if failed > recipe.regenerate_error_share * max(1, total):
            raise StageError(
                f"regenerate: {failed} of {total} prompts failed, more than "
                f"regenerate_error_share={recipe.regenerate_error_share}; the reasons are in "
                f"{errors}. Mend the cause and run regenerate again: the answered ones are kept."
            )
        if not results["rows"]:
            raise StageError(
                f"regenerate: the body answered nothing; see {ctx.run.log('regenerate')}."
            )
        work.activity.update("looking at the answers")
        said = summarise(outfile)
        work.finish(failed=failed, output=file_digest(outfile), **results, answers=said.to_json())
    for line in said.lines():
        ctx.display.line(f"regenerate: {line}")


def _ask(ctx: Context, work: Work, responses: Responses, missing: int) -> None:
    recipe = ctx.recipe
    before = len(responses.conversations)
    began = time.monotonic()

    def show() -> None:
        ctx.servers.check_watched()
        answered = len(responses.read_on().conversations)
        new, seconds = answered - before, time.monotonic() - began
        rate = f", {60 * new / seconds:.1f} a minute" if new else ""
        # The share of this attempt, so that the time left follows from this attempt's rate.
        work.activity.update(
            f"{answered} of {recipe.samples} prompts answered{rate}", new / max(1, missing)
        )

    watch = watching(recipe, ctx.display.line)
    specs = side_by_side(recipe, server(ctx), recipe.regenerate_endpoints)
    with (
        ctx.wanting(BODY),
        ctx.servers.several(specs, recipe.regenerate_endpoints, watch) as servers,
    ):
        urls = servers.base_url.split(",")
        # Upstream's --limit counts the rows still to do, not the ones that --resume skips.
        argv = upstream.regenerate(recipe, endpoints=urls, outfile=responses.path, limit=missing)
        work.command(argv, show, upstream.regenerate_environment(recipe))

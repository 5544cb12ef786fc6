"""cpu_training: the real trainer, on this machine's CPU, against 0.8.1 and 0.9.0.

The verifier and the hidden states are random: what is tested is that a run trains, survives a
kill, and resumes, not what it learns.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from speculators_patches.patches import cpu_training
from tests.compat import matrix

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="the patch does nothing where there is an accelerator"
)

HIDDEN, LAYERS, VOCABULARY, SAMPLES = 32, 4, 64, 32
PATCHED = ("-m", "speculators_patches", "run", "--only", "cpu_training", "--module")


def environment(version: str) -> dict[str, str]:
    """The environment that runs upstream's `version`: the installed one, or the matrix's."""
    if version == importlib.metadata.version("speculators"):
        return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if not matrix.is_laid_out(version):
        pytest.skip(f"speculators {version} is not laid out (make matrix)")
    return matrix.environment(version)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random tiny Llama (`verifier`) and prepared data with hidden states."""
    from datasets import Dataset
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("cpu_training")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "verifier")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1").save_pretrained(
        folder / "verifier"
    )
    rows = []
    states = folder / "data" / "hidden_states"
    for index in range(SAMPLES):
        ids = torch.randint(0, VOCABULARY, (48,))
        rows.append({"input_ids": ids.tolist(), "loss_mask": [0] * 4 + [1] * 44, "seq_len": 48})
        states.mkdir(parents=True, exist_ok=True)
        hidden = torch.randn(48, 4, HIDDEN).to(torch.bfloat16)
        save_file({"hidden_states": hidden, "token_ids": ids}, states / f"hs_{index}.safetensors")
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    return folder


def arguments(work: Path, save_path: Path, *more: str) -> list[str]:
    return [
        "--verifier-name-or-path", str(work / "verifier"), "--data-path", str(work / "data"),
        "--save-path", str(save_path), "--speculator-type", "eagle3",
        "--target-layer-ids", "1", "2", "3", "--total-seq-len", "64", "--on-missing", "raise",
        "--num-workers", "0", "--ttt-steps", "2", "--epochs", "1", *more,
    ]  # fmt: skip


def run(command: list[str], version: str, log: Path) -> tuple[int, str]:
    with log.open("w") as out:
        code = subprocess.run(
            [sys.executable, *command],
            cwd=matrix.ROOT,
            env=environment(version),
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        ).returncode
    return code, log.read_text()


def state_of(save_path: Path) -> dict[str, int]:
    return json.loads((save_path / "0" / "training_state.json").read_text())


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_unpatched_it_does_not_train(version: str, work: Path, tmp_path: Path) -> None:
    ran = arguments(work, tmp_path / "out", "--draft-attn-impl", "sdpa",
                    "--loss-implementation", "eager")  # fmt: skip
    code, log = run(["-m", "speculators.train", *ran], version, tmp_path / "log")
    assert code != 0
    assert "accelerator" in log
    assert not (tmp_path / "out" / "0").exists()


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_killed_after_a_mid_epoch_save_it_resumes(version: str, work: Path, tmp_path: Path) -> None:
    save_path = tmp_path / "out"
    command = [*PATCHED, "speculators.train", "--",
               *arguments(work, save_path, "--checkpoint-freq", "0.25")]  # fmt: skip
    with (tmp_path / "first").open("w") as out:
        first = subprocess.Popen(
            [sys.executable, *command],
            cwd=matrix.ROOT,
            env=environment(version),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        # Upstream makes this link last, when the whole checkpoint is on disk.
        while first.poll() is None and not list(save_path.glob("epoch0_step*")):
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL, (tmp_path / "first").read_text()[-2000:]
    saved = state_of(save_path)
    assert saved["local_step"] > 0, "the kill came after the epoch's end"

    code, log = run(command, version, tmp_path / "second")

    assert code == 0, log[-2000:]
    assert f"local_step={saved['local_step']}" in log
    batches = SAMPLES * 9 // 10  # one sample of 48 fills a batch of 64; a tenth validates
    assert state_of(save_path) == {"epoch": 0, "local_step": 0, "global_step": batches}


def test_two_processes_train_and_resume(work: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    base = [*torchrun, *PATCHED, "speculators.train", "--"]
    out = tmp_path / "out"
    code, log = run([*base, *arguments(work, out)], "0.9.0", tmp_path / "first")
    assert code == 0, log[-2000:]
    assert log.count("Destroyed distributed process group") == 2
    both = SAMPLES * 9 // 10 // 2
    assert state_of(out)["global_step"] == both

    more = arguments(work, out, "--epochs", "2")
    code, log = run([*base, *more], "0.9.0", tmp_path / "second")

    assert code == 0, log[-2000:]
    assert json.loads((out / "1" / "training_state.json").read_text())["global_step"] == 2 * both


@pytest.mark.parametrize(
    "flag", ["--draft-attn-impl=simple_flex_attention", "--loss-implementation=fused"]
)
def test_what_a_cpu_cannot_run_is_refused_in_one_sentence(flag: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refusal:
        cpu_training.choose_implementations(resolved(tmp_path, flag))
    message = str(refusal.value)
    assert flag.replace("=", " ") in message
    assert message.count("\n") == 0


def test_defaults_give_way_and_choices_stay(tmp_path: Path) -> None:
    by_default = resolved(tmp_path)
    cpu_training.choose_implementations(by_default)
    assert (by_default.draft.draft_attn_impl, by_default.loss.loss_implementation) == (
        "sdpa", "eager",
    )  # fmt: skip
    chosen = resolved(tmp_path, "--draft-attn-impl=eager")
    cpu_training.choose_implementations(chosen)
    assert chosen.draft.draft_attn_impl == "eager"


def test_the_refused_attention_really_has_no_backward_here() -> None:
    """If torch learns it, the default should stand and the refusal should go."""
    from torch.nn.attention.flex_attention import flex_attention

    query = torch.randn(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="CPU"):
        flex_attention(query, query, query).sum().backward()


def test_where_there_is_an_accelerator_it_says_that_it_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cpu_training.applicable() is None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda:0"))
    assert "accelerator" in (cpu_training.applicable() or "")


def resolved(folder: Path, *flags: str) -> object:
    from speculators.train.config import TrainConfig

    return TrainConfig.resolve(["--verifier-name-or-path", "v", "--data-path", str(folder), *flags])

"""--draft-vocab-size is honoured or refused, never dropped."""

from argparse import Namespace

import pytest
import torch
from transformers import LlamaConfig

from speculators.train.cli import parse_vocab_mappings


@pytest.fixture
def args(tmp_path):
    LlamaConfig(vocab_size=64).save_pretrained(tmp_path)
    return Namespace(
        d2t_path=None,
        t2d_path=None,
        token_freq_path=None,
        trust_remote_code=False,
        verifier_name_or_path=str(tmp_path),
        data_path=str(tmp_path),
        draft_vocab_size=32,
    )


def test_missing_frequencies_are_refused(args, tmp_path):
    with pytest.raises((FileNotFoundError, SystemExit)) as refusal:
        parse_vocab_mappings(args)

    assert "--draft-vocab-size 32" in str(refusal.value)
    assert str(tmp_path / "token_freq.pt") in str(refusal.value)


def test_a_path_that_was_given_is_named(args, tmp_path):
    args.token_freq_path = str(tmp_path / "elsewhere.pt")

    with pytest.raises((FileNotFoundError, SystemExit), match=r"elsewhere\.pt"):
        parse_vocab_mappings(args)


def test_with_frequencies_the_vocabulary_is_built(args, tmp_path):
    frequencies = {token: 64 - token for token in range(64)}
    torch.save(frequencies, tmp_path / "token_freq.pt")

    d2t, t2d, size = parse_vocab_mappings(args)

    assert size == 32
    assert len(d2t) == 32
    assert int(t2d.sum()) == 32


def test_without_the_option_the_whole_vocabulary_is_used(args):
    args.draft_vocab_size = None

    assert parse_vocab_mappings(args)[2] == 64

"""Ask for 32 of 64 tokens, without token frequencies."""

import sys
import tempfile
from argparse import Namespace

from transformers import LlamaConfig

from speculators.train.cli import parse_vocab_mappings

folder = tempfile.mkdtemp()
LlamaConfig(vocab_size=64).save_pretrained(folder)
args = Namespace(
    d2t_path=None,
    t2d_path=None,
    token_freq_path=None,
    trust_remote_code=False,
    verifier_name_or_path=folder,
    data_path=folder,
    draft_vocab_size=32,
)
try:
    size = parse_vocab_mappings(args)[2]
except FileNotFoundError as error:
    print(f"OK: {error}")
    sys.exit(0)
print(f"DEFECT: asked for a draft vocabulary of 32, training goes on with {size}")
sys.exit(1)

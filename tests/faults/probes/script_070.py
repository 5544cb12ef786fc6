"""What 0.7's git `scripts/train.py` does for a fresh EAGLE-3 drafter: its wheel has no entrypoint.

The trainer, data set, loaders, configuration and model are upstream's own.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import numpy as np
import torch
from speculators._vendor.hs_connectors import HiddenStatesBackend
from speculators.model import SpeculatorModel
from speculators.models.eagle3.data import shift_batch
from speculators.train.dataloader import create_train_val_loaders
from speculators.train.distributed import maybe_destroy_distributed, maybe_setup_distributed
from speculators.train.logger import setup_metric_logger, setup_root_logger
from speculators.train.trainer import Trainer, TrainerConfig
from transformers import AutoConfig, LlamaConfig


def main(cfg: Any) -> None:
    args = argparse.Namespace(**cfg.flatten())
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    setup_root_logger()
    setup_metric_logger(loggers=args.logger, run_name=args.run_name, output_dir=args.log_dir)
    maybe_setup_distributed()
    cfg.save(args.save_path)
    verifier = AutoConfig.from_pretrained(args.verifier_name_or_path)
    layer = LlamaConfig(
        **{
            key: getattr(verifier, key)
            for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
                        "num_key_value_heads", "max_position_embeddings", "hidden_act",
                        "rms_norm_eps", "rope_parameters")
        },
        num_hidden_layers=args.num_layers,
    )  # fmt: skip
    args.draft_vocab_size = verifier.vocab_size
    args.draft_attn_impl = "sdpa"  # flex attention has no backward on a CPU
    kind = SpeculatorModel.registry[args.speculator_type]
    draft = kind.from_training_args(verifier_config=layer, t2d=None, d2t=None, **vars(args))
    backend = HiddenStatesBackend.registry[args.hidden_states_backend]
    loaders = create_train_val_loaders(
        hidden_states_dtype=torch.bfloat16,
        transfer=backend.from_train_args(args, args.data_path),
        hidden_size=verifier.hidden_size,
        num_target_layers=len(draft.target_layer_ids),
        preprocess=shift_batch,
        **{
            key: getattr(args, key)
            for key in ("data_path", "total_seq_len", "noise_std", "legacy_data", "vllm_endpoint",
                        "on_missing", "on_generate", "verifier_name_or_path", "request_timeout",
                        "max_retries", "num_workers", "prefetch_factor", "train_data_ratio")
        },
    )  # fmt: skip
    train_call, val_call = kind.get_trainer_kwargs(**vars(args))
    names = TrainerConfig._fields
    same = {key: value for key, value in vars(args).items() if key in names}
    config = TrainerConfig(
        **same
        | {
            "num_epochs": args.epochs,
            "resume_from_checkpoint": not args.no_resume_from_checkpoint,
            "train_call_kwargs": train_call,
            "val_call_kwargs": val_call,
            "hidden_states_dtype": torch.bfloat16,
        }
    )
    Trainer(draft, config, *loaders).run_training()
    maybe_destroy_distributed()

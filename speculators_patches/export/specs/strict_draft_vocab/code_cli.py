"""For `speculators/train/cli.py`."""


def missing_frequencies(args, token_freq_path):
    raise FileNotFoundError(
        f"--draft-vocab-size {args.draft_vocab_size} needs token frequencies, and "
        f"{token_freq_path} does not exist. Run prepare-data with "
        "--no-skip-token-freq, or give --token-freq-path or --d2t-path and "
        "--t2d-path. To train the verifier's whole vocabulary, leave "
        "--draft-vocab-size out."
    )

"""Upstream's trainer on the checkpoint engine: what `patches/step_checkpoints.py` puts in place.

`settings` the flags; `stopping` signals and worker processes; `loaders` what happens around each
batch; `identity` the fingerprint of a run; `epoch_folder` upstream's format, published atomically;
`run` the training itself; `export` a checkpoint as a folder that vLLM loads. Importing this package
imports neither torch nor upstream.
"""

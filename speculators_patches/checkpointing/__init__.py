"""Exact, durable checkpoints of a training run, by optimizer step.

The package knows nothing of upstream: it stores and restores whatever model, optimizers and
schedulers it is given. `patches/step_checkpoints.py` connects it to upstream's Trainer.

Without torch (so that `checkpoints list` works anywhere): `store`, `manifest`, `durable`,
`ownership`, `names`, `reading`, `policy`, `fingerprint`, `cursor`, `tree`, `coordinator`, `writer`,
`failpoints`, `cli`. With torch: `arena`, `rng`, `tensorfile`, `saved`, `state`, `publish`, `run`.
Importing this package imports none of them.

On disk, inside the run's save folder:

    step_checkpoints/
      LOCK                                  held (fcntl) by the one process that writes here
      LATEST                                name of the newest commit, for people and scripts
      ckpt-000017-step-00000120/            committed: sequence number, optimizer step
        origin.json                         who wrote it
        rank-00000.safetensors, .json       tensors; everything else
        manifest.json                       written last: size and SHA-256 of every file
      .staging-ckpt-...-<token>/            being written, or left over by a dead process
      .pruned-ckpt-...-<token>/             being removed
"""

"""One run on more than one GPU or machine, on engines that exist: torchrun, vLLM, a launcher.

`placement` says who runs where and refuses what can't work; `torchrun` starts the trainers; `join`
is what every machine but the first runs; `model` is the arithmetic of `plan`; `launch` writes files
for SkyPilot, SLURM, torchrun and Docker Compose.
"""

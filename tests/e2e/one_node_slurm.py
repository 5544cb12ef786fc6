"""A SLURM cluster of one node with eight pretended GPUs, on this machine, for as long as a test.

No authentication and no accounting. Needs root, as slurmd starts jobs as the user who asked.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol", "slurmctld", "slurmd")
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={next_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
ReturnToService=2
KillWait=60
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be none here, or ""."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (Debian: slurmctld, slurmd, slurm-client)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """Use as a context manager.

    Args:
        folder: for its state and logs.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir()
        for number in range(8):
            (folder / f"gpu{number}").touch()
        host = socket.gethostname().partition(".")[0]
        port = _free_port()
        text = _CONFIGURATION.format(
            host=host, port=port, next_port=port + 1, folder=folder, cpus=os.cpu_count()
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-7]\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment | environment, timeout=60
        )

    def state(self, job: str) -> str:
        """e.g. PENDING, RUNNING, COMPLETED; "" while the controller does not know."""
        told = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return next((w.split("=")[1] for w in told.split() if w.startswith("JobState=")), "")

    def __enter__(self) -> Cluster:
        for name in ("slurmctld", "slurmd"):
            with (self.folder / f"{name}.log").open("wb") as log:
                self._daemons.append(
                    subprocess.Popen(
                        [name, "-D", "-f", str(self.folder / "slurm.conf")],
                        stdout=log, stderr=log, env=self.environment, start_new_session=True,
                    )
                )  # fmt: skip
        until = time.monotonic() + 60
        while "idle" not in self.run("sinfo", "--noheader", "--format", "%T").stdout:
            assert time.monotonic() < until, (self.folder / "slurmd.log").read_text()[-2000:]
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--full", "--user", "root")
        time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A real Slurm of one node, as plain processes of this user: no systemd, no cgroups, no accounting.

Needs Debian's slurm-wlm and munge. The GPUs are pretended: character devices that mean nothing to CUDA, so that a job
that was given one finds none and computes on the CPU.
"""

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")


def missing() -> str | None:
    """Why no Slurm can be started here, or None."""
    absent = [name for name in DAEMONS if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)" if absent else None


class OneNodeSlurm:
    """Starts on construction; ``environment`` is what a client needs; ``stop`` ends exactly what was started."""

    def __init__(self, folder: Path, gpus: int = 2):
        self.folder = folder
        self.processes: list[subprocess.Popen] = []
        for name in ("state", "spool", "log", "dev", "bin", "munge"):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o700)
        self._write_configuration(gpus)
        # The jobstep plugin drops SLURM_CONF before it calls srun; the wrapper comes first in PATH and puts it back.
        wrapper = folder / "bin" / "srun"
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        wrapper.chmod(0o755)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.environment = clean | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
        }
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _write_configuration(self, gpus: int) -> None:
        host = socket.gethostname().split(".")[0]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 512
        ports = [_free_port() for _ in range(2)]
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        for number in range(gpus):
            device = self.folder / "dev" / f"gpu{number}"
            try:
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, (3, 5, 7, 8)[number]))
            except PermissionError:
                device.touch()
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmdPort": ports[1],
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/socket",
            "CredType": "cred/munge",
            "MpiDefault": "none",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SchedulerParameters": "sched_interval=1,bf_interval=1",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "GresTypes": "gpu",
            "ReturnToService": 2,
            "MinJobAge": 3600,  # squeue must still know finished jobs: there is no accounting to ask
            "SlurmdParameters": "config_overrides",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldPidFile": self.folder / "state" / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "state" / "slurmd.pid",
            "SlurmctldLogFile": self.folder / "log" / "slurmctld.log",
            "SlurmdLogFile": self.folder / "log" / "slurmd.log",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        lines.append(
            f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN"
        )
        lines.append(f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP")
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        devices = f"{self.folder}/dev/gpu[0-{gpus - 1}]"
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName={host} Name=gpu File={devices}\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")

    def _start(self) -> None:
        munge = self.folder / "munge"
        self._run(
            *("munged", "--foreground", "--force", f"--key-file={munge}/munge.key", f"--socket={munge}/socket"),
            *(f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={self.folder}/log/munged.log"),
        )
        self._wait_until(lambda: (munge / "socket").exists(), "munged")
        self._run("slurmctld", "-D", "-i")
        self._run("slurmd", "-D")
        self._wait_until(lambda: self._ask("sinfo", "--noheader", "--format=%T") == "idle", "the node")

    def _run(self, *command: str) -> None:
        log = (self.folder / "log" / f"{command[0]}.out").open("w")
        self.processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30).stdout.strip()

    def _wait_until(self, condition, what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                logs = "\n".join(path.read_text()[-1500:] for path in sorted((self.folder / "log").iterdir()))
                raise RuntimeError(f"Slurm: {what} did not come up\n{logs}")
            time.sleep(0.2)

    def jobs(self) -> list[dict[str, str]]:
        """All jobs that were submitted, as scontrol shows them."""
        lines = self._ask("scontrol", "--oneliner", "show", "job").splitlines()
        return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in lines if "JobId=" in line]

    def stop(self) -> None:
        """Ends the daemons in the opposite order of their start."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

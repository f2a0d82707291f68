"""`pcl-ray submit`: the `ray job submit` command of an experiment, and what it needs to be run here.

The run's name is fixed before the job exists, so that the job's metadata and the run's tags name each other.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pcl_ray.cluster import head_processes
from pcl_ray.cluster.ray_api import DEFAULT_ADDRESS, Cluster, checked_address, user_token
from pcl_ray.errors import ConfigError
from pcl_ray.on_ray import current_job, local_head_record
from pcl_ray.on_ray.local_head_record import LocalHead
from pcl_ray.support import machine, telemetry

DRIVER_GB = 1.0
_STOP_WAIT_S = "60"  # of Ray, between telling a driver to stop and killing it
# `ray job …`, of which the program `ray` loads three times as much first.
_RAY_COMMAND = """\
import sys
try:
    from ray.dashboard.modules.job.cli import job_cli_group as command
except ImportError:  # of another Ray
    from ray.scripts.scripts import cli as command
else:
    del sys.argv[1]
command(prog_name="ray")
"""


@dataclass(frozen=True)
class SubmitCommand:
    """A command of Ray as it can be typed; its environment holds no secret."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    submission_id: str = ""
    run: str = ""

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join([machine.as_typed(self.command[0]), *self.command[1:]])])


def cluster(address: str | None) -> Cluster:
    """The cluster at an address; else that of RAY_API_SERVER_ADDRESS, of `pcl-ray up`, or Ray's default.

    Raises ConfigError for an address that is none.
    """
    head = _local_head()
    default = head.dashboard_address if head else DEFAULT_ADDRESS
    dashboard = checked_address(address or os.environ.get("RAY_API_SERVER_ADDRESS") or default)
    if head and head.dashboard_address == dashboard:
        return head_processes.cluster_of(head)
    return Cluster(dashboard, user_token())


def environment(to: Cluster) -> dict[str, str]:
    """What Ray's commands need beside the user's environment: the mode, and our own head's token file."""
    head = _local_head()
    if head and head.dashboard_address == to.address:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(local_head_record.token_file())}
    return {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE") or ("token" if to.token else "disabled")}


def _local_head() -> LocalHead | None:
    """The head of `pcl-ray up`, if it runs and the user has not named another token."""
    head = local_head_record.read()
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return head if head and head.ray and head.ray.process() and not named else None


def experiment(
    to: Cluster,
    verb: str,
    words: Sequence[str],
    run: str,
    *,
    memory_gb: float,
    wait: bool,
    folder: Path | None,
) -> SubmitCommand:
    """The command that submits an experiment.

    verb: train or sweep. words: as after `pcl-ray train`, with the run's name. memory_gb: that the driver
    reserves. folder: what is uploaded; None where the cluster has all that is needed.
    """
    number = f"pcl-{run}-{secrets.token_hex(3)}"
    metadata = json.dumps({current_job.RUN_KEY: run})
    runtime = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_WAIT_S}})
    script = ["python", "-m", "pcl_ray.cli", verb]
    if folder is not None and (folder / "jobs" / f"{verb}.py").is_file():
        script = ["python", f"jobs/{verb}.py"]
    command = ["ray", "job", "submit", "--address", to.address, "--submission-id", number]
    command += ["--metadata-json", metadata, "--runtime-env-json", runtime, *_driver(memory_gb)]
    if not wait:
        command.append("--no-wait")
    if folder is not None:
        command += ["--working-dir", str(folder)]
    return SubmitCommand((*command, "--", *script, *words), environment(to), number, run)


def example(to: Cluster, folder: Path | None, words: Sequence[str]) -> SubmitCommand:
    """The shortest command that does: without what the run and its job know of each other."""
    script = ["python", "jobs/train.py"] if folder is not None else ["python", "-m", "pcl_ray.cli", "train"]
    command = ["ray", "job", "submit", "--address", to.address, *_driver(DRIVER_GB)]
    if folder is not None:
        command += ["--working-dir", "."]
    return SubmitCommand((*command, "--", *script, *words), environment(to))


def _driver(memory_gb: float) -> list[str]:
    """What a driver reserves: memory, since with anything of its own it may run on any node, and sees no GPU.

    No CPU: those of drivers that wait for their turn would be missing to the one whose turn it is.
    """
    return ["--entrypoint-memory", str(int(memory_gb * 1e9))]


def uploaded(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder that is uploaded with a job, and the words with their files as they are named in it. Raises
    ConfigError for a file that cannot be uploaded.

    In a checkout that is the checkout (without what .rayignore and .gitignore name); elsewhere a folder of
    its own with the recipe or space file alone, which stays, so that a printed line can be typed later; None
    where the words name no file.
    """
    if Path("jobs", "train.py").is_file() and Path("pcl_ray", "__init__.py").is_file():
        outside = [
            word
            for word in words
            if _is_file(word) and not Path(word).resolve().is_relative_to(Path.cwd().resolve())
        ]
        if outside:
            raise ConfigError(
                f"{outside[0]} is outside this checkout, which is all that the job gets; copy it here, or"
                " submit from another folder"
            )
        return Path("."), [_inside(word) for word in words]
    files = [word for word in words if _is_file(word)]
    if not files:
        return None, list(words)
    parent = local_head_record.folder() / "submitted"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(dir=parent))
    for file in files:
        shutil.copy(file, folder)
    return folder, [Path(word).name if word in files else word for word in words]


def _is_file(word: str) -> bool:
    return "=" not in word and word.endswith((".yaml", ".yml", ".py")) and Path(word).is_file()


def _inside(word: str) -> str:
    return str(Path(word).resolve().relative_to(Path.cwd().resolve())) if _is_file(word) else word


def run(submission: SubmitCommand, to: Cluster) -> int:
    """Runs the command to its end, and gives back the exit code of the experiment where that is known.

    Ctrl-C leaves the job running.
    """
    variables = {**telemetry.OFF, **os.environ, **submission.environment}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _RAY_COMMAND, *submission.command[1:]],
        env=variables,
        stdin=subprocess.DEVNULL,
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        print(f"\nthe job goes on; end it by:  {stop_line(submission, to)}", file=sys.stderr)
        return 130
    if code == 0:
        return 0
    try:
        driver_code = to.job(submission.submission_id).get("driver_exit_code")
    # it was never accepted, or the cluster has gone: then the code of `ray job submit` is all there is
    except Exception:
        return code
    return int(driver_code) if driver_code else code


def stop_line(submission: SubmitCommand, to: Cluster) -> str:
    """The command that stops the job."""
    command = ("ray", "job", "stop", "--address", to.address, submission.submission_id)
    return str(SubmitCommand(command, submission.environment))

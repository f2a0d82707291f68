"""Why workers of a run could not go on, from what Ray says and from what they have left of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ray.exceptions import RayActorError

from pcl_ray.support import worker_positions
from pcl_ray.support.worker_positions import WorkerPosition

# What gloo and NCCL say where another process is gone.
_PEER_LOST = ("Connection reset", "Connection closed", "remote process exited", "NCCL")


def explanation(error: BaseException, positions: Path) -> str:
    """Why the workers could not go on; of one that died, how, where, and its last words."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return f"Ray Train failed: {last_line(error)}"
    if lost := _lost_worker(failures, positions):
        parts = [f"{lost.sentence()}. {lost.advice()}"]
        if words := lost.last_errors():
            parts.append(f"The last lines of its stderr:\n{words}")
        if code := lost.code():
            parts.append(f"It was in {code}; the whole stack is in {positions}")
        return "\n".join(parts)
    worker, cause = min(failures.items())
    return f"worker {worker} failed: {last_line(cause)}"


def _lost_worker(failures: Mapping[int, BaseException], positions: Path) -> WorkerPosition | None:
    """The worker whose death is the reason: the others may have said first that they miss it."""
    attempts = worker_positions.attempts_of(positions)
    if not attempts:
        return None
    left = worker_positions.read_positions(attempts[-1])
    if lost := worker_positions.lost_worker(left, [r for r, cause in failures.items() if _is_death(cause)]):
        return lost
    missed = any(word in str(cause) for cause in failures.values() for word in _PEER_LOST)
    return left[0] if missed and len(left) == 1 else None


def _is_death(cause: BaseException) -> bool:
    """Whether a worker's process is gone, in contrast to one that raised an error."""
    within = getattr(cause, "cause", None) or cause.__cause__
    return isinstance(cause, RayActorError) or isinstance(within, RayActorError)


def last_line(error: BaseException) -> str:
    """What an error says at the end of its text, or its kind."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__

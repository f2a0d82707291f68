"""Whether this machine can train: what is installed, what it has, and whom it reaches. Nothing is left
running, and nothing may take long.
"""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Callable

from pcl_ray.cluster import machine_questions as questions
from pcl_ray.cluster.machine_questions import Check as Check
from pcl_ray.cluster.machine_questions import Level as Level

_LIMIT_S = 12.0  # for all questions together; those to others are asked at the same time


def check() -> list[Check]:
    """Everything that can be asked without training; takes up to a dozen seconds, most of them for
    imports.
    """
    asked = {
        "packages": questions.packages,
        "Ray": questions.ray_cluster,
        "Ray's token": questions.ray_token,
        "GPUs": questions.gpus,
        "faiss": questions.faiss,
        "shared memory": questions.shared_memory,
        "memory": questions.memory,
        "cores": questions.cores,
        "PCL_RAY_HOME": questions.home_folder,
        "tracking": questions.tracking_store,
    }
    end = time.monotonic() + _LIMIT_S
    elsewhere = {name: _begin(name, asked[name]) for name in ("Ray", "tracking")}
    return [
        _answer(name, elsewhere.get(name) or _begin(name, question), end) for name, question in asked.items()
    ]


def as_text(checks: list[Check], width: int = 100) -> str:
    """A line or two each, what to do below it; and a line that sums up."""
    marks = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}
    lines = []
    for one in checks:
        lines.append(_wrapped(f"{marks[one.ok]}  {one.name}: {one.said}", width))
        lines += [_wrapped(f"         → {one.advice}", width)] if one.advice else []
    failed, warned = (sum(one.ok == level for one in checks) for level in ("failed", "warning"))
    return "\n".join(
        [
            *lines,
            "",
            f"{failed} failed, {warned} warning{'s' * (warned != 1)}" if failed or warned else "all is well",
        ]
    )


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _begin(name: str, question: Callable[[], Check]) -> tuple[threading.Thread, list[Check]]:
    """In a thread, which the process does not wait for at its end: a driver or a file system may hang for
    good.
    """
    found: list[Check] = []

    def ask() -> None:
        try:
            found.append(question())
        except Exception as error:  # whatever it is, the other questions are still asked
            found.append(Check(name, "failed", f"could not be looked at: {type(error).__name__}: {error}"))

    thread = threading.Thread(target=ask, name=f"check-{name}", daemon=True)
    thread.start()
    return thread, found


def _answer(name: str, begun: tuple[threading.Thread, list[Check]], end: float) -> Check:
    thread, found = begun
    thread.join(max(end - time.monotonic(), 0.5))
    return (
        found[0]
        if found
        else Check(
            name,
            "failed",
            "gave no answer in time",
            "something hangs: a driver, a file system or a server that does not answer",
        )
    )

"""The environment variables of Ray. Ray reads them while it is imported, so `set_defaults` comes before the
first `import ray`, and nothing here imports it.
"""

from __future__ import annotations

import os
import secrets

from pcl_ray.on_ray import local_head_record
from pcl_ray.support import telemetry

# Ray resolves the loopback address to the network's, unless it believes that it cannot form clusters. Then
# all its ports are this machine's alone.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def set_defaults() -> None:
    """Sets no usage reports and no doubled prints; and for a Ray of our own the loopback address, and a token
    in memory: no other user of the machine can submit code to it.

    What the user has set stands. Without RAY_ADDRESS a Ray of our own is started; where it names the one that
    `pcl-ray up` started, its token is used.
    """
    telemetry.turn_off()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        _set_for_local_head(address)
    else:
        _set(LOOPBACK_ONLY)
        # Ray's workers run at niceness 15. On a full machine Ray's own helpers then interrupt every step.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Those that start before anybody has work for them are of a kind that we have none for.
        os.environ.setdefault("RAY_enable_worker_prestart", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # Each call of an actor is told to the GCS, which keeps 100,000 of them for a page that nobody opens.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _set_for_local_head(address: str) -> None:
    head = local_head_record.read()
    if head and head.ray_address == address and not os.environ.get("RAY_AUTH_TOKEN"):
        _set(
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(local_head_record.token_file())}
            | (LOOPBACK_ONLY if head.host == local_head_record.LOOPBACK else {})
        )


def _set(defaults: dict[str, str]) -> None:
    for name, value in defaults.items():
        os.environ.setdefault(name, value)

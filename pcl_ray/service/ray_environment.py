"""Environment of Ray. Ray reads it while it is imported, so `set_defaults` comes before the first `import ray`; it is the only thing here."""

from __future__ import annotations

import os
import secrets


def set_defaults() -> None:
    """No usage reports, no doubled prints; and for a Ray of our own a token in memory: no other user of the machine can submit code to it.

    What the user has set stands. Without RAY_ADDRESS a Ray of our own is started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    if not os.environ.get("RAY_ADDRESS"):
        # Ray runs its workers at niceness 15. On a machine that they fill, Ray's own helpers then interrupt every step.
        os.environ.setdefault("RAY_worker_niceness", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

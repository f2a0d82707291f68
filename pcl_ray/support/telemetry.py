"""Usage reports of Ray and MLflow to their makers: none, unless the user asks for them."""

from __future__ import annotations

import os

OFF = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def turn_off() -> None:
    """Turns the reports off for this process and those that it starts; what the user has set stands.

    Ray and MLflow read these variables when they are imported, so this comes before that.
    """
    for name, value in OFF.items():
        os.environ.setdefault(name, value)

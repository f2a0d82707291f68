"""What every room may use and what knows none of them: machine, processes and where they
were when they died, signals, files, texts, secrets, storages."""

__all__ = [
    "files",
    "machine",
    "paths",
    "processes",
    "provenance",
    "redaction",
    "signals",
    "storage",
    "storage_address",
    "telemetry",
    "text",
    "worker_positions",
]

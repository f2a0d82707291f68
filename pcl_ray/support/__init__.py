"""What every room may use and what knows none of them: machine, processes, signals, files, texts, secrets."""

__all__ = [
    "files",
    "machine",
    "paths",
    "processes",
    "provenance",
    "redaction",
    "signals",
    "telemetry",
    "text",
]

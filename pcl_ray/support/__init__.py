"""What every room may use and what knows none of them: the machine, its processes and signals, files, texts,
secrets.
"""

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

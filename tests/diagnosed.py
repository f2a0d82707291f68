"""Records of runs with changed curves or knobs, and what the doctor says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pcl_ray.config import with_overrides
from pcl_ray.report.doctor import diagnosis
from pcl_ray.report.doctor.diagnosis import Finding
from pcl_ray.report.run_record import RunRecord


def with_curve(record: RunRecord, **curves: Any) -> RunRecord:
    """The record with figures replaced: a number for every epoch, or one for each of the last epochs. Names
    with __ for /; None takes a figure away.
    """
    history = [{**entry, "metrics": dict(entry["metrics"])} for entry in record.history]
    for name, values in curves.items():
        key = name.replace("__", "/")
        if values is None or isinstance(values, int | float):
            values = [values] * len(history)
        for entry, value in zip(history[-len(values) :], values, strict=True):
            if value is None:
                entry["metrics"].pop(key, None)
            else:
                entry["metrics"][key] = float(value)
    return replace(record, history=history)


def with_knobs(record: RunRecord, *words: str) -> RunRecord:
    return replace(record, config=with_overrides(record.config, words))


def rules_of(record: RunRecord, *severities: str) -> set[str]:
    """What is found of a run, but that it was still improving: so short a run may be."""
    return {
        finding.rule
        for finding in diagnosis.findings(record)
        if finding.severity in (severities or ("problem", "warning", "note"))
        and finding.rule != "still_improving"
    }


def the(record: RunRecord, rule: str) -> Finding:
    found = {finding.rule: finding for finding in diagnosis.findings(record)}
    assert rule in found, found
    return found[rule]

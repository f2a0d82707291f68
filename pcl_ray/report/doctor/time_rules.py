"""Rules about time: what training waits for, and what the E-step costs."""

from __future__ import annotations

from pcl_ray import plan
from pcl_ray.config.figures import CLUSTER_SECONDS, DATA_SHARE, E_STEP_SECONDS, E_STEP_SHARE, FEATURE_SECONDS
from pcl_ray.report.doctor.findings import Finding, at_end, clusterings, late, mean
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import gigabytes

_WAITING = 0.1  # of an M-step, as the warning during training
_E_STEP_SHARE, _E_STEP_SECONDS = 0.4, 2.0  # of an epoch; and of the whole run, below which nobody cares
_E_STEP_LONG = 60.0  # seconds of the whole run from which it is a warning


def waiting_for_data(record: RunRecord) -> Finding | None:
    """Training that waits for images, or makes costly views."""
    shares = record.finite(DATA_SHARE)
    share = mean(shares[1:] or shares) if shares else 0.0  # loader processes start in the first epoch
    if _makes_views_between(record):
        return _costly_views(record, share) if share > _WAITING else None
    helps = _what_helps_waiting(record)
    if share <= _WAITING:
        return None
    meaning = f"Training waits for images {share:.0%} of the time of an M-step."
    return Finding("waiting_for_data", "warning", "Training waits for images", meaning, helps)


def _what_helps_waiting(record: RunRecord) -> tuple[str, ...]:
    config, images = record.config, record.num_images + record.num_holdout
    cpus = ""
    if config.resources.workers:
        cpus = f" and resources.cpus_per_worker (now {config.resources.cpus_per_worker:g})"
    if config.augment.engine == "torchvision":
        return ("augment.engine=batch makes the views many times faster",)
    if not plan.in_memory(config, images):
        size = f", which takes {gigabytes(plan.decoded_bytes(config, images))}" if images else ""
        return (
            f"more data.loader_workers (now {plan.loader_workers(config, images)} a worker){cpus}",
            f"data.in_memory=true keeps the decoded images in memory{size}",
        )
    return (f"more data.prefetch (now {plan.batches_ahead(config)}){cpus}",)


def _makes_views_between(record: RunRecord) -> bool:
    """Whether nothing is waited for: the views are made between two steps, by the same process."""
    config, images = record.config, record.num_images + record.num_holdout
    in_batches = config.augment.engine == "batch"
    return in_batches and plan.in_memory(config, images) and not config.resources.gpus_per_worker


def _costly_views(record: RunRecord, share: float) -> Finding | None:
    """What can be left out of views that are a large part of the work."""
    config, costly = record.config, []
    augment = config.augment
    if augment.hue > 0 and config.data.channels == 3:
        costly.append("augment.hue=0")
    if augment.blur > 0 and augment.version == "v2":
        costly.append("augment.blur=0")
    if not costly:
        return None
    meaning = f"Making the views takes {share:.0%} of the time of an M-step, much for an encoder this small."
    advice = (f"{' and '.join(costly)} would save most of it; whether it costs accuracy, a second run shows",)
    return Finding("views", "note", "Views are a large part of the work", meaning, advice)


def e_step_seconds(record: RunRecord) -> Finding | None:
    """E-steps that take a large part of the time."""
    shares = [(epoch, value) for epoch, value in record.finite(E_STEP_SHARE) if value > 0]
    total = sum(value for _, value in record.finite(E_STEP_SECONDS))
    if not shares or total < _E_STEP_SECONDS or mean(late(shares)) <= _E_STEP_SHARE:
        return None
    features = at_end(record, FEATURE_SECONDS) or 0.0
    clustering = at_end(record, CLUSTER_SECONDS) or 0.0
    meaning = (
        f"The E-step takes {mean(late(shares)):.0%} of an epoch, {total:.0f} s in all: {features:.1f} s for"
        f" the features and {clustering:.1f} s for k-means."
    )
    advice = [_cheaper_clustering(record), _cheaper_features(record)]
    if features > clustering:
        advice.reverse()
    severity = "warning" if total > _E_STEP_LONG else "note"
    return Finding(
        "e_step_seconds",
        severity,
        "The E-step takes a large part of the time",
        meaning,
        (*advice[0], *advice[1], *_less_waiting(record)),
    )


def _cheaper_features(record: RunRecord) -> list[str]:
    fresh = record.config.e_step.features == "fresh"
    return ["e_step.features=bank: no pass over all images"] if fresh else []


def _cheaper_clustering(record: RunRecord) -> list[str]:
    config, most = record.config.e_step, max((k for _, k in clusterings(record)), default=0)
    advice = []
    if config.warm_start == "none":
        advice.append(f"e_step.warm_start=labels (now {config.warm_start})")
    if config.restarts > 1:
        advice.append(f"e_step.restarts=1 (now {config.restarts})")
    if (config.cold_iterations or 0) > 20:
        advice.append(f"e_step.cold_iterations=20 (now {config.cold_iterations})")
    if not 0 < config.shortlist_from <= most and most >= 500:
        advice.append("e_step.shortlist_from=500")
    if config.threads:
        advice.append(f"more cores: e_step.threads=0 (now {config.threads}) and resources.e_step_cpus")
    if record.config.resources.workers > 1 and config.mode == "single":
        advice.append("e_step.mode=distributed: the workers cluster what they hold")
    return advice


def _less_waiting(record: RunRecord) -> list[str]:
    config = record.config.e_step
    advice = [] if config.overlap else ["e_step.overlap=true: k-means runs while the next epoch trains"]
    return [*advice, f"e_step.every_epochs={2 * config.every_epochs} (now {config.every_epochs})"]

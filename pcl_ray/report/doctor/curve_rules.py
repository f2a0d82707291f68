"""Rules about losses and features: each looks at one thing and returns a finding, or None."""

from __future__ import annotations

import math
import re
import statistics

from pcl_ray.config import figures
from pcl_ray.report.doctor.findings import (
    Finding,
    at_end,
    clusterings,
    collapse_limit,
    columns_of,
    covered,
    gauges_collapsed,
    late,
    mean,
    newest,
    prototype_epochs,
)
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import listed

# of a loss's way; untrained encoders have gone 0 to 4 %, runs that learn 20 % and more
_STUCK, _STUCK_AT_FIRST = 0.1, 0.05
_AT_FIRST = 5  # epochs in which a small step on that way counts
_FEWEST = 3  # epochs: at first keys of random weights are in the queue, and the loss says little
# of the instance term; to any encoder views of one image are a little alike, so chance itself is too strict
_ACCURACY = 0.1
_TIMES_CHANCE = 3.0  # of the prototype term, for the same reason
_FEW_IMAGES = 20  # a cluster
_NARROWER = 0.8  # of what it was after the first epoch
_CONE = 0.9  # untrained encoders lie at 0.9 and above, runs that learn leave that within a few epochs
_SPREAD = 0.3  # of feature_std; 1 is spread evenly
_NEAR_RANK = 1.3  # times the limit of the E-step: near enough to speak
_RANK_LOST = 0.5  # of the peak of RankMe; prototypes alone lower it by a quarter
_RISE = 0.1  # of ln(R + 1), which the instance term may rise above its lowest
_GRADIENT = 10.0  # times its median: losses of these kinds change it two- to threefold in a run


def instance_stuck(record: RunRecord) -> Finding | None:
    """An encoder that tells no images apart."""
    loss, accuracy = record.finite(figures.LOSS_INSTANCE)[1:], at_end(record, figures.ACCURACY_INSTANCE)
    settings, queue = record.config.loss, record.config.loss.queue_size
    limit = _STUCK if len(loss) >= _AT_FIRST else _STUCK_AT_FIRST
    if (
        len(loss) + 1 < _FEWEST
        or accuracy is None
        or accuracy > _ACCURACY
        or covered(mean(late(loss)), queue + 1, settings.temperature) > limit
    ):
        return None
    lr = record.config.optimizer.lr
    meaning = (
        f"train/loss_instance is {mean(late(loss)):.3f} at the end; {math.log(queue + 1):.3f} = ln(R + 1) is"
        f" what an encoder has that cannot tell any two images apart (R = loss.queue_size = {queue}). It"
        f" picks the right key for {accuracy:.1%} of the images, by chance it would be {1 / (queue + 1):.2%}."
    )
    advice = ["more train.epochs, or a smaller train.batch_size for more steps an epoch"]
    if not _narrower(record):
        advice.insert(0, f"a larger optimizer.lr: {lr * 3:.3g} or {lr * 10:.3g} (now {lr:g})")
    if settings.temperature > 0.5:
        advice.insert(
            0, f"loss.temperature=0.2 (now {settings.temperature:g}: so high, all similarities look alike)"
        )
    if record.config.augment.min_crop < 0.1:
        advice.insert(
            0,
            f"augment.min_crop=0.2 (now {record.config.augment.min_crop:g}: two crops so small may show"
            " nothing in common)",
        )
    long = record.state != "running" or len(record.history) >= 10
    return Finding(
        "instance_stuck",
        "problem" if long else "warning",
        "The encoder does not learn to tell images apart",
        meaning,
        tuple(advice),
    )


def prototype_stuck(record: RunRecord) -> Finding | None:
    """Images that are not drawn to their prototypes."""
    loss, counts = record.finite(figures.LOSS_PROTOTYPE), clusterings(record)
    if len(loss) < _FEWEST or not counts:
        return None
    end, temperature = mean(late(loss)), record.config.loss.temperature
    columns = [columns_of(record, k) for _, k in counts]
    level = math.log(math.prod(columns)) / len(columns)
    accuracies = [(at_end(record, figures.ACCURACY_PROTOTYPE.at(m)), k) for m, k in counts]
    measured = [(accuracy, k) for accuracy, k in accuracies if accuracy is not None]
    # One number of columns that gives the same mean logarithm stands for all.
    learned = covered(end, math.exp(level), temperature) > _STUCK
    if learned or any(accuracy > _TIMES_CHANCE / k for accuracy, k in measured):
        return None
    right = ", ".join(
        f"{accuracy:.1%} of the images for K = {k} (chance {1 / k:.1%})" for accuracy, k in measured
    )
    meaning = (
        f"train/loss_prototype is {end:.3f} at the end; {level:.3f} is what guessing has (mean logarithm of"
        f" the {', '.join(f'{c:.0f}' for c in columns)} prototypes that each is compared with). Right"
        f" prototype: {right}."
    )
    warmup, weight = record.config.e_step.warmup_epochs, record.config.loss.prototype_weight
    advice = [
        "a longer warm-up, so that there are clusters worth learning:"
        f" e_step.warmup_epochs={max(2 * warmup, 5)}"
    ]
    if any(record.num_images < _FEW_IMAGES * k for _, k in counts):
        enough = max(2, record.num_images // _FEW_IMAGES)
        advice.append(f"fewer, larger clusters: e_step.num_clusters={enough}")
    advice.append(f"a larger loss.prototype_weight (now {weight:g})")
    title = "Images are not drawn to their prototypes"
    return Finding("prototype_stuck", "warning", title, meaning, tuple(advice))


def _narrower(record: RunRecord) -> bool:
    """Whether the features draw together in training, rather than never having spread."""
    std, rank = record.finite(figures.FEATURE_STD), record.finite(figures.RANKME)
    return any(len(points) > 2 and mean(late(points)) < _NARROWER * points[0][1] for points in (std, rank))


def collapse(record: RunRecord) -> Finding | None:
    """Features that have collapsed, or are near to it."""
    if not record.history:
        return None
    refused = [
        str(entry["epoch"] + 1)
        for entry in record.history
        if entry["metrics"].get(figures.FAILURES.name, 0) > 0 and gauges_collapsed(record, entry["metrics"])
    ]
    if refused or "have collapsed" in record.error:
        when = record.error.splitlines()[0] if record.error else ""
        if refused:
            when = f"The E-step refused them after epoch {listed(refused)}"
        meaning = f"{_spread(record)} {when}."
        title = "The features have collapsed"
        return Finding("collapse", "problem", title, meaning, _against_collapse(record))
    if instance_stuck(record) and not _narrower(record):
        # they never spread: that is what does not learn looks like, and a lower rate would not help
        return None
    if len(record.history) < _FEWEST or not _near_collapse(record):
        return None
    meaning = (
        f"{_spread(record)} The E-step refuses features above e_step.collapse_cone ="
        f" {record.config.e_step.collapse_cone:g} or below {collapse_limit(record):g} dimensions."
    )
    title = "The features lie close together"
    return Finding("collapse", "warning", title, meaning, _against_collapse(record))


def _near_collapse(record: RunRecord) -> bool:
    """Whether the newest gauges are near what the E-step refuses."""
    cone, rank = newest(record, figures.CONE), newest(record, figures.RANK)
    std, rankme, least = (
        newest(record, figures.FEATURE_STD),
        newest(record, figures.RANKME),
        collapse_limit(record),
    )
    if rank is not None:
        low_rank = rank < _NEAR_RANK * least
    else:
        low_rank = rankme is not None and rankme < least
    return low_rank or (cone or 0) > _CONE or (std is not None and std < _SPREAD)


def _spread(record: RunRecord) -> str:
    """How the features lie, in a sentence; "" where no gauge is known."""
    cone, rank, dim = newest(record, figures.CONE), newest(record, figures.RANK), record.config.encoder.dim
    std, rankme = newest(record, figures.FEATURE_STD), newest(record, figures.RANKME)
    parts = []
    if cone is not None:
        parts.append(f"the mean cosine of two images is {cone:.3f} (0 apart, 1 all alike)")
    if rank is not None:
        parts.append(f"the features use {rank:.1f} of {dim} dimensions")
    elif rankme is not None:
        parts.append(f"RankMe is {rankme:.1f} of {dim}")
    if std is not None:
        parts.append(f"their standard deviation is {std:.2f} (1 spread evenly, 0 all alike)")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def rank_lost(record: RunRecord) -> Finding | None:
    """Features that give up dimensions they had in use."""
    ranks = record.finite(figures.RANKME)
    if len(ranks) < _FEWEST:
        return None
    peak_epoch, peak = max(ranks, key=lambda point: point[1])
    epoch, last = ranks[-1]
    if last > _RANK_LOST * peak:
        return None
    meaning = (
        f"RankMe fell from {peak:.1f} after epoch {peak_epoch} to {last:.1f} after epoch {epoch}: the"
        " features give up dimensions that told images apart."
    )
    weight = record.config.loss.prototype_weight
    advice = _against_collapse(record)
    if prototype_epochs(record) and weight <= 2:
        less = f"less pull to the prototypes: loss.prototype_weight={weight / 2:g} (now {weight:g})"
        advice = (less, *advice)
    return Finding("rank_lost", "warning", "The features lose dimensions", meaning, advice)


def _against_collapse(record: RunRecord) -> tuple[str, ...]:
    config = record.config
    advice = [f"a lower optimizer.lr: {config.optimizer.lr / 3:.2g} (now {config.optimizer.lr:g})"]
    if config.encoder.momentum < 0.9:
        advice.insert(
            0,
            f"encoder.momentum=0.99 (now {config.encoder.momentum:g}: keys that change so fast are no steady"
            " negatives)",
        )
    if config.optimizer.weight_decay > 1e-2:
        advice.insert(0, f"optimizer.weight_decay=0.0001 (now {config.optimizer.weight_decay:g})")
    if config.loss.temperature < 0.05:
        advice.insert(
            0, f"loss.temperature=0.2 (now {config.loss.temperature:g}: only the hardest negative counts)"
        )
    if config.loss.prototype_weight > 2:
        advice.insert(0, f"loss.prototype_weight=1 (now {config.loss.prototype_weight:g})")
    advice.append(
        f"a longer warm-up: e_step.warmup_epochs={max(2 * config.e_step.warmup_epochs, 5)} (now"
        f" {config.e_step.warmup_epochs})"
    )
    advice.append(
        f"more negatives: loss.queue_size={2 * config.loss.queue_size} (now {config.loss.queue_size})"
    )
    advice.append("look at the images: are they different pictures, and are they read right?")
    return tuple(advice)


def diverged(record: RunRecord) -> Finding | None:
    """A loss that is no number any more, or training that gets worse."""
    config = record.config
    advice = (
        f"a tenth of the rate: optimizer.lr={config.optimizer.lr / 10:g} (now {config.optimizer.lr:g})",
        f"a slow beginning: optimizer.warmup_epochs={max(1.0, 2 * config.optimizer.warmup_epochs):g}",
        f"a higher loss.temperature (now {config.loss.temperature:g})",
    )
    broken = [
        entry["epoch"] + 1
        for entry in record.history
        if not math.isfinite(entry["metrics"].get(figures.LOSS.name, 0.0))
    ]
    if broken or re.search(r"the loss is |not finite|diverged", record.error):
        meaning = record.error.splitlines()[0] if record.error else ""
        title = "Training diverged: the loss is no number any more"
        meaning = meaning or f"train/loss is not finite in epoch {broken[0]}."
        return Finding("diverged", "problem", title, meaning, advice)
    # not from a queue of random keys
    loss, gradients = record.finite(figures.LOSS_INSTANCE)[1:], record.finite(figures.GRADIENT_NORM)[1:]
    sentences = []
    if len(loss) >= _FEWEST:
        epoch, lowest = min(loss, key=lambda point: point[1])
        end = mean(late(loss))
        if end - lowest > _RISE * math.log(config.loss.queue_size + 1):
            sentences.append(
                f"train/loss_instance rose from {lowest:.3f} in epoch {epoch} to {end:.3f} at the end."
            )
    if len(gradients) >= _FEWEST:
        usual = statistics.median(value for _, value in gradients)
        epoch, highest = max(late(gradients), key=lambda point: point[1])
        if highest > _GRADIENT * usual > 0:
            sentences.append(
                f"train/gradient_norm is {highest:.3g} in epoch {epoch}, {highest / usual:.0f} times what it"
                f" usually is ({usual:.3g})."
            )
    if not sentences:
        return None
    title = "Training gets worse instead of better"
    return Finding("diverged", "warning", title, " ".join(sentences), advice)


def failed(record: RunRecord) -> Finding | None:
    """A failure that no other rule explains."""
    if record.state != "failed" or re.search(r"the loss is |not finite|diverged|the E-step ", record.error):
        return None
    meaning = record.error.strip().splitlines()[0] if record.error.strip() else "What happened is not known."
    return Finding(
        "failed",
        "problem",
        "The run failed",
        meaning,
        (f"pcl-ray train --resume {record.name} goes on from the last checkpoint",),
    )

"""Rules about losses, features and accuracy: each looks at one thing and gives back what is to be said, or
None.
"""

from __future__ import annotations

import math
import re
import statistics

from pcl_ray.config.figures import (
    ACCURACY_INSTANCE,
    ACCURACY_PROTOTYPE,
    CONE,
    FAILURES,
    FEATURE_STD,
    GRADIENT_NORM,
    KNN_TOP1,
    LOSS,
    LOSS_INSTANCE,
    LOSS_PROTOTYPE,
    RANK,
    RANKME,
)
from pcl_ray.report.doctor.findings import (
    Finding,
    at_end,
    clusterings,
    collapse_limit,
    columns_of,
    covered,
    gauges_collapsed,
    late,
    listed,
    mean,
    newest,
    prototype_epochs,
)
from pcl_ray.report.run_record import RunRecord

# of a loss's way; untrained encoders have gone 0 to 4 %, runs that learn 20 % and more
_STUCK, _STUCK_AT_FIRST = 0.1, 0.05
_AT_FIRST = 5  # epochs in which a small step on that way counts
_FEWEST = 3  # epochs: at first keys of random weights are in the queue, and the loss says little
# of the instance term; views of one image resemble each other a little to any encoder, so chance itself is
# too strict
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
_NOISE = 2.0  # standard errors of a difference of two accuracies, which differ by chance alone
_FEW_HELD_OUT = 200  # images, where their number is not known
# instance accuracy of a task that has become too easy; a kNN accuracy that leaves nothing to wish for
_TOLD_APART, _GOOD_KNN = 0.9, 0.9


def instance_stuck(record: RunRecord) -> Finding | None:
    loss, accuracy = record.finite(LOSS_INSTANCE)[1:], at_end(record, ACCURACY_INSTANCE)
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
    larger = (
        [] if _narrower(record) else [f"a larger optimizer.lr: {lr * 3:.3g} or {lr * 10:.3g} (now {lr:g})"]
    )
    advice = [*larger, "more train.epochs, or a smaller train.batch_size for more steps an epoch"]
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
    loss, known = record.finite(LOSS_PROTOTYPE), clusterings(record)
    if len(loss) < _FEWEST or not known:
        return None
    end, temperature = mean(late(loss)), record.config.loss.temperature
    columns = [columns_of(record, k) for _, k in known]
    level = math.log(math.prod(columns)) / len(columns)
    accuracies = [
        (accuracy, k) for m, k in known if (accuracy := at_end(record, ACCURACY_PROTOTYPE.at(m))) is not None
    ]
    # One number of columns that gives the same mean logarithm stands for all.
    if covered(end, math.exp(level), temperature) > _STUCK or any(
        accuracy > _TIMES_CHANCE / k for accuracy, k in accuracies
    ):
        return None
    right = ", ".join(
        f"{accuracy:.1%} of the images for K = {k} (chance {1 / k:.1%})" for accuracy, k in accuracies
    )
    meaning = (
        f"train/loss_prototype is {end:.3f} at the end; {level:.3f} is what guessing has (mean logarithm of"
        f" the {', '.join(f'{c:.0f}' for c in columns)} prototypes that each is compared with). Right"
        f" prototype: {right}."
    )
    small = any(record.num_images < _FEW_IMAGES * k for _, k in known)
    enough = max(2, record.num_images // _FEW_IMAGES)
    fewer = (f"fewer, larger clusters: e_step.num_clusters={enough}",) if small else ()
    longer = (
        "a longer warm-up, so that there are clusters worth learning:"
        f" e_step.warmup_epochs={max(2 * record.config.e_step.warmup_epochs, 5)}"
    )
    advice = (longer, *fewer, f"a larger loss.prototype_weight (now {record.config.loss.prototype_weight:g})")
    return Finding("prototype_stuck", "warning", "Images are not drawn to their prototypes", meaning, advice)


def _narrower(record: RunRecord) -> bool:
    """Whether the features draw together in training, rather than never having spread."""
    std, rank = record.finite(FEATURE_STD), record.finite(RANKME)
    return any(len(points) > 2 and mean(late(points)) < _NARROWER * points[0][1] for points in (std, rank))


def collapse(record: RunRecord) -> Finding | None:
    if not record.history:
        return None
    limits, dim = record.config.e_step, record.config.encoder.dim
    refused = [
        e["epoch"] + 1
        for e in record.history
        if e["metrics"].get(FAILURES.name, 0) > 0 and gauges_collapsed(record, e["metrics"])
    ]
    cone, rank, std, rankme = (newest(record, name) for name in (CONE, RANK, FEATURE_STD, RANKME))
    told = [f"the mean cosine of two images is {cone:.3f} (0 apart, 1 all alike)"] if cone is not None else []
    told += [f"the features use {rank:.1f} of {dim} dimensions"] if rank is not None else []
    told += [f"RankMe is {rankme:.1f} of {dim}"] if rank is None and rankme is not None else []
    told += (
        [f"their standard deviation is {std:.2f} (1 spread evenly, 0 all alike)"] if std is not None else []
    )
    if refused or "have collapsed" in record.error:
        when = (
            f" The E-step refused them after epoch {listed([str(epoch) for epoch in refused])}."
            if refused
            else f" {record.error.splitlines()[0]}."
        )
        return Finding(
            "collapse",
            "problem",
            "The features have collapsed",
            _sentence(told) + when,
            _against_collapse(record),
        )
    least = collapse_limit(record)
    low_rank = (
        rank is not None
        and rank < _NEAR_RANK * least
        or (rank is None and rankme is not None and rankme < least)
    )
    if instance_stuck(record) and not _narrower(record):
        # they never spread: that is what does not learn looks like, and a lower rate would not help
        return None
    if len(record.history) >= _FEWEST and (
        low_rank or (cone or 0) > _CONE or (std is not None and std < _SPREAD)
    ):
        limit = (
            f" The E-step refuses features above e_step.collapse_cone = {limits.collapse_cone:g} or below"
            f" {least:g} dimensions."
        )
        return Finding(
            "collapse",
            "warning",
            "The features lie close together",
            _sentence(told) + limit,
            _against_collapse(record),
        )
    return None


def rank_lost(record: RunRecord) -> Finding | None:
    """Dimensions that were in use and are not any more."""
    ranks = record.finite(RANKME)
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
    first = (
        (f"less pull to the prototypes: loss.prototype_weight={weight / 2:g} (now {weight:g})",)
        if prototype_epochs(record) and weight <= 2
        else ()
    )
    return Finding(
        "rank_lost", "warning", "The features lose dimensions", meaning, first + _against_collapse(record)
    )


def _sentence(told: list[str]) -> str:
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


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
    config = record.config
    advice = (
        f"a tenth of the rate: optimizer.lr={config.optimizer.lr / 10:g} (now {config.optimizer.lr:g})",
        f"a slow beginning: optimizer.warmup_epochs={max(1.0, 2 * config.optimizer.warmup_epochs):g}",
        f"a higher loss.temperature (now {config.loss.temperature:g})",
    )
    broken = [e["epoch"] + 1 for e in record.history if not math.isfinite(e["metrics"].get(LOSS.name, 0.0))]
    if broken or re.search(r"the loss is |not finite|diverged", record.error):
        meaning = (
            record.error.splitlines()[0]
            if record.error
            else f"train/loss is not finite in epoch {broken[0]}."
        )
        return Finding(
            "diverged", "problem", "Training diverged: the loss is no number any more", meaning, advice
        )
    # not from a queue of random keys
    loss, gradients = record.finite(LOSS_INSTANCE)[1:], record.finite(GRADIENT_NORM)[1:]
    said = []
    if len(loss) >= _FEWEST:
        epoch, lowest = min(loss, key=lambda point: point[1])
        if mean(late(loss)) - lowest > _RISE * math.log(config.loss.queue_size + 1):
            said.append(
                f"train/loss_instance rose from {lowest:.3f} in epoch {epoch} to {mean(late(loss)):.3f} at"
                " the end."
            )
    if len(gradients) >= _FEWEST:
        usual, (epoch, highest) = (
            statistics.median(value for _, value in gradients),
            max(late(gradients), key=lambda point: point[1]),
        )
        if highest > _GRADIENT * usual > 0:
            said.append(
                f"train/gradient_norm is {highest:.3g} in epoch {epoch}, {highest / usual:.0f} times what it"
                f" usually is ({usual:.3g})."
            )
    return (
        Finding("diverged", "warning", "Training gets worse instead of better", " ".join(said), advice)
        if said
        else None
    )


def failed(record: RunRecord) -> Finding | None:
    """An end that no other rule explains."""
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


def knn_falling(record: RunRecord) -> Finding | None:
    knn = record.finite(KNN_TOP1)
    if len(knn) < 4:
        return None
    best_epoch, best = max(knn, key=lambda point: point[1])
    last, noise = mean(knn[-min(3, len(knn) // 2) :]), knn_noise(record, best)
    if best - last > noise:
        return _knn_fell(record, best_epoch, best, last)
    accuracy = at_end(record, ACCURACY_INSTANCE) or 0.0
    if accuracy < _TOLD_APART or last > _GOOD_KNN or last - knn[0][1] > noise:
        return None
    meaning = (
        f"Images are told apart for {accuracy:.0%} of the batch, but eval/knn_top1 is {last:.3f} at the end,"
        f" hardly other than the {knn[0][1]:.3f} after epoch {knn[0][0]}: the encoder knows images by"
        " something that has nothing to do with their classes, a border, a mark or a background of each."
    )
    return Finding(
        "knn_falling", "warning", "The encoder has found a shortcut", meaning, _other_views(record)
    )


def _knn_fell(record: RunRecord, best_epoch: int, best: float, last: float) -> Finding:
    # not from a queue of random keys; and the sum has one term more once there are prototypes
    loss = record.finite(LOSS_INSTANCE)[1:]
    then = next((value for epoch, value in loss if epoch >= best_epoch), None)
    meaning = f"eval/knn_top1 was best after epoch {best_epoch} ({best:.3f}) and is {last:.3f} at the end"
    if then is not None and mean(late(loss)) < then:
        meaning += (
            f", while train/loss_instance fell from {then:.3f} to {mean(late(loss)):.3f}: the encoder tells"
            " images apart by something that is not what classes differ by, or the views hide what they"
            " differ by."
        )
        advice = (f"stop at the best epoch: train.epochs={best_epoch}",) if best_epoch > 2 else ()
        return Finding(
            "knn_falling",
            "warning",
            "kNN accuracy falls while the loss goes on falling",
            meaning,
            advice + _other_views(record),
        )
    meaning += ", and train/loss_instance does not fall any more: training spoils the features."
    lr = record.config.optimizer.lr
    advice = (f"a lower optimizer.lr: {lr / 3:.2g} (now {lr:g})", "a longer optimizer.warmup_epochs")
    return Finding("knn_falling", "warning", "kNN accuracy falls", meaning, advice)


def knn_noise(record: RunRecord, accuracy: float) -> float:
    """By how much two kNN accuracies must differ before it means anything."""
    images = record.num_holdout or _FEW_HELD_OUT
    return _NOISE * math.sqrt(2 * max(accuracy * (1 - accuracy), 1e-4) / images)


def _other_views(record: RunRecord) -> tuple[str, ...]:
    augment, decay = record.config.augment, record.config.optimizer.weight_decay
    weak = [f"augment.min_crop=0.3 (now {augment.min_crop:g})"] * (augment.min_crop > 0.3) + [
        f"augment.jitter=0.4 (now {augment.jitter:g})"
    ] * (augment.jitter < 0.4)
    advice = [f"stronger views, which hide what gives images away: {', '.join(weak)}"] if weak else []
    hides = [f"augment.flip=0 (now {augment.flip:g})"] * (augment.flip > 0) + [
        f"augment.jitter={augment.jitter / 2:g} (now {augment.jitter:g})"
    ] * (augment.jitter >= 0.4)
    advice += (
        [f"if classes differ by side, colour or brightness, views that keep these: {', '.join(hides)}"]
        if hides
        else []
    )
    return (*advice, f"more weight decay: optimizer.weight_decay={max(5 * decay, 1e-4):g} (now {decay:g})")

"""Rules about how well the features tell classes apart, where there are labels."""

from __future__ import annotations

from pcl_ray.config import figures
from pcl_ray.config.figures import Figure
from pcl_ray.report.doctor.findings import (
    LINES,
    Finding,
    accuracy_figure,
    at_end,
    knn_noise,
    late,
    mean,
    newest,
    prototype_epochs,
    reference_lines,
)
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import listed

# instance accuracy of a task that has become too easy; a kNN accuracy that leaves nothing to wish for
_TOLD_APART, _GOOD_KNN = 0.9, 0.9
_FEWEST_EPOCHS, _FEWEST_EVALUATIONS = 6, 4
_RISE = 0.01  # of the accuracy from one third of the evaluations to the next
_FALL = 0.02  # of the loss, relative
_FEW_STEPS = 20_000  # published runs on small images take 40,000 to 200,000


def no_better_than_pixels(record: RunRecord) -> Finding | None:
    """A trained encoder whose accuracy raw pixels, or an encoder that was never trained, reach as well.

    Like is compared with like: bank, neighbours and held-out images are the same on both sides.
    """
    figure = figures.SAMPLED_KNN_TOP1 if record.finite(figures.SAMPLED_KNN_TOP1) else figures.KNN_TOP1
    trained, lines = newest(record, figure), reference_lines(record)
    if trained is None or not lines:
        return None
    noise = knn_noise(record, trained, most=record.config.evaluation.REFERENCE_QUERIES)
    reached = [line for line, value in lines.items() if value >= trained]
    near = [line for line, value in lines.items() if trained - noise <= value < trained]
    if not reached and not near:
        return None
    shown = [f"{LINES[line]} {value:.3f} ({line.name})" for line, value in lines.items()]
    if (largest := newest(record, figures.LARGEST_CLASS)) is not None:
        shown.append(f"always naming the largest class {largest:.3f}")
    values = listed(shown)
    meaning = (
        f"By {figure.name} the trained backbone reaches {trained:.3f}{_plus_minus(record)}; on the same"
        f" images reach {values}."
    )
    if not reached:
        names = listed([LINES[line] for line in near])
        meaning += f" A difference below {noise:.3f} may be chance with so few held-out images."
        title = f"The encoder is hardly better than {names}"
        learned_little = figures.UNTRAINED_KNN_TOP1 in near and record.state != "running"
        severity = "warning" if learned_little else "note"
        return Finding("no_better_than_pixels", severity, title, meaning, _against_pixels(record))
    names = " and ".join(LINES[line] for line in reached)
    meaning += (
        " So far training has taught it nothing about these classes that"
        f" {names} {'do' if figures.PIXELS_KNN_TOP1 in reached else 'does'} not show."
    )
    title = f"The trained encoder is no better than {names}"
    severity = "note" if record.state == "running" else "warning"
    return Finding("no_better_than_pixels", severity, title, meaning, _against_pixels(record))


def _plus_minus(record: RunRecord) -> str:
    error = record.knn_error()
    return "" if error is None else f" ± {error:.3f}"


def still_improving(record: RunRecord) -> Finding | None:
    """A run that ended while its accuracy was rising; one without labels, while its loss was falling."""
    if record.state not in ("finished", "stopped") or len(record.history) < _FEWEST_EPOCHS:
        return None
    knn, loss = record.finite(accuracy_figure(record)), record.finite(figures.LOSS_INSTANCE)
    if len(knn) >= _FEWEST_EVALUATIONS:
        third = max(2, len(knn) // 3)
        before, last = mean(knn[-2 * third : -third] or knn[:1]), mean(knn[-third:])
        if last - before < _RISE or knn[-1][1] < max(value for _, value in knn) - _RISE / 2:
            return None
        meaning = (
            f"{accuracy_figure(record).name} was {before:.3f} on average and then {last:.3f} in the last"
            f" {third} of {len(knn)} evaluations: it has not levelled off."
        )
    else:
        if knn or len(loss) < _FEWEST_EPOCHS:
            return None
        third = len(loss) // 3
        before, last = mean(loss[-2 * third : -third]), mean(loss[-third:])
        if before - last < _FALL * before:
            return None
        meaning = (
            f"{figures.LOSS_INSTANCE.name} was {before:.3f} on average and then {last:.3f} in the last"
            f" {third} epochs: it has not levelled off."
        )
    more = 2 * max(record.epochs, record.config.train.epochs)
    advice = (f"go on with it: pcl-ray resume {record.name} train.epochs={more}",)
    return Finding("still_improving", "note", "The run was still improving when it ended", meaning, advice)


def _against_pixels(record: RunRecord) -> tuple[str, ...]:
    config, advice = record.config, []
    steps = record.epochs * record.steps_per_epoch
    if 0 < steps < _FEW_STEPS:
        more = 4 * config.train.epochs
        so_far = f"so far {steps:,} steps in {record.epochs} epochs"
        way = f"pcl-ray resume {record.name} train.epochs={more}"
        advice.append(
            f"more steps: {way} ({so_far})" if record.state != "running" else f"more steps ({so_far})"
        )
    weight = config.loss.prototype_weight
    if prototype_epochs(record) and weight > 0.3:
        advice.append(f"less pull to the prototypes: loss.prototype_weight=0.1 (now {weight:g})")
    if config.encoder.head == "mlp" and config.encoder.head_width is None:
        advice.append(
            "a wide head with batch norm, which keeps the task's own wishes from the backbone:"
            " encoder.head_width=1024 encoder.head_batch_norm=true"
        )
    return (*advice, *_other_views(record))


def knn_falling(record: RunRecord) -> Finding | None:
    """Accuracy that falls, or does not rise although images are told apart."""
    figure = accuracy_figure(record)
    knn = record.finite(figure)
    if len(knn) < 4:
        return None
    best_epoch, best = max(knn, key=lambda point: point[1])
    last, noise = mean(knn[-min(3, len(knn) // 2) :]), knn_noise(record, best)
    if best - last > noise:
        return _knn_fell(record, figure, best_epoch, best, last)
    accuracy = at_end(record, figures.ACCURACY_INSTANCE) or 0.0
    if accuracy < _TOLD_APART or last > _GOOD_KNN or last - knn[0][1] > noise:
        return None
    meaning = (
        f"Images are told apart for {accuracy:.0%} of the batch, but {figure.name} is {last:.3f} at the end,"
        f" hardly other than the {knn[0][1]:.3f} after epoch {knn[0][0]}: the encoder knows images by"
        " something that has nothing to do with their classes, a border, a mark or a background of each."
    )
    return Finding(
        "knn_falling", "warning", "The encoder has found a shortcut", meaning, _other_views(record)
    )


def _knn_fell(record: RunRecord, figure: Figure, best_epoch: int, best: float, last: float) -> Finding:
    # not from a queue of random keys; and the sum has one term more once there are prototypes
    loss = record.finite(figures.LOSS_INSTANCE)[1:]
    then = next((value for epoch, value in loss if epoch >= best_epoch), None)
    meaning = f"{figure.name} was best after epoch {best_epoch} ({best:.3f}) and is {last:.3f} at the end"
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


def _other_views(record: RunRecord) -> tuple[str, ...]:
    augment, decay = record.config.augment, record.config.optimizer.weight_decay
    stronger, gentler, advice = [], [], []
    if augment.min_crop > 0.3:
        stronger.append(f"augment.min_crop=0.3 (now {augment.min_crop:g})")
    if augment.jitter < 0.4:
        stronger.append(f"augment.jitter=0.4 (now {augment.jitter:g})")
    if augment.flip > 0:
        gentler.append(f"augment.flip=0 (now {augment.flip:g})")
    if augment.rotate > 0:
        gentler.append(f"augment.rotate=0 (now {augment.rotate:g})")
    if augment.jitter >= 0.4:
        gentler.append(f"augment.jitter={augment.jitter / 2:g} (now {augment.jitter:g})")
    if stronger:
        advice.append(f"stronger views, which hide what gives images away: {', '.join(stronger)}")
    if gentler:
        knobs = ", ".join(gentler)
        advice.append(
            f"if classes differ by side, direction, colour or brightness, views that keep these: {knobs}"
        )
    return (*advice, f"more weight decay: optimizer.weight_decay={max(5 * decay, 1e-4):g} (now {decay:g})")

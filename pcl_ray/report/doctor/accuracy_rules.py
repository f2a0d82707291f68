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
    values = listed([f"{LINES[line]} {value:.3f} ({line.name})" for line, value in lines.items()])
    meaning = (
        f"By {figure.name} the trained backbone reaches {trained:.3f}; on the same images reach {values}."
    )
    if not reached:
        names = listed([LINES[line] for line in near])
        meaning += f" A difference below {noise:.3f} may be chance with so few held-out images."
        title = f"The encoder is hardly better than {names}"
        return Finding("no_better_than_pixels", "note", title, meaning, _against_pixels(record))
    names = " and ".join(LINES[line] for line in reached)
    meaning += (
        " So far training has taught it nothing about these classes that"
        f" {names} {'do' if figures.PIXELS_KNN_TOP1 in reached else 'does'} not show."
    )
    title = f"The trained encoder is no better than {names}"
    severity = "note" if record.state == "running" else "warning"
    return Finding("no_better_than_pixels", severity, title, meaning, _against_pixels(record))


def _against_pixels(record: RunRecord) -> tuple[str, ...]:
    config, advice = record.config, []
    steps = record.epochs * record.steps_per_epoch
    if 0 < steps < _FEW_STEPS:
        more = 4 * config.train.epochs
        advice.append(f"more steps: train.epochs={more} (so far {steps:,} steps in {record.epochs} epochs)")
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

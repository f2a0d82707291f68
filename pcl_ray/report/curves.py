"""The curves of a report: those of one run, and the same figures of several runs in one chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pcl_ray.config.figures import (
    ACCURACY_INSTANCE,
    ACCURACY_PROTOTYPE,
    AMI,
    COLLISIONS,
    DATA_SECONDS,
    DRIFT,
    E_STEP_SECONDS,
    EMPTY,
    FEATURE_STD,
    GRADIENT_NORM,
    HEAD_KNN_TOP1,
    IMAGES_PER_SECOND,
    KNN_TOP1,
    LARGEST_SHARE,
    LOSS,
    LOSS_INSTANCE,
    LOSS_PROTOTYPE,
    M_STEP_SECONDS,
    NMI_PREVIOUS,
    PHI_MAX,
    PHI_MEAN,
    PHI_MIN,
    PHI_P10,
    PHI_P50,
    PHI_P90,
    PIXELS_KNN_TOP1,
    RANKME,
    UNTRAINED_KNN_TOP1,
    Figure,
)
from pcl_ray.report.drawing.html import Html, tag
from pcl_ray.report.drawing.svg import Chart, Curve, Points, line_chart
from pcl_ray.report.run_record import RunRecord

_LOSS = (
    "Mean over each epoch's steps. It jumps where the prototype term comes in after the warm-up; only the"
    " loss within one phase can be compared."
)
_HEADS = "How often an image's own other view, or its own prototype, wins against all negatives."
_KNN = (
    f"{KNN_TOP1.sentence} Beside it the same by the head's output, and what raw pixels and the untrained"
    " encoder reach. Labels are used for this figure alone, never for training."
)
_KNN_OF_RUNS = f"{KNN_TOP1.sentence} Labels are used for this figure alone, never for training."
_ACCURACIES = {
    "backbone": KNN_TOP1,
    "head": HEAD_KNN_TOP1,
    "raw pixels": PIXELS_KNN_TOP1,
    "untrained": UNTRAINED_KNN_TOP1,
}
_AGREEMENT = "Clusters against labels (AMI)"
_PHI = (
    "Median of φ, the area from the 10th to the 90th percentile. Its mean is τ; a widening area: some"
    " clusters are much tighter than others."
)
_PHI_ENDS = (
    "Mean of φ, the area from the lowest to the highest. Its mean is τ; a widening area: some clusters are"
    " much tighter than others."
)
_RATE = "Images trained a second, without E-step and evaluation."
_SECONDS = "Where the time of an epoch goes. Waiting for data is a part of the M-step."


def charts(record: RunRecord) -> Html:
    """Every chart that has data, in three groups; a sentence where there are none."""
    groups = {"Learning": _learning(record), "Clusters": _clusters(record), "Steps and speed": _speed(record)}
    warmup = record.config.e_step.warmup_epochs
    parts = []
    for name, group in groups.items():
        drawn = [line_chart(chart, warmup) for chart in group if chart.curves]
        if drawn:
            parts.append(tag("div", tag("h3", name), tag("div", drawn, class_="charts"), class_="group"))
    if not parts:
        return tag("p", "No epoch has been recorded yet, so there is nothing to draw.", class_="none")
    return tag("div", parts)


def clustering_names(record: RunRecord) -> list[str]:
    """A name for each clustering, as "K = 29"; as configured where run and snapshot lack the counts."""
    counts: Sequence[float] = record.num_clusters or record.configured_clusters
    snapshot = record.snapshot
    fits = snapshot is not None and len(counts) in (0, len(snapshot.clusterings))
    if not record.num_clusters and snapshot is not None and fits:
        counts = [clustering.num_clusters for clustering in snapshot.clusterings]
    names = [f"K = {count:,}" if count >= 2 else f"K = {100 * count:g} % of N" for count in counts]
    return [
        f"{name} ({names[:m].count(name) + 1})" if names.count(name) > 1 else name
        for m, name in enumerate(names)
    ]


def _learning(record: RunRecord) -> list[Chart]:
    names = clustering_names(record)
    losses = {"all": LOSS, LOSS_INSTANCE.label: LOSS_INSTANCE, LOSS_PROTOTYPE.label: LOSS_PROTOTYPE}
    heads = {f"prototype, {name}": ACCURACY_PROTOTYPE.at(m) for m, name in enumerate(names)}
    return [
        _of_record(record, "loss", "Loss", _LOSS, losses),
        _of_record(record, "heads", "Accuracy of the heads", _HEADS, {"instance": ACCURACY_INSTANCE} | heads),
        _of_record(record, "knn", KNN_TOP1.label, _KNN, _ACCURACIES),
        _of_record(record, "ami", _AGREEMENT, AMI.sentence, _each(names, AMI)),
        _single(record, "rankme", RANKME, RANKME.label),
        _single(record, "std", FEATURE_STD, "feature std × √C"),
    ]


def _clusters(record: RunRecord) -> list[Chart]:
    names = clustering_names(record)
    health = {"largest": LARGEST_SHARE, "empty": EMPTY, "nmi": NMI_PREVIOUS, "drift": DRIFT}
    return [chart for m, name in enumerate(names) if (chart := _phi(record, m, name))] + [
        _of_record(record, key, figure.label, figure.sentence, _each(names, figure), key != "nmi")
        for key, figure in (health | {"collisions": COLLISIONS}).items()
    ]


def _speed(record: RunRecord) -> list[Chart]:
    rate = {"images a second": IMAGES_PER_SECOND}
    seconds = {
        M_STEP_SECONDS.label: M_STEP_SECONDS,
        "E-step": E_STEP_SECONDS,
        DATA_SECONDS.label: DATA_SECONDS,
    }
    return [
        _single(record, "gradient", GRADIENT_NORM, "gradient norm"),
        _of_record(record, "rate", IMAGES_PER_SECOND.label, _RATE, rate, True),
        _of_record(record, "seconds", "Seconds an epoch", _SECONDS, seconds, True),
    ]


def _each(names: Sequence[str], figure: Figure) -> dict[str, Figure]:
    """A curve of the figure for each clustering."""
    return {name: figure.at(m) for m, name in enumerate(names)}


def _single(record: RunRecord, key: str, figure: Figure, name: str) -> Chart:
    """The chart of one figure, from 0; `name` is what its curve is called."""
    return _of_record(record, key, figure.label, figure.sentence, {name: figure}, True)


def _of_record(
    record: RunRecord,
    key: str,
    title: str,
    caption: str,
    curves: Mapping[str, Figure],
    from_zero: bool = False,
) -> Chart:
    """The chart of these figures of a run, by the names of their curves."""
    points = [(name, record.finite(figure)) for name, figure in curves.items()]
    return _chart(key, title, caption, points, from_zero)


def _chart(
    key: str, title: str, caption: str, points: Sequence[tuple[str, Points]], from_zero: bool
) -> Chart:
    """The chart of named curves, without those that have no points."""
    curves = [Curve(name, drawn, number) for number, (name, drawn) in enumerate(points) if drawn]
    return Chart(f"chart-{key}", title, caption, curves, from_zero)


def _phi(record: RunRecord, m: int, name: str) -> Chart | None:
    """A clustering's concentrations, or None; runs of earlier versions have ends and mean, no percentiles."""
    bands = {_PHI: (PHI_P10, PHI_P50, PHI_P90), _PHI_ENDS: (PHI_MIN, PHI_MEAN, PHI_MAX)}
    for caption, band in bands.items():
        low, middle, high = (dict(record.finite(figure.at(m))) for figure in band)
        epochs = sorted(low.keys() & middle.keys() & high.keys())
        if epochs:
            points = [(epoch, middle[epoch]) for epoch in epochs]
            area = [(epoch, low[epoch], high[epoch]) for epoch in epochs]
            curve = Curve(f"φ, {name}", points, m, area)
            return Chart(f"chart-phi-{m}", f"Concentration φ, {name}", caption, [curve])
    return None


def overlaid(records: Sequence[RunRecord], letters: Sequence[str]) -> Html:
    """A chart for each figure with a curve for each run; figures that only one run has are left out."""
    drawn = [line_chart(chart) for chart in _of_several(records, letters) if len(chart.curves) > 1]
    if not drawn:
        return tag("p", "No figure was recorded by more than one of these runs.", class_="none")
    return tag("div", drawn, class_="charts")


def _of_several(records: Sequence[RunRecord], letters: Sequence[str]) -> list[Chart]:
    def chart(key: str, title: str, caption: str, figure: Figure, from_zero: bool = False) -> Chart:
        points = [(letter, record.finite(figure)) for letter, record in zip(letters, records, strict=True)]
        return _chart(key, title, caption, points, from_zero)

    most = max(len(record.configured_clusters) for record in records)
    endings = [f", clustering {m + 1}" if most > 1 else "" for m in range(most)]
    scales = "Runs with other τ, K, queue or negatives have losses on other scales."
    std, seconds = FEATURE_STD, E_STEP_SECONDS
    return [
        chart("knn", KNN_TOP1.label, _KNN_OF_RUNS, KNN_TOP1),
        chart("knn-head", HEAD_KNN_TOP1.label, HEAD_KNN_TOP1.sentence, HEAD_KNN_TOP1),
        *(
            chart(f"ami-{m}", _AGREEMENT + ending, AMI.sentence, AMI.at(m))
            for m, ending in enumerate(endings)
        ),
        chart("rankme", RANKME.label, RANKME.sentence, RANKME, True),
        chart("loss", LOSS.label, scales, LOSS),
        chart("heads", ACCURACY_INSTANCE.label, ACCURACY_INSTANCE.sentence, ACCURACY_INSTANCE),
        chart("nmi", NMI_PREVIOUS.label + endings[0], NMI_PREVIOUS.sentence, NMI_PREVIOUS.at(0)),
        chart("std", std.label, std.sentence, std, True),
        chart("rate", IMAGES_PER_SECOND.label, _RATE, IMAGES_PER_SECOND, True),
        chart("seconds", seconds.label, "Features and clustering, each epoch.", seconds, True),
    ]

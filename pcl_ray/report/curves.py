"""Which curves a report has: those of one run, and the same figures of several runs in one chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pcl_ray.report.drawing.html import Html, tag
from pcl_ray.report.drawing.svg import Chart, Line, line_chart
from pcl_ray.report.run_record import RunRecord

Points = Sequence[tuple[float, float]]

_LOSS = (
    "Mean over each epoch's steps. It jumps where the prototype term comes in after the warm-up; only the"
    " loss within one phase can be compared."
)
_HEADS = "How often an image's own other view, or its own prototype, wins against all negatives."
_KNN = (
    "Share of held-out images whose nearest neighbours give the right class. Labels are used for this figure"
    " alone, never for training."
)
_AMI = "How well clusters agree with the labels, adjusted for chance: 0 is chance, 1 is perfect."
_PHI = (
    "Median of φ, the area from the 10th to the 90th percentile. Its mean is τ; a widening area: some"
    " clusters are much tighter than others."
)
_PHI_ENDS = (
    "Mean of φ, the area from the lowest to the highest. Its mean is τ; a widening area: some clusters are"
    " much tighter than others."
)
_SHARE = "Images in the largest cluster. Rising towards 1: everything falls into one."
_EMPTY = "Prototypes without any image."
_NMI = (
    "How alike this clustering and the one of the epoch before are: 1 is the same. Prototypes only teach"
    " where it is high."
)
_DRIFT = "How far prototypes moved since the epoch before: 1 − cosine, mean."
_COLLISIONS = "Images of a batch that share their prototype with another one of it."
_RANKME = "How many directions the features make use of. A fall towards 1 is a collapse."
_STD = "Spread of the features over the sphere: 1 is even, 0 is collapsed."
_GRADIENT = "Length of the gradient over all weights."
_RATE = "Images trained a second, without E-step and evaluation."
_SECONDS = "Where the time of an epoch goes. Waiting for data is a part of the M-step."


def charts(record: RunRecord) -> Html:
    """All that have data, in three groups; a sentence where there are none."""
    groups = {"Learning": _learning(record), "Clusters": _clusters(record), "Steps and speed": _speed(record)}
    warmup = record.config.e_step.warmup_epochs
    found = [
        tag(
            "div",
            tag("h3", name),
            tag("div", [line_chart(chart, warmup) for chart in drawn], class_="charts"),
            class_="group",
        )
        for name, group in groups.items()
        if (drawn := [chart for chart in group if chart.lines])
    ]
    return (
        tag("div", found)
        if found
        else tag("p", "No epoch has been recorded yet, so there is nothing to draw.", class_="none")
    )


def clustering_names(record: RunRecord) -> list[str]:
    """ "K = 29" for each clustering that the history or the exhibit knows of; as configured where counts are
    not known.
    """
    counts: Sequence[float] = record.num_clusters or record.config.e_step.num_clusters
    if (
        not record.num_clusters
        and record.exhibit is not None
        and len(record.exhibit.clusterings) == len(counts)
    ):
        counts = [shown.num_clusters for shown in record.exhibit.clusterings]
    names = [f"K = {count:,}" if count >= 2 else f"K = {100 * count:g} % of N" for count in counts]
    return [
        f"{name} ({names[:m].count(name) + 1})" if names.count(name) > 1 else name
        for m, name in enumerate(names)
    ]


def _learning(record: RunRecord) -> list[Chart]:
    names = clustering_names(record)
    losses = [
        ("all", "train/loss"),
        ("instance term", "train/loss_instance"),
        ("prototype term", "train/loss_prototype"),
    ]
    heads = [
        ("instance", "train/accuracy_instance"),
        *((f"prototype, {name}", f"train/accuracy_prototype_{m}") for m, name in enumerate(names)),
    ]
    return [
        _chart(record, "loss", "Loss", _LOSS, losses),
        _chart(record, "heads", "Accuracy of the heads", _HEADS, heads),
        _chart(record, "knn", "kNN top-1", _KNN, [("kNN top-1", "eval/knn_top1")]),
        _chart(record, "ami", "Clusters against labels (AMI)", _AMI, _each(names, "ami")),
        _chart(record, "rankme", "RankMe", _RANKME, [("RankMe", "eval/rankme")], from_zero=True),
        _chart(
            record,
            "std",
            "Spread of the features",
            _STD,
            [("feature std × √C", "train/feature_std")],
            from_zero=True,
        ),
    ]


def _clusters(record: RunRecord) -> list[Chart]:
    names = clustering_names(record)
    phi = [chart for m, name in enumerate(names) if (chart := _phi(record, m, name))]
    health = (
        ("largest", "Largest cluster", _SHARE, "largest_share"),
        ("empty", "Empty clusters", _EMPTY, "empty"),
        ("nmi", "Stability of the assignments (NMI)", _NMI, "nmi_previous"),
        ("drift", "Drift of the prototypes", _DRIFT, "drift"),
        ("collisions", "Shared prototypes in a batch", _COLLISIONS, "collisions"),
    )
    return phi + [
        _chart(record, short, title, says, _each(names, name), from_zero=short != "nmi")
        for short, title, says, name in health
    ]


def _speed(record: RunRecord) -> list[Chart]:
    seconds = [
        ("M-step", "perf/m_step_seconds"),
        ("E-step", "perf/e_step_seconds"),
        ("waiting for data", "perf/data_seconds"),
    ]
    return [
        _chart(
            record,
            "gradient",
            "Gradient norm",
            _GRADIENT,
            [("gradient norm", "train/gradient_norm")],
            from_zero=True,
        ),
        _chart(
            record,
            "rate",
            "Images a second",
            _RATE,
            [("images a second", "perf/images_per_second")],
            from_zero=True,
        ),
        _chart(record, "seconds", "Seconds an epoch", _SECONDS, seconds, from_zero=True),
    ]


def _each(names: Sequence[str], figure: str) -> list[tuple[str, str]]:
    return [(name, f"cluster/{m}/{figure}") for m, name in enumerate(names)]


def _chart(
    record: RunRecord,
    short: str,
    title: str,
    caption: str,
    figures: Sequence[tuple[str, str]],
    from_zero: bool = False,
) -> Chart:
    found = [(name, record.finite(figure)) for name, figure in figures]
    lines = [Line(name, points, place) for place, (name, points) in enumerate(found) if points]
    return Chart(f"chart-{short}", title, caption, lines, from_zero)


def _phi(record: RunRecord, m: int, name: str) -> Chart | None:
    """Runs of before have no percentiles, but ends and mean."""
    for caption, figures in ((_PHI, ("p10", "p50", "p90")), (_PHI_ENDS, ("min", "mean", "max"))):
        low, middle, high = (dict(record.finite(f"cluster/{m}/phi_{figure}")) for figure in figures)
        epochs = sorted(low.keys() & middle.keys() & high.keys())
        if epochs:
            line = Line(
                f"φ, {name}",
                [(epoch, middle[epoch]) for epoch in epochs],
                m,
                [(epoch, low[epoch], high[epoch]) for epoch in epochs],
            )
            return Chart(f"chart-phi-{m}", f"Concentration φ, {name}", caption, [line])
    return None


def overlaid(records: Sequence[RunRecord], letters: Sequence[str]) -> Html:
    """A chart a figure with a line a run; figures that only one run has are left out."""
    found = [_overlay(records, letters, *chosen) for chosen in _of_several(records)]
    drawn = [line_chart(chart) for chart in found if len(chart.lines) > 1]
    return (
        tag("div", drawn, class_="charts")
        if drawn
        else tag("p", "No figure was recorded by more than one of these runs.", class_="none")
    )


def _of_several(
    records: Sequence[RunRecord],
) -> list[tuple[str, str, str, Callable[[RunRecord], Points], bool]]:
    most = max(len(record.config.e_step.num_clusters) for record in records)

    def figure(name: str) -> Callable[[RunRecord], Points]:
        return lambda record: record.finite(name)

    numbers = [f", clustering {m + 1}" if most > 1 else "" for m in range(most)]
    return [
        ("knn", "kNN top-1", _KNN, figure("eval/knn_top1"), False),
        *(
            (f"ami-{m}", f"Clusters against labels (AMI){said}", _AMI, figure(f"cluster/{m}/ami"), False)
            for m, said in enumerate(numbers)
        ),
        ("rankme", "RankMe", _RANKME, figure("eval/rankme"), True),
        (
            "loss",
            "Loss",
            "Runs with other τ, K, queue or negatives have losses on other scales.",
            figure("train/loss"),
            False,
        ),
        (
            "heads",
            "Accuracy of the instance head",
            "How often an image's own other view wins against all negatives.",
            figure("train/accuracy_instance"),
            False,
        ),
        (
            "nmi",
            "Stability of the assignments (NMI)" + numbers[0],
            _NMI,
            figure("cluster/0/nmi_previous"),
            False,
        ),
        ("std", "Spread of the features", _STD, figure("train/feature_std"), True),
        ("rate", "Images a second", _RATE, figure("perf/images_per_second"), True),
        (
            "seconds",
            "Seconds of an E-step",
            "Features and clustering, each epoch.",
            figure("perf/e_step_seconds"),
            True,
        ),
    ]


def _overlay(
    records: Sequence[RunRecord],
    letters: Sequence[str],
    short: str,
    title: str,
    caption: str,
    points: Callable,
    from_zero: bool,
) -> Chart:
    found = [(letter, points(record)) for letter, record in zip(letters, records, strict=True)]
    lines = [Line(letter, drawn, place) for place, (letter, drawn) in enumerate(found) if drawn]
    return Chart(f"chart-{short}", title, caption, lines, from_zero)

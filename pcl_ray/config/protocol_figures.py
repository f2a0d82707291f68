"""The protocols of `pcl-ray evaluate` and what they measure: the one list of them and of their figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pcl_ray.config.figure import Direction, Figure
from pcl_ray.errors import ConfigError
from pcl_ray.support.text import MISSING, suggestion_sentence

# What of an encoder is measured; pixels and untrained are the reference lines beside it.
Features = Literal["backbone", "head", "pixels", "untrained"]
OWN_FEATURES: tuple[Features, ...] = ("backbone", "head")
REFERENCE_FEATURES: tuple[Features, ...] = ("pixels", "untrained")

_SHARE = "{:.4f}"


@dataclass(frozen=True)
class Protocol:
    """One protocol. source: where it is published. labels: what it needs. costly: it is only run where it is
    named. references: the reference lines that it is measured for, too.
    """

    name: str
    sentence: str
    source: str
    labels: bool = True
    costly: bool = False
    references: tuple[Features, ...] = REFERENCE_FEATURES


KNN = Protocol(
    "knn",
    "weighted vote of the nearest training images by cosine, exact",
    "Wu et al., CVPR 2018, section 3.4",
)
LINEAR = Protocol(
    "linear",
    "multinomial logistic regression on features that stay as they are, penalty chosen on a part left out",
    "Kornblith et al., CVPR 2019",
)
CLUSTERS = Protocol(
    "clusters",
    "k-means of the features, its clusters compared with the classes",
    "Li et al., ICLR 2021, section 5.4; Hubert & Arabie 1985; Vinh et al., JMLR 2010; Kuhn 1955",
)
UNLABELLED = Protocol(
    "unlabelled",
    "criteria that need no labels, of the features and of how stable their clusters are",
    (
        "RankMe: Garrido et al., ICML 2023; LiDAR: Thilak et al., ICLR 2024; α-ReQ: Agrawal et al., NeurIPS"
        " 2022; alignment, uniformity: Wang & Isola, ICML 2020; stability: Ben-Hur et al., PSB 2002"
    ),
    labels=False,
    references=("untrained",),
)
LOW_SHOT = Protocol(
    "low-shot",
    "linear SVM, one class against the others, from k images a class and from all of them",
    "Goyal et al., ICCV 2019; Li et al., ICLR 2021, section 5.1",
    references=("untrained",),
)
LINEAR_SGD = Protocol(
    "linear-sgd",
    (
        "a linear layer on the frozen backbone, trained by SGD on augmented images: learning rate 5, batch"
        " 256, 100 epochs, a tenth at 60 and 80, no weight decay"
    ),
    "Li et al., ICLR 2021, section 5.3, after He et al., CVPR 2020",
    costly=True,
    references=(),
)
FINE_TUNING = Protocol(
    "fine-tuning",
    "the whole encoder, trained on with 1 % and 10 % of the labels, the same share of each class",
    "Li et al., ICLR 2021, section 5.2, after Misra & van der Maaten, CVPR 2020",
    costly=True,
    references=("untrained",),
)

PROTOCOLS = (KNN, LINEAR, CLUSTERS, UNLABELLED, LOW_SHOT, LINEAR_SGD, FINE_TUNING)

# Titles and directions of measures by the end of their names: `top1`, `k200/top1`, `classes/ami`.
_MEASURES: dict[str, tuple[str, Direction | None, str]] = {
    "top1": ("top-1", "max", _SHARE),
    "top5": ("top-5", "max", _SHARE),
    "balanced": ("mean of the classes' accuracies", "max", _SHARE),
    "map": ("mean average precision", "max", _SHARE),
    "ami": ("AMI", "max", _SHARE),
    "nmi": ("NMI", "max", _SHARE),
    "ari": ("ARI", "max", _SHARE),
    "accuracy": ("Hungarian accuracy", "max", _SHARE),
    "rankme": ("RankMe", "max", "{:.2f}"),
    "lidar": ("LiDAR", "max", "{:.2f}"),
    "areq": ("α-ReQ", "nearest_one", "{:.3f}"),
    "alignment": ("alignment", "min", _SHARE),
    "uniformity": ("uniformity", "min", "{:.3f}"),
    "stability_ami": ("cluster stability, AMI between seeds", "max", _SHARE),
    "stability_ari": ("cluster stability, ARI between seeds", "max", _SHARE),
}


def protocols_named(names: Iterable[str]) -> tuple[Protocol, ...]:
    """The protocols of these names, in the order of the list; `fast` and `all` stand for several.

    Raises ConfigError for a name that there is not.
    """
    by_name = {protocol.name: protocol for protocol in PROTOCOLS}
    wanted: set[str] = set()
    for name in names:
        if name in ("fast", "all"):
            wanted |= {each.name for each in PROTOCOLS if name == "all" or not each.costly}
        elif name in by_name:
            wanted.add(name)
        else:
            hint = suggestion_sentence(name, by_name)
            raise ConfigError(
                f"--protocols {name!r}: there is no such protocol.{hint} Allowed: {', '.join(by_name)}, fast,"
                " all"
            )
    if not wanted:
        raise ConfigError(f"--protocols names none of {', '.join(by_name)}")
    return tuple(protocol for protocol in PROTOCOLS if protocol.name in wanted)


def is_measure(name: str) -> bool:
    """Whether this is the name of a measure, `k200/top1`: a file of a later version may have others."""
    return name.rpartition("/")[2] in _MEASURES


def protocol_figure(protocol: str, features: str, measure: str) -> Figure:
    """The figure of one measure of a protocol: `evaluate/knn/backbone/k200/top1`."""
    setting, _, name = measure.rpartition("/")
    label, direction, text_format = _MEASURES[name]
    title = f"{protocol} {setting}, {label}" if setting else f"{protocol}, {label}"
    return Figure(
        f"evaluate/{protocol}/{features}/{measure}",
        f"{title} ({features})",
        f"{label} of the protocol {protocol}, of the {features}.",
        title=title,
        format=text_format,
        direction=direction,
        # of reference lines no chart: each would be a card
        charted=name in ("top1", "map", "ami", "rankme") and features in OWN_FEATURES,
    )


def measured_text(protocol: str, features: str, measure: str, mean: float, spread: float | None) -> str:
    """The mean as tables show it, with its spread where there are several runs."""
    figure = protocol_figure(protocol, features, measure)
    if mean != mean:
        return MISSING
    return figure.text(mean) if spread is None else f"{figure.text(mean)} ± {figure.text(spread)}"


def protocol_spread(protocol: str, features: str, measure: str) -> Figure:
    """The standard deviation of that figure over runs."""
    mean = protocol_figure(protocol, features, measure)
    return Figure(
        f"{mean.name}_sd",
        f"{mean.label}, spread",
        "Standard deviation of that figure over runs.",
        format=mean.format,
        charted=False,
    )

"""The report card of `pcl-ray reproduce`: an encoder beside published figures, what was not run and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pcl_ray.config import RunConfig
from pcl_ray.config.protocol_figures import PROTOCOLS
from pcl_ray.config.published_figures import PUBLISHED, SOURCE, DataSet, PublishedFigure, Version
from pcl_ray.errors import DataError
from pcl_ray.evaluation.protocols.evaluate import Evaluation, EvaluationRequest, evaluate
from pcl_ray.evaluation.protocols.extraction import Say
from pcl_ray.evaluation.protocols.images import EvaluationImages
from pcl_ray.evaluation.protocols.settings import ProtocolSettings
from pcl_ray.evaluation.protocols.voc import find_voc
from pcl_ray.runs.evaluation.subject import Subject, config_for, load_images, tested_encoder
from pcl_ray.support import provenance
from pcl_ray.support.text import MISSING, count

_IMAGENET_CLASSES = 1000
_PUBLISHED_BACKBONE, _PUBLISHED_SIDE = "resnet50", 224


@dataclass(frozen=True)
class CardRow:
    """One published figure and what was measured, in per cent. reason: why it was not run, or ""."""

    figure: PublishedFigure
    measured: float | None = None
    spread: float | None = None
    runs: int = 0
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ReportCard:
    """All published figures. remarks: in what encoder or measurement differ from the published ones."""

    subject: Subject
    version: Version
    rows: tuple[CardRow, ...]
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        weights = self.subject.weights
        return {
            "name": self.subject.name,
            "weights": str(weights.path),
            "recognised": weights.note,
            "encoder": self.subject.which,
            "version": self.version,
            "remarks": list(self.remarks),
            "figures": [
                {
                    "title": row.figure.title,
                    "protocol": row.figure.protocol_text,
                    "source": row.figure.source,
                    "published_v1": row.figure.v1,
                    "published_v2": row.figure.v2,
                    "measured": row.measured,
                    "sd": row.spread,
                    "runs": row.runs,
                    "difference": _difference(row, self.version),
                    "not_run": row.reason or None,
                }
                for row in self.rows
            ],
            "versions": provenance.run_tags(),
        }

    def table(self) -> Table:
        table = Table("per cent", "PCL v1", "PCL v2", "this encoder", f"to {self.version}", "protocol")
        for row in self.rows:
            difference = _difference(row, self.version)
            table.add_row(
                row.figure.title,
                f"{row.figure.v1:.1f}",
                f"{row.figure.v2:.1f}",
                _cell(row),
                MISSING if difference is None else f"{difference:+.1f}",
                row.figure.protocol,
            )
        return table

    def lines(self) -> list[str]:
        """Protocols, source, remarks and what was not run, as text below the table."""
        texts = dict.fromkeys((row.figure.protocol, row.figure.protocol_text) for row in self.rows)
        lines = [f"{protocol}: {text}" for protocol, text in texts]
        lines.append(f"published: {SOURCE}; ResNet-50, 200 epochs of ImageNet")
        lines += [f"note: {remark}" for remark in self.remarks]
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            if row.reason:
                reasons.setdefault(row.reason, []).append(row.figure.title)
        lines += [f"not run: {_together(titles)}: {reason}" for reason, titles in reasons.items()]
        return lines


def make_report_card(
    subject: Subject, data: Sequence[str], settings: ProtocolSettings, say: Say = lambda text: None
) -> ReportCard:
    """Measures what the data allow. data: folders of ImageNet (train and val) and of VOC2007, in any order.

    Raises ConfigError and DataError for what is no such folder.
    """
    measured: dict[DataSet, Evaluation | str] = {}
    remarks = [*_encoder_remarks(subject), *_settings_remarks(settings)]
    for folder in data:
        kind, images, config = _images(subject, folder, say)
        if kind in measured:
            raise DataError(f"{folder!r} is a second {kind}; one folder of each data set is enough")
        if reason := _not_as_published(kind, images):
            measured[kind] = reason
            continue
        protocol = next(each for each in PROTOCOLS if each.name == _protocol_of(kind))
        request = EvaluationRequest((protocol,), ("backbone",), references=False)
        say(f"{protocol.name} on {images.name}: {count(len(images.bank), 'image')} to learn from")
        measured[kind] = evaluate(tested_encoder(subject, config), images, request, settings, say)
    return ReportCard(
        subject, version_of(subject), tuple(_row(figure, measured) for figure in PUBLISHED), tuple(remarks)
    )


def version_of(subject: Subject) -> Version:
    """v1 has a linear head, v2 an MLP; without a head it counts as v2."""
    return "v1" if subject.weights.has_head and subject.weights.config.head == "linear" else "v2"


def _images(subject: Subject, folder: str, say: Say) -> tuple[DataSet, EvaluationImages, RunConfig]:
    """Which of the published data sets the folder is, its images and how they are read."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(f"{folder!r} is not a folder: those of ImageNet and VOC2007 are what is taken")
    kind: DataSet = "VOC2007" if find_voc(path) else "ImageNet"
    if kind == "ImageNet" and not ((path / "train").is_dir() and (path / "val").is_dir()):
        raise DataError(
            f"{folder!r} is neither ImageNet (folders train and val) nor VOC2007 (JPEGImages, ImageSets/Main)"
        )
    images, config = load_images(config_for(subject, folder, ()), say, bank=0, queries=0)
    return kind, images, config


def _protocol_of(kind: DataSet) -> str:
    return next(figure.protocol for figure in PUBLISHED if figure.data == kind)


def _not_as_published(kind: DataSet, images: EvaluationImages) -> str:
    """Why figures on these images could not be put beside the published ones; "" where they can."""
    if kind == "ImageNet" and images.num_classes != _IMAGENET_CLASSES:
        return f"{images.name} is not ImageNet: it has {images.num_classes} classes instead of 1,000"
    if kind == "VOC2007" and images.name != "VOC2007":
        return f"{images.name} is not VOC2007, whose test part has labels"
    return ""


def _row(figure: PublishedFigure, measured: dict[DataSet, Evaluation | str]) -> CardRow:
    evaluation = measured.get(figure.data)
    if evaluation is None:
        return CardRow(figure, reason=f"no folder of {figure.data} was given")
    if isinstance(evaluation, str):
        return CardRow(figure, reason=evaluation)
    for each in evaluation.measurements:
        if each.protocol == figure.protocol and figure.measure in each.values:
            spread = each.spread(figure.measure)
            return CardRow(
                figure,
                100 * each.mean(figure.measure),
                None if spread is None else 100 * spread,
                len(each.values[figure.measure]),
            )
    reason = str(evaluation.refusals[0]) if evaluation.refusals else f"{figure.measure} was not measured"
    return CardRow(figure, reason=reason)


def _encoder_remarks(subject: Subject) -> list[str]:
    weights = subject.weights
    remarks = []
    if weights.config.backbone != _PUBLISHED_BACKBONE:
        remarks.append(f"the encoder is a {weights.config.backbone}, the published ones are ResNet-50")
    if weights.view.image_size != _PUBLISHED_SIDE:
        remarks.append(
            f"its views have {weights.view.image_size} px a side, the published ones {_PUBLISHED_SIDE}"
        )
    if weights.channels != 3:
        remarks.append("it sees grey images")
    if not weights.has_head:
        remarks.append("without a head there is no telling v1 from v2: it is put beside v2")
    return remarks


def _settings_remarks(settings: ProtocolSettings) -> list[str]:
    """What about the protocols differs from the published ones, on purpose or on request."""
    remarks = [
        "the cost of the SVMs is chosen on val, then trainval is fitted, and difficult objects are left out;"
        " the authors' code takes the cost that does best on test, and difficult objects as negatives"
    ]
    if settings.probe_epochs != 100 or settings.probe_lr != 5.0:
        remarks.append(
            f"the linear layer has {settings.probe_epochs} epochs at a learning rate of"
            f" {settings.probe_lr:g}, the published one 100 at 5"
        )
    return remarks


def _difference(row: CardRow, version: Version) -> float | None:
    return None if row.measured is None else row.measured - row.figure.of(version)


def _cell(row: CardRow) -> str:
    if row.measured is None:
        return "not run"
    return f"{row.measured:.1f}" if row.spread is None else f"{row.measured:.1f} ± {row.spread:.1f}"


def _together(titles: Sequence[str]) -> str:
    """All titles, shorter where they begin alike."""
    first = titles[0].rpartition(",")[0]
    if len(titles) > 1 and all(title.startswith(first) for title in titles):
        return f"{first} ({len(titles)} figures)"
    return ", ".join(titles)

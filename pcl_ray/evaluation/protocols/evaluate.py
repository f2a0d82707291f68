"""An encoder through the protocols that are wanted, with its reference lines beside it.

images → backbone, head │ pixels │ untrained encoder → each protocol → measurements; what could not be run
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pcl_ray.config import EvaluationConfig
from pcl_ray.config.protocol_figures import (
    CLUSTERS,
    FINE_TUNING,
    KNN,
    LINEAR,
    LINEAR_SGD,
    LOW_SHOT,
    REFERENCE_FEATURES,
    UNLABELLED,
    Features,
    Protocol,
)
from pcl_ray.errors import DataError
from pcl_ray.evaluation.labelled import LabelledFeatures
from pcl_ray.evaluation.protocols import classifiers, structure
from pcl_ray.evaluation.protocols.classifiers import Values
from pcl_ray.evaluation.protocols.extraction import (
    Say,
    TestedEncoder,
    features_of,
    features_of_views,
    pixels_of,
)
from pcl_ray.evaluation.protocols.fine_tuning import fine_tuning
from pcl_ray.evaluation.protocols.images import EvaluationImages
from pcl_ray.evaluation.protocols.linear_sgd import linear_sgd
from pcl_ray.evaluation.protocols.low_shot import SvmFeatures, low_shot
from pcl_ray.evaluation.protocols.results import Measurement, Refusal
from pcl_ray.evaluation.protocols.settings import ProtocolSettings

_VIEW_IMAGES, _VIEWS = 1000, 10  # of LiDAR and alignment


@dataclass(frozen=True)
class EvaluationRequest:
    """What is measured of an encoder. references: whether pixels and an untrained encoder are, too."""

    protocols: tuple[Protocol, ...]
    features: tuple[Features, ...] = ("backbone",)
    references: bool = True


@dataclass
class Evaluation:
    """What was measured, and what could not be."""

    measurements: list[Measurement] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def figures(self, *, charted: bool = False) -> dict[str, float]:
        """All means and spreads by the names of the catalogue, or those that get a chart."""
        return {
            name: value
            for measurement in self.measurements
            for name, value in measurement.figures(charted=charted).items()
        }


def evaluate(
    tested: TestedEncoder,
    images: EvaluationImages,
    request: EvaluationRequest,
    settings: ProtocolSettings,
    say: Say = lambda text: None,
) -> Evaluation:
    """Runs the protocols one after the other; one that lacks something is refused, in one sentence, and the
    others go on. Raises DataError where an image cannot be read.
    """
    result = Evaluation()
    protocols = [
        protocol for protocol in request.protocols if _is_possible(protocol, images, settings, result)
    ]
    own_features = list(request.features)
    if "head" in own_features and not tested.has_head:
        own_features.remove("head")
        result.refusals.append(Refusal("all", "these weights have no projection head", "head"))
    if not protocols or not own_features:
        return result
    kinds: list[Features] = [*own_features]
    if request.references:
        kinds += [
            kind for kind in REFERENCE_FEATURES if any(kind in protocol.references for protocol in protocols)
        ]
    source = _FeatureSource(tested, images, "head" in own_features, say)
    for kind in kinds:
        for protocol in protocols:
            if kind in REFERENCE_FEATURES and kind not in protocol.references:
                continue
            if kind == "head" and protocol in (LINEAR_SGD, FINE_TUNING):
                result.refusals.append(Refusal(protocol.name, f"{protocol.name} is of the backbone", kind))
                continue
            start = time.perf_counter()
            try:
                values, notes = _measured(protocol, kind, source, settings, say)
            except DataError as error:
                result.refusals.append(Refusal(protocol.name, str(error), kind))
                continue
            seconds = time.perf_counter() - start
            say(f"{protocol.name} of the {kind}: {seconds:.1f} s")
            result.measurements.append(Measurement(protocol.name, kind, values, notes, seconds))
    return result


def _is_possible(
    protocol: Protocol, images: EvaluationImages, settings: ProtocolSettings, result: Evaluation
) -> bool:
    """Whether the images have the labels that the protocol needs; else it is refused."""
    if not protocol.labels or (protocol == LOW_SHOT and images.several_labels() is not None):
        return True
    queries = protocol not in (CLUSTERS, KNN) or (protocol == KNN and not settings.leave_one_out)
    try:
        images.check_single_labels(protocol.name, queries=queries)
    except DataError as error:
        result.refusals.append(Refusal(protocol.name, str(error)))
        return False
    return True


def _measured(
    protocol: Protocol, kind: Features, source: _FeatureSource, settings: ProtocolSettings, say: Say
) -> Values:
    if protocol == UNLABELLED:
        return structure.unlabelled(source.unlabelled(kind), source.natural_clusters(), settings)
    if protocol == CLUSTERS:
        bank, labels = source.bank(kind)
        return structure.clusters(bank, labels, settings)
    if protocol == LOW_SHOT:
        return low_shot(source.svm_features(kind), settings)
    if protocol in (LINEAR_SGD, FINE_TUNING):
        train_with_labels = linear_sgd if protocol == LINEAR_SGD else fine_tuning
        return train_with_labels(source.encoder_of(kind), source.images_for(kind), settings, say)
    of_features: dict[str, Callable[[LabelledFeatures, ProtocolSettings], Values]] = {
        KNN.name: classifiers.knn,
        LINEAR.name: classifiers.linear,
    }
    return of_features[protocol.name](source.labelled(kind), settings)


class _FeatureSource:
    """The features of each kind, made when they are first asked for."""

    def __init__(self, tested: TestedEncoder, images: EvaluationImages, head: bool, say: Say):
        self._tested, self._images, self._head, self._say = tested, images, head, say
        self._few_queries = images.for_references(EvaluationConfig.REFERENCE_QUERIES)
        self._untrained: TestedEncoder | None = None
        self._arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def images_for(self, kind: Features) -> EvaluationImages:
        """The images that this kind of features is measured on: reference lines have fewer queries."""
        return self._few_queries if kind in REFERENCE_FEATURES else self._images

    def labelled(self, kind: Features) -> LabelledFeatures:
        """Bank and queries. The queries are the bank itself where there are none (leave-one-out)."""
        bank, queries = self._both(kind)
        images = self.images_for(kind)
        if images.queries is None:
            return LabelledFeatures.of(bank, images.bank_labels, bank, images.bank_labels)
        return LabelledFeatures.of(bank, images.bank_labels, queries, images.query_labels)

    def svm_features(self, kind: Features) -> SvmFeatures:
        """Bank and queries with a column a class; of single labels only the labelled images."""
        images = self.images_for(kind)
        if (several := images.several_labels()) is not None:
            return SvmFeatures.of_multi(*self._both(kind), several)
        return SvmFeatures.of_single(self.labelled(kind))

    def bank(self, kind: Features) -> tuple[np.ndarray, np.ndarray]:
        """The bank's features and labels."""
        labels = self._images.bank_labels
        assert labels is not None, "checked before"
        return self._both(kind)[0], labels

    def unlabelled(self, kind: Features) -> structure.UnlabelledFeatures:
        """The bank's features and those of random views."""
        self._say(f"random views of {min(len(self._images.bank), _VIEW_IMAGES):,} images")
        views = features_of_views(
            self.encoder_of(kind), self._images.bank, count=_VIEW_IMAGES, views=_VIEWS, head=kind == "head"
        )
        return structure.UnlabelledFeatures(
            self._both(kind)[0], views["head" if kind == "head" else "backbone"]
        )

    def natural_clusters(self) -> int:
        """How many clusters stability is measured with: as many as classes, else √N."""
        classes = self._images.num_classes
        return classes if classes >= 2 else max(2, round(len(self._images.bank) ** 0.5))

    def encoder_of(self, kind: Features) -> TestedEncoder:
        if kind != "untrained":
            return self._tested
        self._untrained = self._untrained or self._tested.untrained()
        return self._untrained

    def _both(self, kind: Features) -> tuple[np.ndarray, np.ndarray]:
        """The features of bank and queries; of no queries an empty array."""
        if kind not in self._arrays:
            images = self.images_for(kind)
            parts = [images.bank] if images.queries is None else [images.bank, images.queries]
            total = sum(map(len, parts))
            self._say(f"features of {total:,} images ({kind})")
            if kind == "pixels":
                made = [{"pixels": pixels_of(part, self._tested.config)} for part in parts]
            else:
                encoder = self.encoder_of(kind)
                made = [features_of(encoder, part, head=self._head and encoder.has_head) for part in parts]
            for name in made[0]:
                own: str = "untrained" if kind == "untrained" else name
                columns = [arrays[name] for arrays in made]
                empty = np.empty((0, columns[0].shape[1]), np.float32)
                self._arrays[own] = columns[0], columns[1] if len(columns) > 1 else empty
        return self._arrays[kind]

"""The low-shot SVM: one linear SVM a class on frozen features, from k images of each class and from all."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcl_ray.errors import DataError
from pcl_ray.evaluation.few_labels import few_label_draws
from pcl_ray.evaluation.labelled import LabelledFeatures
from pcl_ray.evaluation.partitions import unit_rows
from pcl_ray.evaluation.protocols.classifiers import Values
from pcl_ray.evaluation.protocols.images import MultiLabels
from pcl_ray.evaluation.protocols.settings import ProtocolSettings

COSTS = (0.03, 0.1, 0.3, 0.5, 1.0, 3.0, 10.0, 30.0)
_HELD_OUT = 1 / 3  # of the bank, for the choice of the cost, where the data set has no part for it
_SELECTION_DRAWS = 3
_SELECTION_IMAGES = 10_000  # that costs are fitted on, and that they are judged by, at most
_FULL_IMAGES = 100_000  # that `full` is fitted on, at most: scikit-learn holds them as float64
_SELECTION_SEED = (
    20210507  # no run's: draws that the cost is chosen by are others than those that are measured
)


@dataclass(frozen=True, eq=False)
class SvmFeatures:
    """Features of length 1, and for each class whether an image has it: 1, 0, or −1 where that is left out
    (objects marked as difficult).

    labels_N: the classes [N], [Q] of images that have one each; None where they may have several.
    """

    bank_BD: np.ndarray
    bank_BL: np.ndarray
    queries_QD: np.ndarray
    queries_QL: np.ndarray
    bank_labels_B: np.ndarray | None = None
    query_labels_Q: np.ndarray | None = None
    validation_B: np.ndarray | None = None  # [B] bool: see `MultiLabels`

    @classmethod
    def of_single(cls, features: LabelledFeatures) -> SvmFeatures:
        """One column a class that the bank has, of images with one label each."""
        classes, bank_labels = np.unique(features.bank_labels_B, return_inverse=True)
        position = np.searchsorted(classes, features.query_labels_Q).clip(max=len(classes) - 1)
        query_labels = np.where(classes[position] == features.query_labels_Q, position, -1)
        columns = np.arange(len(classes))
        return cls(
            unit_rows(features.bank_BD),
            (bank_labels[:, None] == columns).astype(np.int8),
            unit_rows(features.queries_QD),
            (query_labels[:, None] == columns).astype(np.int8),
            bank_labels,
            query_labels,
        )

    @classmethod
    def of_multi(cls, bank: np.ndarray, queries: np.ndarray, labels: MultiLabels) -> SvmFeatures:
        return cls(
            unit_rows(bank),
            labels.bank_BL,
            unit_rows(queries),
            labels.queries_QL,
            validation_B=labels.validation_B,
        )

    def __post_init__(self) -> None:
        if not len(self.bank_BD) or not len(self.queries_QD):
            raise DataError("the low-shot SVM needs images to learn from and held-out ones")
        if not (np.isfinite(self.bank_BD).all() and np.isfinite(self.queries_QD).all()):
            raise DataError("some features are not finite: the encoder has diverged")


def low_shot(features: SvmFeatures, settings: ProtocolSettings) -> Values:
    """Mean average precision over the classes, `k1/map` … `full/map`, and of images with one label each the
    accuracy of the class with the largest score, `k1/top1`.

    For each k: `runs` draws of k images of each class (all where it has fewer), whose other labels count too;
    `full` takes the whole bank, once (of a larger one 100,000 images, spread evenly). The cost is the one of
    COSTS that does best on a part of the bank that is set apart, after fits on the rest of it; the queries
    take no part in the choice. As the authors' code, a positive weighs twice a negative; unlike there, the
    cost is not chosen by the queries, and difficult objects are left out of fits and figures instead of
    counting as negatives.
    """
    fitting, judging = _parts(features, settings.seed)
    values: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    for count in (*settings.shots, 0):
        title = f"k{count}" if count else "full"
        costs[title] = cost = _best_cost(features, fitting, judging, count, settings)
        if count:
            draws = _draws(features.bank_BL, count, settings.runs, settings.seed)
        else:
            draws = [_at_most(np.arange(len(features.bank_BD)), _FULL_IMAGES)]
        for rows in draws:
            scores = _scores(features.bank_BD[rows], features.bank_BL[rows], features.queries_QD, cost)
            values.setdefault(f"{title}/map", []).append(mean_average_precision(scores, features.queries_QL))
            if features.query_labels_Q is not None:
                hits = scores.argmax(axis=1) == features.query_labels_Q
                values.setdefault(f"{title}/top1", []).append(float(hits.mean()))
    notes: dict[str, Any] = {"costs": costs, "bank": min(len(features.bank_BD), _FULL_IMAGES)}
    notes |= {"queries": len(features.queries_QD), "classes": features.bank_BL.shape[1]}
    return values, notes


def mean_average_precision(scores_QL: np.ndarray, targets_QL: np.ndarray) -> float:
    """The mean over the classes of `average_precision` (0..1), of those that some image has. Entries whose
    target is −1 are left out.
    """
    classes = [
        average_precision(scores[target >= 0], target[target >= 0])
        for scores, target in zip(scores_QL.T, targets_QL.T, strict=True)
        if (target == 1).any()
    ]
    if not classes:
        raise DataError("no held-out image has one of the classes: there is no precision to average")
    return float(np.mean(classes))


def average_precision(scores_N: np.ndarray, targets_N: np.ndarray) -> float:
    """The area under the precision-recall curve whose precision is made monotone (Everingham et al., IJCV
    2015, the rule from VOC2010 on, which the PCL authors' code follows): the mean over the positives of the
    best precision at this recall or a higher one. targets_N: 1 for positives, else 0.
    """
    order = np.argsort(-scores_N, kind="stable")
    positive = targets_N[order] == 1
    precision = np.cumsum(positive) / np.arange(1, len(positive) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[positive].mean())


def _scores(
    features_MD: np.ndarray, targets_ML: np.ndarray, queries_QD: np.ndarray, cost: float
) -> np.ndarray:
    """How strongly each query [Q, L] belongs to each class; of a class without both sides, less than all."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC  # takes a second

    scores = np.full((len(queries_QD), targets_ML.shape[1]), -np.inf)
    for column, target in enumerate(targets_ML.T):
        rows = np.flatnonzero(target >= 0)
        if len(np.unique(target[rows])) < 2:
            scores[:, column] = -1e9
            continue
        model = LinearSVC(
            C=cost,
            class_weight={1: 2, 0: 1},
            loss="squared_hinge",
            dual="auto",  # pyrefly: ignore[bad-argument-type]  # annotated as a bool in scikit-learn
            max_iter=2000,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores[:, column] = model.fit(features_MD[rows], target[rows]).decision_function(queries_QD)
    return scores


def _parts(features: SvmFeatures, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the bank that costs are fitted on, and rows that they are judged by."""
    if features.validation_B is not None and 0 < features.validation_B.sum() < len(features.bank_BD):
        judged = features.validation_B
    else:
        order = np.random.default_rng((_SELECTION_SEED, seed)).permutation(len(features.bank_BD))
        judged = np.zeros(len(order), dtype=bool)
        judged[order[: max(1, round(_HELD_OUT * len(order)))]] = True
    return (
        _at_most(np.flatnonzero(~judged), _SELECTION_IMAGES),
        _at_most(np.flatnonzero(judged), _SELECTION_IMAGES),
    )


def _at_most(rows: np.ndarray, most: int) -> np.ndarray:
    """The rows, or `most` of them, spread evenly."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


def _best_cost(
    features: SvmFeatures, fitting: np.ndarray, judging: np.ndarray, count: int, settings: ProtocolSettings
) -> float:
    """The cost that does best on the part set apart; of equal ones the smallest, the middle one where
    nothing can be told.
    """
    targets = features.bank_BL[judging]
    if not len(fitting) or not (targets == 1).any():
        return COSTS[len(COSTS) // 2]
    draws = [fitting]
    if count:
        number = min(_SELECTION_DRAWS, settings.runs)
        draws = [
            fitting[rows]
            for rows in _draws(features.bank_BL[fitting], count, number, _SELECTION_SEED + settings.seed)
        ]
    means = []
    for cost in COSTS:
        precisions = [
            mean_average_precision(
                _scores(features.bank_BD[rows], features.bank_BL[rows], features.bank_BD[judging], cost),
                targets,
            )
            for rows in draws
        ]
        means.append(np.mean(precisions))
    return COSTS[int(np.argmax(means))]


def _draws(targets_BL: np.ndarray, count: int, draws: int, seed: int) -> list[np.ndarray]:
    """Rows of each draw, rising: `count` images that have each class, an image once even where it was drawn
    for several of its classes.
    """
    result = []
    for number in range(draws):
        rows: set[int] = set()
        for column, target in enumerate(targets_BL.T):
            having = np.where(target == 1, 0, -1)
            if (having == 0).any():
                drawn = few_label_draws(having, count, draws=1, seed=_mixed(seed, number, column))
                rows |= set(drawn[0].tolist())
        result.append(np.array(sorted(rows), dtype=np.int64))
    return result


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

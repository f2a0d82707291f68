"""Classification from a few labelled images of each class, over many draws of which ones."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pcl_ray.config.final_figures import CLASSIFIERS
from pcl_ray.evaluation.linear import labelled, logistic, standardised, usable

_WEIGHT = 10.0  # of the summed cross-entropy against ½‖W‖², for features of length about 1
_ITERATIONS = 200
_CELLS = 2**24  # of cosines at a time


def few_label_accuracy(
    bank_NC: Tensor,
    bank_labels_N: Tensor,
    query_QC: Tensor,
    query_labels_Q: Tensor,
    *,
    labels_per_class: int,
    draws: int = 30,
    temperature: float = 0.07,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The accuracy (0..1) on all queries [draws] float64 of three classifiers, each time that of a draw of
    `labels_per_class` images of every class from the bank (`few_label_draws`).

    knn: the weighted vote of as many nearest neighbours as a class has labels, a vote weighing exp(cosine /
    temperature). class_mean: the nearest mean of the class's normalised features, by cosine (Snell et al.,
    NeurIPS 2017, with cosines). linear: logistic regression on features that are standardised by the whole
    bank, which takes no labels, and divided by √C; its penalty is fixed (10 × the summed cross-entropy
    against ½‖W‖²), since so few labels leave none to choose it by.

    Negative labels take no part; a query whose class the bank has not got counts as wrong. All NaN where no
    bank or query image is left, or a feature is not finite. Raises ValueError for fewer than one label or
    draw.
    """
    bank, bank_labels = labelled(bank_NC, bank_labels_N)
    query, query_labels = labelled(query_QC, query_labels_Q)
    rows_DM = few_label_draws(bank_labels, labels_per_class, draws=draws, seed=seed)
    if not usable(bank, query):
        return {method: np.full(draws, np.nan) for method in CLASSIFIERS}
    # Classes are counted from 0 as the bank has them; -1 for a class that only queries have.
    classes, bank_labels = np.unique(bank_labels, return_inverse=True)
    nearest = np.searchsorted(classes, query_labels).clip(max=len(classes) - 1)
    query_labels = np.where(classes[nearest] == query_labels, nearest, -1)
    unit_bank, unit_query = _unit(bank), _unit(query)
    root = np.float32(np.sqrt(bank.shape[1]))
    scaled_bank, scaled_query = (part / root for part in standardised(bank, query))
    accuracies: dict[str, list[float]] = {method: [] for method in CLASSIFIERS}
    for rows in rows_DM:
        labels = bank_labels[rows]
        member_ML = np.eye(len(classes), dtype=np.float32)[labels]
        model = logistic(scaled_bank[rows], labels, _WEIGHT, _ITERATIONS)
        predicted = {
            "knn": _voted(unit_query, unit_bank[rows], labels, labels_per_class, temperature),
            "class_mean": (unit_query @ _unit(member_ML.T @ unit_bank[rows]).T).argmax(axis=1),
            "linear": model.predict(scaled_query),
        }
        for method, classes_Q in predicted.items():
            accuracies[method].append(float((classes_Q == query_labels).mean()))
    return {method: np.array(values) for method, values in accuracies.items()}


def few_label_draws(
    labels_N: Tensor | np.ndarray, labels_per_class: int, *, draws: int, seed: int = 0
) -> np.ndarray:
    """Rows [D, M] int64, rising within a draw, of images drawn without replacement: `labels_per_class` of
    each class, or all where a class has fewer. Negative labels are not drawn.

    A draw follows from the labels, `seed`, `labels_per_class` and its number alone: encoders are compared on
    the same draws, and more draws begin with the same ones. Raises ValueError for fewer than one label or
    draw.
    """
    if labels_per_class < 1 or draws < 1:
        raise ValueError(
            f"{draws} draws of {labels_per_class} labels a class: each has to be one at the least"
        )
    labels = np.asarray(labels_N.cpu() if isinstance(labels_N, Tensor) else labels_N)
    rows = np.flatnonzero(labels >= 0)
    labels = labels[rows]
    result = []
    for number in range(draws):
        order = np.random.default_rng((seed, labels_per_class, number)).permutation(len(rows))
        order = order[np.argsort(labels[order], kind="stable")]  # by class, in random order within each
        begin = np.searchsorted(labels[order], labels[order], side="left")
        result.append(np.sort(rows[order[np.arange(len(order)) - begin < labels_per_class]]))
    return np.stack(result)


def _voted(
    query_QC: np.ndarray, drawn_MC: np.ndarray, labels_M: np.ndarray, neighbours: int, temperature: float
) -> np.ndarray:
    """The class [Q] with the largest weighted vote of the nearest of the drawn images. All are unit rows."""
    classes, count = int(labels_M.max()) + 1, min(neighbours, len(drawn_MC))
    winners = []
    for block in np.array_split(query_QC, -(-len(query_QC) * len(drawn_MC) // _CELLS)):
        cosine = block @ drawn_MC.T
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        cosine = np.take_along_axis(cosine, nearest, axis=1).astype(np.float64)
        # Weights relative to the nearest neighbour: the same winner, and no overflow at small temperatures.
        weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / temperature)
        cells = np.arange(len(block))[:, None] * classes + labels_M[nearest]
        votes = np.bincount(cells.ravel(), weight.ravel(), minlength=len(block) * classes)
        winners.append(votes.reshape(len(block), classes).argmax(axis=1))
    return np.concatenate(winners)


def _unit(rows: np.ndarray) -> np.ndarray:
    """The rows at length 1; a row of zeros remains one."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)

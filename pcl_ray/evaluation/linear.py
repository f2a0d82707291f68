"""The linear probe: multinomial logistic regression on features that stay as they are."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from torch import Tensor

_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the mean loss, the strongest first
_HELD_OUT = 0.2  # share of the images that the penalty is chosen on


def linear_probe_accuracy(
    bank_NC: Tensor,
    bank_labels_N: Tensor,
    query_QC: Tensor,
    query_labels_Q: Tensor,
    *,
    iterations: int = 200,
    selection: int = 10_000,
    seed: int = 0,
) -> float:
    """The share of the queries (0..1) that logistic regression on the bank's features puts into the right
    class.

    Minimises mean cross-entropy + λ/2 ‖W‖² by L-BFGS, in at most `iterations`, on features [N, C] that are
    standardised by the bank's mean and spread. λ is the best of 1, 0.1 … 1e-5 on a fifth of the bank (of
    `selection` images drawn by `seed` where the bank has more) after a fit on the rest of it; then the whole
    bank is fitted. The queries take no part in the choice (as Kornblith et al., CVPR 2019, choose it).

    Negative labels take no part; a query whose class the bank has not got counts as wrong. NaN where no bank
    or query image is left, or a feature is not finite.
    """
    bank, bank_labels = labelled(bank_NC, bank_labels_N)
    query, query_labels = labelled(query_QC, query_labels_Q)
    if not usable(bank, query):
        return float("nan")
    model, query, _ = linear_probe(
        bank, bank_labels, query, iterations=iterations, selection=selection, seed=seed
    )
    return float((model.predict(query) == query_labels).mean())


def linear_probe(
    bank_NC: np.ndarray,
    labels_N: np.ndarray,
    query_QC: np.ndarray,
    *,
    iterations: int,
    selection: int,
    seed: int,
) -> tuple[Any, np.ndarray, float]:
    """The classifier of `linear_probe_accuracy`, the queries as it takes them, and the λ that was chosen."""
    bank, query = standardised(bank_NC, query_QC)
    rows = np.random.default_rng(seed).permutation(len(bank))[:selection]
    penalty = _best_penalty(bank[rows], labels_N[rows], iterations)
    return logistic(bank, labels_N, 1 / (penalty * len(bank)), iterations), query, penalty


def labelled(features_NC: Tensor, labels_N: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, C] float32 and labels [n] int64 of the images that have one, on the CPU."""
    labels = labels_N.cpu().numpy().astype(np.int64, copy=False)
    rows = np.flatnonzero(labels >= 0)
    return features_NC.float().cpu().numpy()[rows], labels[rows]


def usable(bank_NC: np.ndarray, query_QC: np.ndarray) -> bool:
    """Whether there are images in both parts, and nothing in them that is not finite."""
    return bool(len(bank_NC) and len(query_QC) and np.isfinite(bank_NC).all() and np.isfinite(query_QC).all())


def standardised(bank_NC: np.ndarray, query_QC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both parts less the bank's mean, divided by its standard deviation; what is constant in the bank
    becomes 0.
    """
    mean = bank_NC.mean(axis=0, dtype=np.float64).astype(np.float32)
    bank, query = bank_NC - mean, query_QC - mean
    spread = np.sqrt(np.square(bank).mean(axis=0, dtype=np.float64)).astype(np.float32)
    spread[spread <= 1e-6 * np.abs(mean)] = np.inf  # nothing but rounding
    bank /= spread
    query /= spread
    return bank, query


def logistic(
    features_NC: np.ndarray, labels_N: np.ndarray, weight: float, iterations: int, start: Any = None
) -> Any:
    """A fitted classifier: `weight` times the summed cross-entropy plus ½‖W‖² are least. `start` is one of
    the same classes whose solution is gone on from, and which is changed.
    """
    # takes a second, which runs without labels need not wait for
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels_N)) < 2:
        return DummyClassifier(strategy="most_frequent").fit(features_NC, labels_N)
    model = LogisticRegression(warm_start=True) if start is None else start
    model.set_params(C=weight, max_iter=iterations)
    with warnings.catch_warnings():
        # What a solution that is cut short lacks lies in directions that hardly change its accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One image of each class is what few labels are about.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return model.fit(features_NC, labels_N)


def _best_penalty(bank_NC: np.ndarray, labels_N: np.ndarray, iterations: int) -> float:
    """The λ that does best on the first fifth of these images after a fit on the others, of equal ones the
    strongest; the middle one where there is nothing to choose by.
    """
    held_out, fitted = np.split(np.arange(len(bank_NC)), [int(_HELD_OUT * len(bank_NC))])
    if not len(held_out) or len(np.unique(labels_N[fitted])) < 2:
        return _PENALTIES[len(_PENALTIES) // 2]
    scores, model = [], None
    for penalty in _PENALTIES:
        # Each goes on from the last one's solution, so the six cost little more than the weakest alone.
        model = logistic(bank_NC[fitted], labels_N[fitted], 1 / (penalty * len(fitted)), iterations, model)
        scores.append((model.predict(bank_NC[held_out]) == labels_N[held_out]).mean())
    return _PENALTIES[int(np.argmax(scores))]

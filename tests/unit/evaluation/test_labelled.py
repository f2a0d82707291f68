from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.config import EvaluationConfig
from pcl_ray.errors import DataError
from pcl_ray.evaluation import LabelledFeatures, LabelledSample
from pcl_ray.evaluation.labelled import fixed_sample


@given(st.integers(0, 5000), st.integers(1, 600))
def test_a_sample_has_one_of_each_range(total: int, count: int) -> None:
    sample = fixed_sample(total, count)
    assert len(sample) == min(total, count)
    assert sample.dtype == np.int64
    if total <= count:
        assert sample.tolist() == list(range(total))
    for number, position in enumerate(sample.tolist()):
        assert number * total // len(sample) <= position < (number + 1) * total // len(sample)


def test_it_is_the_same_each_time_and_follows_no_period() -> None:
    assert np.array_equal(fixed_sample(100_000, 5000), fixed_sample(100_000, 5000))
    # every tenth image of a class: with each 20th image taken, two classes would be all
    classes = np.bincount(fixed_sample(100_000, 5000) % 10, minlength=10)
    assert classes.min() > 400


def test_only_images_with_a_label_take_part() -> None:
    labels = np.where(np.arange(1000) % 10 < 3, np.arange(1000) % 10, -1)
    holdout = np.where(np.arange(90) < 30, 1, -1)
    sample = LabelledSample.of(labels, holdout, EvaluationConfig(bank_images=50, query_images=20))
    assert (len(sample.bank_B), len(sample.queries_Q)) == (50, 20)
    assert (labels[sample.bank_B] >= 0).all()
    assert (holdout[sample.queries_Q] >= 0).all()
    assert (np.diff(sample.bank_B) > 0).all()
    whole = LabelledSample.of(labels, holdout, EvaluationConfig())
    assert whole.bank_B.tolist() == np.flatnonzero(labels >= 0).tolist()
    assert whole.queries_Q.tolist() == list(range(30))


@pytest.mark.parametrize(
    ("labels", "holdout"),
    [
        (None, np.zeros(3, int)),
        (np.zeros(3, int), None),
        (np.full(3, -1), np.zeros(3, int)),
        (np.zeros(3, int), np.full(3, -1)),
    ],
)
def test_without_labels_on_either_side_there_is_no_sample(
    labels: np.ndarray | None, holdout: np.ndarray | None
) -> None:
    sample = LabelledSample.of(labels, holdout, EvaluationConfig())
    assert (len(sample.bank_B), len(sample.queries_Q)) == (0, 0)
    assert len(sample.reference_queries) == 0


def test_reference_lines_keep_the_bank_and_take_fewer_queries() -> None:
    labels, holdout = np.zeros(4000, int), np.where(np.arange(9000) % 3, 0, -1)
    sample = LabelledSample.of(labels, holdout, EvaluationConfig())
    fewer = sample.for_references()
    assert np.array_equal(fewer.bank_B, sample.bank_B)
    assert len(fewer.queries_Q) == 2000
    assert np.array_equal(fewer.queries_Q, sample.queries_Q[sample.reference_queries])
    small = LabelledSample.of(labels, holdout[:1000], EvaluationConfig())
    assert np.array_equal(small.for_references().queries_Q, small.queries_Q)


def test_memory_is_bounded_by_the_knobs_and_not_by_the_data() -> None:
    """ImageNet with a ResNet-50: what all processes hold of the backbone, together."""
    settings = EvaluationConfig()
    sample = LabelledSample.of(np.zeros(1_281_167, int), np.zeros(50_000, int), settings)
    rows = len(sample.bank_B) + len(sample.queries_Q)
    assert rows * 2048 * np.dtype(np.float16).itemsize < 300e6


def test_images_without_a_label_take_no_part() -> None:
    rows = np.arange(12.0).reshape(6, 2)
    made = LabelledFeatures.of(rows, ["a", None, "b", "a", "", "b"], rows[:2], ["b", ""])
    assert made.bank_BD.tolist() == rows[[0, 2, 3, 5]].tolist()
    assert made.bank_labels_B.tolist() == [0, 1, 0, 1]
    assert made.query_labels_Q.tolist() == [1]
    assert made.num_classes == 2


@pytest.mark.parametrize(
    ("bank", "bank_labels", "queries", "query_labels", "message"),
    [
        (np.ones((2, 3)), [0, 0], np.ones((1, 3)), [0], r"all labelled images of the bank are of one class"),
        (np.ones((2, 3)), [-1, -1], np.ones((1, 3)), [0], "none of the 2 bank images has a label"),
        (np.ones((2, 3)), [0, 1], np.ones((1, 3)), [-1], "none of the 1 query images has a label"),
        (np.ones((2, 3)), [0, 1, 1], np.ones((1, 3)), [1], "there are 2 bank features and 3 labels"),
        (np.ones((2, 3)), None, np.ones((1, 3)), [1], "there are 2 bank features and no labels"),
        (np.ones((2, 3)), [0, 1], np.ones((1, 4)), [1], "have 3 numbers an image and query features 4"),
        (np.full((2, 3), np.nan), [0, 1], np.ones((1, 3)), [1], "some bank features are not finite"),
        (np.ones(3), [0, 1, 1], np.ones((1, 3)), [1], r"float64 of shape \[3\]: numbers \[N, D\] are needed"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    bank: np.ndarray, bank_labels: object, queries: np.ndarray, query_labels: object, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        LabelledFeatures.of(bank, bank_labels, queries, query_labels)
    assert "\n" not in str(refused.value)

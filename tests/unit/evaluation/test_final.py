from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from random_features import labels, mixture

from pcl_ray.config import EvaluationConfig
from pcl_ray.config.figures import find
from pcl_ray.config.final_figures import final_rows
from pcl_ray.evaluation import (
    LabelledFeatures,
    class_clusters,
    few_label_accuracy,
    linear_probe_accuracy,
    measure_final,
)


def backbone(bank: int = 120, queries: int = 60) -> LabelledFeatures:
    """Features of six groups as float16, which classes go by three times out of four."""
    rows = mixture(bank + queries, groups=6).numpy().astype(np.float16)
    of = np.arange(bank + queries) % 6
    of = np.where(np.arange(bank + queries) % 4 == 3, labels(bank + queries, 6).numpy(), of)
    return LabelledFeatures(rows[:bank], of[:bank], rows[bank:], of[bank:])


def test_the_figures_are_those_of_the_protocols_and_in_the_catalogue() -> None:
    features = backbone()
    bank, of = torch.from_numpy(features.bank_BD), torch.from_numpy(features.bank_labels_B)
    queries, query_of = torch.from_numpy(features.queries_QD), torch.from_numpy(features.query_labels_Q)
    figures = measure_final(features, EvaluationConfig())
    assert all(find(name) is not None for name in figures)
    assert figures["eval/linear_top1"] == linear_probe_accuracy(bank, of, queries, query_of)
    for count in (1, 5, 10):
        draws = few_label_accuracy(bank, of, queries, query_of, labels_per_class=count)
        for classifier, values in draws.items():
            name = f"eval/few_{count}/{classifier}_top1"
            assert figures[name] == pytest.approx(values.mean())
            spread = math.sqrt(sum((value - values.mean()) ** 2 for value in values) / 29)
            assert figures[f"{name}_sd"] == pytest.approx(spread)
    clusters = class_clusters(bank, of)
    for name in ("ami", "nmi", "ari", "accuracy"):
        assert figures[f"eval/clusters/{name}"] == clusters[name]
    assert figures["perf/final_seconds"] > 0
    assert len(figures) == 1 + 18 + 4 + 1


@pytest.mark.parametrize("protocol", ["linear", "few_labels", "clusters"])
def test_each_protocol_is_left_out_by_itself(protocol: str) -> None:
    every = measure_final(backbone(), EvaluationConfig())
    alone = measure_final(backbone(), EvaluationConfig(final=(protocol,)))  # type: ignore[arg-type]
    names = {"linear": "eval/linear", "few_labels": "eval/few_", "clusters": "eval/clusters"}
    expected = {name: value for name, value in every.items() if name.startswith(names[protocol])}
    assert {name: value for name, value in alone.items() if name != "perf/final_seconds"} == expected
    assert measure_final(backbone(), EvaluationConfig(final=())) == {}


def test_what_cannot_be_measured_is_left_out() -> None:
    features = backbone()
    broken = np.full_like(features.bank_BD, np.nan)
    figures = measure_final(
        LabelledFeatures(broken, features.bank_labels_B, features.queries_QD, features.query_labels_Q),
        EvaluationConfig(),
    )
    assert set(figures) == {"perf/final_seconds"}
    one_class = LabelledFeatures(
        features.bank_BD, np.zeros(120, np.int64), features.queries_QD, features.query_labels_Q
    )
    figures = measure_final(one_class, EvaluationConfig())
    assert not any(name.startswith("eval/clusters") or math.isnan(value) for name, value in figures.items())
    assert figures["eval/linear_top1"] == (features.query_labels_Q == 0).mean()


def test_rows_of_a_table_hold_what_was_measured() -> None:
    assert final_rows({"eval/knn_top1": 0.5}) == []
    metrics = {"eval/clusters/ami": 0.25, "eval/few_1/linear_top1": 0.5, "eval/few_1/linear_top1_sd": 0.0625}
    assert final_rows(metrics) == [
        ("linear probe, 1 label a class", "0.5000 ± 0.0625"),
        ("k-means, K = classes: AMI", "0.2500"),
    ]
    assert final_rows({"eval/few_5/linear_top1": 0.5}) == [("linear probe, 5 labels a class", "0.5000")]


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ValidationError, match="few_labels"):
        EvaluationConfig(final=("finetune",))  # type: ignore[arg-type]

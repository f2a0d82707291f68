from __future__ import annotations

import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
from equal_clusters import same
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.e_step import cluster
from pcl_ray.evaluation import LabelledFeatures, LabelledSample, measure_final
from pcl_ray.training.e_step_actor import EStepActor, EStepAnswer
from pcl_ray.training.e_step_shards import (
    BANK,
    BANK_HEAD,
    BANK_PIXELS,
    QUERIES,
    QUERIES_HEAD,
    QUERIES_PIXELS,
    TRAIN,
    EStepRequest,
)

N, Q, K = 60, 12, (3, 7)


def config_of(**e_step: object) -> RunConfig:
    knobs = {"num_clusters": K, "iterations": 5, "restarts": 1, "threads": 1, **e_step}
    return RunConfig.model_validate({"e_step": knobs, "evaluation": {"knn_neighbours": 5}})


CONFIG = config_of()
REQUEST = EStepRequest(
    epoch=2, cluster=True, evaluate=True, shards=3, num_images=N, num_bank=N, num_queries=Q
)
LABELLED = (BANK, BANK_HEAD, QUERIES, QUERIES_HEAD)
OF = np.arange(N) % 3


def features(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


Piece = tuple[str, np.ndarray, np.ndarray]


def shards(part: str = TRAIN, count: int = 3) -> list[Piece]:
    """As workers push them: each a contiguous part of the images."""
    whole = features(Q, seed=1) if part.startswith(QUERIES) else features(N)
    if part in (BANK, QUERIES):
        whole = np.repeat(whole, 3, axis=1).astype(np.float16)
    return [(part, rows, whole[rows]) for rows in np.array_split(np.arange(len(whole)), count)]


def labelled(count: int = 3) -> list[Piece]:
    return [piece for part in LABELLED for piece in shards(part, count)]


def filled(key: str = "1/2", parts: list[Piece] | None = None) -> EStepActor:
    actor = EStepActor(CONFIG)
    for part in shards() + labelled() if parts is None else parts:
        actor.push(key, *part)
    return actor


def ask(
    actor: EStepActor, request: EStepRequest = REQUEST, key: str = "1/2", previous: ClusterSet | None = None
) -> EStepAnswer:
    return actor.run(key, request, previous, OF, OF[:Q])


def figures(answer: EStepAnswer) -> dict[str, float]:
    return {name: value for name, value in answer.metrics.items() if not name.endswith("seconds")}


def test_an_answer_holds_the_clusters_and_the_figures() -> None:
    actor = filled()
    actor.ping()
    answer = ask(actor)
    assert (answer.refused, answer.missing) == ("", "")
    expected = cluster(
        features(N), CONFIG.e_step, epoch=2, temperature=CONFIG.loss.temperature, seed=CONFIG.seed
    )
    assert same(answer.clusters, expected)
    assert answer.clusters is not None
    assert answer.clusters.epoch == 2
    assert [answer.metrics[f"cluster/{m}/k"] for m in (0, 1)] == [3.0, 7.0]
    assert {
        "eval/rankme",
        "eval/knn_top1",
        "eval/head/knn_top1",
        "cluster/0/ami",
        "cluster/1/purity",
        "cluster/1/phi_mean",
        "cluster/0/empty",
    } <= set(answer.metrics)
    assert all(isinstance(value, float) and np.isfinite(value) for value in answer.metrics.values())


@given(st.permutations(range(15)), st.integers(1, 3))
def test_the_order_in_which_shards_arrive_does_not_matter(order: list[int], repeats: int) -> None:
    parts = shards() + labelled()
    mixed = [parts[i] for i in order]
    reversed_rows = (
        [(part, rows[::-1], values[::-1]) for part, rows, values in mixed] if repeats == 2 else mixed
    )
    answer, expected = ask(filled(parts=reversed_rows)), ask(filled())
    assert same(answer.clusters, expected.clusters)
    assert figures(answer) == figures(expected)


def test_workers_push_at_the_same_time() -> None:
    # 12 images over 20 workers: some push empty shards
    actor, parts = EStepActor(CONFIG), shards(count=20) + labelled(20)
    threads = [threading.Thread(target=actor.push, args=("1/2", *part)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(ask(actor, replace(REQUEST, shards=20)).clusters, ask(filled()).clusters)


@pytest.mark.parametrize("arrived", [0, 1, 2])
def test_missing_shards_are_said_and_sent_again(arrived: int) -> None:
    actor = filled(parts=shards()[:arrived])
    answer = ask(actor)
    assert answer.clusters is None
    assert answer.metrics == {}
    assert answer.missing == f"{3 - arrived} of 3 shards of train features"
    for part in shards() + labelled():
        actor.push("1/2", *part)
    assert ask(actor).missing == ""


@pytest.mark.parametrize("arrived", [0, 2])
@pytest.mark.parametrize("part", LABELLED)
def test_missing_labelled_shards_are_said_too(part: str, arrived: int) -> None:
    others = [piece for piece in labelled() if piece[0] != part]
    parts = shards() + others + shards(part)[:arrived]
    assert ask(filled(parts=parts)).missing == f"{3 - arrived} of 3 shards of {part} features"
    # nor are they pushed then
    assert ask(filled(parts=parts), replace(REQUEST, evaluate=False)).missing == ""


def test_another_key_drops_the_old_shards() -> None:
    actor = filled(parts=shards()[:2])
    for part in shards()[:2]:
        actor.push("1/3", *part)
    assert ask(actor, key="1/3").missing == "1 of 3 shards of train features"
    actor = filled("1/2")
    actor.push("1/3", *shards()[0])
    assert ask(actor, key="1/2").missing == "3 of 3 shards of train features"
    for part in shards()[1:] + labelled():  # what was pushed under the new key is still there
        actor.push("1/3", *part)
    assert same(ask(actor, key="1/3").clusters, ask(filled()).clusters)


def test_shards_are_used_once() -> None:
    actor = filled()
    assert ask(actor).missing == ""
    assert ask(actor).missing == "3 of 3 shards of train features"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.ones((N, 8), np.float32) / np.sqrt(8), "collapsed"),
        (np.full((N, 8), np.nan, np.float32), "not finite"),
        (features(5)[np.arange(N) % 5], "only 5 of the 60 features differ"),
    ],
)
def test_features_that_cannot_be_clustered_are_refused_and_not_raised(rows: np.ndarray, said: str) -> None:
    actor = filled(parts=[("train", ids, rows[ids]) for ids in np.array_split(np.arange(N), 3)] + labelled())
    answer = ask(actor)
    assert answer.clusters is None
    assert answer.missing == ""
    assert said in answer.refused
    assert "before epoch 3" in answer.refused


def test_a_diverged_encoder_during_warm_up_is_no_exception() -> None:
    broken = [(part, rows, np.full_like(values, np.nan)) for part, rows, values in shards() + labelled()]
    answer = ask(filled(parts=broken), replace(REQUEST, cluster=False))
    assert (answer.refused, answer.missing, answer.clusters) == ("", "", None)
    assert "eval/rankme" not in answer.metrics


def test_measuring_without_clustering() -> None:
    answer = ask(filled(), replace(REQUEST, cluster=False))
    assert answer.clusters is None
    assert set(answer.metrics) == {
        "eval/rankme",
        "eval/areq",
        "eval/uniformity",
        "eval/knn_top1",
        "eval/knn_top1_error",
        "eval/largest_class",
        "eval/head/knn_top1",
        "perf/evaluation_seconds",
    }


def test_clustering_without_measuring() -> None:
    answer = ask(filled(parts=shards()), replace(REQUEST, evaluate=False))
    assert same(answer.clusters, ask(filled()).clusters)
    assert not [name for name in answer.metrics if name.startswith("eval/")]
    assert "cluster/0/phi_mean" in answer.metrics


@pytest.mark.parametrize(
    ("name", "bank", "queries"),
    [("eval/knn_top1", BANK, QUERIES), ("eval/head/knn_top1", BANK_HEAD, QUERIES_HEAD)],
)
def test_backbone_and_head_are_each_measured_on_their_held_out_features(
    name: str, bank: str, queries: str
) -> None:
    grouped = np.eye(8, dtype=np.float32)
    others = [piece for piece in labelled() if piece[0] not in (bank, queries)]
    of_bank = [(bank, rows, grouped[OF[rows]] + 0.1 * values) for _, rows, values in shards()]
    right = [(queries, rows, grouped[OF[rows]]) for _, rows, _ in shards(QUERIES_HEAD)]
    wrong = [(queries, rows, grouped[(OF[rows] + 1) % 3]) for _, rows, _ in shards(QUERIES_HEAD)]
    common = shards() + others + of_bank
    measured = [ask(filled(parts=common + part)).metrics for part in (right, wrong)]
    assert [figures[name] for figures in measured] == [1.0, 0.0]
    (other,) = {"eval/knn_top1", "eval/head/knn_top1"} - {name}
    assert measured[0][other] == measured[1][other]


def test_only_labelled_images_of_the_sample_are_sent_and_measured() -> None:
    """The bank holds every second image with a label, at most 10; their labels are theirs, by number."""
    of, holdout_of = np.where(np.arange(N) % 2, -1, np.arange(N) % 3), np.arange(Q) % 3
    config = CONFIG.model_copy(
        update={"evaluation": CONFIG.evaluation.model_copy(update={"bank_images": 10, "query_images": 5})}
    )
    sample = LabelledSample.of(of, holdout_of, config.evaluation)
    assert (len(sample.bank_B), len(sample.queries_Q)) == (10, 5)
    grouped = np.eye(8, dtype=np.float32)
    actor = EStepActor(config)
    for part, classes in ((BANK, of[sample.bank_B]), (QUERIES, holdout_of[sample.queries_Q])):
        for name in (part, f"{part}/head"):
            actor.push("1/2", name, np.arange(len(classes)), grouped[classes], len(classes))
    actor.push("1/2", TRAIN, np.arange(N), features(N), N)
    request = replace(REQUEST, shards=1, num_bank=10, num_queries=5)
    metrics = actor.run("1/2", request, None, of, holdout_of).metrics
    assert (metrics["eval/knn_top1"], metrics["eval/head/knn_top1"]) == (1.0, 1.0)


def test_reference_lines_are_an_answer_of_their_own() -> None:
    """Here the untrained encoder is always wrong and the pixels are always right."""
    grouped = np.eye(8, dtype=np.float32)
    actor = EStepActor(CONFIG)
    request = EStepRequest(0, False, False, 1, N, N, Q, references=True)
    parts = {
        BANK: grouped[OF],
        QUERIES: grouped[(OF[:Q] + 1) % 3],
        BANK_PIXELS: (200 * grouped[OF]).astype(np.uint8),
        QUERIES_PIXELS: (100 * grouped[OF[:Q]]).astype(np.uint8),
    }
    for part, rows in parts.items():
        actor.push("1/references", part, np.arange(len(rows)), rows, len(rows))
    answer = actor.run("1/references", request, None, OF, OF[:Q])
    assert answer.metrics == {"eval/pixels/knn_top1": 1.0, "eval/untrained/knn_top1": 0.0}
    missing = actor.run("1/references", request, None, OF, OF[:Q]).missing
    assert missing == "1 of 1 shards of bank features"


def test_the_final_evaluation_comes_with_the_last_answer() -> None:
    usual = ask(filled())
    answer = ask(filled(), replace(REQUEST, final=True))
    assert same(answer.clusters, usual.clusters)
    more = set(figures(answer)) - set(figures(usual))
    assert {"eval/linear_top1", "eval/few_5/linear_top1", "eval/clusters/ami"} <= more
    assert {name: figures(answer)[name] for name in figures(usual)} == figures(usual)
    backbone = LabelledFeatures(
        np.repeat(features(N), 3, axis=1).astype(np.float16),
        OF,
        np.repeat(features(Q, seed=1), 3, axis=1).astype(np.float16),
        OF[:Q],
    )
    expected = measure_final(backbone, CONFIG.evaluation)
    assert {name: answer.metrics[name] for name in more} == {name: expected[name] for name in more}


def test_a_final_evaluation_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit_predict(*arguments: object) -> None:
        raise MemoryError("too little of it")

    usual = ask(filled())
    monkeypatch.setattr("sklearn.cluster.KMeans.fit_predict", fit_predict)
    answer = ask(filled(), replace(REQUEST, final=True))
    assert same(answer.clusters, usual.clusters)
    assert figures(answer) == figures(usual)
    assert answer.warnings == ("lacks the figures of evaluation.final (MemoryError: too little of it)",)


def test_without_held_out_images_or_labels() -> None:
    request = replace(REQUEST, num_bank=0, num_queries=0)
    assert "eval/knn_top1" not in ask(filled(parts=shards()), request).metrics
    answer = filled(parts=shards()).run("1/2", request, None, None, None)
    assert "eval/rankme" in answer.metrics
    assert "cluster/0/ami" not in answer.metrics


def test_clusters_are_compared_with_the_previous_ones() -> None:
    first = ask(filled())
    assert "cluster/0/nmi_previous" not in first.metrics
    again = ask(filled(), previous=first.clusters)
    assert again.metrics["cluster/0/nmi_previous"] == pytest.approx(1.0)
    # a warm start: the same features keep their clusters
    later = ask(filled(), replace(REQUEST, epoch=3), previous=first.clusters)
    assert later.metrics["cluster/1/nmi_previous"] == pytest.approx(1.0)
    assert later.metrics["cluster/1/cold"] == 0
    anew = EStepActor(config_of(warm_start="none"))
    for part in shards() + labelled():
        anew.push("1/2", *part)
    other = ask(anew, replace(REQUEST, epoch=3), previous=first.clusters)
    assert 0 <= other.metrics["cluster/1/nmi_previous"] < 1
    assert other.metrics["cluster/1/cold"] == 1


def test_answers_travel() -> None:
    answer = ask(filled())
    copy = pickle.loads(pickle.dumps(answer))
    assert same(copy.clusters, answer.clusters)
    assert copy.metrics == answer.metrics

"""The study's runs: what its arms share and how they differ, going on after a stop, the report."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import with_overrides
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import ArrayImages
from pcl_ray.plan import checks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {
    "data.source": "arrays",
    "data.channels": 1,
    "augment.image_size": 8,
    "augment.blur": 0.0,
    "augment.mean": [0.4],
    "augment.std": [0.3],
    "encoder.backbone": "small_resnet",
    "encoder.width": 8,
    "encoder.blocks": [1, 1],
    "encoder.dim": 16,
    "encoder.momentum": 0.9,
    "loss.queue_size": 64,
    "e_step.num_clusters": [4, 8, 16],
    "e_step.warmup_epochs": 1,
    "e_step.restarts": 1,
    "e_step.collapse_rank": 0.0,
    "e_step.collapse_cone": 1.0,
    "train.epochs": 3,
    "train.batch_size": 32,
}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import study_report  # pyrefly: ignore[missing-import]
    import study_settings  # pyrefly: ignore[missing-import]
    import study_training  # pyrefly: ignore[missing-import]

    tiny = study_settings.Task(5, TINY, seeds=2)
    monkeypatch.setitem(study_settings.TASKS, "tiny", tiny)
    return SimpleNamespace(report=study_report, settings=study_settings, training=study_training)


def splits_of(count: int = 160) -> DataSplits:
    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 256, (5, 8, 8, 1))
    labels = draw.integers(0, 5, count + 60)
    pixels = (0.7 * kinds[labels] + 0.3 * draw.integers(0, 256, (len(labels), 8, 8, 1))).astype(np.uint8)
    return DataSplits(
        ArrayImages(pixels[:count], labels[:count]), ArrayImages(pixels[count:], labels[count:])
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_every_run_has_its_own_digest_and_a_sound_configuration(study: SimpleNamespace) -> None:
    settings = study.settings
    sizes = {"fashion_mnist": 20000, "kanji": 15000, "emoji": 5262, "animal_mnist": 8000}
    for device in ("cpu", "cuda"):
        runs = settings.runs(device=device, references=True)
        assert len({run.digest for run in runs}) == len(runs)
        for run in runs:
            if run.task == "tiny" and device == "cuda":
                continue
            images = sizes.get(run.task, 7199 if run.task != "tiny" else 160)
            config = study.training.config_of(run, "file.npz", images, 100)
            problems, _ = checks.check(config, images, 100)
            assert not problems, (run.name, problems)


def test_what_is_whole_comes_first(study: SimpleNamespace) -> None:
    runs = study.settings.runs()
    ablations = [at for at, run in enumerate(runs) if run.arm in study.settings.ABLATIONS]
    early = [at for at, run in enumerate(runs) if run.arm in study.settings.MAIN and run.seed < 5]
    late = [at for at, run in enumerate(runs) if run.seed >= 5]
    assert max(early) < min(ablations)
    assert max(ablations) < min(late)
    seeds = [runs[at].seed for at in early]
    assert seeds == sorted(seeds)
    # what a longer arm's length follows from stands before it
    names = [run.name for run in runs]
    for at, run in enumerate(runs):
        if study.settings.ARMS[run.arm].longer:
            for other in ("infonce", "pcl"):
                assert names.index(study.settings.Run(run.task, other, run.seed).name) < at


def test_a_digest_follows_the_settings(study: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = study.settings
    runs = [settings.Run("tiny", arm, 0) for arm in ("infonce", "pcl", "infonce_longer", "constant_phi")]
    before = [run.digest for run in runs]
    assert [run.digest for run in runs] == before
    monkeypatch.setitem(settings.TASKS, "tiny", settings.Task(5, TINY | {"optimizer.lr": 0.01}))
    assert not set(before) & {run.digest for run in runs}
    assert not settings.Run("tiny", "pcl", 99).tuning
    assert settings.Run("tiny", "pcl", 100).tuning


def test_a_longer_arm_gets_the_time_that_the_other_took_more(study: SimpleNamespace) -> None:
    further = study.training.further_epochs
    assert further((10.0, 5), (14.0, 5)) == 2
    assert further((10.0, 5), (14.1, 5)) == 3  # rounded up, in its favour
    assert further((10.0, 5), (9.0, 5)) == 1


def clustering_of(labels: torch.Tensor, count: int) -> Clustering:
    prototypes = torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    return Clustering(prototypes, labels, torch.linspace(0.1, 0.3, count))


def test_shuffled_clusters_keep_everything_but_their_images(study: SimpleNamespace) -> None:
    torch.manual_seed(0)
    fine = torch.randint(0, 8, (200,))
    clusters = [clustering_of(fine, 8), clustering_of(fine // 2, 4)]
    shuffle = study.training.Shuffle(torch.randperm(200))
    shuffled = [shuffle.apply(clustering) for clustering in clusters]
    for before, after in zip(clusters, shuffled, strict=True):
        assert torch.equal(before.sizes, after.sizes)
        assert torch.equal(before.prototypes, after.prototypes)
        assert torch.equal(before.concentration, after.concentration)
        assert (before.assignments == after.assignments).float().mean() < 0.5
        assert torch.equal(shuffle.undo(after).assignments, before.assignments)
    assert torch.equal(shuffled[0].assignments // 2, shuffled[1].assignments)  # still nested
    constant = study.training.ConstantConcentration(0.2).apply(clusters[0])
    assert torch.equal(constant.concentration, torch.full((8,), 0.2))
    assert torch.equal(constant.assignments, fine)


@dataclass(frozen=True)
class SimpleAnswer:
    clusters: ClusterSet


def test_an_e_step_goes_on_from_its_own_clusters_not_from_the_shuffled_ones(study: SimpleNamespace) -> None:
    own = ClusterSet(2, (clustering_of(torch.randint(0, 8, (50,)), 8),))
    seen: list[Any] = []

    class Inner:
        def begin(self, key: str, request: Any, shards: Any, previous: ClusterSet | None) -> Any:
            seen.append(previous)
            answer = SimpleAnswer(own)
            return SimpleNamespace(ready=lambda: True, wait=lambda: answer)

    e_step = study.training.ChangedEStep(Inner(), study.training.Shuffle(torch.randperm(50)))
    first = e_step.begin("a", None, {}, None).wait().clusters
    assert not torch.equal(first.clusterings[0].assignments, own.clusterings[0].assignments)
    e_step.begin("b", None, {}, first)
    assert seen[0] is None
    assert torch.equal(seen[1].clusterings[0].assignments, own.clusterings[0].assignments)


def test_arms_share_the_warm_up_and_go_on_after_a_stop(study: SimpleNamespace, tmp_path: Path) -> None:
    splits, trained = splits_of(), study.training.trained
    run = study.settings.Run("tiny", "infonce", 0)
    infonce = trained(run, splits, "", tmp_path / "a")
    shuffled_run = study.settings.Run("tiny", "pcl_shuffled", 0)
    shuffled = trained(shuffled_run, splits, "", tmp_path / "a")
    assert len(list((tmp_path / "a" / "warm_ups").iterdir())) == 1
    assert infonce.warm_up_seconds == shuffled.warm_up_seconds > 0
    assert not same(weights(infonce.checkpoint), weights(shuffled.checkpoint))

    # InfoNCE through the warm-up is InfoNCE in one go.
    config = with_overrides(infonce.config, {"seed": 0})
    from pcl_ray import plan as plans
    from pcl_ray.training.local_e_step import LocalEStep
    from pcl_ray.training.loop import train
    from pcl_ray.training.training_task import TrainingTask

    plan = plans.make(config, len(splits.train), splits.num_holdout)
    task = TrainingTask(config, plan, str(tmp_path / "whole"))
    train(
        task,
        splits,
        device=torch.device("cpu"),
        e_step=LocalEStep(config, splits),
        broadcast=lambda value: value,
        post=lambda event: None,
    )
    whole = task.checkpoints / infonce.checkpoint.name
    assert same(weights(infonce.checkpoint), weights(whole))

    # Stopped after every epoch, the shuffled arm comes to the same weights.
    for _ in range(10):
        try:
            pieces = trained(shuffled_run, splits, "", tmp_path / "b", pause=lambda: True)
            break
        except study.training.Paused:
            continue
    else:
        pytest.fail("it never came to an end")
    assert same(weights(pieces.checkpoint), weights(shuffled.checkpoint))
    again = trained(shuffled_run, splits, "", tmp_path / "b")  # nothing is left
    assert again.seconds == pieces.seconds > 0


def test_a_difference_is_that_of_pairs(study: SimpleNamespace) -> None:
    one, other = {0: 0.5, 1: 0.7, 2: 0.6, 9: 1.0}, {0: 0.4, 1: 0.5, 2: 0.6, 8: 0.0}
    found = study.report.difference(one, other)
    each = [0.1, 0.2, 0.0]
    deviation = math.sqrt(sum((value - 0.1) ** 2 for value in each) / 2)
    half = 4.302653 * deviation / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert found.pairs == 3
    np.testing.assert_allclose([found.mean, found.low, found.high], [0.1, 0.1 - half, 0.1 + half], rtol=1e-6)
    assert str(found) == "+10.0 [-14.8, +34.8]"
    assert study.report.difference({1: 0.5}, {2: 0.5}) is None
    assert study.report.difference({1: 0.5}, {1: 0.25}).pairs == 1


def test_lines_of_other_settings_and_of_tuning_are_left_out(study: SimpleNamespace) -> None:
    def line(arm: str, seed: int, value: float, **changes: Any) -> dict[str, Any]:
        run = study.settings.Run("tiny", arm, seed)
        row = {"task": "tiny", "arm": arm, "seed": seed, "device": "cpu", "digest": run.digest}
        return row | {"backbone": {"ami": value}} | changes

    rows = [
        line("pcl", 0, 0.5),
        line("pcl", 1, 0.6),
        line("pcl", 100, 0.1),
        line("pcl", 2, 0.9, digest="old"),
    ]
    rows += [line("infonce", 0, 0.4), line("infonce", 1, 0.0, failed="features have collapsed")]
    del rows[-1]["backbone"]
    results = study.report.Results(rows, "cpu")
    assert results.of("tiny", "pcl", "ami") == {0: 0.5, 1: 0.6}
    assert results.others == 1
    assert results.difference("tiny", "pcl", "infonce", "ami").pairs == 1
    assert list(results.failures()) == ["tiny, InfoNCE, seed 1: features have collapsed"]
    assert "1 lines of other settings are left out; 1 runs failed" in "\n".join(study.report._tables(results))


def test_results_replace_those_between_the_marks(study: SimpleNamespace, tmp_path: Path) -> None:
    document = tmp_path / "study.md"
    begin, end = study.report.BEGIN, study.report.END
    document.write_text(f"plan\n\n{begin}\n\nold\n\n{end}\n\nafter\n")
    study.report.insert(document, "new")
    assert document.read_text() == f"plan\n\n{begin}\n\nnew\n{end}\n\nafter\n"
    assert begin in (BENCHMARKS.parent / "docs" / "study.md").read_text()


@pytest.mark.slow
def test_a_small_study_runs_and_is_reported_without_ray_faiss_or_mlflow(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    script = f"""
import json, sys
for name in ("ray", "faiss", "mlflow"):
    sys.modules[name] = None  # as if it were not installed
sys.path.insert(0, {str(BENCHMARKS)!r})
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "faiss" else find_spec(name, *more)
import numpy as np
import study, study_data, study_report, study_settings

def make(folder, tuning):
    draw = np.random.default_rng(int(tuning))
    kinds = draw.integers(0, 256, (5, 8, 8))
    labels = draw.integers(0, 5, 220)
    pixels = (0.7 * kinds[labels] + 0.3 * draw.integers(0, 256, (220, 8, 8))).astype(np.uint8)
    return study_data.Arrays(pixels[:160], labels[:160], pixels[160:], labels[160:])

study_data.SOURCES.clear()
study_data.SOURCES["fashion_mnist"] = study_data.Source(make)
knobs = json.loads({json.dumps(TINY)!r})
study_settings.TASKS.clear()
study_settings.TASKS["fashion_mnist"] = study_settings.Task(5, knobs, seeds=2)
study_settings.ABLATION_SEEDS = 1
study_report.DOCS = study_report.Path(sys.argv[1])
common = ["--data", sys.argv[1], "--work", sys.argv[1] + "/work", "--results", sys.argv[1] + "/results.jsonl"]
for words in (
    ["run", "--seeds", "0", "1", "--arms", "infonce", "pcl", "constant_phi", "infonce_longer"],
    ["run"],
    ["run", "--seeds", "100", "--arms", "infonce"],
    ["list"],
    ["report"],
):
    sys.argv = ["study.py", *words, *common]
    code = study.main()
    assert code == 0, (words, code)
"""
    done = run_python(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_name = {(row["arm"], row["seed"]): row for row in rows}
    assert len(by_name) == len(rows)  # nothing twice
    assert {"pixels", "untrained", "infonce", "pcl", "pcl_shuffled", "infonce_longer", "cold", "one_k"} <= {
        row["arm"] for row in rows
    }
    assert not [row for row in rows if "failed" in row]
    assert by_name["infonce", 100]["data"] != by_name["infonce", 0]["data"]  # other images to tune on
    longer, pcl, infonce = (by_name[arm, 1] for arm in ("infonce_longer", "pcl", "infonce"))
    assert longer["epochs"] == infonce["epochs"] + longer["further_epochs"]
    assert longer["further_epochs"] == max(
        math.ceil((pcl["seconds"] - infonce["seconds"]) / (infonce["seconds"] / 2) - 1e-9), 1
    )
    assert by_name["one_k", 0]["num_clusters"] == [8]
    assert infonce["num_clusters"] == []
    assert set(pcl["backbone"]) >= {"ami", "accuracy", "one_label", "five_labels", "knn_20", "linear"}
    text = (tmp_path / "study.md").read_text()
    assert "| PCL − InfoNCE, as long | 2 |" in text
    assert (tmp_path / "study_differences.svg").stat().st_size > 1000
    assert (tmp_path / "study_ablations.svg").stat().st_size > 1000
    assert not list((tmp_path / "work" / "runs").iterdir())  # checkpoints of finished runs are removed


def test_a_wrong_name_is_one_sentence(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['study.py', *sys.argv[1:]]; "
    script += "import common, study; sys.exit(common.exit_code(study.main))"
    done = run_python(script, "list", "--arms", "plc")
    assert done.returncode == 2
    assert "plc is none of pixels" in done.stderr
    assert "Traceback" not in done.stderr

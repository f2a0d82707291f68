"""The levers of learning, one at a time: what is run in which order, what the report says of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pcl_ray.plan import checks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEASURED = ("knn_20", "linear", "one_label", "five_labels", "ami", "accuracy")


@pytest.fixture
def levers(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import levers  # pyrefly: ignore[missing-import]
    import levers_settings  # pyrefly: ignore[missing-import]

    return SimpleNamespace(script=levers, settings=levers_settings)


def test_every_lever_is_a_sound_configuration_that_differs_from_its_base(levers: SimpleNamespace) -> None:
    runs = levers.settings.runs(("infonce", "pcl"), (100,))
    for wanted, images in ((runs, 20000), (levers.settings.quick_runs(), 1280)):
        configs = {run: levers.script.config_of(run, "file.npz") for run in wanted}
        for run, config in configs.items():
            problems, _ = checks.check(config, images, 500)
            assert not problems, (run.name, problems)
            base = levers.settings.Run(run.base, "base", run.seed, run.quick)
            assert run == base or config != configs[base], run.name
    assert len({run.digest for run in runs}) == len(runs)


def test_the_levers_are_all_that_were_asked_for_and_change_one_thing(levers: SimpleNamespace) -> None:
    changed = {name for knobs in levers.settings.LEVERS.values() for name in knobs}
    assert changed >= {
        *(
            "encoder.head_width",
            "encoder.head_batch_norm",
            "encoder.batch_norm_parts",
            "encoder.momentum_end",
        ),
        *("encoder.stem_stride", "encoder.width", "optimizer.lr", "optimizer.weight_decay"),
        *("augment.jitter", "augment.min_crop", "augment.flip", "augment.shift", "augment.rotate"),
        *("augment.shear", "augment.erase", "augment.small_crops", "optimizer.decay_biases"),
        *("loss.symmetric", "loss.temperature", "loss.queue_size", "loss.prototype_weight"),
        *("loss.prototype_ramp_epochs", "loss.queue_negatives", "loss.cluster_positives"),
        *("e_step.num_clusters", "e_step.every_epochs", "e_step.early_every_epochs"),
    }
    several = {name for name, knobs in levers.settings.LEVERS.items() if len(knobs) > 1}
    # what belongs together, and what costs more by the step and has fewer of them
    assert several == {
        *("rotate_and_shear", "multi_crop", "symmetric", "other_clusters_alone", "every_2_epochs_early")
    }


def test_a_quarter_of_the_epochs_is_warm_up_and_of_infonce_all(levers: SimpleNamespace) -> None:
    def epochs(base: str, lever: str) -> tuple[int, int]:
        knobs = levers.settings.knobs_of(levers.settings.Run(base, lever, 100))
        return knobs["e_step.warmup_epochs"], knobs["train.epochs"]

    assert epochs("pcl", "base") == (2, 8)
    assert epochs("pcl", "symmetric") == (1, 4)
    assert epochs("infonce", "base") == (8, 8)
    assert epochs("infonce", "multi_crop") == (5, 5)


def test_whole_columns_exist_wherever_it_stops(levers: SimpleNamespace) -> None:
    settings = levers.settings
    runs = settings.runs()
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run.seed for run in runs} == {100, 101, 102, 103, 104}
    columns = [[(run.base, run.lever) for run in runs if run.seed == seed] for seed in range(100, 105)]
    assert all(column == columns[0] for column in columns)
    infonce = [lever for base, lever in columns[0] if base == "infonce"]
    pcl = [lever for base, lever in columns[0] if base == "pcl"]
    assert infonce == ["base", *settings.GENERAL]
    assert pcl == ["base", *settings.PROTOTYPES]
    some = settings.runs(seeds=(100,), levers={"weight_1"})
    assert [run.name for run in some] == ["infonce.base.100", "pcl.base.100", "pcl.weight_1.100"]
    on_pcl = [run.lever for run in settings.runs(("pcl",), (100,))]
    assert on_pcl == ["base", *settings.GENERAL, *settings.PROTOTYPES]


def test_a_digest_follows_the_settings(levers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = levers.settings
    narrow, base = (settings.Run("infonce", lever, 100) for lever in ("head_narrow", "base"))
    before = narrow.digest, base.digest
    monkeypatch.setitem(settings.LEVERS, "head_narrow", {"encoder.head_width": 64})
    assert narrow.digest != before[0]
    assert base.digest == before[1]
    monkeypatch.setitem(settings.SETTING, "optimizer.lr", 0.01)
    assert base.digest != before[1]


def line(levers: SimpleNamespace, base: str, lever: str, seed: int, knn: float, **changes: Any) -> Any:
    run = levers.settings.Run(base, lever, seed)
    backbone = dict.fromkeys(MEASURED, 0.5) | {"knn_20": knn}
    row = {"base": base, "lever": lever, "seed": seed, "quick": False, "digest": run.digest}
    row |= {"backbone": backbone, "head": {"knn_20": 0.4}, "seconds": 100.0, "date": "2026-01-02T03:04:05"}
    return row | {"machine": "a machine, load 1.0"} | changes


def table_of(text: str, title: str) -> list[str]:
    """The first cells of the lines of a table, whole lines."""
    (_, part) = text.split(f"**{title}", 1)
    return [row for row in part.split("\n\n")[1].splitlines() if row.startswith("|")][2:]


def test_the_report_pairs_seeds_sorts_by_effect_and_is_open_about_a_single_pair(
    levers: SimpleNamespace,
) -> None:
    rows = [line(levers, "infonce", "base", seed, 0.70 + 0.01 * (seed - 100)) for seed in (100, 101, 102)]
    rows += [
        line(levers, "infonce", "jitter_0", 100, 0.60),
        line(levers, "infonce", "jitter_0", 101, 0.62, seconds=50.0),
        line(levers, "infonce", "jitter_0", 104, 0.99),  # has no base
        line(levers, "infonce", "erase", 102, 0.75, seconds=110.0),
        line(levers, "infonce", "no_flip", 100, 0.73),
        line(levers, "infonce", "no_flip", 101, 0.741),
        line(levers, "infonce", "lr_0.12", 100, 0.74),
        line(levers, "infonce", "lr_0.12", 101, 0.70),
        line(levers, "infonce", "shift", 100, 0.0, failed="features have collapsed"),
        line(levers, "infonce", "shift", 101, 0.9, digest="of other settings"),
        line(levers, "infonce", "erase", 101, 0.9) | {"lever": "no longer a lever"},
        line(levers, "pcl", "base", 100, 0.72),
        line(levers, "pcl", "weight_1", 100, 0.69),
    ]
    for row in rows:
        if "failed" in row:
            del row["backbone"], row["head"], row["seconds"]
    text = "\n".join(levers.script.tables(levers.script.Results(rows)))
    on_infonce = table_of(text, "Levers on InfoNCE")
    assert [row.split("|")[1:4] for row in on_infonce] == [
        [" `augment.flip` 0.5 → 0.0 ", " gain ", " 2 "],
        [" `augment.erase` 0.0 → 0.5 ", " open ", " 1 "],
        [" `optimizer.lr` 0.06 → 0.12 ", " open ", " 2 "],
        [" `augment.jitter` 1.0 → 0.0 ", " loss ", " 2 "],
    ]
    # differences −.10 and −.09: the mean, and Student's t with 1 degree of freedom, 12.706 · .00707 / √2
    assert on_infonce[3].split("|")[4].strip() == "**-9.5 [-15.9, -3.1]**"
    assert on_infonce[3].split("|")[-2].strip() == "0.75"  # the median of 1 and .5
    assert on_infonce[1].split("|")[4].strip() == "+3.0 (n = 1)"
    assert on_infonce[1].split("|")[-2].strip() == "1.10"
    assert [row.split("|")[1].strip() for row in table_of(text, "Levers on PCL")] == [
        "`loss.prototype_weight` 0.3 → 1.0"
    ]
    against = table_of(text, "Each setting with prototypes less InfoNCE")
    assert [row.split("|")[1].strip() for row in against] == ["PCL", "`loss.prototype_weight` 0.3 → 1.0"]
    assert against[0].split("|")[4].strip() == "+2.0 (n = 1)"
    assert "| InfoNCE | 3 | 71.0 ± 1.0 |" in text
    assert "2 lines of other settings are left out; 1 runs failed" in text
    assert "- InfoNCE, shift, seed 100: features have collapsed" in text


def test_the_document_has_the_marks(levers: SimpleNamespace) -> None:
    text = levers.script.DOCUMENT.read_text()
    assert text.count(levers.script.BEGIN) == text.count(levers.script.END) == 1
    assert text.index(levers.script.BEGIN) < text.index(levers.script.END)


TINY = {
    "augment.image_size": 8,
    "encoder.width": 8,
    "encoder.blocks": [1, 1],
    "encoder.dim": 16,
    "encoder.head_width": 16,
    "encoder.batch_norm_parts": 2,
    "loss.queue_size": 64,
    "e_step.num_clusters": [4, 8],
    "e_step.collapse_rank": 0.0,
    "e_step.collapse_cone": 1.0,
    "train.epochs": 2,
    "train.batch_size": 32,
}
SCRIPT = f"""
import json, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import numpy as np
import levers, levers_settings, study_data

def make(folder, tuning):
    assert tuning
    draw = np.random.default_rng(1)
    kinds = draw.integers(0, 256, (5, 8, 8))
    labels = draw.integers(0, 5, 220)
    pixels = (0.7 * kinds[labels] + 0.3 * draw.integers(0, 256, (220, 8, 8))).astype(np.uint8)
    return study_data.Arrays(pixels[:160], labels[:160], pixels[160:], labels[160:])

study_data.SOURCES.clear()
study_data.SOURCES["fashion_mnist"] = study_data.Source(make)
levers_settings.SETTING.update(json.loads({json.dumps(TINY)!r}))
home = sys.argv[1]
common = ["--data", home, "--work", home + "/work", "--results", home + "/results.jsonl"]
common += ["--document", home + "/RESULTS.md"]
for words in json.loads(sys.argv[2]):
    sys.argv = ["levers.py", *words, *common]
    code = levers.main()
    assert code == 0, (words, code)
"""


@pytest.mark.slow
def test_some_levers_run_in_pieces_and_are_reported(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "RESULTS.md").write_text("# Figures\n")
    levers = ["erase", "head_without_batch_norm", "weight_1", "other_clusters_alone", "every_2_epochs"]
    asked = ["run", "--levers", *levers, "--seeds", "100", "101"]
    in_pieces = [*asked, "--minutes", "0.0001"]  # an epoch at a time, at the most
    verbs = [in_pieces, in_pieces, in_pieces, asked, asked, ["list"], ["report"]]
    done = run_python(SCRIPT, str(tmp_path), json.dumps(verbs))
    assert done.returncode == 0, done.stderr
    assert "time is up" in done.stdout
    rows = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    names = [(row["seed"], row["base"], row["lever"]) for row in rows]
    assert len(set(names)) == len(names) == 2 * 7  # nothing twice
    assert names == sorted(names, key=lambda name: (name[0], name[1]))
    assert not [row for row in rows if "failed" in row]
    for row in rows:
        assert set(row["backbone"]) >= set(MEASURED)
        assert 0 <= row["head"]["knn_20"] <= 1
        assert row["seconds"] > 0
        assert row["num_clusters"] == ([] if row["base"] == "infonce" else [4, 8])
    by_name = dict(zip(names, rows, strict=True))
    assert by_name[100, "infonce", "erase"]["backbone"] != by_name[100, "infonce", "base"]["backbone"]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| InfoNCE | 2 |" in text
    assert "`augment.erase` 0.0 → 0.5" in text
    assert not list((tmp_path / "work" / "runs").iterdir())  # checkpoints of finished runs are removed


def test_a_wrong_request_is_one_sentence(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); "
    script += "import common, levers; codes = []\nfor words in (['--levers', 'plc'], ['--seeds', '3']):\n"
    script += "    sys.argv = ['levers.py', 'list', *words]; codes.append(common.exit_code(levers.main))\n"
    script += "print(codes)"
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[2, 2]"
    assert "plc is none of head_narrow" in done.stderr
    assert "--seeds: those below 100 are the study's" in done.stderr
    assert "Traceback" not in done.stderr

"""The command itself: its verbs, its exit codes, what it prints of a mistake, and how little it imports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pcl_ray import cli, config
from pcl_ray.cli import submit, train
from pcl_ray.errors import ConfigError

VERBS = (
    *("train", "sweep", "resume", "fork", "recipes"),
    *("runs", "report", "compare", "doctor", "ui"),
    *("evaluate", "reproduce", "export"),
    *("embed", "search", "duplicates", "outliers", "sample", "label"),
    *("up", "status", "submit", "down"),
)


def test_importing_the_command_loads_nothing_heavy(loaded_by: Callable[..., list[str]]) -> None:
    assert loaded_by("pcl_ray.cli", "torch", "numpy", "ray", "mlflow", "rich", "faiss") == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: pcl-ray {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], []])
def test_help_lists_the_verbs_in_groups(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == (0 if words else 2)
    printed = capsys.readouterr()
    lines = (printed.out if words else printed.err).splitlines()
    assert tuple(line.split()[0] for line in lines if line.startswith("  ") and line[2] != "-") == VERBS
    assert "use an encoder:" in lines


def test_a_mistyped_verb_is_told_from_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["trian", "digits"])
    assert ended.value.code == 2
    assert "there is no verb 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert [
        line.split()[0] for line in listed.splitlines()[: len(config.recipe_names())]
    ] == config.recipe_names()
    assert cli.main(["recipes", "digits"]) == 0
    assert "pcl-ray train digits" in capsys.readouterr().out
    assert cli.main(["recipes", "digit"]) == 2
    assert "Did you mean 'digits'?" in capsys.readouterr().err


def test_a_folder_is_no_recipe_and_the_way_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(tmp_path)]) == 2
    assert (
        f"is a folder; of its pictures: pcl-ray train folder data.path={tmp_path}" in capsys.readouterr().err
    )


@pytest.mark.parametrize("words", [[], ["trian"], ["train", "--nonsense"], ["fork"]])
def test_words_that_no_verb_takes_exit_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


def test_a_secret_that_was_typed_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "digits", "--nonsense=http://user:topsecret@server/"])
    assert "topsecret" not in capsys.readouterr().err


def test_one_mistake_is_a_line_and_several_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", "seed=x"]) == 2
    assert capsys.readouterr().err.startswith("pcl-ray: seed = 'x': ")
    assert cli.main(["train", "digits", "seed=x", "optimizer.lr=-1"]) == 2
    assert capsys.readouterr().err.startswith("pcl-ray: 2 mistakes:\n  ")


def test_words_and_options_may_stand_in_any_order() -> None:
    orders = (
        ["digits", "seed=1", "--name", "a", "seed=2"],
        ["--name", "a", "seed=1", "digits", "seed=2"],
        ["seed=1", "seed=2", "--name=a", "digits"],
    )
    for words in orders:
        arguments = train.TRAIN.parse(words)
        assert arguments.name == "a"
        assert train.recipe_and_overrides(arguments) == ("digits", ["seed=1", "seed=2"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["digits", "cifar10"], "'cifar10' is neither KEY=VALUE nor the only recipe"),
        (["digits", "--resume", "a"], "leave out recipe 'digits'"),
        (["--resume", "a", "--name", "b"], "leave out --name b"),
        ([], "which recipe?"),
    ],
)
def test_recipes_that_do_not_fit(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        train.recipe_and_overrides(train.TRAIN.parse(words))


def test_submit_keeps_its_own_options_and_passes_the_rest_on() -> None:
    arguments = submit.SUBMIT.parse(
        ["sweep", "alpha", "--memory-gb", "2", "--samples", "3", "--print", "--address=http://a:1", "x=1"]
    )
    assert (arguments.memory_gb, arguments.only_print, arguments.address) == (2.0, True, "http://a:1")
    assert arguments.others == ["sweep", "alpha", "--samples", "3", "x=1"]

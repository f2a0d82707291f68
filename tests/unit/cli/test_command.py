"""The command itself: its verbs, its exit codes, what it prints of a mistake, and how little it imports."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pcl_ray
from pcl_ray import cli, config
from pcl_ray.cli import submit, train
from pcl_ray.errors import ConfigError

VERBS = (
    *("train", "sweep", "resume", "fork", "recipes"),
    *("runs", "report", "compare", "doctor", "ui"),
    *("evaluate", "reproduce", "export"),
    *("embed", "search", "duplicates", "outliers", "sample", "label"),
    *("delete", "prune", "archive", "unarchive", "completion"),
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


def test_a_name_that_is_too_long_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "/" + "y" * 300]) == 2
    assert capsys.readouterr().err.endswith("yyy/config.yaml: File name too long\n")


def test_an_empty_word_is_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "", "--dry-run"]) == 2
    assert "which recipe?" in capsys.readouterr().err


def test_a_file_that_is_no_tar_file_by_its_name_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no shard")
    words = ["data.source=webdataset", f"data.path={tmp_path}/notes.txt", "resources.workers=0"]
    assert cli.main(["train", "digits", "--dry-run", *words]) == 2
    assert "ends neither in .tar nor as compressed files do" in capsys.readouterr().err


# --- what is printed, by the command in a process of its own


def printed(words: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """What a line of a shell gives in which `pcl` is the command."""
    root = str(Path(pcl_ray.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, **more}
    command = f'set -o pipefail; pcl() {{ {shlex.quote(sys.executable)} -m pcl_ray.cli "$@"; }}; {words}'
    return subprocess.run(["bash", "-c", command], capture_output=True, env=environment, timeout=300)


def test_a_reader_that_goes_away_ends_nothing() -> None:
    done = printed("pcl train --describe | head -1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 1


def test_closed_streams_are_no_files_of_others() -> None:
    done = printed("pcl recipes >&-; echo $?; pcl nothing >&- 2>&-; echo $?; pcl recipes <&- | wc -l")
    assert done.stderr == b""
    first, second, lines = done.stdout.split()
    assert (first, second) == (b"0", b"2")
    assert int(lines) > 5


def test_output_that_cannot_be_written_is_said() -> None:
    done = printed("pcl recipes > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"pcl-ray: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "\N{FOX FACE} –"), ("latin-1", r"\U0001f98a -"), ("ascii", r"\U0001f98a -")],
)
def test_what_a_terminal_lacks_is_spelled_and_what_commands_it_escaped(encoding: str, shown: str) -> None:
    typed = b"'\xf0\x9f\xa6\x8a \xe2\x80\x93 \xff \xe2\x80\xae.yaml'"
    done = printed("pcl train " + os.fsdecode(typed), PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert shown in done.stderr.decode(encoding)
    assert b"\x1b" not in done.stderr
    assert b"\xe2\x80\xae" not in done.stderr

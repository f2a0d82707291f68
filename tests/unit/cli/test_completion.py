"""What bash, zsh and fish offer behind `pcl-ray`, by the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from stored_runs import made

from pcl_ray import cli
from pcl_ray.runs.folder import SweepFolder

LIMIT_S = 60
Offer = Callable[[str], list[str]]

# Completes the words of $1 as the key would: bash sets these variables, and splits words at =.
BASH = """
eval "$(cat script)"
read -ra COMP_WORDS <<< "$(sed 's/=/ = /g' <<< "$1")"
[[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { :; }
_pcl_ray
printf '%s\\n' "${COMPREPLY[@]}"
"""
# zsh completes in a terminal alone; the words that the function hands over are what it would offer.
ZSH = """
compdef() { :; }
_files() { :; }
compset() { PREFIX="${words[CURRENT]#*=}"; }
compadd() {
    while [[ "$1" != -- ]]; do shift; done; shift
    print -rl -- ${(M)@:#${PREFIX}*}
}
source ./script
words=(${=1})
[[ "$1" == *" " ]] && words+=("")
CURRENT=${#words}
PREFIX="${words[CURRENT]}"
_pcl_ray
"""
FISH = "source script; complete -C $argv[1] | string replace -r '\\t.*' ''"


@pytest.fixture(params=["bash", "zsh", "fish"])
def offer(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Offer:
    """What the shell offers behind a line."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert cli.main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "test").write_text({"bash": BASH, "zsh": ZSH, "fish": FISH}[shell])

    def offered(line: str) -> list[str]:
        done = subprocess.run(
            [shell, "--norc", "test", line] if shell == "bash" else [shell, "test", line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert done.stderr == ""
        return sorted(set(done.stdout.split()))

    return offered


def test_verbs_recipes_knobs_and_their_values(offer: Offer) -> None:
    assert offer("pcl-ray tr") == ["train"]
    assert {"train", "sweep", "prune", "completion"} <= set(offer("pcl-ray "))
    assert offer("pcl-ray train imagenet_v") == ["imagenet_v1", "imagenet_v2"]
    assert offer("pcl-ray train digits loss.temp") == ["loss.temperature="]
    assert [word.rpartition("=")[2] for word in offer("pcl-ray train digits optimizer.schedule=co")] == [
        "constant",
        "cosine",
    ]
    assert offer("pcl-ray train digits --dry") == ["--dry-run"]
    assert {"temperature", "paper_grid"} <= set(offer("pcl-ray sweep "))
    assert offer("pcl-ray sweep temperature sweep.sam") == ["sweep.samples="]
    assert offer("pcl-ray sweep temperature --recipe stl") == ["stl10"]
    assert "onnx" in offer("pcl-ray export x --to ")
    assert offer("pcl-ray recipes sew") == []


def test_names_of_runs_and_sweeps_are_those_that_are_there(offer: Offer) -> None:
    assert offer("pcl-ray doctor mi") == []
    for name in ("mine", "mine-too", "other"):
        made(name)
    made("many", SweepFolder)
    assert offer("pcl-ray evaluate mi") == ["mine", "mine-too"]
    assert offer("pcl-ray fork mine ot") == ["other"]
    assert set(offer("pcl-ray delete m")) == {"many", "mine", "mine-too"}
    assert offer("pcl-ray sweep --resume ma") == ["many"]
    assert offer("pcl-ray train --resume ot") == ["other"]


def test_it_loads_nothing_heavy(loaded_by: Callable[..., list[str]]) -> None:
    modules = "pcl_ray.cli.completion.scripts, pcl_ray.sweep.space.settings, tune_spaces"
    assert loaded_by(modules, "torch", "numpy", "ray", "mlflow", "faiss") == []

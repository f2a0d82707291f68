"""A run of one or two workers on two nodes: the second is lost, and another comes in its place."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import DIGITS_RUN
from two_nodes import LIMIT_S, TwoNodes

from pcl_ray.runs.folder import read_history_at

pytestmark = pytest.mark.slow
EPOCHS = 400
RUN = (
    *(word for word in DIGITS_RUN if not word.startswith("train.epochs")),
    f"train.epochs={EPOCHS}",
    "e_step.every_epochs=20",
    "evaluation.every_epochs=0",
    "train.log_every_steps=1000",
    "resources.e_step_cpus=0",
)


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    place = tmp_path_factory.mktemp("nodes")  # short: a socket's path has at most 107 bytes
    both = TwoNodes(place, hides=False, second_cpus=1)
    try:
        yield both
    finally:
        both.end()


def test_a_lost_node_shrinks_the_run_and_a_new_one_lets_it_grow(nodes: TwoNodes, tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = ("digits", *RUN, "resources.workers=[1,2]", "--name", "breathing")
    run = subprocess.Popen(
        nodes.command(*words),
        env=nodes.environment_of(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = Output(run)
    output.wait_for("epoch 10/")
    nodes.lose_second()
    output.wait_for("room for 1 of 2 workers")
    output.wait_for("epoch 20/")
    nodes.start_second()
    output.wait_for("going on with 2 workers instead of 1")
    output.wait_for(f"epoch {EPOCHS}/{EPOCHS} done")
    assert run.wait(LIMIT_S) == 0, output.text()
    history = read_history_at(home / "runs" / "breathing")
    steps = [entry["step"] for entry in history]
    assert steps == sorted(set(steps))
    assert len(steps) == EPOCHS

    undisturbed = nodes.train(*words[:-3], "resources.workers=2", "--name", "undisturbed", home=home)
    assert undisturbed.returncode == 0, undisturbed.stderr
    # batch norm has as many parts with one worker as with two: the same but for rounding, which grows
    for name, epochs, tolerance in (("train/loss", 30, 0.05), ("train/loss", EPOCHS, 0.2)):
        one, other = (
            read_history_at(home / "runs" / run_name)[epochs - 1]["metrics"][name]
            for run_name in ("breathing", "undisturbed")
        )
        assert one == pytest.approx(other, abs=tolerance)


class Output:
    """The lines of a process."""

    def __init__(self, process: subprocess.Popen[str]):
        assert process.stdout is not None
        self._lines, self._seen = iter(process.stdout.readline, ""), [""]

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        for line in self._lines:
            self._seen.append(line)
            if text in line:
                return
            assert time.monotonic() < deadline, self.text()
        pytest.fail(f"no {text!r} in\n{self.text()}")

    def text(self) -> str:
        return "".join(self._seen)

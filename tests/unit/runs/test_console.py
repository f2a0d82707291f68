"""What a run prints where it does not run in a terminal."""

from __future__ import annotations

import io
import time

import pytest
from small import DIGITS_RUN

from pcl_ray import config
from pcl_ray import plan as plans
from pcl_ray.runs.console import Display
from pcl_ray.training.events import Event


def lines(*events: Event) -> list[str]:
    out = io.StringIO()
    display = Display(out)
    display.begin(plans.make(config.load("digits", DIGITS_RUN), 300, 50))
    for event in events:
        display.handle(event)
    display.end()
    return out.getvalue().splitlines()


def test_lines_of_steps_and_epochs() -> None:
    figures = {
        "perf/e_step_seconds": 0.456,
        "perf/images_per_second": 1234.5,
        "cluster/0/ami": 0.12345,
        "eval/knn_top1": 0.98765,
        "train/loss": 2.34567,
        "train/lr": 0.1,
    }
    step, epoch = lines(
        Event("step", 0, 1, {"train/loss": 5.0}),
        Event("epoch", 1, 9, {**figures, "perf/epoch_seconds": 1.26}),
    )
    assert step.startswith("epoch 1/4  step 2/")
    assert step.endswith("  loss 5.000")
    assert epoch == (
        "epoch 2/4 done in 1.3 s  loss 2.346  kNN 0.988  AMI 0.123  images/s 1234  E-step s 0.46"
    )


def test_a_run_that_goes_on_says_where_and_others_say_nothing() -> None:
    assert lines(Event("start", 0, 0), Event("figures", 0, 9, {"eval/rankme": 3.0})) == []
    assert lines(Event("start", 2, 8)) == ["going on with epoch 3/4"]
    assert lines(Event("start", 2, 10)) == ["going on with epoch 3/4, step 3"]


def test_what_is_waited_for_long_is_said() -> None:
    out = io.StringIO()
    display = Display(out, patience_s=0.2)
    display.begin(plans.make(config.load("digits", DIGITS_RUN), 300, 50))
    display.handle(Event("phase", text="Ray to start"))
    time.sleep(0.5)
    display.handle(Event("phase", text="the E-step actor to start"))  # which does not take long
    display.handle(Event("start", 0, 0))
    display.handle(Event("phase", 2, text="clustering"))
    time.sleep(0.5)
    display.handle(Event("phase", 2, text="evaluation"))
    display.end()
    time.sleep(0.4)
    assert out.getvalue().splitlines() == [
        "waiting    for Ray to start",
        "waiting    for clustering, after epoch 2/4",
    ]


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(Event("warning", 0, text="something [odd]")) == []
    assert capsys.readouterr().err == "warning: something [odd]\n"

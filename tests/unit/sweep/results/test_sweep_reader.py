"""A sweep as it is looked at, read from its folder and those of its trials, and the verbs that show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweep import write_trial

from pcl_ray.cli import main
from pcl_ray.errors import ConfigError
from pcl_ray.sweep import driver
from pcl_ray.sweep.results import sweep_reader
from pcl_ray.sweep.session import SweepSession

WEAK, STRONG = ({"loss.temperature": 0.1, "e_step.alpha": alpha} for alpha in (1, 10))


def write_sweep(session: SweepSession) -> None:
    """As its driver leaves it: a request, a trial that has finished and one under way."""
    driver._write_request(session.folder, session.request)
    session.folder.write_state(**driver._report_entries(session), progress={"trials": 5})
    metrics = {"eval/knn_top1": 0.6}
    write_trial(session, STRONG, state="finished", epochs=4, trial={"objective": 0.6, "metrics": metrics})
    write_trial(session, WEAK, state="running", epochs=1, trial={"objective": 0.5, "metrics": {}})


def test_all_that_its_page_needs_is_read(session: SweepSession) -> None:
    write_sweep(session)
    record = sweep_reader.read("small")
    assert (record.objective, record.direction, record.planned) == ("eval/knn_top1", "max", 5)
    assert record.knobs == {"loss.temperature": "one of 0.1, 0.3", "e_step.alpha": "one of 1, 10"}
    assert record.recipe_point == {"loss.temperature": 0.2, "e_step.alpha": 10.0}
    assert (record.space, record.recipe) == ("small", "digits")
    assert record.settings["seeds"] == 1
    assert (record.num_holdout, record.test_images, record.compared_on) == (60, 30, 30)
    assert [row.state for row in record.rows] == ["finished", "unfinished"]
    assert set(record.runs) == {row.trials[0].run_name for row in record.rows}
    assert record.best is not None
    assert record.best.point == STRONG


def test_what_an_earlier_version_wrote_is_enough(session: SweepSession) -> None:
    write_trial(session, STRONG, state="finished", epochs=4, trial={"objective": 30.0, "metrics": {}})
    (session.folder.path / "leaderboard.json").write_text('{"objective": "eval/areq"}')
    record = sweep_reader.read("small")
    assert (record.objective, record.direction) == ("eval/areq", "nearest_one")
    assert set(record.knobs) == set(STRONG)
    assert (record.recipe_point, record.settings) == (None, {})


def test_report_and_doctor_take_the_name_of_a_sweep(
    session: SweepSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(session)
    assert main(["doctor", "small"]) == 0
    assert "small (sweep, running): 1 of 5 trials ended" in capsys.readouterr().out
    assert main(["report", "small"]) == 0
    assert str(session.folder.path / "report.html") in capsys.readouterr().out
    assert "Leaderboard" in (session.folder.path / "report.html").read_text()
    assert main(["report", str(session.folder.path), "--out", str(tmp_path / "there.html")]) == 0
    assert (tmp_path / "there.html").is_file()
    assert main(["report", "small", "--out", str(tmp_path / "no" / "there.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_name_that_neither_has(session: SweepSession, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "smal"]) == 2
    assert "there is no run 'smal', and no sweep of that name," in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no sweep 'smal'"):
        sweep_reader.read("smal")

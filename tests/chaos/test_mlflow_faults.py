"""What MLflow's server may do to a run on Ray: nothing of the run depends on it, and its record is whole in
the end. `make chaos` runs them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import faults
import pytest
from faults import M_STEP, Run
from mlflow_servers import MlflowServer, Proxy, proxy_before

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def proxy(mlflow: MlflowServer) -> Iterator[Proxy]:
    with proxy_before(mlflow) as made:
        yield made


def ended(run: Run) -> str:
    """What a run said that has ended well."""
    said = run.end()
    assert run.process.returncode == 0, said
    assert run.state["state"] == "finished"
    assert not run.family()
    return said


def started(home: Path, name: str, address: str) -> AbstractContextManager[Run]:
    return faults.started(home, name, f"tracking.uri={address}", "tracking.flush_s=1")


@pytest.mark.parametrize("mode", ["away", "error"])
def test_a_server_that_is_away_at_the_start(
    mode: str, mlflow: MlflowServer, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.mode = mode
    with started(tmp_path, f"{mode}-first", proxy.address) as run:
        run.wait_for(M_STEP, 12)
        proxy.mode = "well"
        ended(run)
    faults.assert_recorded_once(run, uri=mlflow.address)


@pytest.mark.parametrize("mode", ["away", "error"])
def test_a_server_that_is_away_in_the_middle(
    mode: str, mlflow: MlflowServer, proxy: Proxy, tmp_path: Path
) -> None:
    with started(tmp_path, f"{mode}-later", proxy.address) as run:
        run.wait_for(M_STEP, 6)
        proxy.mode = mode
        run.wait_for(M_STEP, 20)
        proxy.mode = "well"
        ended(run)
    faults.assert_recorded_once(run, uri=mlflow.address)


def test_a_server_that_is_away_at_the_end_gets_the_rest_from_the_next_start(
    mlflow: MlflowServer, proxy: Proxy, tmp_path: Path
) -> None:
    with started(tmp_path, "away-last", proxy.address) as run:
        run.wait_for(M_STEP, 6)
        proxy.mode = "away"
        assert "nothing is lost" in ended(run)
        proxy.mode = "well"
        faults.resume(run)
    faults.assert_recorded_once(run, uri=mlflow.address)


def test_a_server_that_takes_five_seconds_for_an_answer(
    mlflow: MlflowServer, proxy: Proxy, tmp_path: Path
) -> None:
    """The run does not wait for it; what could not be sent in time is sent by the next start."""
    proxy.delay_s = 5.0
    with started(tmp_path, "slow", proxy.address) as run:
        ended(run)
        assert proxy.requests > 0
        proxy.delay_s = 0.0
        faults.resume(run)
    faults.assert_recorded_once(run, uri=mlflow.address)


def test_a_server_that_is_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "mlflow")
    server.start()
    try:
        with started(tmp_path / "home", "killed", server.address) as run:
            run.wait_for(M_STEP, 6)
            server.kill()
            again = threading.Thread(target=server.start)
            again.start()
            ended(run)
            again.join()
            faults.resume(run)  # where the server came too late for the end of the run
        faults.assert_recorded_once(run, uri=server.address)
    finally:
        server.kill()


def test_a_server_that_comes_back_with_an_empty_database(
    mlflow: MlflowServer, proxy: Proxy, tmp_path: Path
) -> None:
    """What the lost one had is lost; the run is known to the new one, once, and ends there."""
    empty = MlflowServer(tmp_path / "empty")
    empty.start()
    try:
        with started(tmp_path / "home", "forgotten", proxy.address) as run:
            run.wait_for(M_STEP, 12)
            proxy.target = empty.port
            assert "does not know this run any more" in ended(run)
        faults.assert_recorded_once(run, uri=empty.address)
    finally:
        empty.kill()

"""What the benchmarks promise beside their figures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BARE = """
import sys
for name in ("ray", "faiss", "mlflow"):
    sys.modules[name] = None  # as if it were not installed
sys.path.insert(0, sys.argv[1])
import scaling, mstep, common, torch
"""


def test_the_m_step_is_measured_where_there_is_no_ray_faiss_or_mlflow(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = (
        BARE
        + "report = common.Report('mstep', True); mstep.training(report, mstep.CASES[0], torch.device('cpu'),"
        " 1, compiled=False); print(report.rows)"
    )
    done = run_python(script, str(BENCHMARKS))
    assert done.returncode == 0, done.stderr
    assert "bare / ours" in done.stdout


@pytest.mark.slow
def test_the_loop_of_scaling_runs_there_too(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    script = (
        BARE + "scaling.run_process(0, scaling.config_of(512, 1, 'cpu').to_yaml(), 512, 'cpu', sys.argv[2])"
    )
    done = run_python(script, str(BENCHMARKS), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "epochs.json").read_text())) == 3

"""Results say which versions, host and commit they come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pcl_ray.support import provenance

HANG = 60  # seconds; a guard against hanging, nothing is timed


def test_tags_name_versions_host_and_commit(tmp_path: Path) -> None:
    tags = provenance.run_tags(tmp_path)
    assert tags["version.python"].count(".") == 2
    assert tags["version.mlflow"]
    assert tags["hostname"]
    assert "git.commit" not in tags
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "code.py").write_text("1\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True, timeout=HANG)
    assert provenance.run_tags(tmp_path)["git.dirty"] == "false"
    (tmp_path / "code.py").write_text("2\n")
    tags = provenance.run_tags(tmp_path)
    assert tags["git.dirty"] == "true"
    assert len(tags["git.commit"]) == 40
    (tmp_path / "installed").mkdir()
    assert "git.commit" not in provenance.run_tags(tmp_path / "installed")

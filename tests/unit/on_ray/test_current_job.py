from __future__ import annotations

import json

import pytest

from pcl_ray.on_ray import current_job


def set_job_config(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", content if isinstance(content, str) else json.dumps(content)
    )


def test_a_job_knows_its_number_and_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    set_job_config(
        monkeypatch,
        {
            "metadata": {
                "job_submission_id": "raysubmit_1",
                "job_name": "raysubmit_1",
                "pcl_ray.run": "mine",
                "sweep": "s",
                "owner": "me",
            }
        },
    )
    assert current_job.current() == current_job.RayJob("raysubmit_1", {"sweep": "s", "owner": "me"})
    assert current_job.tags() == {"ray.submission_id": "raysubmit_1", "job.sweep": "s", "job.owner": "me"}


@pytest.mark.parametrize("name", ["api_token", "PASSWORD", "s3-secret", "access_key", "credentials"])
def test_metadata_that_look_like_a_secret_are_not_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_job_config(monkeypatch, {"metadata": {"job_submission_id": "x", name: "4711", "monkey": "fine"}})
    assert current_job.tags() == {"ray.submission_id": "x", "job.monkey": "fine"}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", {}, {"metadata": None}, {"metadata": {}}, {"metadata": {"job_submission_id": 3}}],
)
def test_elsewhere_there_is_no_job(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    set_job_config(monkeypatch, content)
    assert current_job.current() is None
    assert current_job.tags() == {}


def test_only_a_job_s_driver_hides_the_gpus_from_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    current_job.hide_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    set_job_config(monkeypatch, {"metadata": {"job_submission_id": "x"}})
    current_job.hide_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

from __future__ import annotations

import pytest
from storages import STORAGE, TINY

from pcl_ray import cli
from pcl_ray.support import storage_address
from pcl_ray.support.paths import home


@pytest.mark.parametrize(
    ("written", "way_out"),
    [
        ("shared/folder", "absolute"),
        ("~/shared", "absolute"),
        ("ftp://host/path", "s3://"),
        ("file://shared/folder", "file:///path"),
        ("s3:///path", "names no bucket"),
        ("s3://bucket/path?endpoint=host", "endpoint_override"),
        ("s3://KEYID:hush@bucket/path", "AWS_ACCESS_KEY_ID"),
        ("s3://hush@bucket/path", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/path?secret_key=hush&access_key=hush", "AWS_ACCESS_KEY_ID"),
        ("abfs://box:hush@account.dfs.core.windows.net/path", "environment"),
        ("s3://[bucket/path", "s3://bucket/path"),
    ],
)
def test_a_storage_that_cannot_be_meant_is_refused_without_showing_secrets(
    written: str, way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert way_out in (storage_address.problem_with(written) or "")
    assert cli.main(["train", "digits", *TINY, STORAGE.format(written)]) == 2
    error = capsys.readouterr().err
    assert "resources.storage = " in error
    assert way_out in error
    assert "hush" not in error
    assert not (home() / "runs").exists() or not list((home() / "runs").iterdir())


def test_addresses_that_are_fine() -> None:
    for written in (
        "/shared",
        "file:///shared",
        "s3://bucket",
        "s3://bucket/a/b?endpoint_override=host:9000&scheme=http&region=x",
        "gs://b/p",
        "hdfs://u@h:1/p",
    ):
        assert storage_address.problem_with(written) is None
        assert storage_address.without_secrets(written).startswith(written[:4])

from __future__ import annotations

from pcl_ray.cluster.local_head import down
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.local_head_record import LocalHead, Ports
from pcl_ray.support.processes import StartedProcess

# as earlier versions wrote it
WRITTEN_BEFORE = """{
  "host": "127.0.0.1",
  "ports": {
    "ray": 6379,
    "dashboard": 8265,
    "metrics": 8080,
    "mlflow": 5000
  },
  "mlflow_uri": "http://127.0.0.1:5000",
  "ray": {
    "pid": 4242,
    "created": 1760000000.5
  },
  "mlflow": null
}"""


def test_a_record_of_an_earlier_version_is_read_and_written_the_same() -> None:
    local_head_record.folder().mkdir(parents=True)
    file = local_head_record.folder() / "up.json"
    file.write_text(WRITTEN_BEFORE)
    head = LocalHead("127.0.0.1", Ports(), "http://127.0.0.1:5000", ray=StartedProcess(4242, 1760000000.5))
    assert local_head_record.read() == head
    assert head.ray is not None
    assert head.ray.process() is None  # another process may have its number by now
    local_head_record.write(head)
    assert file.read_text() == WRITTEN_BEFORE


def test_nothing_is_known_of_a_head_whose_record_is_damaged() -> None:
    local_head_record.folder().mkdir(parents=True)
    odd = [
        f'{{"host": "h", "ports": {{}}, "mlflow_uri": "", "ray": {{"pid": {pid}, "created": 1.5}}}}'
        for pid in ('"abc"', "-5", "1e30", "1", "null")
    ]
    for text in (
        *odd,
        "",
        "{",
        "[]",
        '{"host": 3}',
        '{"host": "h", "ports": {}, "mlflow_uri": "", "ray": {"pid": 1}}',
    ):
        (local_head_record.folder() / "up.json").write_text(text)
        assert local_head_record.read() is None
    assert down(lambda text: None) is False

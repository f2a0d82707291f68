from __future__ import annotations

from pcl_ray.cluster.local_head import down
from pcl_ray.on_ray import local_head_record


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

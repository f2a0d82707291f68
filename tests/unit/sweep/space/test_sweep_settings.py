"""The knobs of a sweep as they are read."""

from __future__ import annotations

from pcl_ray.sweep.space import settings


def test_settings_name_every_mistake_and_the_right_name() -> None:
    config, problems = settings.read(
        {"sweep.seeds": 0, "sweep.sampels": 3, "sweep.scheduler": "ahsa", "sweep.samples": 7}
    )
    assert config.samples == 7
    assert sorted(problem.name for problem in problems) == ["sweep.sampels", "sweep.scheduler", "sweep.seeds"]
    messages = "\n".join(map(str, problems))
    assert "did you mean 'sweep.samples'" in messages
    assert "asha" in messages

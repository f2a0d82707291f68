"""Markup that escapes by itself."""

from __future__ import annotations

from pcl_ray.report.drawing import html


def test_tags_escape_but_for_markup() -> None:
    made = html.tag("p", "<", html.tag("b", "&"), class_='"', data_level=0, hidden=True, id=None)
    assert made == '<p class="&quot;" data-level="0" hidden>&lt;<b>&amp;</b></p>'

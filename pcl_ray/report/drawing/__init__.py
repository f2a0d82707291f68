"""Markup, charts, sheets of pictures and the frame of plots: what pages and pictures are drawn with."""

__all__ = ["html", "panels", "sprites", "svg"]

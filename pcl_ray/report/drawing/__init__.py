"""Markup, charts and sheets of pictures that the pages are drawn with."""

"""Characters drawn anew each time: KanjiVG's strokes with another pen, another slant and an unsteady hand.

    strokes of a character (SVG paths) → points → bent, moved and turned, each for itself → drawn at four
    times the size → grey image

What varies between two drawings of a character is what varies between two people's writing; the augmentations
of the training know nothing of strokes and cannot undo it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

BOX = 109.0  # side of KanjiVG's drawings
_POINTS_A_CURVE = 8
_OVERSAMPLING = 4
_PATH = re.compile(r'<path [^>]*\bd="([^"]+)"')
_TOKEN = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ARGUMENTS = {"M": 2, "L": 2, "C": 6, "S": 4}


@dataclass(frozen=True)
class Hand:
    """How much drawings of one character differ: standard deviations, but for size, pen and grey."""

    size: float = 0.92  # the mean factor, so that little is cut off
    turn: float = 0.10  # radians, of the whole character
    shear: float = 0.15
    scale: float = 0.09
    shift: float = 4.0  # of BOX
    stroke_turn: float = 0.10
    stroke_scale: float = 0.10
    stroke_shift: float = 2.6
    bend: float = 2.4  # of BOX, the amplitude of the waves that bend the plane
    pen: tuple[float, float] = (3.0, 9.0)  # of BOX
    grey: tuple[float, float] = (150.0, 255.0)


def strokes_of(svg: str) -> list[np.ndarray]:
    """The strokes of a drawing of KanjiVG as points [P, 2], x to the right and y down in 0..BOX.

    Raises ValueError for a path command that KanjiVG does not use.
    """
    return [_points_of(path) for path in _PATH.findall(svg)]


def _points_of(path: str) -> np.ndarray:
    """The points [P, 2] along an SVG path of moves, lines and cubic curves."""
    tokens = _TOKEN.findall(path)
    here, control = np.zeros(2), np.zeros(2)
    points: list[np.ndarray] = []
    command, at = "", 0
    while at < len(tokens):
        if tokens[at].isalpha():
            command, at = tokens[at], at + 1
        count = _ARGUMENTS.get(command.upper())
        if count is None or at + count > len(tokens):
            raise ValueError(f"the path {path!r} has the command {command!r}, which is not read here")
        numbers = np.array([float(text) for text in tokens[at : at + count]]).reshape(-1, 2)
        at += count
        ends = numbers + here if command.islower() else numbers
        if command.upper() == "S":  # the first control point mirrors the last one
            ends = np.vstack([2 * here - control, ends])
        if len(ends) == 3:
            points.extend(_curve(here, *ends))
            control = ends[1]
        else:
            points.append(ends[0])
            control = ends[0]
        here = ends[-1]
        if command.upper() == "M":  # further pairs after a move are lines
            command = "l" if command.islower() else "L"
    return np.array(points)


def _curve(start: np.ndarray, first: np.ndarray, second: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Points [_POINTS_A_CURVE, 2] of a cubic Bézier curve, without its start."""
    t = np.linspace(0, 1, _POINTS_A_CURVE + 1)[1:, None]
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * end


def drawing(
    strokes: list[np.ndarray], side: int, draw: np.random.Generator, hand: Hand | None = None
) -> np.ndarray:
    """One drawing [side, side] uint8, light on black; another one for each state of `draw`."""
    hand = hand or Hand()
    middle = BOX / 2
    whole = hand.size * _affine(draw, hand.turn, hand.scale, hand.shear)
    shift = draw.normal(0, hand.shift, 2)
    waves = draw.normal(0, hand.bend, (2, 2))
    phases = draw.uniform(0, 2 * np.pi, (2, 2))
    factor = side * _OVERSAMPLING / BOX
    width = draw.uniform(*hand.pen) * factor
    grey = int(draw.uniform(*hand.grey))
    canvas = Image.new("L", (side * _OVERSAMPLING,) * 2)
    brush = ImageDraw.Draw(canvas)
    for stroke in strokes:
        own = _affine(draw, hand.stroke_turn, hand.stroke_scale, 0.0)
        centre = stroke.mean(axis=0)
        points = (stroke - centre) @ own.T + centre + draw.normal(0, hand.stroke_shift, 2)
        bent = points + (
            waves[:, None] * np.sin(points[None, :, ::-1] * (2 * np.pi / BOX) + phases[:, None])
        ).sum(0)
        placed = ((bent - middle) @ whole.T + middle + shift) * factor
        _draw_stroke(brush, placed, width, grey)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def _affine(draw: np.random.Generator, turn: float, scale: float, shear: float) -> np.ndarray:
    """A random 2 × 2 matrix near the identity."""
    angle = draw.normal(0, turn)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sheared = np.array([[1.0, draw.normal(0, shear) if shear else 0.0], [0.0, 1.0]])
    return turned @ sheared @ np.diag(np.exp(draw.normal(0, scale, 2)))


def _draw_stroke(brush: ImageDraw.ImageDraw, points: np.ndarray, width: float, grey: int) -> None:
    """A line with round ends and joints."""
    brush.line([tuple(point) for point in points], fill=grey, width=max(round(width), 1))
    radius = width / 2
    for x, y in points:
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=grey)

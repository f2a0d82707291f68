"""The random numbers behind a view: a pure function of (seed, epoch, image, view), for a whole batch at once.

They are made on the CPU, counter-based (Salmon et al., SC 2011): a hash of what is drawn for, no state that
moves on. So a view is the same whichever process or device makes it, and whatever else is in the batch; and
which rows a step works on is known without asking the device.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from pcl_ray.config import AugmentConfig
from pcl_ray.plan import SMALL_CROP_MIN

_TRIES = 10  # as torchvision: crops that do not fit are drawn again, so many times
_RATIO = (3 / 4, 4 / 3)  # of a crop's sides
_APPLY_JITTER = 0.8  # v2 (SimCLR)
_SIGMA = (0.1, 2.0)  # px, of the blur
ERASED_AREA = (0.02, 0.2)  # share of the view: with these a rectangle always fits, unlike up to Zhong's 0.4
ERASED_RATIO = (0.3, 3.3)  # height to width
# in which brightness 0, contrast 1, saturation 2 and hue 3 change
ORDERS = np.array(list(itertools.permutations(range(4))))
# Which of the numbers of a view stand for what.
_CROP, _FLIP, _JITTER, _FACTORS, _ORDER, _GREY, _BLUR, _WIDTH = 0, 22, 23, 24, 28, 29, 30, 31
# Those that follow are only made for knobs that are on. Each number is a hash of its place: nothing before
# changes by them.
_ALWAYS, _SHIFT, _ROTATE, _SHEAR, _ERASE, _AREA, _SHAPE, _CORNER, _COUNT = 32, 32, 34, 35, 36, 37, 38, 39, 41


@dataclass(frozen=True)
class ViewDraws:
    """What is random in one view of each of B images."""

    boxes: np.ndarray  # [B, 4] float64: top, left, height, width of the crop, in pixels of the original image
    flipped: np.ndarray  # [B] bool
    factors: np.ndarray  # [B, 3] float64, of brightness, contrast, saturation; 1 leaves an image as it is
    hue: np.ndarray  # [B] float64, in turns of the colour circle
    orders: np.ndarray  # [B, 4] int64, a row of ORDERS
    grey: np.ndarray  # [B] bool
    sigmas: np.ndarray  # [B] float64, of the blur in px; 0: none
    # [B, 4] float64, None where no knob for it is on: shift to the right and down as shares of the view's
    # side, rotation (clockwise) and shear in radians
    warps: np.ndarray | None = None
    # [B, 4] float64, None where its knob is off: height and width of the erased rectangle as shares of the
    # view's side, 0 where none is, then where it lies, 0 at the top or left, nearly 1 at the other edge
    erased: np.ndarray | None = None


def uniforms(seed: int, epoch: int, indices: np.ndarray, view: int, count: int = _COUNT) -> np.ndarray:
    """Uniform numbers [B, count] float64 in [0, 1), a hash of what they are drawn for."""
    with np.errstate(over="ignore"):  # the products wrap around, as they should
        stream = np.zeros(1, dtype=np.uint64)
        for part in (seed, epoch, view):
            stream = _mixed(stream * _STEP + np.uint64(part + 1))
        images = _mixed(stream + indices.astype(np.uint64) * _STEP)[:, None]
        numbers = _mixed(images + np.arange(1, count + 1, dtype=np.uint64) * _STEP)
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, near 2⁶⁴ divided by the golden ratio


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bit in changes half of those out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def view_draws(
    config: AugmentConfig,
    channels: int,
    seed: int,
    epoch: int,
    indices: np.ndarray,
    view: int,
    sizes: np.ndarray,
) -> ViewDraws:
    """The draws of view 0 (query), 1 (key) or 2 and on (small ones) of the images `indices` [B].

    sizes: [B, 2] height and width of the original images.
    """
    warped = config.shift > 0 or config.rotate > 0 or config.shear > 0
    count = _ERASE if warped else _ALWAYS
    drawn = uniforms(seed, epoch, indices, view, _COUNT if config.erase else count)
    colour = channels == 3
    strengths = np.array([config.jitter, config.jitter, config.jitter if colour else 0.0])
    jittered = (
        np.ones(len(indices), dtype=bool) if config.version == "v1" else drawn[:, _JITTER] < _APPLY_JITTER
    )
    low = np.maximum(1 - strengths, 0)
    factors = low + drawn[:, _FACTORS : _FACTORS + 3] * (1 + strengths - low)
    hue = (2 * drawn[:, _FACTORS + 3] - 1) * (config.hue if colour else 0.0)
    blurred = (drawn[:, _BLUR] < config.blur) & (config.version == "v2")
    return ViewDraws(
        boxes=_crops(drawn[:, _CROP:_FLIP], sizes, crop_shares(config, small=view > 1)),
        flipped=drawn[:, _FLIP] < config.flip,
        factors=np.where(jittered[:, None], factors, 1.0),
        hue=np.where(jittered, hue, 0.0),
        orders=ORDERS[(drawn[:, _ORDER] * len(ORDERS)).astype(int)],
        grey=(drawn[:, _GREY] < config.grey) & colour,
        sigmas=np.where(blurred, _SIGMA[0] + drawn[:, _WIDTH] * (_SIGMA[1] - _SIGMA[0]), 0.0),
        warps=_warps(drawn[:, _SHIFT:_ERASE], config) if warped else None,
        erased=_erased(drawn[:, _ERASE:], config.erase) if config.erase else None,
    )


def crop_shares(config: AugmentConfig, *, small: bool) -> tuple[float, float]:
    """The least and the largest share of an image's area that a view keeps."""
    return (SMALL_CROP_MIN, config.small_crop_max) if small else (config.min_crop, 1.0)


def _warps(drawn: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Even within ± the largest shift, angle and shear."""
    largest = (config.shift, config.shift, np.radians(config.rotate), np.radians(config.shear))
    return (2 * drawn - 1) * np.array(largest)


def _erased(drawn: np.ndarray, probability: float) -> np.ndarray:
    """Rectangles of random area, ratio and place (Zhong et al., AAAI 2020), in the share of the images."""
    which, areas, shapes = drawn[:, 0], drawn[:, _AREA - _ERASE], drawn[:, _SHAPE - _ERASE]
    areas = np.where(which < probability, ERASED_AREA[0] + areas * (ERASED_AREA[1] - ERASED_AREA[0]), 0.0)
    low, high = np.log(ERASED_RATIO)
    ratios = np.exp(low + shapes * (high - low))
    sides = np.stack([np.sqrt(areas * ratios), np.sqrt(areas / ratios)], axis=1)
    return np.concatenate([sides, drawn[:, _CORNER - _ERASE :]], axis=1)


def _crops(drawn: np.ndarray, sizes: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """The first try that fits, else the largest centred crop in proportion (Inception's, as torchvision)."""
    heights, widths = sizes[:, :1].astype(float), sizes[:, 1:].astype(float)
    areas = heights * widths * (shares[0] + drawn[:, :_TRIES] * (shares[1] - shares[0]))
    ratios = np.exp(
        np.log(_RATIO[0]) + drawn[:, _TRIES : 2 * _TRIES] * (np.log(_RATIO[1]) - np.log(_RATIO[0]))
    )
    # [B, tries, (height, width)]
    tried = np.stack([np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))], axis=2)
    fits = np.all((tried > 0) & (tried <= sizes[:, None, :]), axis=2)
    first_fit = tried[np.arange(len(sizes)), fits.argmax(axis=1)]
    corner = np.floor(drawn[:, 2 * _TRIES :] * (sizes - first_fit + 1))
    central = np.rint(
        np.concatenate(
            [np.minimum(heights, widths / _RATIO[0]), np.minimum(widths, heights * _RATIO[1])], axis=1
        )
    ).clip(min=1)
    any_fits = np.any(fits, axis=1, keepdims=True)
    return np.concatenate(
        [np.where(any_fits, corner, (sizes - central) // 2), np.where(any_fits, first_fit, central)], axis=1
    )

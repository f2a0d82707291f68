"""The margins of a picture: what is transparent around it, or has the one colour of its corners."""

from __future__ import annotations

from PIL import Image, ImageChops

_VISIBLE = 8  # of 255: opacity from which a pixel is seen
_LIKE = 12  # of 255: the difference up to which a pixel has the corners' colour; JPEGs blur them by less


def has_alpha(image: Image.Image) -> bool:
    """Whether parts of it may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def content_box(image: Image.Image) -> tuple[int, int, int, int]:
    """What is left without the margins: left, top, right, bottom in pixels. The whole of a picture that has
    none, and of one that has nothing else.
    """
    return find_content(image) or (0, 0, *image.size)


def find_content(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The same, and None for a picture that has nothing else. image: of eight bits a channel."""
    if 0 in image.size:
        return None
    if has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        box = alpha.point(lambda opacity: 255 * (opacity > _VISIBLE)).getbbox()
        if box != (0, 0, *image.size):
            return box
    return _without_one_colour(image)


def _without_one_colour(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part within a frame of the corners' colour; None for a picture of one colour."""
    flat = image.convert("RGB")
    right, bottom = flat.width - 1, flat.height - 1
    corners = [flat.getpixel(at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
    if any(abs(a - b) > _LIKE for corner in corners for a, b in zip(corner, corners[0], strict=True)):  # type: ignore[arg-type]
        return 0, 0, flat.width, flat.height
    frame = Image.new("RGB", flat.size, corners[0])
    parts = [
        band.point(lambda value: 255 * (value > _LIKE)) for band in ImageChops.difference(flat, frame).split()
    ]
    return ImageChops.lighter(ImageChops.lighter(parts[0], parts[1]), parts[2]).getbbox()

"""Which images a run learns from, and the views that are made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pcl_ray.config.sections.base import IMAGES, READING, VIEWS, Section, knob

DataSource = Literal[
    "digits", "idx", "cifar10", "cifar100", "stl10", "imagenet", "folder", "arrays", "parquet", "webdataset"
]


class DataConfig(Section):
    """Which images, and how they are read."""

    source: DataSource = knob(
        "digits", IMAGES, "Where the images come from; every source gives each image a stable index."
    )
    path: str | None = knob(
        None,
        READING,
        (
            "Folder (idx, cifar10, cifar100, stl10, imagenet, folder), .npy/.npz file (arrays), or shards"
            " (parquet, webdataset): file, folder, pattern, {000..127}, @list of them, s3:// and the like."
        ),
    )
    channels: Literal[1, 3] = knob(3, IMAGES, "Images are converted to grey (1) or RGB (3).")
    holdout: float = knob(
        0.2,
        IMAGES,
        "Share of the images kept for evaluation, where the data set has no held-out part of its own.",
        ge=0,
        le=0.9,
    )
    split: Literal["content", "random"] = knob(
        "content",
        IMAGES,
        (
            "How the held-out part of files is chosen. content: copies of a picture stay on one side; random:"
            " each picture for itself."
        ),
    )
    limit: int | None = knob(
        None, IMAGES, "Train on a fixed random choice of this many images; null takes all.", ge=2
    )
    image_column: str | None = knob(
        None,
        IMAGES,
        "Column (parquet) or extension (webdataset) of the images; null: the one that holds images.",
    )
    label_column: str | None = knob(
        None,
        IMAGES,
        (
            "Column (parquet), extension or field of the .json (webdataset) of the labels; null: the usual"
            " ones; none: no labels."
        ),
    )
    list: str | None = knob(
        None,
        READING,
        "File of paths, one a line, with a label after a tab or comma or without: only these (folder).",
    )
    labels: str | None = knob(
        None,
        READING,
        "CSV file of path and label, several as a;b or in several rows, instead of class folders (folder).",
    )
    exclude: tuple[str, ...] = knob(
        (), IMAGES, "Patterns of files that are left out: *_mask.png, thumbs, cats/2019/**."
    )
    cache_gb: float = knob(
        100.0,
        READING,
        "GB of shards that PCL_RAY_HOME/cache keeps on each node, least recently used first out.",
        gt=0,
    )
    unlabelled: bool = knob(True, IMAGES, "STL-10: add the 100,000 unlabelled images to the training part.")
    on_bad_image: Literal["fail", "skip"] = knob(
        "fail", VIEWS, "Broken or empty image files: stop, or go on without them. Either way all are listed."
    )
    check_images: bool = knob(
        True, VIEWS, "Decode every file once before the first run on it; the outcome is kept for later runs."
    )
    in_memory: bool | Literal["auto"] = knob(
        "auto",
        VIEWS,
        (
            "Decode all files once and keep them in one array that all workers share; auto: where they take"
            " up to memory_gb. Arrays always are."
        ),
    )
    memory_gb: float = knob(
        4.0, VIEWS, "GB of decoded files up to which in_memory = auto keeps them in memory.", gt=0
    )
    background: str = knob(
        "white",
        VIEWS,
        "Colour under transparent parts of files: white, black, grey or #rrggbb.",
        pattern=r"^(white|black|grey|#[0-9a-fA-F]{6})$",
    )
    trim: bool = knob(
        False, VIEWS, "Cut the margins of files that are transparent or have the one colour of the corners."
    )
    max_pixels: int = knob(
        100_000_000,
        VIEWS,
        "Files with more pixels, of JPEGs as they are decoded, count as broken: one can fill the memory.",
        ge=10_000,
    )
    reduced_decoding: bool = knob(
        True, VIEWS, "Decode large JPEGs at a half, a quarter or an eighth where the views need no more."
    )
    loader_workers: int | None = knob(
        None,
        READING,
        "Processes per Train worker that decode files; null: as fits its CPUs. 0 does it in the worker.",
        ge=0,
        le=128,
    )
    prefetch: int | None = knob(
        None,
        READING,
        "Batches made ready ahead (by each loader process); null: 2, and 0 for memory to CPU.",
        ge=0,
        le=64,
    )


class AugmentConfig(Section):
    """The two random views of an image, and the fixed view for evaluation."""

    engine: Literal["batch", "torchvision"] = knob(
        "batch",
        VIEWS,
        (
            "batch: a whole batch at once, on the training device; torchvision: one image after the other,"
            " the slow reference."
        ),
    )
    version: Literal["v1", "v2"] = knob(
        "v2", VIEWS, "v1: MoCo's first set; v2: SimCLR's, with blur (PCL v1 and v2)."
    )
    image_size: int = knob(224, VIEWS, "Side of the square views, in pixels.", ge=4, le=1024)
    min_crop: float = knob(
        0.2, VIEWS, "Smallest share of the image's area that a random crop keeps.", gt=0, le=1
    )
    flip: float = knob(
        0.5, VIEWS, "Probability of a left-right flip; 0 where left and right mean something.", ge=0, le=1
    )
    jitter: float = knob(0.4, VIEWS, "Strength of brightness, contrast and saturation jitter.", ge=0, le=1)
    hue: float = knob(0.1, VIEWS, "Strength of hue jitter (the paper: 0.4 in v1, 0.1 in v2).", ge=0, le=0.5)
    grey: float = knob(0.2, VIEWS, "Probability of dropping the colours.", ge=0, le=1)
    blur: float = knob(0.5, VIEWS, "Probability of a Gaussian blur (v2 only).", ge=0, le=1)
    shift: float = knob(
        0.0, VIEWS, "Largest shift of a view to any side, as a share of its side; 0: none.", ge=0, le=0.5
    )
    rotate: float = knob(0.0, VIEWS, "Largest rotation of a view, in degrees; 0: none.", ge=0, le=180)
    shear: float = knob(0.0, VIEWS, "Largest shear of a view, in degrees; 0: none.", ge=0, le=45)
    erase: float = knob(
        0.0,
        VIEWS,
        "Probability of a rectangle, 2 % to 20 % of a view, that is filled with the mean colour.",
        ge=0,
        le=1,
    )
    small_crops: int = knob(
        0,
        VIEWS,
        "Further views of each image, smaller and of smaller parts: queries only (multi-crop).",
        ge=0,
        le=16,
    )
    small_crop_size: int | None = knob(
        None, VIEWS, "Side of the small views, in pixels; null: three sevenths of image_size.", ge=4, le=1024
    )
    small_crop_max: float = knob(
        0.3,
        VIEWS,
        "Largest share of the image's area that a small view keeps; the smallest is 0.05.",
        gt=0.05,
        le=1,
    )
    mean: tuple[float, ...] = knob((0.485, 0.456, 0.406), VIEWS, "Mean a channel, of pixel values in 0..1.")
    std: tuple[Annotated[float, Field(gt=0)], ...] = knob(
        (0.229, 0.224, 0.225), VIEWS, "Standard deviation a channel."
    )

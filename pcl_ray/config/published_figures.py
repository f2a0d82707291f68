"""What the authors of PCL published of their encoders, that `pcl-ray reproduce` puts a checkpoint beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pcl_ray.config.protocol_figures import LINEAR_SGD, LOW_SHOT

Version = Literal["v1", "v2"]
DataSet = Literal["ImageNet", "VOC2007"]

# The authors' code and its README, which has the figures of the encoders that can be downloaded there:
# ResNet-50, 200 epochs of ImageNet.
SOURCE = "github.com/salesforce/PCL, README.md"


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of PCL v1 and v2 in per cent. measure: of the protocol; protocol_text: how that works."""

    title: str
    data: DataSet
    protocol: str
    measure: str
    v1: float
    v2: float
    protocol_text: str
    source: str = SOURCE

    def of(self, version: Version) -> float:
        return self.v1 if version == "v1" else self.v2


_LINEAR_TEXT = (
    "linear layer on the frozen backbone, SGD, learning rate 5, batch 256, 100 epochs, a tenth at 60 and"
    " 80, no decay; top-1 on val"
)
_SVM_TEXT = (
    "linear SVMs on the frozen backbone, from k images a class of trainval (draws) or all; mAP on test"
)
_SVM = {
    "k1": (46.9, 47.9),
    "k2": (56.4, 59.6),
    "k4": (62.8, 66.2),
    "k8": (70.2, 74.5),
    "k16": (74.3, 78.3),
    "full": (82.3, 85.4),
}

PUBLISHED = (
    PublishedFigure("ImageNet, linear", "ImageNet", LINEAR_SGD.name, "top1", 61.5, 67.6, _LINEAR_TEXT),
    *(
        PublishedFigure(
            f"VOC07, SVM, {shots.replace('k', 'k = ')}",
            "VOC2007",
            LOW_SHOT.name,
            f"{shots}/map",
            v1,
            v2,
            _SVM_TEXT,
        )
        for shots, (v1, v2) in _SVM.items()
    ),
)

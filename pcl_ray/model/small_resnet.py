"""A ResNet that a CPU can train. Without torchvision, whose import takes as long as torch's own."""

from __future__ import annotations

from torch import Tensor, nn


class SmallResNet(nn.Module):
    """A ResNet of basic blocks that a CPU can train: `width` channels, doubled at each stage.

    stem_stride: 2 halves the sides at the first convolution already.
    """

    def __init__(self, width: int, blocks: tuple[int, ...], channels: int, stem_stride: int = 1):
        super().__init__()
        # Of stride 2, an even kernel covers every pixel as often as its neighbours; 3 × 3 would not.
        kernel = 3 if stem_stride == 1 else 4
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, kernel, stride=stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        layers: list[nn.Module] = []
        inner = width
        for stage, count in enumerate(blocks):
            outer = width * 2**stage
            for block in range(count):
                stride = 2 if stage and not block else 1
                shortcut = None
                if stride > 1 or inner != outer:
                    shortcut = nn.Sequential(_convolution(inner, outer, 1, stride), nn.BatchNorm2d(outer))
                layers.append(_BasicBlock(inner, outer, stride, shortcut))
                inner = outer
        self.blocks = nn.Sequential(*layers)
        self.width = inner
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean(dim=(2, 3))


class _BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut: torchvision's block, with the same names and the same draws."""

    def __init__(self, inner: int, outer: int, stride: int, shortcut: nn.Module | None):
        super().__init__()
        self.conv1 = _convolution(inner, outer, 3, stride)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(outer, outer, 3)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample = shortcut

    def forward(self, images: Tensor) -> Tensor:
        shortcut = images if self.downsample is None else self.downsample(images)
        out = self.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)


def _convolution(inner: int, outer: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, stride=stride, padding=kernel // 2, bias=False)


def initialise(module: nn.Module) -> None:
    """Draws the weights of all convolutions anew, as for ResNets."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

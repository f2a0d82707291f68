"""The README.md beside exported weights: what they are, and how they are loaded."""

from __future__ import annotations

from typing import Any

from pcl_ray.model.weights import formats
from pcl_ray.model.weights.loading import LoadedWeights

_STEMS = (
    "model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)",
    "model.maxpool = torch.nn.Identity()",
)
_GREY = "model.conv1 = torch.nn.Conv2d({channels}, 64, 7, stride=2, padding=3, bias=False)"


def readme(weights: LoadedWeights, target: str, entries: dict[str, Any], *, head: bool) -> str:
    """The text, in Markdown. entries: of config.json."""
    settings = entries["pcl_ray"]
    size, channels = weights.view.image_size, weights.channels
    kind = "unit vectors" if head else "features, as the backbone ends:"
    given = f"{kind} [n, {settings['num_features']}]"
    side = f"the shorter side resized to {size * 8 // 7}, the centre cut out" if size >= 64 else "resized"
    code = "\n".join(_code(weights, target, head=head))
    means, deviations = _numbers(weights.view.mean), _numbers(weights.view.std)
    if target == "mlflow":
        usage = (
            "It takes paths or pictures (uint8 arrays, bytes of files) as they are, and prepares them as in"
            f" training: {side}, {means} and {deviations} a channel.\nIt gives a row for each: the embedding"
            " [C], and for each clustering the nearest prototype and how far it is."
        )
    else:
        usage = f"""`images` are float32 [n, {channels}, {size}, {size}]: pictures {side} (bilinear, with
antialiasing), their values divided by 255, then less {means} and divided by
{deviations} a channel; `preprocessing.json` has the same for programs. They give {given}."""
    return f"""# {settings["source"]}: {target}

{weights.config.backbone}: {weights.note}.
Written by pcl_ray {settings["version"]}.

```python
{code}
```

{usage}
"""


def _code(weights: LoadedWeights, target: str, *, head: bool) -> list[str]:
    """The lines that load the weights and compute features."""
    name = weights.config.backbone
    match target:
        case "torchvision":
            return [
                "import torch, torchvision",
                f"model = torchvision.models.{name}()",
                *_changed_layers(weights, head=head),
                f'model.load_state_dict(torch.load("{formats.TORCHVISION_FILE}", weights_only=True))',
                _normalised("model.eval()(images)", head=head),
            ]
        case "timm":
            return [
                "import timm",
                'model = timm.create_model("local-dir:.", pretrained=True).eval()  # "." is this folder',
                "features = model(images)",
            ]
        case "safetensors":
            called = "encoder(images)" if head else "encoder.backbone(images)"
            return [
                "from pcl_ray.model.weights import load_encoder",
                'encoder = load_encoder(".")  # this folder; model.safetensors alone opens with safetensors',
                f"features = {called}",
            ]
        case "onnx":
            return [
                "import onnxruntime",
                f'session = onnxruntime.InferenceSession("{formats.ONNX_FILE}")',
                '(features,) = session.run(None, {"images": images})  # a numpy array',
            ]
        case "torch-export":
            return [
                "import torch",
                f'model = torch.export.load("{formats.EXPORT_FILE}").module()',
                "features = model(images)",
            ]
        case "reference":
            return [
                "# the authors' code: python eval_cls_imagenet.py --pretrained "
                f"{formats.REFERENCE_FILE} …; or in Python, by pcl_ray:",
                "from pcl_ray.model.weights import load_encoder",
                f'encoder = load_encoder("{formats.REFERENCE_FILE}")  # encoder="momentum" for encoder_k',
                "features = encoder(images)",
            ]
    return [
        "import mlflow",
        'model = mlflow.pyfunc.load_model(".")  # this folder',
        'table = model.predict(["picture.jpg"])  # embedding, prototype_0, distance_0, …',
    ]


def _changed_layers(weights: LoadedWeights, *, head: bool) -> list[str]:
    """What differs from torchvision's model of that name."""
    lines = []
    if weights.config.stem == "small":
        lines += [line.format(channels=weights.channels) for line in _STEMS]
    elif weights.channels != 3:
        lines.append(_GREY.format(channels=weights.channels))
    lines.append(f"model.fc = {_layers(weights)}" if head else "model.fc = torch.nn.Identity()")
    return lines


def _layers(weights: LoadedWeights) -> str:
    """The projection head as it is written in Python."""
    head = weights.encoder.get_submodule("head")
    parts = list(head.children()) or [head]
    names = {
        "Linear": "Linear({0.in_features}, {0.out_features}, bias={1})",
        "BatchNorm1d": "BatchNorm1d({0.num_features})",
    }
    written = [
        "torch.nn."
        + names.get(type(part).__name__, f"{type(part).__name__}()").format(
            part, getattr(part, "bias", None) is not None
        )
        for part in parts
    ]
    return written[0] if len(written) == 1 else f"torch.nn.Sequential({', '.join(written)})"


def _normalised(call: str, *, head: bool) -> str:
    return f"features = torch.nn.functional.normalize({call})" if head else f"features = {call}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)

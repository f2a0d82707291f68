"""How the files of other projects are laid out, recognised by their keys alone.

MoCo v1 and v2 (facebookresearch/moco, moco/builder.py) and PCL (salesforce/PCL, pcl/builder.py): encoder_q.…,
  encoder_k.…, queue [C, R]; the projection head is their `fc`, one layer, or layers 0 and 2.
MoCo v3 (facebookresearch/moco-v3, moco/builder.py): base_encoder.…, momentum_encoder.…, predictor.…; the head
  is `fc` of a ResNet, `head` of a ViT.
SwAV, DeepCluster-v2 (facebookresearch/swav, src/resnet50.py): torchvision's names, projection_head.… and
  prototypes.… beside them.
DINO (facebookresearch/dino, main_dino.py): student and teacher, each backbone.… and head.…. The published
  backbones are plain state dicts.
solo-learn (vturrisi/solo-learn, solo/methods/base.py): backbone.…, momentum_backbone.…, projector.…,
  momentum_projector.…; encoder.… instead of backbone.… in its early versions.
lightly (lightly-ai/lightly, examples/pytorch_lightning): backbone.…, backbone_momentum.…, projection_head.…,
  where backbones may be nn.Sequentials: 0 is conv1, 1 bn1, 4 … 7 the layers. Its benchmarks/imagenet/resnet50
  have query_backbone.… or student_backbone.… beside backbone.…, which is the momentum encoder there.
torchvision, timm and whoever wraps them: a state dict, below module., model., backbone., encoder. or others;
  timm's training (train.py) keeps a moving average beside it as state_dict_ema.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Which = Literal["query", "momentum"]
State = dict[str, Tensor]


@dataclass
class Layout:
    """The weights of one encoder, cut out of a file."""

    family: str
    encoder: str  # which of the file's encoders it is, in words
    backbone: State  # under the names of torchvision or timm, or with further prefixes
    head: State  # under those of an nn.Sequential (`0.weight`), or of one layer (`weight`); may be empty
    left_out: list[str]  # the first words of what is neither
    queue: Tensor | None = None  # [R, C], where the file has one
    architecture: str | None = None  # as the file names it
    activation: str = "relu"  # of the head
    missing_head: str = ""  # where the head should be
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Family:
    """Where a project keeps its encoders; heads of prefix "" lie within the backbone. Without `momentum` it
    has one encoder.
    """

    name: str
    query: str
    momentum: str = ""
    query_head: str = ""
    momentum_head: str = ""
    needs_both: bool = True  # else either prefix is enough to recognise it

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        needed = [self.query, self.momentum] if self.momentum else [self.query, self.query_head]
        present = [any(name.startswith(prefix) for name in state) for prefix in needed]
        return all(present) if self.needs_both else any(present)


# The first that fits.
_FAMILIES = (
    _Family("MoCo v3", "base_encoder.", "momentum_encoder."),
    _Family("MoCo or PCL", "encoder_q.", "encoder_k.", needs_both=False),
    _Family("solo-learn", "backbone.", "momentum_backbone.", "projector.", "momentum_projector."),
    _Family("solo-learn", "encoder.", "momentum_encoder.", "projector.", "momentum_projector."),
    _Family("lightly", "student_backbone.", "teacher_backbone.", "student_head.", "teacher_head."),
    _Family("lightly", "student_backbone.", "backbone.", "student_projection_head.", "projection_head."),
    _Family("lightly", "query_backbone.", "backbone.", "query_projection_head.", "projection_head."),
    _Family("lightly", "backbone.", "backbone_momentum.", "projection_head.", "projection_head_momentum."),
    _Family("solo-learn", "backbone.", query_head="projector."),
    _Family("solo-learn", "encoder.", query_head="projector."),
    _Family("lightly", "backbone.", query_head="projection_head."),
    _Family("DINO", "backbone.", query_head="head.mlp."),
)
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
# Two encoders as state dicts of their own: query, momentum; whether it takes both to tell.
_PAIRS = (("student", "teacher", False), ("state_dict", "state_dict_ema", True), ("model", "model_ema", True))
_STATES = ("state_dict", "model", "model_state_dict", "model_state")
# Words in the name of an encoder that is a moving average.
_MOMENTUM = re.compile(r"momentum|teacher|target|ema|(^|[._])k(ey)?([._]|$)")
# Weights that end so are the first ones of a ResNet, of one in an nn.Sequential, of a ViT.
_ANCHORS = (
    "layer1.0.conv1.weight",
    "layers1.0.conv1.weight",
    "patch_embed.proj.weight",
    "conv_proj.weight",
    "stem.0.weight",
    "stem.conv.weight",
)
_SEQUENTIAL = re.compile(r"^(.*?)([24])\.0\.conv1\.weight$")


def layout_of(content: Any, which: Which) -> Layout | None:
    """The chosen encoder of a file's content, None where nothing in it looks like weights. Of a file with one
    encoder it is that one.
    """
    encoders, architecture = _unwrapped(content)
    name = which if which in encoders else next(iter(encoders), None)
    if name is None:
        return None
    state = _bare(encoders[name])
    family = next((family for family in _FAMILIES if family.fits(state)), None)
    if family is not None:
        layout = _of_family(family, state, which)
    elif any(word.startswith("projection_head.") for word in state):
        layout = _swav(state)
    else:
        layout = _plain(state, which)
    layout.architecture = architecture
    if len(encoders) > 1:  # one state dict each
        layout.encoder = f"{name} encoder"
    if layout.family == "DINO":
        layout.activation = "gelu"
        if len(encoders) == 1:
            layout.encoder = "its one encoder"
    return layout


def _unwrapped(content: Any) -> tuple[dict[str, State], str | None]:
    """The state dicts in a file, by the encoder that they are of, and the architecture that it names."""
    if not isinstance(content, Mapping):
        return {}, None
    architecture = content.get("arch")
    arguments = content.get("args")
    if architecture is None and arguments is not None:
        named = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
        architecture = named.get("arch") or named.get("model")
    architecture = architecture if isinstance(architecture, str) else None
    for query, momentum, needs_both in _PAIRS:
        pair = {"query": _tensors(content.get(query)), "momentum": _tensors(content.get(momentum))}
        encoders = {name: state for name, state in pair.items() if state}
        if len(encoders) == 2 or (encoders and not needs_both):
            return encoders, architecture
    for name in _STATES:
        if isinstance(content.get(name), Mapping):
            inner, named = _unwrapped(content[name])
            return inner, architecture or named
    tensors = _tensors(content)
    return ({"only": tensors} if tensors else {}), architecture


def _tensors(content: Any) -> State:
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _bare(state: State) -> State:
    """The state without the prefixes of modules that only wrap others."""
    for wrapper in _WRAPPERS:
        state = {name.replace(wrapper, ""): value for name, value in state.items()}
    return state


def _of_family(family: _Family, state: State, which: Which) -> Layout:
    """The chosen encoder of a file of this family."""
    momentum = which == "momentum" and bool(family.momentum)
    prefix = family.momentum if momentum else family.query
    head_prefix = family.momentum_head if momentum else family.query_head
    words = f"{which} encoder" if family.momentum else "its one encoder"
    backbone = _under(prefix, state)
    own = [family.query, family.momentum, family.query_head, family.momentum_head]
    if family.name == "DINO":
        own.append("head.")
        last = [name for name in state if name.startswith("head.last_layer")]
        layout = Layout(family.name, words, backbone, _under("head.mlp.", state), [])
        layout.left_out = ["head.last_layer"] if last else []
        return layout
    if head_prefix:
        head = _under("layers.", _under(head_prefix, state)) or _under(head_prefix, state)
    else:
        head = _under("fc.", backbone) or (_under("head.", backbone) if "cls_token" in backbone else {})
        backbone = {name: value for name, value in backbone.items() if not name.startswith(("fc.", "head."))}
    queue = _queue(state)
    own += ["queue"] if queue is not None else []
    left_out = _first_words(name for name in state if not name.startswith(tuple(filter(None, own))))
    layout = Layout(family.name, words, backbone, head, left_out, queue)
    layout.missing_head = f"{prefix}fc" if not head_prefix else head_prefix.rstrip(".")
    if not backbone:
        layout.notes.append(f"no weights under '{prefix}'")
    return layout


def _swav(state: State) -> Layout:
    """SwAV's ResNet: torchvision's names with head and prototypes beside them. Its separate layer of padding
    and a first convolution that pads by one less are together torchvision's convolution.
    """
    head = _under("projection_head.", state)
    others = ("projection_head.", "prototypes")
    backbone = {name: value for name, value in state.items() if not name.startswith(others)}
    left_out = _first_words(name for name in state if name.startswith("prototypes"))
    return Layout("SwAV", "its one encoder", backbone, head, left_out)


def _plain(state: State, which: Which) -> Layout:
    """A state dict without a head of ours, its encoder wherever in it. Of several encoders the one that is
    named as a moving average is the momentum encoder.
    """
    prefixes = sorted({prefix for name in state if (prefix := _prefix_at(name, state)) is not None})
    if not prefixes:
        prefix = _common_prefix(state)
        prefixes = [prefix]
    averaged = [prefix for prefix in prefixes if _MOMENTUM.search(prefix)]
    others = [prefix for prefix in prefixes if prefix not in averaged]
    two = bool(averaged and others)
    wanted = averaged if which == "momentum" and two else others or averaged
    prefix = min(wanted, key=len)
    backbone = _under(prefix, state)
    left_out = _first_words(name for name in state if not any(name.startswith(other) for other in prefixes))
    return Layout("a state dict", f"{which} encoder" if two else "its one encoder", backbone, {}, left_out)


def _prefix_at(name: str, state: State) -> str | None:
    """What stands before the names of a backbone, if this name is an anchor of one."""
    for anchor in _ANCHORS:
        if name == anchor or name.endswith(f".{anchor}"):
            return name.removesuffix(anchor)
    match = _SEQUENTIAL.match(name)
    if match and f"{match[1]}0.weight" in state and f"{match[1]}1.running_mean" in state:
        return match[1]
    return None


def _common_prefix(state: State) -> str:
    """The words that all names begin with, of those that wrap a backbone."""
    prefix = ""
    while True:
        rest = [name.removeprefix(prefix) for name in state]
        word = next((w for w in ("model.", "backbone.", "encoder.", "net.") if rest[0].startswith(w)), None)
        if word is None or not all(name.startswith(word) for name in rest):
            return prefix
        prefix += word


def _queue(state: State) -> Tensor | None:
    """The features [R, C] of MoCo's queue [C, R], the oldest first. That of solo-learn, of two views, is
    none of ours.
    """
    queue, pointer = state.get("queue"), state.get("queue_ptr")
    if queue is None or queue.ndim != 2:
        return None
    return queue.T.roll(0 if pointer is None else -int(pointer.flatten()[0]), 0).contiguous()


def _under(prefix: str, state: State) -> State:
    """What begins with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _first_words(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))

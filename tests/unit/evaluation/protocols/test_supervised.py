"""Protocols that train with labels: linear probe by SGD, fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pcl_ray.config import RunConfig, with_overrides
from pcl_ray.data.images import ArrayImages
from pcl_ray.errors import DataError
from pcl_ray.evaluation.protocols.extraction import TestedEncoder
from pcl_ray.evaluation.protocols.fine_tuning import class_balanced_rows, fine_tuning
from pcl_ray.evaluation.protocols.images import EvaluationImages
from pcl_ray.evaluation.protocols.linear_sgd import FrozenProbe, linear_sgd
from pcl_ray.evaluation.protocols.settings import ProtocolSettings
from pcl_ray.evaluation.protocols.supervised import Course, LabelledViews, standard_views
from pcl_ray.model import encoder as encoders

CONFIG = with_overrides(
    RunConfig(),
    {
        "augment.image_size": 8,
        "data.channels": 1,
        "augment.mean": [0.5],
        "augment.std": [0.25],
        "encoder.backbone": "small_resnet",
        "encoder.width": 8,
        "encoder.blocks": [1, 1],
        "encoder.dim": 8,
    },
)


def encoder(seed: int = 0) -> TestedEncoder:
    torch.manual_seed(seed)
    model = encoders.build(CONFIG.encoder, 1).eval()
    return TestedEncoder(model, CONFIG.encoder, CONFIG, True, torch.device("cpu"))


def stripes(count: int, seed: int) -> ArrayImages:
    """Images of three classes: stripes across, along, and none; an unequal number of each."""
    draw = np.random.default_rng(seed)
    of = draw.choice(3, count, p=[0.5, 0.3, 0.2])
    pixels = draw.integers(60, 120, (count, 8, 8, 1))
    pixels[of == 0, ::2] += 110
    pixels[of == 1, :, ::2] += 110
    return ArrayImages(pixels.astype(np.uint8), of, ("across", "along", "none"))


def images() -> EvaluationImages:
    return EvaluationImages("stripes", stripes(220, 0), stripes(90, 1))


def silent(text: str) -> None:
    pass


def test_the_learning_rate_falls_to_a_tenth_at_60_and_80() -> None:
    course = Course(100, 256)
    assert [course.factor_at(epoch) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_the_views_are_crops_and_flips_alone() -> None:
    colourful = with_overrides(CONFIG, {"augment.shift": 0.2, "augment.small_crops": 2, "augment.erase": 1})
    views = standard_views(colourful, 16, 3).augment
    assert (views.min_crop, views.flip, views.shift, views.small_crops, views.erase) == (0.08, 0.5, 0, 0, 0)
    assert (views.jitter, views.hue, views.grey, views.blur) == (0, 0, 0, 0)
    assert standard_views(with_overrides(CONFIG, {"augment.flip": 0}), 16, 0).augment.flip == 0


def test_the_probe_is_sgd_on_a_frozen_backbone() -> None:
    """The same steps by hand: momentum 0.9, no decay, learning rate by the size of the batch."""
    tested, data = encoder(), images()
    before = {name: value.clone() for name, value in tested.encoder.state_dict().items()}
    settings = ProtocolSettings(probe_epochs=5, probe_batch=64, probe_lr=0.4)
    values, notes = linear_sgd(tested, data, settings, silent)
    after = tested.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert notes["lr"] == pytest.approx(0.4 * 64 / 256)

    torch.manual_seed(0)
    backbone = tested.parts()[0]
    weight = FrozenProbe(tested, backbone, 16, 3).linear.weight.detach().clone()
    bias, momenta = torch.zeros(3), [torch.zeros(3, 16), torch.zeros(3)]
    of = data.bank.labels
    assert of is not None
    views = LabelledViews(tested, data.bank, of, Course(5, 64), 0)
    for epoch in range(5):
        lr = 0.1 * [1, 1, 1, 0.1, 0.01][epoch]
        for pixels, classes in views.epoch(epoch):
            with torch.no_grad():
                rows = backbone(pixels)
                apart = (F.softmax(rows @ weight.T + bias, dim=1) - F.one_hot(classes, 3)) / len(rows)
                for parameter, momentum, gradient in zip(
                    (weight, bias), momenta, (apart.T @ rows, apart.sum(0)), strict=True
                ):
                    momentum.mul_(0.9).add_(gradient)
                    parameter.sub_(lr * momentum)
    pixels = torch.from_numpy(data.queries.pixels.transpose(0, 3, 1, 2)) / 255  # type: ignore[union-attr]
    with torch.no_grad():
        predicted = (backbone((pixels - 0.5) / 0.25) @ weight.T + bias).argmax(1).numpy()
    expected = float((predicted == data.query_labels).mean())
    assert values["top1"] == [pytest.approx(expected, abs=0.012)]  # one query may lie on the border


def test_a_run_is_another_start_and_divergence_is_one_sentence() -> None:
    settings = ProtocolSettings(probe_epochs=30, probe_batch=64, probe_lr=0.4, costly_runs=2)
    values, notes = linear_sgd(encoder(), images(), settings, silent)
    assert len(values["top1"]) == 2
    assert notes["losses"][0] != notes["losses"][1]
    assert max(notes["losses"]) < 1.0  # log 3 is chance
    with pytest.raises(DataError, match="diverged in epoch .* --probe-lr makes"):
        linear_sgd(encoder(), images(), ProtocolSettings(probe_epochs=4, probe_lr=1e38), silent)


def test_the_labels_are_the_same_share_of_each_class() -> None:
    of = np.repeat([0, 1, 2, -1], [200, 50, 3, 40])
    rows = class_balanced_rows(of, 0.1, seed=0)
    assert np.bincount(of[rows]).tolist() == [20, 5, 1]  # at least one
    assert (np.diff(rows) > 0).all()
    assert class_balanced_rows(of, 0.1, seed=0).tolist() == rows.tolist()
    assert class_balanced_rows(of, 0.1, seed=1).tolist() != rows.tolist()
    assert class_balanced_rows(of, 1.0, seed=0).tolist() == list(range(253))


def test_fine_tuning_learns_records_its_images_and_leaves_the_encoder() -> None:
    tested, data = encoder(), images()
    before = {name: value.clone() for name, value in tested.encoder.state_dict().items()}
    settings = ProtocolSettings(label_shares=(0.05, 1.0), tuning_epochs=12)
    values, notes = fine_tuning(tested, data, settings, silent)
    after = tested.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert values["p100/top1"][0] > 0.9
    assert values["p100/top1"][0] > values["p5/top1"][0]
    (rows,) = notes["rows"]["p5"]
    assert rows == class_balanced_rows(data.bank.labels, 0.05, seed=0).tolist()  # type: ignore[arg-type]
    assert notes["batch"] == {"p5": len(rows), "p100": 22}

"""InfoNCE and ProtoNCE against slow references, from the paper's equations with loops over Python numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.losses import (
    draw_mates,
    first_is_right,
    info_nce,
    instance_logits,
    mate_logits,
    proto_nce,
    prototype_logits,
    sample_negatives,
)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def reference_info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> float:
    """Equation 1: the denominator holds the positive and the R negatives."""
    total = 0.0
    for q, k in zip(query.tolist(), key.tolist(), strict=True):
        positive = math.exp(dot(q, k) / temperature)
        negatives = sum(math.exp(dot(q, n) / temperature) for n in queue.tolist())
        total -= math.log(positive / (positive + negatives))
    return total / len(query)


def reference_proto_nce(
    query: Tensor,
    prototypes: Tensor,
    phi: Tensor,
    positives: list[int],
    columns: list[int] | None,
    mask: bool,
) -> float:
    """Equation 11, second term, one clustering. `columns` None: all prototypes. Logits use their own φ."""
    c, f, total = prototypes.tolist(), phi.tolist(), 0.0
    for row, q in enumerate(query.tolist()):
        own = positives[row]
        score = [math.exp(dot(q, c[j]) / f[j]) for j in range(len(c))]
        if columns is None:
            denominator = sum(score)
        else:
            denominator = score[own]  # the row's own column
            for column, j in enumerate(columns):
                if column != row and not (mask and j == own):
                    denominator += score[j]
        total -= math.log(score[own] / denominator)
    return total / len(query)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    return F.normalize(
        torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def a_case(batch: int = 7, k: int = 9, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    phi = 0.1 + 0.3 * torch.rand(k, dtype=torch.float64, generator=generator)
    return unit(batch, dim, seed + 1), unit(k, dim, seed + 2), phi


DUPLICATES = [3, 1, 3, 0, 1, 3, 8]  # prototypes of a batch of 7: three images share one, two another


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "queue"), [(1, 1), (4, 16), (9, 3)])
def test_info_nce_is_equation_1(batch: int, queue: int, temperature: float) -> None:
    query, key, negatives = unit(batch, 6, 0), unit(batch, 6, 1), unit(queue, 6, 2)
    expected = reference_info_nce(query, key, negatives, temperature)
    assert float(info_nce(query, key, negatives, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(info_nce(query.float(), key.float(), negatives.float(), temperature)) == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_leaves_out_what_is_hidden(temperature: float) -> None:
    query, key, queue = unit(4, 6, 0).requires_grad_(), unit(4, 6, 1), unit(9, 6, 2)
    hidden = torch.rand(4, 9, generator=torch.Generator().manual_seed(3)) < 0.5
    hidden[0], hidden[1] = False, True
    expected = [
        reference_info_nce(
            query[row : row + 1].detach(), key[row : row + 1], queue[~hidden[row]], temperature
        )
        for row in range(4)
    ]
    assert expected[1] == 0
    loss = info_nce(query, key, queue, temperature, hidden)
    assert float(loss.detach()) == pytest.approx(sum(expected) / 4, rel=1e-12)
    loss.backward()
    assert query.grad is not None
    assert bool(torch.isfinite(query.grad).all())
    assert not query.grad[1].any()  # nothing to tell it from
    assert all(query.grad[row].abs().max() > 1e-3 for row in (0, 2, 3))
    none = torch.zeros_like(hidden)
    assert torch.equal(
        info_nce(query, key, queue, temperature, none), info_nce(query, key, queue, temperature)
    )


@pytest.mark.parametrize("first", [True, False], ids=["hidden for both", "hidden for mates"])
def test_a_mates_key_is_the_positive_against_what_is_left(first: bool) -> None:
    query, key, queue = unit(4, 6, 0).requires_grad_(), unit(4, 6, 1), unit(9, 6, 2)
    same = torch.rand(4, 9, generator=torch.Generator().manual_seed(3)) < 0.5
    same[1] = True  # no negative is left
    mates, counted = [2, 5, 0, 0], torch.tensor([True, True, False, True])
    expected = [
        reference_info_nce(query.detach()[[row]], queue[[mate]], queue[~same[row]], 0.2)
        for row, mate in enumerate(mates)
    ]
    logits = instance_logits(query, key, queue, 0.2, same if first else None)
    with_mates = mate_logits(logits, query, queue[mates], 0.2, None if first else same)
    loss = first_is_right(with_mates, counted)
    expected_sum = expected[0] + expected[1] + expected[3]
    assert float(loss.detach()) == pytest.approx(expected_sum / 4, rel=1e-12)
    loss.backward()
    assert query.grad is not None
    assert bool(torch.isfinite(query.grad).all())
    assert [bool(row.any()) for row in query.grad] == [True, False, False, True]


@given(
    queue=st.lists(st.integers(-1, 11), min_size=1, max_size=15),
    batch=st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True),
    assignments=st.lists(st.integers(-1, 3), min_size=10, max_size=10),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_mates_are_other_images_of_the_group(
    queue: list[int], batch: list[int], assignments: list[int], uniform: float
) -> None:
    def groups_of(images: list[int]) -> list[int]:
        clusters = [assignments[image] if 0 <= image < 10 else -1 for image in images]
        return [
            -2 - image if 0 <= image < 10 and k < 0 else k for image, k in zip(images, clusters, strict=True)
        ]

    rows = draw_mates(
        *(torch.tensor(values) for values in (groups_of(batch), batch, groups_of(queue), queue)),
        torch.full((len(batch),), uniform, dtype=torch.float64),
        10,
    )
    for image, row in zip(batch, rows.tolist(), strict=True):
        mates = [
            other
            for other, there in enumerate(queue)
            if 0 <= there < 10 and there != image and assignments[there] == assignments[image] >= 0
        ]
        mates.sort(key=lambda other: (queue[other], other))
        assert row == (mates[int(uniform * len(mates))] if mates else -1)


def test_mates_are_alike_likely() -> None:
    groups, images = torch.tensor([0, 0, 1, 0, 0, 0]), torch.tensor([3, 4, 9, 3, 5, 6])
    count = 4000
    rows = draw_mates(
        torch.zeros(count, dtype=torch.long),
        torch.full((count,), 3),
        groups,
        images,
        torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        10,
    )
    assert set(rows.tolist()) == {1, 4, 5}
    assert all(abs((rows == row).sum() / count - 1 / 3) < 0.03 for row in (1, 4, 5))


def test_a_step_down_the_gradient_lowers_info_nce() -> None:
    query, key, queue = unit(3, 4, 0).requires_grad_(), unit(3, 4, 1), unit(5, 4, 2)
    info_nce(query, key, queue, 0.2).backward()
    stepped = F.normalize((query - 0.01 * query.grad).detach(), dim=1)
    assert reference_info_nce(stepped, key, queue, 0.2) < reference_info_nce(query.detach(), key, queue, 0.2)


def test_proto_nce_over_all_prototypes() -> None:
    query, prototypes, phi = a_case()
    expected = reference_proto_nce(query, prototypes, phi, DUPLICATES, None, True)
    assert float(proto_nce(query, prototypes, phi, torch.tensor(DUPLICATES))) == pytest.approx(
        expected, rel=1e-12
    )


def test_each_logit_is_divided_by_the_concentration_of_its_own_prototype() -> None:
    # With the image's own φ in every column (a plausible slip) both calls would agree on row 0.
    query, prototypes, phi = a_case(batch=1)
    other = phi.clone()
    other[5] *= 3
    assert float(proto_nce(query, prototypes, phi, torch.tensor([3]))) != pytest.approx(
        float(proto_nce(query, prototypes, other, torch.tensor([3])))
    )


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(
    "positives", [[3, 1, 4, 0, 2, 5, 8], DUPLICATES, [2] * 7], ids=["distinct", "some shared", "all shared"]
)
@pytest.mark.parametrize("negatives", [[], [6], [6, 7]])
def test_proto_nce_with_sampled_negatives(positives: list[int], negatives: list[int], mask: bool) -> None:
    query, prototypes, phi = a_case()
    expected = reference_proto_nce(query, prototypes, phi, positives, positives + negatives, mask)
    found = proto_nce(
        query,
        prototypes,
        phi,
        torch.tensor(positives),
        torch.tensor(negatives, dtype=torch.long),
        mask_duplicates=mask,
    )
    assert float(found) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_masking_hides_only_duplicates() -> None:
    query, prototypes, phi = a_case()
    positives, negatives = torch.tensor(DUPLICATES), torch.tensor([6, 7])
    logits, target = prototype_logits(query, prototypes, phi, positives, negatives)
    columns = DUPLICATES + [6, 7]
    hidden = {
        (row, column) for row in range(7) for column in range(9) if logits[row, column] == float("-inf")
    }
    assert hidden == {
        (row, column)
        for row in range(7)
        for column in range(9)
        if columns[column] == DUPLICATES[row] and column != row
    }
    assert target.tolist() == list(range(7))


def test_masking_changes_nothing_without_duplicates_and_lowers_the_loss_with_them() -> None:
    query, prototypes, phi = a_case()
    distinct, shared, negatives = (
        torch.tensor([3, 1, 4, 0, 2, 5, 8]),
        torch.tensor(DUPLICATES),
        torch.tensor([6, 7]),
    )
    masked, plain = (
        proto_nce(query, prototypes, phi, distinct, negatives, mask_duplicates=mask) for mask in (True, False)
    )
    assert torch.equal(masked, plain)
    masked, plain = (
        proto_nce(query, prototypes, phi, shared, negatives, mask_duplicates=mask) for mask in (True, False)
    )
    assert masked < plain


def test_masked_columns_leave_the_gradient_finite() -> None:
    query, prototypes, phi = a_case()
    query.requires_grad_()
    # every other column is hidden
    proto_nce(query, prototypes, phi, torch.full((7,), 2), torch.tensor([], dtype=torch.long)).backward()
    assert torch.isfinite(query.grad).all()


@given(
    batch=st.integers(1, 6),
    k=st.integers(2, 8),
    seed=st.integers(0, 1000),
    mask=st.booleans(),
    sampled=st.booleans(),
    data=st.data(),
)
def test_proto_nce_equals_the_reference_for_any_batch(
    batch: int, k: int, seed: int, mask: bool, sampled: bool, data: st.DataObject
) -> None:
    query, prototypes, phi = a_case(batch, k, 4, seed)
    positives = data.draw(st.lists(st.integers(0, k - 1), min_size=batch, max_size=batch))
    negatives = data.draw(st.lists(st.sampled_from(range(k)), unique=True, max_size=k)) if sampled else None
    columns = None if negatives is None else positives + negatives
    drawn = None if negatives is None else torch.tensor(negatives, dtype=torch.long)
    found = proto_nce(query, prototypes, phi, torch.tensor(positives), drawn, mask_duplicates=mask)
    assert float(found) == pytest.approx(
        reference_proto_nce(query, prototypes, phi, positives, columns, mask), rel=1e-10, abs=1e-10
    )


@given(k=st.integers(1, 40), count=st.integers(0, 50), seed=st.integers(0, 1000), data=st.data())
def test_sampled_negatives_are_distinct_and_never_positives(
    k: int, count: int, seed: int, data: st.DataObject
) -> None:
    positives = data.draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=20))
    drawn = sample_negatives(k, torch.tensor(positives), count, torch.Generator().manual_seed(seed)).tolist()
    assert len(drawn) == min(count, k - len(set(positives)))  # fewer only where fewer are left
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & set(positives)
    assert all(0 <= j < k for j in drawn)


def test_sampled_negatives_follow_the_generator() -> None:
    positives = torch.tensor([0, 5, 5, 9])
    first, again, other = (
        sample_negatives(1000, positives, 50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.long


def test_every_negative_is_drawn_equally_often() -> None:
    positives, generator = torch.tensor([2, 2, 4]), torch.Generator().manual_seed(0)
    times = torch.zeros(8)
    for _ in range(2000):
        times[sample_negatives(8, positives, 3, generator)] += 1
    expected = 2000 * 3 / 6
    others = times[[0, 1, 3, 5, 6, 7]]
    assert times[[2, 4]].sum() == 0
    # six standard deviations of a binomial count
    assert (others - expected).abs().max() < 6 * math.sqrt(2000 * 0.5 * 0.5)


def test_sampled_negatives_without_a_generator_follow_the_global_seed() -> None:
    torch.manual_seed(7)
    first = sample_negatives(100, torch.tensor([1]), 10)
    torch.manual_seed(7)
    assert torch.equal(first, sample_negatives(100, torch.tensor([1]), 10))


@given(
    k=st.integers(1, 30),
    count=st.integers(0, 40),
    seed=st.integers(0, 1000),
    told=st.booleans(),
    positives=st.lists(st.integers(-1, 29), min_size=1, max_size=20),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_negatives_are_valid_distinct_and_never_positives(
    k: int, count: int, seed: int, told: bool, positives: list[int], share: float
) -> None:
    positives = [min(positive, k - 1) for positive in positives]  # -1: an image without a prototype
    valid = torch.rand(k, generator=torch.Generator().manual_seed(seed + 1)) < share
    known = {"num_valid": int(valid.sum())} if told else {}
    drawn = sample_negatives(
        k, torch.tensor(positives), count, torch.Generator().manual_seed(seed), valid, **known
    ).tolist()
    left = set(valid.nonzero().flatten().tolist()) - set(positives)
    assert len(drawn) == min(count, len(left))  # fewer only where fewer are left
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= left


@pytest.mark.parametrize("count", [3, 12, 20])
def test_what_is_known_of_the_valid_ones_changes_no_draw(count: int) -> None:
    valid = torch.rand(20, generator=torch.Generator().manual_seed(0)) < 0.7
    positives = torch.tensor([-1, 2, 2, 5, -1])
    plain, told = (
        sample_negatives(
            20, positives, count, torch.Generator().manual_seed(1), valid, num_valid=known
        ).tolist()
        for known in (None, int(valid.sum()))
    )
    assert plain == told


def test_where_all_are_valid_the_draws_are_those_without_a_mask() -> None:
    positives = torch.tensor([4, 4, 17])
    plain, masked = (
        sample_negatives(40, positives, 9, torch.Generator().manual_seed(3), valid)
        for valid in (None, torch.ones(40, dtype=torch.bool))
    )
    assert torch.equal(plain, masked)
    assert torch.equal(
        plain, sample_negatives(40, positives, 9, torch.Generator().manual_seed(3), num_valid=40)
    )


def test_drawing_leaves_its_arguments_as_they_are() -> None:
    positives, valid = torch.tensor([-1, 3, 1]), torch.tensor([True, True, False, True, True])
    sample_negatives(5, positives, 2, torch.Generator().manual_seed(0), valid, num_valid=4)
    assert positives.tolist() == [-1, 3, 1]
    assert valid.tolist() == [True, True, False, True, True]


def test_every_valid_negative_is_drawn_equally_often() -> None:
    valid = torch.tensor([True, False, True, True, True, True, True, True])
    positives, generator, times = torch.tensor([2, -1, 4]), torch.Generator().manual_seed(0), torch.zeros(8)
    for _ in range(2000):
        times[sample_negatives(8, positives, 2, generator, valid, num_valid=7)] += 1
    assert times[[1, 2, 4]].sum() == 0
    # six standard deviations of a binomial count
    assert (times[[0, 3, 5, 6, 7]] - 2000 * 2 / 5).abs().max() < 6 * math.sqrt(2000 * 0.4 * 0.6)


def test_images_without_a_prototype_take_no_prototype_from_the_others() -> None:
    valid = torch.ones(4, dtype=torch.bool)
    drawn = sample_negatives(
        4, torch.tensor([-1, -1, 2]), 3, torch.Generator().manual_seed(0), valid, num_valid=4
    )
    assert sorted(drawn.tolist()) == [0, 1, 3]  # the last one too, which -1 would name as an index

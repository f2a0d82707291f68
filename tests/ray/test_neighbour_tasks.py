"""kNN over Ray tasks: the same neighbours as in one process."""

from __future__ import annotations

from collections.abc import Callable

SCRIPT = """
from pcl_ray.on_ray import environment
environment.set_defaults()
import torch
from pcl_ray.evaluation.neighbours import nearest_neighbours
from pcl_ray.on_ray.neighbour_tasks import search_on_ray

dice = torch.Generator().manual_seed(0)
bank, query = torch.randn(2300, 12, generator=dice), torch.randn(130, 12, generator=dice)
lines = []
with search_on_ray(lines.append, rows=500, queries=60) as search:
    for count in (1, 40, 2300):
        cosine, rows = search(bank, query, count, None)
        expected = nearest_neighbours(bank, query, count)
        if count == 2300:  # some cosines are equal but for rounding, which differs with the size of a block
            rows, expected = rows.sort(1).values, (expected[0], expected[1].sort(1).values)
        assert torch.equal(rows, expected[1]), count
        assert torch.allclose(cosine, expected[0], atol=1e-6)
    own = torch.arange(0, 2300, 20)
    assert torch.equal(
        search(bank, bank[own], 30, own)[1], nearest_neighbours(bank, bank[own], 30, own_rows_Q=own)[1]
    )
    half = search(bank.half(), query.half(), 9, None)[1]
    assert torch.equal(half, nearest_neighbours(bank.half(), query.half(), 9)[1])
assert "over Ray" in lines[0]
print("the same")
"""


def test_the_neighbours_are_the_same(said_by: Callable[[str], str]) -> None:
    assert said_by(SCRIPT).strip().endswith("the same")

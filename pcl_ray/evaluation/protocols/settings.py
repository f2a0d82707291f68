"""How the protocols are run: the options of `pcl-ray evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from pcl_ray.errors import ConfigError

# Bank [N, C], queries [Q, C], how many neighbours, the queries' own rows of the bank or None: cosines [Q, k],
# falling, and rows [Q, k].
NeighbourSearch = Callable[[Tensor, Tensor, int, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ProtocolSettings:
    """runs: of every protocol in which something is random; costly_runs: of those that train on images.
    search: the neighbours of kNN; None finds them in this process. cluster_counts: K beside the number of
    classes.
    """

    neighbours: tuple[int, ...] = (200,)
    temperature: float = 0.07
    leave_one_out: bool = False
    runs: int = 5
    costly_runs: int = 1
    seed: int = 0
    cluster_counts: tuple[int, ...] = ()
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    label_shares: tuple[float, ...] = (0.01, 0.1)
    probe_epochs: int = 100
    probe_lr: float = 5.0
    probe_batch: int = 256
    tuning_epochs: int = 20
    search: NeighbourSearch | None = None

    def __post_init__(self) -> None:
        limits = {
            "--neighbours": min(self.neighbours, default=0),
            "--runs": min(self.runs, self.costly_runs),
            "--clusters": min(self.cluster_counts, default=2) - 1,
            "--shots": min(self.shots, default=1),
            "--probe-epochs": self.probe_epochs,
            "--tuning-epochs": self.tuning_epochs,
        }
        for option, least in limits.items():
            if least < 1:
                raise ConfigError(
                    f"{option}: {least if option != '--clusters' else least + 1} is too few; it has to be"
                    f" {2 if option == '--clusters' else 1} or more"
                )
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature:g}: has to be above 0")
        if not all(0 < share <= 1 for share in self.label_shares):
            raise ConfigError("--label-shares: each has to be above 0 and at most 1, 0.01 is 1 %")

    def with_clusters(self, counts: tuple[int, ...]) -> ProtocolSettings:
        return replace(self, cluster_counts=counts)

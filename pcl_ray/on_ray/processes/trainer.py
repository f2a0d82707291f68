"""Ray Train's trainer without the helpers that a run has no use for: each is a process, whose start takes two
seconds of a core while the workers need it.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# Callbacks by the names of their classes. We have no data sets of Ray Data.
_USELESS = {"DatasetsCallback"}
_USELESS_ALONE = {"PlacementGroupCleanerCallback"}  # a Ray that ends with the run leaves no groups behind


class LeanTrainer(DataParallelTrainer):
    """shared: whether others use the cluster, too, which may grow and outlives the run.

    It overrides what Ray does not promise to keep: of a version with other names all helpers are started.
    """

    def __init__(self, *arguments: Any, shared: bool, **options: Any):
        super().__init__(*arguments, **options)
        self._shared = shared

    def _create_default_callbacks(self) -> list[Any]:
        useless = _USELESS if self._shared else _USELESS | _USELESS_ALONE
        return [made for made in super()._create_default_callbacks() if type(made).__name__ not in useless]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not self._shared and type(parts.get("scaling_policy")) is FixedScalingPolicy:
            scaling: Any = self.scaling_config
            parts["scaling_policy"] = FixedMachinePolicy(scaling)
        return super()._initialize_and_run_controller(**parts)


class FixedMachinePolicy(FixedScalingPolicy):
    """Asks for all workers, with no word to an autoscaler: a machine of our own does not grow."""

    def _send_resource_request(self) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...

    def _cancel_resource_request(self) -> None: ...

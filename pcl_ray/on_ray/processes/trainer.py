"""Ray Train's trainer without the helpers that a run has no use for: each is a process, whose start takes two
seconds of a core while the workers need it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
        self._controller: Any = None
        self._ended = False

    def end(self) -> None:
        """Ends the controller and with it all workers, so that `fit` raises in the thread that waits in it.

        Ray's library does not wait for such a thread when it is shut down: it frees what the thread reads,
        and the process would end by SIGSEGV.
        """
        self._ended = True
        if self._controller is not None:  # else the thread is about to start it, and looks then
            with suppress(RayError):
                ray.kill(self._controller)

    def _create_default_callbacks(self) -> list[Any]:
        useless = _USELESS if self._shared else _USELESS | _USELESS_ALONE
        return [made for made in super()._create_default_callbacks() if type(made).__name__ not in useless]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not self._shared and type(parts.get("scaling_policy")) is FixedScalingPolicy:
            scaling: Any = self.scaling_config
            parts["scaling_policy"] = FixedMachinePolicy(scaling)
        # Ray's own keeps the controller to itself, and it has to be ended when the run is
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        controller: Any = ray.remote(TrainController).options(
            num_cpus=0, scheduling_strategy=node, runtime_env={"env_vars": get_env_vars_to_propagate()}
        )
        self._controller = controller.remote(**parts)
        if self._ended:
            self.end()
        ray.get(self._controller.run.remote())
        result: Any = ray.get(self._controller.get_result.remote())
        return result


class FixedMachinePolicy(FixedScalingPolicy):
    """Asks for all workers, with no word to an autoscaler: a machine of our own does not grow."""

    def _send_resource_request(self) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...

    def _cancel_resource_request(self) -> None: ...

"""The EM loop of one run without Ray: plain classes that run in one process or in Ray's workers.

`loop` puts the others together. `training_task`, `events` and `system_metrics` need no torch.
"""

__all__ = [
    "e_step_actor",
    "e_step_shards",
    "events",
    "feature_pass",
    "local_e_step",
    "loop",
    "system_metrics",
    "training_task",
]

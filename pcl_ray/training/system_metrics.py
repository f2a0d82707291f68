"""How busy a node is, measured by one of the run's processes on it. Names are MLflow's, so that its dashboard
draws a line for each node.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pcl_ray.training.events import Event

PHASES = {"training": 0.0, "features": 1.0, "clustering": 2.0, "evaluation": 3.0}  # of `system/phase`
_MB = 1e6


class SystemWatch:
    """Posts an event every `interval_s` seconds from a thread of its own, until `stop`. Two that watch the
    same node are told apart by `text`.

    process: measure this process too, under this name: the E-step actor's own load, which a node's figures
    mix with the workers'.
    """

    def __init__(self, interval_s: float, post: Callable[[Event], Any], *, process: str = ""):
        self._interval_s, self._post, self._process = interval_s, post, process
        self._ended = threading.Event()
        self._node = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())
        if interval_s > 0:
            threading.Thread(target=self._work, name="system-watch", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _work(self) -> None:
        import psutil

        own = psutil.Process()
        psutil.cpu_percent()  # the first reading of each covers no time yet
        own.cpu_percent()
        while not self._ended.wait(self._interval_s):
            with suppress(Exception):  # a figure that a container hides, a board that is being restarted
                figures = node_figures(self._node)
                if self._process:
                    figures[f"system/{self._process}/cpu_utilization_percentage"] = own.cpu_percent()
                    figures[f"system/{self._process}/memory_usage_megabytes"] = own.memory_info().rss / _MB
                self._post(Event("system", metrics=figures, text=f"{self._node}:{os.getpid()}"))


def node_figures(node: str) -> dict[str, float]:
    """system/NODE/…: CPU, memory, network since the node's start, and each GPU's load and memory."""
    import psutil

    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    figures = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MB,
        "system_memory_usage_percentage": memory.percent,
    }
    if network is not None:
        figures |= {
            "network_receive_megabytes": network.bytes_recv / _MB,
            "network_transmit_megabytes": network.bytes_sent / _MB,
        }
    return {f"system/{node}/{name}": float(value) for name, value in (figures | _gpu_figures()).items()}


def _gpu_figures() -> dict[str, float]:
    figures: dict[str, float] = {}
    with suppress(Exception):  # no GPU, no driver, no library for it
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            figures[f"gpu_{number}_utilization_percentage"] = float(
                pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            )
            figures[f"gpu_{number}_memory_usage_percentage"] = 100 * float(memory.used) / float(memory.total)
            figures[f"gpu_{number}_memory_usage_megabytes"] = float(memory.used) / _MB
    return figures


class SystemLog:
    """Records on the driver, from each node, the figures of one process alone, on one axis (seconds since the
    run began), with the phase that the run is in.
    """

    def __init__(self, log: Callable[[dict[str, float], int], None], began: float):
        self._log, self._began = log, began
        self._sources: dict[str, str] = {}
        self._phase = PHASES["training"]

    def handle(self, event: Event, now: float) -> None:
        if event.kind == "start":
            self._sources.clear()  # workers were replaced: other processes look now
        elif event.kind == "phase":
            self._phase = PHASES.get(event.text, self._phase)
        elif event.kind in ("alive", "step", "epoch"):
            self._phase = PHASES["training"]
        elif event.kind == "system":
            node = event.text.partition(":")[0]
            figures = dict(event.metrics)
            # the node's figures come from another process already
            if self._sources.setdefault(node, event.text) != event.text:
                figures = {
                    name: value for name, value in figures.items() if not name.startswith(f"system/{node}/")
                }
            if figures:
                self._log(figures | {"system/phase": self._phase}, max(0, int(now - self._began)))

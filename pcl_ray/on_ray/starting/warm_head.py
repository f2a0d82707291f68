"""`ray start` for the head of `pcl-ray up`, with a warm process for all its jobs that ends with it."""

from __future__ import annotations

import sys

from pcl_ray.on_ray.starting import lean_node, warm_start


def main() -> None:
    """Takes the words that `ray` takes."""
    from ray.scripts.scripts import cli

    with warm_start.of_head() as warm, lean_node.workers_forked(warm.folder):
        cli(prog_name="ray")


if __name__ == "__main__":
    sys.exit(main())

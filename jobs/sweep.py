"""A sweep as a Ray job: `ray job submit --working-dir . -- python jobs/sweep.py SPACE [KEY=VALUE ...]`, with
the options of `pcl-ray sweep`.
"""

from pcl_ray.cli import entry

if __name__ == "__main__":
    entry("sweep")

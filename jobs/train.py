"""One experiment as a Ray job: `ray job submit --working-dir . -- python jobs/train.py RECIPE [KEY=VALUE
...]`, with the options of `pcl-ray train`.
"""

from pcl_ray.cli import entry

if __name__ == "__main__":
    entry("train")

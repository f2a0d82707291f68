"""One experiment as a Ray job: `ray job submit --working-dir . -- python jobs/train.py RECIPE [KEY=VALUE
...]`, with the options of `pcl-ray train`.
"""

import sys

from pcl_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

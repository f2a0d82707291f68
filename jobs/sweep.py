"""A sweep as a Ray job: `ray job submit --working-dir . -- python jobs/sweep.py SPACE [KEY=VALUE ...]`, with
the options of `pcl-ray sweep`.
"""

import sys

from pcl_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))

"""An evaluation as a Ray job: `ray job submit --working-dir . --entrypoint-num-gpus 1 -- python
jobs/evaluate.py RUN_OR_WEIGHTS [DATA] [KEY=VALUE ...]`, with the options of `pcl-ray evaluate`.
"""

import sys

from pcl_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

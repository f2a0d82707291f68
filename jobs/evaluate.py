"""An evaluation as a Ray job: `ray job submit --working-dir . --entrypoint-num-gpus 1 -- python
jobs/evaluate.py RUN_OR_WEIGHTS [DATA] [KEY=VALUE ...]`, with the options of `pcl-ray evaluate`.
"""

from pcl_ray.cli import entry

if __name__ == "__main__":
    entry("evaluate")

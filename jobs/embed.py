"""The embeddings of many images as a Ray job: `ray job submit --working-dir . -- python jobs/embed.py RUN
IMAGES --out DIR`, with the options of `pcl-ray embed`. All nodes must see the images and DIR.
"""

import sys

from pcl_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))

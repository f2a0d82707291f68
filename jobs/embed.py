"""The embeddings of many images as a Ray job: `ray job submit --working-dir . -- python jobs/embed.py RUN
IMAGES --out DIR`, with the options of `pcl-ray embed`. All nodes must see the images and DIR.
"""

from pcl_ray.cli import entry

if __name__ == "__main__":
    entry("embed")

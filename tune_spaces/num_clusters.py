"""pcl-ray sweep num_clusters

K alone, as shares of the N images, so that the space carries over to other data. The paper's 25,000, 50,000
and 100,000 of ImageNet's 1.28 million are about 0.02, 0.04 and 0.08: some 50, 25 and 13 images a cluster. The
sets of three keep the paper's doubling and go from four times coarser to twice finer; the finest leaves six
images a cluster, which makes prototypes noisy. The single 0.04 shows what several granularities are worth
over one.

A share stands for another number of images a class with each data set: with ten classes and few images, as
here, coarser sets may well win. K acts from the first E-step on: all trials of a seed can go on from one
warm-up.
"""

from ray import tune

BASE = "digits"
SPACE = {
    "e_step.num_clusters": tune.choice(
        ["0.005,0.01,0.02", "0.01,0.02,0.04", "0.02,0.04,0.08", "0.04,0.08,0.16", "0.04"]
    )
}

"""pcl-ray sweep all_three --samples 40

τ, α and K together, over the ranges of the spaces `temperature`, `alpha` and `num_clusters`, which say why
these. α is a range here: a search over several knobs need not come back to the same value. Expect τ and K to
decide more than α; 40 trials are few for three knobs, and the best of many trials is better than it will be
with another seed: repeat the winner.
"""

from ray import tune

BASE = "digits"
NUM_SAMPLES = 40
SPACE = {
    "loss.temperature": tune.loguniform(0.05, 0.5),
    "e_step.alpha": tune.loguniform(1.0, 100.0),
    "e_step.num_clusters": tune.choice(
        ["0.005,0.01,0.02", "0.01,0.02,0.04", "0.02,0.04,0.08", "0.04,0.08,0.16"]
    ),
}

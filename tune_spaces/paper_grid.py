"""pcl-ray sweep paper_grid --search grid

All 3 × 2 × 2 = 12 combinations around the paper's setting, which is one of them (τ = 0.2, α = 10, K = 2, 4
and 8 % of N): τ halved and doubled, α a tenth, K half as many. Shows whether the knobs act together; it is
too coarse to find the best values. α = 1 is the side on which small clusters stand out most.

The knobs of the E-step vary slowest: the first three trials train the three warm-ups, one for each τ, that
the other nine go on from.
"""

from ray import tune

BASE = "digits"
SPACE = {
    "loss.temperature": tune.grid_search([0.1, 0.2, 0.4]),
    "e_step.alpha": tune.grid_search([10.0, 1.0]),
    "e_step.num_clusters": tune.grid_search(["0.02,0.04,0.08", "0.01,0.02,0.04"]),
}

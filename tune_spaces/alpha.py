"""pcl-ray sweep alpha

α alone: five values from 1 to 100, about evenly spread by their logarithms; the paper has 10. α is not the
weight of the prototype term (that is loss.prototype_weight). It stands in φ = mean distance / log(n + α),
where it keeps clusters of few images n from a φ that is too large, and then φ is scaled to have the mean τ:
what α does to all clusters alike goes away again. Only how small and large clusters compare is left. Expect a
weak effect, weaker than that of another seed; --seeds 3 shows whether there is one. It grows with how
unequal, and how small, clusters are.

α acts from the first E-step on: all trials of a seed can go on from one warm-up.
"""

from ray import tune

BASE = "digits"
SPACE = {"e_step.alpha": tune.choice([1.0, 3.0, 10.0, 30.0, 100.0])}

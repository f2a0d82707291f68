"""pcl-ray sweep temperature --samples 12

τ alone, from 0.05 to 0.5. It divides the similarities of InfoNCE, and the concentrations φ are scaled to have
it as their mean, so one knob sets how sharply both terms look: a lower τ gives most weight to the most
similar negatives, a higher one treats all alike. MoCo began with 0.07; MoCo v2 and the recipes here have 0.2.
Below 0.05 a few negatives decide every step, above 0.5 hardly any negative counts more than another; both are
rarely worth a trial. Equal factors matter alike, hence log-uniform.

τ acts from the first step on, so each trial trains its own warm-up; with sweep.temperature_levels=4 trials
share four.
"""

from ray import tune

BASE = "digits"
NUM_SAMPLES = 12
SPACE = {"loss.temperature": tune.loguniform(0.05, 0.5)}

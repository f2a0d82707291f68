"""Search spaces for `pcl-ray sweep NAME`. One module each: BASE, SPACE and, if it likes, OBJECTIVE, MODE and
NUM_SAMPLES.
"""

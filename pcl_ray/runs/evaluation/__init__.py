"""An encoder evaluated: which weights, on which images, by which protocols, and where the result goes."""

"""The nearest centroid of every point, three ways: in blocks, from a shortlist, by a fused GPU kernel."""

"""The protocols of `pcl-ray evaluate`, as functions of features or of images."""

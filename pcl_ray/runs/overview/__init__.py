"""All runs and sweeps of this PCL_RAY_HOME on one page, the first of the dashboard."""

"""What is shown of runs and sweeps, made from files alone: pages, comparisons, pictures, findings."""

"""What is shown of runs and sweeps, made from files alone: pages, comparisons, pictures, findings.

run_record is a run as it is looked at; page and comparison write HTML files, collection_page those of a
collection, overview that of all runs; evaluations is what `pcl-ray evaluate` has measured; pictures and
projection draw what a run shows meanwhile; doctor says what its curves mean; sweep has the leaderboard,
the plots, the page and the findings of a sweep.
"""

__all__ = [
    "collection_page",
    "comparison",
    "doctor",
    "evaluations",
    "overview",
    "page",
    "pictures",
    "projection",
    "run_record",
    "sweep",
]

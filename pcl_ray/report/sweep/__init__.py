"""What a sweep found, from plain records: its leaderboard, plots, page, and what there is to say about it."""

__all__ = ["leaderboard", "plots", "sweep_page", "sweep_record", "sweep_rules"]

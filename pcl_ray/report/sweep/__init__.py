"""What a sweep found, from plain records: its leaderboard and its plots."""

__all__ = ["leaderboard", "plots"]

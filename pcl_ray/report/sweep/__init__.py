"""What a sweep found, from plain records: its leaderboard and its figures."""

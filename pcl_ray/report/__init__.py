"""What a sweep found, from plain records: leaderboards and figures."""

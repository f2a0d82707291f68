"""What a sweep ends with: the records of its trials, leaderboard, figures, best recipe, test accuracy."""

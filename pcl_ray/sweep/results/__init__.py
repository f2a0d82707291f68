"""What a sweep ends with: the records of its trials, leaderboard, figures, best recipe, test accuracy."""

__all__ = ["conclusion", "files", "ranking", "test_accuracy", "trial_records"]

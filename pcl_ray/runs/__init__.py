"""One run from request to result: its folder, its driver, what is shown of it, and what it leaves."""

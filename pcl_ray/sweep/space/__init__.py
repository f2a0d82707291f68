"""The space of a sweep: its domains and files, how it is checked and searched, what counts as better.

`settings` and `objective` import no Ray; the others do.
"""

__all__ = ["checks", "domains", "files", "objective", "search", "search_checks", "settings", "spaces"]

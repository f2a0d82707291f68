"""The space of a sweep: its domains and files, how it is checked and searched, what counts as better."""

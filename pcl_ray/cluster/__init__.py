"""What a user starts and asks on a cluster: the local head, jobs, their status, the machine check."""

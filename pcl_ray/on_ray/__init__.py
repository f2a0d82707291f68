"""What puts a run on Ray: its environment, its connection, workers, actors, and a place on a cluster."""

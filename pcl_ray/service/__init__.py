"""The service: the driver of a run, its Ray Train workers, the E-step actor. The only part that knows Ray."""

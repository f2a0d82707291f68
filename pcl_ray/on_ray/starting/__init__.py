"""How the processes of Ray start where Ray is ours: nodes without what nobody uses, workers forked from a
process that has loaded what they need.
"""

__all__ = ["lean_node", "warm_client", "warm_head", "warm_start"]

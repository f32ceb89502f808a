"""The training of flows: the loop, its end, and its record."""

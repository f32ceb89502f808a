"""Chains of a kernel as one tensor: runs, draws and their storage."""

"""Objectives: local losses of blocks, and the auxiliary networks that belong to them."""

"""WHICH hyperparameters: tracking of runs (sweeps build on it)."""

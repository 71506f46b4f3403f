"""Benchmarks: one command each; results are written to `results/`."""

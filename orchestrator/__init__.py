"""WHEN work happens: plan, streams, checkpoints, timeline."""

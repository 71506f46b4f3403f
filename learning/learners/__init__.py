"""Learners: what carries a rule out on one block or one feedback module."""

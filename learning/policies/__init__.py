"""Policies that any rule can use: codecs of messages, updates and schedules."""

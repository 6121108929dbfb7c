"""Formatting of events, listeners and ports for people to read."""

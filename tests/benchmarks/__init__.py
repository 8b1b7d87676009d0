"""Measurements against other clients. Each module says what it measures and how to run it."""

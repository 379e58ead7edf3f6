"""Resuming a run, bit for bit."""

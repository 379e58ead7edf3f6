"""Runs: name, folders, callbacks, trainer, and resuming."""

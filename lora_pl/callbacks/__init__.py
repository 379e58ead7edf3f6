"""Callbacks that report on a run and guard it, one a file."""

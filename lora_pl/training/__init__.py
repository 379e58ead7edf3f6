"""A run: its name, folders, callbacks and trainer."""

"""The options of a run that its configuration has. Light: the verbs that only read one import no Lightning."""

OPTIONS = ("save_every_steps", "save_every_minutes", "early_stopping_patience")
"""The arguments of `Run` that a configuration has too, beside its name."""

"""The method's one exception."""


class LoRAError(ValueError):
    """A configuration, a model or a state that LoRA can't be applied to; the message says what to change."""

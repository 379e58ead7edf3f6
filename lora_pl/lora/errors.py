"""The method's one exception."""


class LoRAError(ValueError):
    """A configuration, a model or a state that LoRA can't be applied to, as `KEY: MESSAGE`.

    Args:
        key: What it is about: a field of `LoRAConfig`, `adapter` or `state`.
        message: What was given, what was expected and what to change.
    """

    def __init__(self, key: str, message: str = "") -> None:
        super().__init__(f"{key}: {message}" if message else key)
        self.key = key if message else key.partition(": ")[0]

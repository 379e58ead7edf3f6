"""The method's one exception."""


class LoRAError(ValueError):
    """A configuration, a model or a state that LoRA can't be applied to: `KEY: MESSAGE`.

    Args:
        key: What it is about: a field of `LoRAConfig`, `model`, `adapter`, `state` or `route`.
        message: What was given, what was expected and what to do.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)  # both, for pickle
        self.key, self.message = key, message

    def __str__(self) -> str:
        return ": ".join(self.args)

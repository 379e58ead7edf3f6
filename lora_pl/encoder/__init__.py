"""The pretrained encoder that is adapted, and the head on top of it."""

EMBEDDED = "package://lora_pl/encoder/mini"
"""The encoder that comes with the package."""

"""The models: an encoder with adapters, and what it is asked."""

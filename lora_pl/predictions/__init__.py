"""Files of predictions: written in parts, joined, as lines or tables."""

"""Tasks, sentences, tokens and batches."""

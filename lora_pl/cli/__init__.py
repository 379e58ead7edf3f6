"""The command `lora_pl VERB`."""

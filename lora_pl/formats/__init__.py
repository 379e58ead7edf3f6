"""What other programs read and write: Hugging Face, PEFT, ONNX, loralib, and plain adapters."""

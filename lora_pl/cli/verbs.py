"""The verbs of `lora_pl`, and the page that lists them. Light: imports nothing of any size."""

VERBS = {
    "fit": ("trainer", "train, validate after each epoch, keep the best checkpoint"),
    "validate": ("trainer", "measure a checkpoint on the validation split"),
    "test": ("trainer", "measure as validate does, on --data.test_file, else on the validation split"),
    "predict": ("predict", "label the texts of a file or of standard input; --adapter NAME=CHECKPOINT runs several"),
    "export": ("export", "write a checkpoint's model for other programs: hf, peft, onnx, adapter"),
    "import": ("import_adapter", "make a checkpoint of an adapter that another program trained"),
    "params": ("params", "count LoRA's, the head's and the encoder's parameters for several ranks"),
    "ablate": ("ablate", "train a grid of ranks and seeds as one study, with a table and a report"),
}
"""The module in this folder whose `run` takes the arguments, and what the verb does."""

MAIN_PAGE = """\
usage: lora_pl VERB [options]

LoRA fine-tuning of encoders for sentence classification.

verbs:
{verbs}

lora_pl VERB --help lists a verb's options, lora_pl --version prints the version.

examples:
  lora_pl fit --config configs/demo.yaml
  lora_pl validate --ckpt_path checkpoints/NAME/best.ckpt
  echo 'A fine film.' | lora_pl predict --ckpt_path checkpoints/NAME/best.ckpt
"""


def main_page() -> str:
    """What `lora_pl --help` prints."""
    return MAIN_PAGE.format(verbs="\n".join(f"  {verb:<10}{does}" for verb, (_, does) in VERBS.items()))


def described(verb: str) -> str:
    """What the verb does, as a sentence."""
    does = VERBS[verb][1]
    return f"{does[0].upper()}{does[1:]}."

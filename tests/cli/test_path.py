"""The way from the command to LoRALinear.forward, short enough to read."""

import sys
from pathlib import Path

import lora_pl
from lora_pl.lora.layer import LoRALinear
from tests.support import run_in_process

PACKAGE = Path(lora_pl.__file__).parent


def test_from_the_command_to_the_layer(tiny_encoder, glue_folder, tmp_path, monkeypatch):
    forward, paths = LoRALinear.forward, []

    def traced(self, *args, **kwargs):
        files, frame = [], sys._getframe(1)
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PACKAGE) and file not in files:
                files.append(file)
            frame = frame.f_back
        paths.append(
            [
                str(file.relative_to(PACKAGE))
                for file in (*files[::-1], Path(sys.modules[LoRALinear.__module__].__file__))
            ]
        )
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LoRALinear, "forward", traced)
    given = ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "tiny"]
    run_in_process([*given, "--trainer.max_steps", "1", "--trainer.num_sanity_val_steps", "0"], tmp_path, check=True)
    print("\n".join(paths[0]))
    assert paths[0][0] == "cli/main.py"
    assert len(paths[0]) <= 9

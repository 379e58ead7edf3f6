import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.sentences import sentences_for
from lora_pl.storage.checkpoint import START_KEY
from lora_pl.storage.checkpoint_io import WholeFileCheckpointIO
from tests.formats.conftest import saved


def test_the_folder_says_what_it_is_and_how_it_was_made(checkpoint, tmp_path, glue_folder):
    found = export_checkpoint(checkpoint, tmp_path / "hf")["hf"]
    card = (tmp_path / "hf" / "README.md").read_text()
    facts = ["| rank r | 4 |", "| alpha | 16 |", "sst2", "negative, positive", "best val/accuracy"]
    facts += [
        "| init of A | gaussian |",
        f"| data | {glue_folder.name} |",
        f"lora_pl export --ckpt_path tiny/{checkpoint.name} ",
    ]
    for said in (*facts, "largest logit change", "torch 2."):
        assert said in card
    assert card.startswith("---\npipeline_tag: text-classification\nlibrary_name: transformers\n")
    record = json.loads((tmp_path / "hf" / "lora_pl.json").read_text())
    assert record["comparisons"]["hf"] == asdict(found)
    base = torch.load(checkpoint, weights_only=True)["lora_pl_base"]
    assert record["base"] == {**base, "encoder": Path(base["encoder"]).name}
    assert found.sentences == 48
    assert found.flipped == 0
    assert found.metrics["accuracy"] == found.exported_metrics["accuracy"]
    assert f"({glue_folder.name})" in found.source


LOADS_BY = [("hf", set()), ("peft", {"adapter_config.json", "lora_pl.json"}), ("adapter", {"lora_pl.json"})]


@pytest.mark.parametrize(("format", "loads_by"), LOADS_BY)
def test_no_path_is_published_but_the_one_that_loading_needs(format, loads_by, checkpoint, tmp_path):
    stored = torch.load(checkpoint, weights_only=True)
    encoder, settings = stored["hyper_parameters"]["encoder"], stored["datamodule_hyper_parameters"]
    home = os.path.commonpath([encoder, settings["source"], checkpoint])
    stored["hyper_parameters"]["start_from"] = f"{home}/earlier/best.ckpt"
    stored[START_KEY] = {"checkpoint": f"{home}/earlier/best.ckpt", "sha256": "0"}
    path = tmp_path / "run" / "best.ckpt"
    path.parent.mkdir()
    WholeFileCheckpointIO().save_checkpoint(stored, path)
    export_checkpoint(path, tmp_path / "out", format)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name for name, content in files.items() if home.encode() in content} == loads_by
    assert not any(home.encode() in files[name].replace(encoder.encode(), b"") for name in loads_by)
    assert b"| started from | earlier/best.ckpt (" in files["README.md"]


def test_a_base_kept_in_half_precision_is_merged_in_full(make_model, tmp_path):
    """The checkpoint of a run in bf16 exports the same weights as that of a run in fp32."""
    from safetensors.torch import load_file

    states = []
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        path = saved(make_model(base_dtype=dtype), tmp_path / dtype)
        export_checkpoint(path, tmp_path / dtype / "hf", sentences=8)
        states.append(load_file(tmp_path / dtype / "hf" / "model.safetensors"))
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.usefixtures("reads_anew")
def test_nothing_asks_for_a_network(checkpoint, tmp_path, monkeypatch):
    """Not even where the environment does not say that there is none."""
    import socket

    def refuse(*given, **named):
        raise AssertionError("a connection was tried")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for format in ("hf", "adapter", "peft"):
        export_checkpoint(checkpoint, tmp_path / format, format)


def test_the_embedded_sentences_stand_in_for_data_on_the_hub_or_gone(checkpoint, make_model):
    stored = torch.load(checkpoint, weights_only=True)
    assert sentences_for(stored, 0).labels
    for changes in ({"source": "hub"}, {"source": "/nowhere"}, {"train_file": "/no.csv", "validation_file": "/no.csv"}):
        settings = {**stored["datamodule_hyper_parameters"], **changes}
        found = sentences_for({**stored, "datamodule_hyper_parameters": settings}, 256)
        assert (len(found.texts), found.labels, found.source) == (256, (), "the embedded sentences")
    pairs = sentences_for({"hyper_parameters": {**stored["hyper_parameters"], "pairs": True}}, 3)
    assert all(len(pair) == 2 for pair in pairs.texts)


def test_a_local_folder_in_the_hubs_layout_is_read(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text,label\nthe film is good,positive\ndull,negative\n")
    stored = torch.load(checkpoint, weights_only=True)
    settings = {**stored["datamodule_hyper_parameters"], "source": f"hub:{tmp_path}", "task": None}
    found = sentences_for({**stored, "datamodule_hyper_parameters": settings}, 256)
    assert found.texts == ("the film is good", "dull")


def test_the_training_model_is_never_touched(checkpoint, tmp_path):
    before = checkpoint.read_bytes(), os.stat(checkpoint).st_mtime_ns
    export_checkpoint(checkpoint, tmp_path / "hf", options=ExportOptions(merge_dtype="float64"))
    assert (checkpoint.read_bytes(), os.stat(checkpoint).st_mtime_ns) == before

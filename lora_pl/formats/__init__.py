"""Formats that other programs read and write; `FORMATS` lists those of exports."""

from lora_pl.formats.export import Export
from lora_pl.formats.huggingface import HuggingFaceExport
from lora_pl.formats.native import AdapterExport
from lora_pl.formats.onnx import OnnxExport
from lora_pl.formats.peft import PeftExport

FORMATS: dict[str, type[Export]] = {
    "hf": HuggingFaceExport,
    "peft": PeftExport,
    "onnx": OnnxExport,
    "adapter": AdapterExport,
}

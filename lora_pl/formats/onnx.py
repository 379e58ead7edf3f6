"""ONNX: the merged model as one graph, for runtimes without PyTorch. Needs the extra `onnx`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lora_pl.data.texts import Text
from lora_pl.formats.export import Export
from lora_pl.formats.merging import MergedClassifier
from lora_pl.formats.stock_model import HERE, encode, encode_call, read_logits, save_tokenizer

MODEL, INT8 = "model.onnx", "model.int8.onnx"
OPSET = 20


class OnnxExport(Export):
    """`model.onnx`: token ids and attention mask in, logits out, any batch size and length; any head."""

    name: ClassVar[str] = "onnx"
    program: ClassVar[str] = "onnxruntime"
    needed: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    has_int8: ClassVar[bool] = True

    @property
    def usage(self) -> str:
        """By ONNX Runtime."""
        return (
            "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
            'session = onnxruntime.InferenceSession("{folder}/model.onnx")\n'
            f"session.run(None, dict({encode_call(self.example, 'np')}))"
        )

    def write(self, folder: Path) -> None:
        """Write the graph and the tokenizer."""
        model = MergedClassifier(self).eval()
        tokenizer = save_tokenizer(self.model, str(folder))
        # two texts of several tokens: a size of 1 would be taken for a constant
        texts = ["a fine film, if a little long", "dull"]
        inputs = dict(encode(tokenizer, [(text, text) for text in texts] if self.model.pairs else texts))
        free = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")} for name in inputs}
        with _silence():
            program = torch.onnx.export(
                model, kwargs=inputs, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=list(inputs), output_names=["logits"], dynamic_shapes=free,
            )  # fmt: skip
            assert program is not None
            for node in program.model.graph.all_nodes():  # the traces name folders of this machine
                node.metadata_props.clear()
            program.save(folder / MODEL, external_data=False)
            if self.options.int8:
                from onnxruntime.quantization import QuantType, quantize_dynamic

                quantize_dynamic(folder / MODEL, folder / INT8, weight_type=QuantType.QInt8, per_channel=True)

    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """By ONNX Runtime."""
        return _run(folder / MODEL, texts)

    def extra_files(self, folder: Path, texts: Sequence[Text]) -> dict[str, Tensor]:
        """The int8 model's logits."""
        return {INT8: _run(folder / INT8, texts)} if self.options.int8 else {}


def _run(path: Path, texts: Sequence[Text]) -> Tensor:
    import onnxruntime
    from transformers import AutoTokenizer

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **HERE)

    def model(**inputs: Tensor) -> Tensor:
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(logits)

    return read_logits(model, tokenizer, texts)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No advice of the exporter's passes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)

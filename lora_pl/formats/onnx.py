"""ONNX: the merged model as one graph, for runtimes without PyTorch. Needs the extra `onnx`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lora_pl.data.texts import Text
from lora_pl.encoder.fused import join_fused
from lora_pl.encoder.loading import load_encoder
from lora_pl.errors import UserError
from lora_pl.formats.export import Export
from lora_pl.formats.stock_model import HERE, encode, read_logits, save_tokenizer, stock_encoder_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL, INT8 = "model.onnx", "model.int8.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20


class OnnxExport(Export):
    """`model.onnx`: token ids and attention mask in, logits out, batch and length free; any head.

    With int8 a second file, `model.int8.onnx`, has weights and products of the linear layers in 8 bits (dynamic
    quantization); it is measured, not held to the tolerance.
    """

    name: ClassVar[str] = "onnx"
    relative_tolerances: ClassVar[dict[str, float]] = {"float32": 1e-5}

    def require_representable(self) -> None:
        """Refuse where the packages are missing."""
        missing = [name for name in NEEDED if not find_spec(name)]
        if missing:
            raise UserError(
                "export.format", f"onnx needs {', '.join(missing)}; install them by: pip install 'lora_pl[onnx]'"
            )

    @property
    def reader(self) -> str:
        """ONNX Runtime."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    @property
    def usage(self) -> str:
        """By ONNX Runtime."""
        return (
            "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
            'session = onnxruntime.InferenceSession("{folder}/model.onnx")\n'
            'session.run(None, dict(tokenizer(["A fine film."], return_tensors="np")))'
        )

    def write(self, folder: Path) -> None:
        """Write the graph and the tokenizer."""
        model = _plain_model(self)
        save_tokenizer(self.model, str(folder))
        inputs = dict(encode(self.model.tokenizer, self._examples()))
        free = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")} for name in inputs}
        with _silence():
            torch.onnx.export(
                model, kwargs=inputs, f=folder / MODEL, dynamo=True, opset_version=OPSET, external_data=False,
                input_names=list(inputs), output_names=["logits"], dynamic_shapes=free,
            )  # fmt: skip
            if self.options.int8:
                _quantize(folder / MODEL, folder / INT8)

    def _examples(self) -> list[Text]:
        # of another length and number than 1, which export would take for constants
        texts = ["a fine film, if a little long", "dull"]
        return [(text, text) for text in texts] if self.model.pairs else list(texts)

    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """By ONNX Runtime."""
        return self._run(folder / MODEL, texts)

    def extra_files(self, folder: Path, texts: Sequence[Text]) -> dict[str, Tensor]:
        """The int8 model's logits."""
        return {INT8: self._run(folder / INT8, texts)} if self.options.int8 else {}

    def _run(self, path: Path, texts: Sequence[Text]) -> Tensor:
        import onnxruntime
        from transformers import AutoTokenizer

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **HERE)

        def model(**inputs: Tensor) -> Tensor:
            (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            return torch.from_numpy(logits)

        return read_logits(model, tokenizer, texts)


class _Classifier(nn.Module):
    """Encoder and head, as Transformers runs them: padded batches, PyTorch's own attention."""

    def __init__(self, encoder: PreTrainedModel, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        logits: Tensor = self.head(hidden[:, 0])
        return logits


def _plain_model(export: OnnxExport) -> _Classifier:
    encoder = load_encoder(export.model.hparams["encoder"])
    join_fused(encoder)
    encoder.load_state_dict(stock_encoder_state(export.model, export.dtype, export.merge_dtype))
    return _Classifier(encoder, export.model.head).eval()


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress of the exporter's passes on standard output, and no advice about them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""Adapters for Hugging Face's PEFT, the head included."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lora_pl import __version__
from lora_pl.data.texts import Text
from lora_pl.encoder.architectures import stock_head
from lora_pl.encoder.biases_and_norms import biases_and_norms, norms
from lora_pl.encoder.fused import joined_state
from lora_pl.encoder.loading import quiet_transformers
from lora_pl.encoder.source import local_path
from lora_pl.errors import UserError
from lora_pl.formats.export import Export
from lora_pl.formats.external import ExternalLayer
from lora_pl.formats.external_layers import lora_config
from lora_pl.formats.fused_projections import join_parts
from lora_pl.formats.importing import load_external
from lora_pl.formats.peft_folder import BIASES, CONFIG, PREFIX, WEIGHTS
from lora_pl.formats.stock_head import head_notes, require_representable, stock_head_state
from lora_pl.formats.stock_model import (
    HERE,
    encode_call,
    linear_names,
    read_logits,
    save_tokenizer,
    stock_class,
    stock_config,
)
from lora_pl.lora import VARIANTS, lora_layers
from lora_pl.storage.paths import public


class PeftExport(Export):
    """`PeftModel.from_pretrained(base, FOLDER)` gives the adapters and the trained head."""

    name: ClassVar[str] = "peft"
    program: ClassVar[str] = "peft"
    is_merged: ClassVar[bool] = False

    def require_representable(self) -> None:
        """Refuse a model without adapters, a variant that PEFT lacks and a head that the stock head can't be, too."""
        super().require_representable()
        settings = self.model.hparams
        if settings["method"] != "lora":
            raise UserError("export.format", f"method: {settings['method']} trains no adapter; use --format hf")
        if VARIANTS[settings["lora"]["variant"]].peft_settings is None:
            raise UserError(
                "export.format",
                f"PEFT does not have the variant {settings['lora']['variant']}; use --format hf or onnx (merged), or "
                "adapter (lora_pl's own)",
            )
        require_representable(self.model.head, self.model.base.config)

    @property
    def reader(self) -> str:
        """PEFT if it is installed, else lora_pl itself."""
        return super().reader if find_spec("peft") else f"lora_pl {__version__} (PEFT is not installed here)"

    @property
    def usage(self) -> str:
        """By PEFT."""
        base = f"./{public(self._base)}" if os.path.isabs(self._base) else self._base
        settings = {**self._arguments, "dtype": "float32"}
        arguments = ", ".join([json.dumps(base), *(f"{name}={value!r}" for name, value in settings.items())])
        return (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
            f"base = AutoModelForSequenceClassification.from_pretrained({arguments})\n"
            'model = PeftModel.from_pretrained(base, "{folder}")\n'
            'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
            f"model(**{encode_call(self.example, 'pt')}).logits"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """On a linear head in a stock model."""
        return head_notes(self.model.head)

    @property
    def _base(self) -> str:
        return local_path(self.model.hparams["encoder"])

    @property
    def _arguments(self) -> dict[str, Any]:
        """What `from_pretrained` must be told of the base."""
        return {"num_labels": self.model.task.outputs, **stock_head(self.model.encoder.config).settings}

    def write(self, folder: Path) -> None:
        """Write `adapter_model.safetensors`, `adapter_config.json` and the tokenizer."""
        from safetensors.torch import save_file

        config = stock_config(self.model, self.dtype)
        prefix = f"{stock_class(config).base_model_prefix}."
        own = {name: ExternalLayer.of(layer.adapter) for name, layer in lora_layers(self.model.encoder).items()}
        layers = {prefix + name: layer for name, layer in join_parts(self.model.encoder, own).items()}
        state = {
            f"{name}.{layer.variant.peft_names[parameter]}": tensor.contiguous()
            for name, layer in layers.items()
            for parameter, tensor in layer.tensors.items()
        }
        state |= self._in_place(prefix, layers) | stock_head_state(self.model.head, config, self.dtype)
        save_file({PREFIX + name: state[name] for name in state}, folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(self._config(prefix, layers, linear_names(config)), indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_tokenizer(self.model, str(folder))

    def _in_place(self, prefix: str, adapted: Collection[str]) -> dict[str, Tensor]:
        """Trained biases and norms; an adapted layer's bias is that of the layer within PEFT's."""
        encoder = self.model.encoder
        state = joined_state(encoder, biases_and_norms(encoder, self.model.hparams))
        biases = {f"{layer}.bias": f"{layer}.base_layer.bias" for layer in adapted}
        return {biases.get(prefix + name, prefix + name): t.detach().contiguous() for name, t in state.items()}

    def _config(self, prefix: str, layers: Mapping[str, ExternalLayer], linear: Sequence[str]) -> dict[str, Any]:
        settings = self.model.hparams
        lora, config = settings["lora"], lora_config(layers, [prefix + name for name in linear])
        saved = norms(self.model.encoder) if settings["train_norms"] else {}
        return {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": self._base,
            "r": config.r,
            "lora_alpha": _whole(config.lora_alpha),
            "lora_dropout": lora["lora_dropout"],
            "target_modules": list(config.target_modules),
            "modules_to_save": [
                *stock_head(self.model.encoder.config).modules,
                *dict.fromkeys(prefix + name.rpartition(".")[0] for name in saved),
            ],
            "rank_pattern": config.rank_pattern,
            "alpha_pattern": {name: _whole(alpha) for name, alpha in config.alpha_pattern.items()},
            "bias": next(theirs for theirs, ours in BIASES.items() if ours == settings["train_biases"]),
            "fan_in_fan_out": False,
            "inference_mode": True,
            "use_rslora": config.scaling == "rslora",
            **(VARIANTS[lora["variant"]].peft_settings or {}),
            **({"init_lora_weights": "eva", "eva_config": {"rho": lora["eva_rho"]}} if lora["init"] == "eva" else {}),
        }

    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """By PEFT if it is installed, else by lora_pl's own import."""
        if not find_spec("peft"):
            return load_external(folder).logits(texts)
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with quiet_transformers(), warnings.catch_warnings():
            # PEFT asks the base by the name that Transformers had before 5
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            base = AutoModelForSequenceClassification.from_pretrained(
                self._base, dtype=self.dtype, trust_remote_code=False, **self._arguments
            )
            model = PeftModel.from_pretrained(base, str(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder, **HERE)
        return read_logits(model.eval(), tokenizer, texts)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value

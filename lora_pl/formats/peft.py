"""Adapters for Hugging Face's PEFT, the head included."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lora_pl import __version__
from lora_pl.data.texts import Text
from lora_pl.encoder.architectures import stock_head
from lora_pl.encoder.loading import load_config, quiet_transformers
from lora_pl.encoder.source import local_path
from lora_pl.errors import UserError
from lora_pl.formats.export import Export
from lora_pl.formats.external import ExternalLayer
from lora_pl.formats.fused_projections import join_parts
from lora_pl.formats.importing import load_external, targets_of
from lora_pl.formats.model_card import write_record
from lora_pl.formats.peft_folder import CONFIG, PREFIX, WEIGHTS
from lora_pl.formats.stock_head import head_notes, require_representable, stock_head_state
from lora_pl.formats.stock_model import linear_names, outputs_of, read_logits, save_tokenizer, stock_class, stock_config
from lora_pl.lora import VARIANTS, lora_layers


class PeftExport(Export):
    """`PeftModel.from_pretrained(base, FOLDER)` gives the adapters and the trained head."""

    name: ClassVar[str] = "peft"

    def require_representable(self) -> None:
        """Refuse a model without adapters, and a linear head where the stock head can't be linear."""
        if self.model.hparams["method"] != "lora":
            raise UserError("format", f"method: {self.model.hparams['method']} trains no adapter for PEFT; take hf")
        require_representable(self.model.head, load_config(self.model.hparams["encoder"]))

    @property
    def reader(self) -> str:
        """PEFT where it is installed, else lora_pl itself."""
        if not find_spec("peft"):
            return f"lora_pl {__version__} (PEFT is not installed here)"
        import peft

        return f"peft {peft.__version__}"

    @property
    def usage(self) -> str:
        """By PEFT."""
        settings = {"num_labels": outputs_of(self.model), "dtype": "float32", **self._settings}
        arguments = ", ".join([f'"{self._base}"', *(f"{name}={value!r}" for name, value in settings.items())])
        return (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForSequenceClassification\n\n"
            f"base = AutoModelForSequenceClassification.from_pretrained({arguments})\n"
            'model = PeftModel.from_pretrained(base, "{folder}")'
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """On a linear head in a stock model."""
        return head_notes(self.model.head)

    @property
    def _base(self) -> str:
        return local_path(self.model.hparams["encoder"])

    @property
    def _settings(self) -> Mapping[str, Any]:
        """What the base's configuration must say for the stock model to read the first token."""
        return stock_head(self.model.encoder.config).settings

    def _layers(self) -> dict[str, ExternalLayer]:
        """The adapters by Transformers' names of their layers."""
        layers = {
            name: ExternalLayer(_detached(layer.adapter.tensors()), layer.adapter.r, layer.adapter.lora_alpha)
            for name, layer in lora_layers(self.model.encoder).items()
        }
        return join_parts(self.model.encoder, layers, self.model.hparams["lora"]["variant"])

    def write(self, folder: Path) -> None:
        """Write `adapter_model.safetensors`, `adapter_config.json` and the tokenizer."""
        from safetensors.torch import save_file

        config = stock_config(self.model, self.dtype)
        prefix = f"{stock_class(config).base_model_prefix}."
        names = VARIANTS[self.model.hparams["lora"]["variant"]].peft_names
        state = {
            f"{PREFIX}{prefix}{name}.{names[own]}": tensor.contiguous()
            for name, layer in self._layers().items()
            for own, tensor in layer.tensors.items()
        }
        state |= {PREFIX + name: t for name, t in stock_head_state(self.model.head, config, self.dtype).items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(self._config(prefix, stock_head(config).modules), indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_tokenizer(self.model, str(folder))
        write_record(folder, self, {})

    def _config(self, prefix: str, head_modules: Sequence[str]) -> dict[str, Any]:
        layers = self._layers()
        ranks = {prefix + name: layer.r for name, layer in layers.items()}
        alphas = {prefix + name: _whole(layer.alpha or 0) for name, layer in layers.items()}
        r, alpha = _commonest(ranks), _commonest(alphas)
        linear = linear_names(self.model.encoder.config)
        lora = self.model.hparams["lora"]
        return {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": self._base,
            "r": r,
            "lora_alpha": alpha,
            "lora_dropout": lora["lora_dropout"],
            "target_modules": [name if name not in layers else prefix + name for name in targets_of(layers, linear)],
            "modules_to_save": list(head_modules),
            "rank_pattern": {name: value for name, value in ranks.items() if value != r},
            "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "use_rslora": False,
            **VARIANTS[lora["variant"]].peft_settings,
        }

    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """By the real PEFT on the base, where it is installed; else by lora_pl's own import."""
        if not find_spec("peft"):
            return load_external(folder).logits(texts)
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with quiet_transformers():
            base = AutoModelForSequenceClassification.from_pretrained(
                self._base, num_labels=outputs_of(self.model), dtype=self.dtype, **self._settings
            )
            model = PeftModel.from_pretrained(base, str(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return read_logits(model.eval(), tokenizer, texts)


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}

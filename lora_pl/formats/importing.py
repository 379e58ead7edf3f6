"""A model and a checkpoint of an external adapter: one that another program trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor, nn

from lora_pl.data.tasks import CUSTOM, get_task
from lora_pl.encoder.architectures import architecture_of, stock_head
from lora_pl.encoder.loading import build_encoder, load_config
from lora_pl.errors import UserError
from lora_pl.formats import native, peft_folder
from lora_pl.formats.external import ExternalAdapter, ExternalLayer, read_tensors
from lora_pl.formats.external_head import ImportedHead, head_of
from lora_pl.formats.fused_projections import split_parts
from lora_pl.formats.model_card import RECORD
from lora_pl.formats.package import read_package
from lora_pl.formats.state_dicts import read_state_dict
from lora_pl.formats.stock_model import stock_shapes
from lora_pl.lora import VARIANTS, Adapter, LoRAConfig
from lora_pl.lora.injection import linear_layers
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.checkpoint import BASE_KEY, WholeFileCheckpointIO, check_base

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FILES = {
    "peft": (peft_folder.WEIGHTS, peft_folder.CONFIG),
    "adapter": (native.WEIGHTS, RECORD),
}


@dataclass(frozen=True)
class ImportOptions:
    """What the adapter's file does not say, or says wrongly."""

    encoder: str | None = None
    """The base: a hub name, a folder, or package://NAME/PATH; by default what the file names."""
    lora_alpha: float | None = None
    """The numerator of the scaling alpha / r, where the file does not say it."""
    task: str | None = None
    """The GLUE task that it was trained on; by default custom."""
    label_names: list[str] | None = None
    """The classes in the order of the head's rows; by default the task's, or LABEL_0, LABEL_1, ..."""
    pairs: bool | None = None
    """Whether an example is two texts; by default as the task says."""
    max_length: int | None = None
    """The longest sentence in tokens that predict does not cut; by default 64."""

    def given(self) -> dict[str, Any]:
        """Those that are arguments of `LoRAClassifier` and not None."""
        named = {name: getattr(self, name) for name in ("encoder", "task", "label_names", "pairs", "max_length")}
        return {name: value for name, value in named.items() if value is not None}


def import_adapter(source: str | Path, output: str | Path, options: ImportOptions) -> LoRAClassifier:
    """Write a checkpoint that `validate`, `predict` and `export` take, of an external adapter; its model.

    Args:
        source: A folder or a zip or tar archive of PEFT's or of `lora_pl export --format adapter`, a state dict of
            loralib's or of the original repository.
        output: The checkpoint to write; it must not be there yet.
        options: What the file does not say.

    Raises:
        UserError: the source is damaged, does not fit the base, or holds what lora_pl can't represent. Nothing is
            written then.
    """
    output = Path(output)
    if output.exists():
        raise UserError("output", f"{output} is there already; give another name, or remove it")
    model = load_external(source, options)
    WholeFileCheckpointIO().save_checkpoint(checkpoint_of(model), output)
    return model


def load_external(source: str | Path, options: ImportOptions = ImportOptions()) -> LoRAClassifier:
    """The model of an external adapter, in fp32 on the CPU, in eval mode; see `import_adapter`."""
    source = Path(source).expanduser()
    if not source.is_dir() and source.suffix not in (".zip", ".tar", ".gz", ".tgz"):
        return build_model(read_state_dict(read_tensors(source), str(source)), options)
    kind, files = _package(source)
    if kind == "adapter":
        return native.model_of_files(files, str(source), **options.given())
    return build_model(peft_folder.read_peft(files, str(source)), options)


def build_model(adapter: ExternalAdapter, options: ImportOptions) -> LoRAClassifier:
    """A `LoRAClassifier` with the adapter's tensors."""
    settings = {**adapter.settings, **options.given()}
    lora_dropout = settings.pop("lora_dropout", 0.0)
    if "encoder" not in settings:
        raise UserError(
            "import.encoder", f"{adapter.source}: the file does not name its base; give --encoder, such as roberta-base"
        )
    config = load_config(settings["encoder"])
    head = head_of(adapter, config)
    layers, on_head = _placed(adapter, config, options)
    lora = lora_config(layers, _linear_names(config), variant=adapter.variant, lora_dropout=lora_dropout)
    model = LoRAClassifier(**_with_labels(settings, head.outputs), lora=lora, head=head.kind)
    if not head.is_whole and not model.base.pretrained:
        raise UserError(
            "adapter.base",
            f"{settings['encoder']} holds no pooler, on which this adapter's head was trained; give the encoder that "
            "it was trained on by --encoder",
        )
    if adapter.base is not None:
        check_base({BASE_KEY: adapter.base}, model.base.fingerprints)
    _fill(model, layers, head)
    if on_head is not None:
        _merge_into_head(model, on_head, adapter.variant)
    return model.eval()


def checkpoint_of(model: LoRAClassifier) -> dict[str, Any]:
    """What Lightning would save of a model that has not been trained here."""
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": model.state_dict(),
        "hparams_name": None,
        "hyper_parameters": dict(model.hparams),
    }
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def lora_config(layers: Mapping[str, ExternalLayer], linear: list[str], **others: Any) -> LoRAConfig:
    """The configuration that gives each layer its rank and alpha; the commonest of each stand for all."""
    ranks = {name: layer.r for name, layer in layers.items()}
    alphas = {name: float(layer.alpha or 0) for name, layer in layers.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return LoRAConfig(
        r=int(r),
        lora_alpha=alpha,
        target_modules=tuple(targets_of(layers, linear)),
        rank_pattern={name: value for name, value in ranks.items() if value != r},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        **others,
    )


def targets_of(adapted: Collection[str], linear: Collection[str]) -> list[str]:
    """The last parts of names (`query`), else what follows the layer's number (`attention.self.query`), else the
    whole names: whatever matches the layers `adapted` and none else of `linear`."""
    for before in (r"^.*\.", r"^.*\.\d+\."):
        targets = dict.fromkeys(re.sub(before, "", name) for name in adapted)
        if {name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)} == set(adapted):
            return list(targets)
    return list(adapted)


def _package(source: Path) -> tuple[str, dict[str, bytes]]:
    files = read_package(source, {name for names in FILES.values() for name in names})
    for kind, names in FILES.items():
        if all(name in files for name in names):
            return kind, files
    expected = " or ".join(" and ".join(names) for names in FILES.values())
    raise UserError("import.unknown", f"{source}: expected {expected}, got {', '.join(files) or 'neither'}")


def _placed(
    adapter: ExternalAdapter, config: PretrainedConfig, options: ImportOptions
) -> tuple[dict[str, ExternalLayer], ExternalLayer | None]:
    """The updates of the encoder's own layers by their names there, and that of the head's first layer.

    PEFT's "all-linear" adapts BERT's pooler too, which is the head's first layer.
    """
    stock = stock_shapes(config)
    linear = {name: module for name, module in stock.named_modules() if isinstance(module, nn.Linear)}
    renamed = {_name_in(name, linear, adapter.source): layer for name, layer in adapter.layers.items()}
    if adapter.expected_layers is not None:
        missing = [name for name in peft_folder.targeted(adapter.expected_layers, linear) if name not in renamed]
        if missing:
            raise UserError("import.missing", f"{adapter.source}: no tensors for the layers {', '.join(missing[:4])}")
    for name, layer in renamed.items():
        _require_shapes(adapter, name, layer, linear[name])
    scaled = {name: _with_alpha(adapter.source, layer, options) for name, layer in renamed.items()}
    on_head = scaled.pop(stock_head(config).dense, None)
    prefix = f"{stock.base_model_prefix}."
    outside = [name for name in scaled if not name.startswith(prefix)]
    if outside:
        raise UserError(
            "import.unsupported",
            f"{adapter.source}: {', '.join(outside)}: the head's last layer is adapted, not trained whole",
        )
    own = {name.removeprefix(prefix): layer for name, layer in scaled.items()}
    return split_parts(architecture_of(config).fused, own, adapter.variant), on_head


def _name_in(name: str, linear: Mapping[str, Any], source: str) -> str:
    """The stock model's name of a layer, whatever stands before it in the file (`module.`, `model.`)."""
    parts = name.split(".")
    found = [".".join(parts[start:]) for start in range(len(parts))]
    match = next((candidate for candidate in found if candidate in linear), None)
    if match is None:
        raise UserError(
            "import.base", f"{source}: the encoder has no linear layer {name}; is it the base of this adapter?"
        )
    return match


def _require_shapes(adapter: ExternalAdapter, name: str, layer: ExternalLayer, linear: nn.Linear) -> None:
    for own, expected in _new_adapter(linear, adapter.variant, layer).tensors().items():
        if layer.tensors[own].shape != expected.shape:
            raise UserError(
                "import.shape",
                f"{adapter.source}: {name}: expected {own} {tuple(expected.shape)} for this encoder, got "
                f"{tuple(layer.tensors[own].shape)}; is it the base of this adapter?",
            )


def _new_adapter(linear: nn.Linear, variant: str, layer: ExternalLayer) -> Adapter:
    return VARIANTS[variant](linear, LoRAConfig(r=layer.r, lora_alpha=layer.alpha or 1.0))


def _with_alpha(source: str, layer: ExternalLayer, options: ImportOptions) -> ExternalLayer:
    alpha = layer.alpha if options.lora_alpha is None else options.lora_alpha
    if alpha is None:
        raise UserError(
            "import.alpha",
            f"{source}: the file does not say alpha, without which the update's scale alpha / r is not known; "
            f"give --lora_alpha (r is {layer.r})",
        )
    return replace(layer, alpha=float(alpha))


def _linear_names(config: PretrainedConfig) -> list[str]:
    with torch.device("meta"):
        encoder = build_encoder(config)
    return list(linear_layers(encoder))


def _with_labels(settings: dict[str, Any], outputs: int) -> dict[str, Any]:
    task = get_task(settings.get("task", CUSTOM))
    if task.name == CUSTOM and outputs == 1:
        raise UserError("task", "the head gives one number, so it was trained on scores; give --task stsb")
    names = settings.get("label_names")
    if names is None:
        names = list(task.labels) or ([] if outputs == 1 else [f"LABEL_{index}" for index in range(outputs)])
    if (len(names) or 1) != outputs:
        raise UserError("label_names", f"the head has {outputs} classes, got {len(names)} names: {', '.join(names)}")
    return {**settings, "task": task.name, "label_names": names}


def _fill(model: LoRAClassifier, layers: Mapping[str, ExternalLayer], head: ImportedHead) -> None:
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, layer in layers.items():
        state |= {f"encoder.{name}.{own}": tensor for own, tensor in layer.tensors.items()}
    state |= {f"head.{name}": tensor for name, tensor in head.state.items()}
    model.load_state_dict(state)


@torch.no_grad()
def _merge_into_head(model: LoRAClassifier, layer: ExternalLayer, variant: str) -> None:
    """lora_pl keeps heads whole."""
    dense: Any = model.head.dense
    adapter = _new_adapter(dense, variant, layer)
    adapter.load_state_dict(dict(layer.tensors))
    dense.weight.copy_(adapter.merged(dense.weight))

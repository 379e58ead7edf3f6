"""A model and a checkpoint of an external adapter: one that another program trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_pl.data.tasks import CUSTOM, OWN_TASKS, get_task
from lora_pl.encoder.architectures import architecture_of, stock_head
from lora_pl.encoder.loading import build_encoder, load_config
from lora_pl.encoder.source import require_own_package
from lora_pl.errors import UserError
from lora_pl.formats import native, peft_folder
from lora_pl.formats.external import ExternalAdapter, ExternalLayer, ending_in, read_tensors, some
from lora_pl.formats.external_head import head_of
from lora_pl.formats.external_in_place import in_place_settings, split_in_place
from lora_pl.formats.fused_projections import split_parts
from lora_pl.formats.model_card import RECORD
from lora_pl.formats.state_dicts import read_state_dict
from lora_pl.formats.stock_model import stock_shapes
from lora_pl.lora import VARIANTS, LoRAConfig, inject_lora
from lora_pl.lora.injection import linear_layers
from lora_pl.model.plain import PlainClassifier
from lora_pl.storage.checkpoint import BASE_KEY, DATA_KEY, check_base, save_checkpoint
from lora_pl.storage.flat import primitive
from lora_pl.storage.paths import expanded

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FILES = {"peft": (peft_folder.WEIGHTS, peft_folder.CONFIG), "adapter": (native.WEIGHTS, RECORD)}


@dataclass(frozen=True)
class ImportOptions:
    """What the adapter's file does not say, or says wrongly."""

    encoder: str | Path | None = None
    """The base: a hub name, a folder, or package://NAME/PATH; by default what the file names."""
    lora_alpha: float | None = None
    """The numerator of the scale, alpha / r or rsLoRA's alpha / sqrt(r); overrides what the file says."""
    task: str | None = None
    """The GLUE task that it was trained on; by default custom."""
    label_names: list[str] | None = None
    """The classes in the order of the head's rows; by default the task's, or LABEL_0, LABEL_1, ..."""
    pairs: bool | None = None
    """Whether an example is two texts; by default as the task says."""
    max_length: int | None = None
    """The longest sentence in tokens that predict does not cut; by default 64."""

    def given(self) -> dict[str, Any]:
        """The arguments of `LoRAClassifier` among them, those that are None left out."""
        given = {name: primitive(value) for name, value in vars(self).items() if value is not None}
        return {name: value for name, value in given.items() if name != "lora_alpha"}


def import_adapter(source: str | Path, output: str | Path, options: ImportOptions) -> PlainClassifier:
    """Write a checkpoint of an external adapter, for `validate`, `predict` and `export`; the model.

    Args:
        source: A folder of PEFT's or of `lora_pl export --format adapter`, or a state dict of loralib or of the
            original repository.
        output: The checkpoint to write; it must not exist yet.
        options: What the file does not say.

    Raises:
        UserError: adapter.KIND (the source is damaged, does not fit the base, or holds what lora_pl can't represent),
            import.OPTION (an option is needed or does not fit), or import.taken. Nothing is written then.
    """
    output = expanded(output)
    if output.exists():
        raise UserError("import.taken", f"{output} exists already; give another name, or remove it")
    model = load_external(source, options)
    renamed = options.task is not None or options.pairs is not None  # to texts of other columns
    columns = {} if renamed else native.recorded_columns(expanded(source))
    save_checkpoint({**checkpoint_of(model), DATA_KEY: columns}, output)
    return model


def load_external(source: str | Path, options: ImportOptions = ImportOptions()) -> PlainClassifier:
    """The model of an external adapter, in fp32 on the CPU, in eval mode; see `import_adapter`."""
    source = expanded(source)
    if source.suffix in (".zip", ".tar", ".gz", ".tgz"):
        raise UserError("adapter.unknown", f"{source}: an archive; unpack it and give the folder")
    if not source.is_dir():
        return _built(read_state_dict(read_tensors(source), str(source)), options)
    files = {name: (source / name).read_bytes() for name in sum(FILES.values(), ()) if (source / name).is_file()}
    if files.keys() >= set(FILES["adapter"]):
        if options.lora_alpha is not None:
            raise UserError("import.alpha", f"{source} says alpha itself, got {options.lora_alpha:g}; leave it out")
        return native.read_adapter_folder(source, **options.given())
    if files.keys() >= set(FILES["peft"]):
        return _built(peft_folder.read_peft(files, str(source)), options)
    if files.keys() <= {RECORD} and (source / "config.json").is_file():
        said = "a whole model, which holds no adapter; give the run's checkpoint, or export it by --format adapter"
        raise UserError("adapter.unknown", f"{source}: {said}")
    expected = " or ".join(" and ".join(names) for names in FILES.values())
    raise UserError("adapter.unknown", f"{source}: expected {expected}, got {', '.join(files) or 'neither'}")


def _built(adapter: ExternalAdapter, options: ImportOptions) -> PlainClassifier:
    settings = {**adapter.settings, **options.given()}
    lora_dropout = settings.pop("lora_dropout", 0.0)
    if settings.get("encoder") is None:
        raise UserError(
            "import.encoder", f"{adapter.source}: the file does not name its base; give --encoder, such as roberta-base"
        )
    if options.encoder is None:
        require_own_package(settings["encoder"])
    config = load_config(settings["encoder"])
    in_place, adapter = split_in_place(adapter, config)
    head = head_of(adapter, config)
    layers, on_head = _placed(adapter, config, options)
    with torch.device("meta"):
        encoder = build_encoder(config)
        lora = replace(lora_config(layers, list(linear_layers(encoder))), lora_dropout=lora_dropout)
        inject_lora(encoder, lora)
    settings |= in_place_settings(adapter, in_place, encoder)
    model = PlainClassifier(**_with_labels(settings, head.outputs), lora=lora, head=head.kind)
    if not head.is_whole and not model.base.pretrained:
        raise UserError(
            "adapter.base",
            f"{settings['encoder']} holds no pooler, on which this adapter's head was trained; give the encoder that "
            "it was trained on by --encoder",
        )
    if adapter.base is not None:
        check_base({BASE_KEY: adapter.base}, model.base.fingerprints)
    state: dict[str, Tensor] = dict(model.state_dict())
    state |= {f"encoder.{name}": tensor for name, tensor in in_place.items()}
    for name, layer in layers.items():
        state |= {f"encoder.{name}.{own}": tensor for own, tensor in layer.tensors.items()}
    model.load_state_dict(state | {f"head.{name}": tensor for name, tensor in head.state.items()})
    if on_head is not None:  # lora_pl keeps heads whole
        dense: Any = model.head.dense
        dense.weight.data = on_head.adapter(dense).merged(dense.weight).detach()
    return model.eval()


def checkpoint_of(model: PlainClassifier) -> dict[str, Any]:
    """The checkpoint that Lightning would save of an untrained model."""
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": model.state_dict(),
        "hparams_name": None,
        "hyper_parameters": dict(model.hparams),
    }
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def lora_config(layers: Mapping[str, ExternalLayer], linear: Collection[str]) -> LoRAConfig:
    """The configuration that adapts `layers`, and no others of `linear`, with their ranks and alphas."""
    first = next(iter(layers.values()))
    ranks = {name: layer.r for name, layer in layers.items()}
    alphas = {name: float(layer.alpha or 0) for name, layer in layers.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return LoRAConfig(
        r=int(r),
        lora_alpha=alpha,
        target_modules=tuple(_targets(layers, linear)),
        rank_pattern={name: value for name, value in ranks.items() if value != r},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        variant=next(name for name, variant in VARIANTS.items() if variant is first.variant),
        scaling=first.scaling,
    )


def _targets(adapted: Collection[str], linear: Collection[str]) -> list[str]:
    """Targets that match the layers `adapted` and no others of `linear`: the last parts of names (`query`), else what
    follows the block's number (`attention.self.query`), else whole names."""
    for before in (r"^.*\.", r"^.*\.\d+\."):
        targets = dict.fromkeys(re.sub(before, "", name) for name in adapted)
        if {name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)} == set(adapted):
            return list(targets)
    return list(adapted)


def _placed(
    adapter: ExternalAdapter, config: PretrainedConfig, options: ImportOptions
) -> tuple[dict[str, ExternalLayer], ExternalLayer | None]:
    """The adapters of the encoder's layers by name, and that of the head's first layer ("all-linear" on BERT)."""
    stock = stock_shapes(config)
    linear = {name: module for name, module in stock.named_modules() if isinstance(module, nn.Linear)}
    renamed = {_name_in(name, linear, adapter.source): layer for name, layer in adapter.layers.items()}
    if adapter.expected_layers is not None:
        missing = [name for name in peft_folder.targeted(adapter.expected_layers, linear) if name not in renamed]
        if missing:
            raise UserError("adapter.missing", f"{adapter.source}: no tensors for the layers {some(missing)}")
    for name, layer in renamed.items():
        _require_shapes(adapter.source, name, layer, linear[name])
    scaled = {name: _with_alpha(adapter.source, layer, options) for name, layer in renamed.items()}
    on_head = scaled.pop(stock_head(config).dense, None)
    prefix = f"{stock.base_model_prefix}."
    outside = [name for name in scaled if not name.startswith(prefix)]
    if outside:
        raise UserError(
            "adapter.unsupported",
            f"{adapter.source}: {', '.join(outside)}: the head's last layer is adapted, not trained whole",
        )
    own = {name.removeprefix(prefix): layer for name, layer in scaled.items()}
    return split_parts(architecture_of(config).fused, own), on_head


def _name_in(name: str, linear: Mapping[str, Any], source: str) -> str:
    """The stock model's name of a layer, without a prefix that the file adds."""
    match = ending_in(name, linear)
    if match is None:
        raise UserError("adapter.base", f"{source}: the encoder has no linear layer {name}; is it the adapter's base?")
    return match


def _require_shapes(source: str, name: str, layer: ExternalLayer, linear: nn.Linear) -> None:
    sizes = {"r": layer.r, "in": linear.in_features, "out": linear.out_features}
    for own, axes in layer.variant.axes.items():
        expected, got = tuple(sizes[axis] for axis in axes), tuple(layer.tensors[own].shape)
        if got != expected:
            raise UserError(
                "adapter.shape",
                f"{source}: {name}: expected {own} {expected} for this encoder, got {got}; is it the adapter's base?",
            )


def _with_alpha(source: str, layer: ExternalLayer, options: ImportOptions) -> ExternalLayer:
    alpha = layer.alpha if options.lora_alpha is None else options.lora_alpha
    if alpha is None:
        raise UserError(
            "import.alpha",
            f"{source}: the file does not say alpha, without which the update's scale alpha / r is not known; "
            f"give --lora_alpha (r is {layer.r})",
        )
    return replace(layer, alpha=float(alpha))


def _with_labels(settings: dict[str, Any], outputs: int) -> dict[str, Any]:
    task = get_task(settings.get("task", CUSTOM))
    if task.name == CUSTOM and outputs == 1:
        raise UserError(
            "import.task", "the head gives one number; give --task stsb for scores, or multilabel for one label"
        )
    names = settings.get("label_names")
    if names is None:
        is_named = task.name in OWN_TASKS or outputs > 1
        names = list(task.labels) or ([f"LABEL_{index}" for index in range(outputs)] if is_named else [])
    if (len(names) or 1) != outputs:
        raise UserError(
            "import.label_names", f"the head has {outputs} classes, got {len(names)} names: {', '.join(names)}"
        )
    return {**settings, "task": task.name, "label_names": names}

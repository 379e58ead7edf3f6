"""A model and a checkpoint of an external adapter: one that another program trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_pl.data.tasks import CUSTOM, OWN_TASKS, get_task
from lora_pl.encoder.loading import build_encoder, load_config
from lora_pl.encoder.source import require_own_package
from lora_pl.errors import UserError
from lora_pl.formats import native, peft_folder
from lora_pl.formats.external import ExternalAdapter, read_tensors
from lora_pl.formats.external_head import head_of
from lora_pl.formats.external_in_place import in_place_settings, split_in_place
from lora_pl.formats.external_layers import lora_config, place_layers
from lora_pl.formats.model_card import RECORD
from lora_pl.formats.state_dicts import read_state_dict
from lora_pl.formats.stock_model import stock_shapes
from lora_pl.lora import inject_lora
from lora_pl.lora.injection import linear_layers
from lora_pl.model.plain import PlainClassifier
from lora_pl.storage.checkpoint import BASE_KEY, DATA_KEY, check_base, save_checkpoint
from lora_pl.storage.flat import primitive
from lora_pl.storage.paths import expanded

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
        given = {name: value for name, value in vars(self).items() if value is not None and name != "lora_alpha"}
        return {name: primitive(value) for name, value in given.items()}


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
    stock = stock_shapes(config)
    in_place, adapter = split_in_place(adapter, stock)
    head = head_of(adapter, config)
    layers, on_head = place_layers(adapter, stock, options.lora_alpha)
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
    adapters = {f"{name}.{own}": tensor for name, layer in layers.items() for own, tensor in layer.tensors.items()}
    own: dict[str, Tensor] = {f"encoder.{name}": tensor for name, tensor in (adapters | in_place).items()}
    own |= {f"head.{name}": tensor for name, tensor in head.state.items()}
    model.load_state_dict({**model.state_dict(), **own})
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

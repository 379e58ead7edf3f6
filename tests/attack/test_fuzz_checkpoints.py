"""Checkpoints of hostile bytes, archives, pickles and values: an error that says what is wrong, or a result."""

import io
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import strategies as st

from lora_pl import LoRAClassifier
from lora_pl.cli.trainer import ClassifierCLI
from lora_pl.storage.checkpoint import BASE_KEY, read_checkpoint
from lora_pl.training.resume.exact_resume import RESUME_KEY
from lora_pl.training.run_config import RUN_KEY
from tests.attack.fuzzing import counts, fuzz, told
from tests.attack.mutations import changed_archive, changed_bytes, changed_values

HARM = (
    b"cos\nsystem\n(X\x0c\x00\x00\x00touch harmedtR.", b"cbuiltins\neval\n", b"ios\nsystem\n", b"ctorch.hub\nload\n",
    b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R", b"\x8c\x02os\x8c\x06system\x93", b"ctorch\nFloatStorage\n",
    b"J\xff\xff\xff\x7f", b"\x81", b"\x82\x01", b"h\x00", b"Q", b"0", b"\x94", b"b", b"R",
)  # fmt: skip


def written(content: Any, **options: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, **options)
    return made.getvalue()


@counts
@pytest.mark.parametrize("zipped", [True, False])
def test_bytes(zipped, count, checkpoint, tmp_path):
    path = tmp_path / "x.ckpt"
    valid = written(torch.load(checkpoint, weights_only=True), _use_new_zipfile_serialization=zipped)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_checkpoint, path)

    fuzz(count, changed_bytes(valid, ()), check)


@counts
def test_archives(count, checkpoint, tmp_path):
    path = tmp_path / "x.ckpt"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_checkpoint, path)

    fuzz(count, changed_archive(checkpoint.read_bytes()), check)


def with_pickle(valid: Path, data: bytes) -> bytes:
    """The checkpoint with another pickle in it, its checksums as they should be."""
    made = io.BytesIO()
    with zipfile.ZipFile(valid) as archive, zipfile.ZipFile(made, "w") as other:
        for record in archive.infolist():
            other.writestr(record.filename, data if record.filename.endswith("data.pkl") else archive.read(record))
    return made.getvalue()


@counts
def test_pickles(count, checkpoint, tmp_path):
    """Pickles that are hostile where the archive around them is in order, as far as the model."""
    with zipfile.ZipFile(checkpoint) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        valid = archive.read(name)
    path = tmp_path / "x.ckpt"
    model = LoRAClassifier.load_from_checkpoint(checkpoint)

    def load() -> None:
        stored = read_checkpoint(path)
        model.on_load_checkpoint(stored)
        model.load_state_dict(stored["state_dict"])

    def check(content: bytes) -> None:
        path.write_bytes(with_pickle(checkpoint, content))
        told(load)

    fuzz(count, changed_bytes(valid, HARM), check)


TENSORS = [torch.zeros(3), torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.full((4, 16), torch.nan),
           torch.zeros(2, 16, dtype=torch.float16), torch.zeros(4, 16, dtype=torch.complex64), torch.zeros(()),
           torch.zeros(1, 1).expand(1 << 15, 1 << 15), torch.zeros(4, 16).to_sparse(),
           torch.empty(4, 16, device="meta"), torch.nn.Parameter(torch.zeros(4, 16)), 1 << 99, (), {1: 2}]  # fmt: skip
"""What torch.save takes and a model should not."""
PARTS = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters", BASE_KEY, RESUME_KEY, RUN_KEY)


def parts(valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A checkpoint with one of its parts changed, or its whole."""
    of_part = [changed_values(valid[part], TENSORS).map(lambda new, part=part: {**valid, part: new}) for part in PARTS]
    return st.one_of(changed_values(valid, TENSORS), *of_part)


@counts
@pytest.mark.parametrize("kind", ["checkpoint", "in_place"])
def test_values(kind, count, request, tmp_path):
    """Well-formed files with values that no checkpoint has, as far as the model and a text's prediction."""
    path, checkpoint = tmp_path / "x.ckpt", request.getfixturevalue(kind)

    def load() -> None:
        model = LoRAClassifier.load_from_checkpoint(path)
        model.predict(["a fine film"])

    def check(content: dict[str, Any]) -> None:
        torch.save(content, path)
        told(load)

    fuzz(count, parts(torch.load(checkpoint, weights_only=True)), check)


def without_tensors(checkpoint: Path) -> dict[str, Any]:
    """What the command line reads of a checkpoint."""
    whole = torch.load(checkpoint, weights_only=True)
    return {**{key: whole[key] for key in (*PARTS, "global_step", "epoch")}, "state_dict": {}, RESUME_KEY: {}}


class Parsed(ClassifierCLI):
    """The command line up to where the model would be made; each verb's parser is built once."""

    built: ClassVar[dict[str, dict[str, Any]]] = {}

    def setup_parser(self, *arguments: Any) -> None:
        if self.verb not in self.built:
            super().setup_parser(*arguments)
            names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
            parser = self._subcommand_parsers[self.verb]
            defaults = [(action, action.default) for action in parser._actions]
            self.built[self.verb] = {**{name: getattr(self, name) for name in names}, "defaults": defaults}
        vars(self).update(self.built[self.verb])
        for action, default in self.defaults:  # a checkpoint changes them
            action.default = default
        self._subcommand_parsers[self.verb]._defaults.clear()

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@counts
def test_settings_on_the_command_line(count, checkpoint, tmp_path):
    """The options that a verb takes from a checkpoint."""
    path = tmp_path / "x.ckpt"

    def check(content: dict[str, Any]) -> None:
        torch.save(content, path)
        told(Parsed, ["validate", "--ckpt_path", str(path)])

    fuzz(count, parts(without_tensors(checkpoint)), check)


@counts
@pytest.mark.parametrize("kind", ["checkpoint", "in_place"])
def test_adapter_states(kind, count, request):
    model = LoRAClassifier.load_from_checkpoint(request.getfixturevalue(kind))
    valid = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def check(state: Any) -> None:
        try:
            loaded = told(lambda: [model.load_state_dict(state)])
            unchanged = all(torch.equal(tensor, valid[name]) for name, tensor in model.state_dict().items())
            assert loaded or unchanged, "half of it was loaded"
        finally:
            model.load_state_dict(valid)

    fuzz(count, changed_values(valid, TENSORS, list(valid)).filter(lambda state: isinstance(state, dict)), check)

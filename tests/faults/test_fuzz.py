"""Hostile input: an error that says what is wrong, or a result; no crash, no code run, no memory filled.

A few hundred mutations in the default suite, 10,000 of each kind with `pytest -m faults`.
"""

import io
import resource
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lora_pl import LoRAClassifier
from lora_pl.cli.trainer import ClassifierCLI
from lora_pl.data.examples import read_examples
from lora_pl.data.rows import read_rows
from lora_pl.data.sources import read_glue_file
from lora_pl.data.tasks import get_task
from lora_pl.errors import UserError
from lora_pl.lora import LoRAError
from lora_pl.storage.checkpoint import read_checkpoint

FEW, MANY = 200, 10_000
MEMORY = 400 << 20
"""Bytes by which a test may raise the process's peak."""

counts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.faults)])


@st.composite
def mutations(draw, valid: bytes, pieces: tuple[bytes, ...] = ()):
    """Valid bytes with some of them changed, cut, doubled, or with hostile pieces put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "double", "put", "truncate"]))
        length = draw(st.sampled_from([1, 2, 8, 64, 512]))
        if kind == "change":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length] * draw(st.sampled_from([1, 3, 50]))
        elif kind == "truncate":
            del data[at:]
        else:
            data[at:at] = draw(st.sampled_from(pieces) if pieces else st.binary(max_size=32))
    return bytes(data)


def fuzz(count: int, data, check) -> None:
    """`check(bytes)` for that many of `data`, in bounded memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @settings(max_examples=count, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data)
    @example(b"")
    def run(content: bytes) -> None:
        check(content)

    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY


def told(call, *arguments) -> None:
    """The call gives a result or a UserError of one or two lines."""
    said = "a result"
    try:
        call(*arguments)
    except (UserError, LoRAError) as error:
        said = str(error)
    assert 1 <= len(said.strip().splitlines()) <= 2


ROWS = "".join(f"the film is {'good' if i % 2 else 'dull'}\t{i % 2}\n" for i in range(12))
TABLES = {
    ".tsv": b"sentence\tlabel\n" + ROWS.encode(),
    ".csv": b"sentence,label\n" + b'"a ""fine"" film,\nreally",1\n' + ROWS.replace("\t", ",").encode(),
    ".jsonl": b"".join(b'{"sentence": "a fine film %d", "label": %d}\n' % (i, i % 2) for i in range(12)),
}
PIECES = (
    b"\x00", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\t\t", b"[" * 5000, b"1" * 5000, b"1e999", b"NaN",
    b'{"a":' * 3000, b"\\ud800", b"=cmd|' /C calc'!A0", b"label", b"sentence", "\u2028".encode(),
)  # fmt: skip


@counts
@pytest.mark.parametrize("ending", TABLES)
def test_streamed_tables(ending, count, tmp_path):
    path = tmp_path / f"x{ending}"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(lambda: list(read_rows(path, ["sentence"])))

    fuzz(count, mutations(TABLES[ending], PIECES), check)


@counts
def test_glue_files(count, tmp_path):
    path, task = tmp_path / "train.tsv", get_task("sst2")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_glue_file, path, task)

    fuzz(count, mutations(TABLES[".tsv"], PIECES), check)


@counts
@pytest.mark.parametrize("ending", TABLES)
def test_training_tables(ending, count, tmp_path):
    path, task = tmp_path / f"x{ending}", get_task("sst2")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_examples, path, task, ["sentence"], "label")

    fuzz(count, mutations(TABLES[ending], PIECES), check)


@counts
def test_checkpoints(count, checkpoint, tmp_path):
    """Any change of any byte."""
    path, valid = tmp_path / "x.ckpt", checkpoint.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_checkpoint, path)

    fuzz(count, mutations(valid), check)


def test_one_changed_bit_in_a_tensor_is_found(checkpoint, tmp_path):
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    content[content.index(largest.filename.encode()) + 300] ^= 1
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / "x.ckpt")
    assert error.value.key == "checkpoint.damaged"


HARM = (
    b"cos\nsystem\n(X\x0c\x00\x00\x00touch harmedtR.", b"cbuiltins\neval\n", b"ios\nsystem\n", b"ctorch.hub\nload\n",
    b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R", b"\x8c\x02os\x8c\x06system\x93", b"ctorch\nFloatStorage\n",
    b"J\xff\xff\xff\x7f", b"\x81", b"\x82\x01", b"h\x00", b"Q", b"0", b"\x94", b"b", b"R",
)  # fmt: skip


def with_pickle(valid: Path, data: bytes) -> bytes:
    """The checkpoint with another pickle in it, its checksums as they should be."""
    made = io.BytesIO()
    with zipfile.ZipFile(valid) as archive, zipfile.ZipFile(made, "w") as other:
        for record in archive.infolist():
            other.writestr(record.filename, data if record.filename.endswith("data.pkl") else archive.read(record))
    return made.getvalue()


@counts
def test_checkpoints_made_by_hand(count, checkpoint, tmp_path):
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

    fuzz(count, mutations(valid, HARM), check)
    assert not Path("harmed").exists()


@counts
def test_adapter_states(count, checkpoint):
    model = LoRAClassifier.load_from_checkpoint(checkpoint)
    valid = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = st.sampled_from([None, 3, "text", [], torch.zeros(3), torch.zeros(10**6, 1).expand(10**6, 10**6)])
    names = st.sampled_from([*valid, "head.extra", "", "encoder"])
    seen = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def check(changes: dict) -> None:
        told(model.load_state_dict, {**valid, **changes} if changes else {})
        assert all(torch.equal(tensor, seen[name]) for name, tensor in model.state_dict().items())

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(st.dictionaries(names, values, max_size=4))
    def run(changes: dict) -> None:
        check(changes)

    run()


class ParserAlone(ClassifierCLI):
    """The command line up to where it would be parsed."""

    def parse_arguments(self, parser, args):
        raise Built(self._subcommand_parsers[self.verb])


class Built(Exception):
    pass


@pytest.mark.parametrize("count", [40, pytest.param(MANY, marks=pytest.mark.faults)])
def test_configurations(count, tmp_path):
    settings_ = {"data": {"task": "sst2", "batch_size": 8}, "model": {"lora": {"r": 2}, "learning_rate": 0.001},
                 "trainer": {"max_epochs": 2, "precision": "32-true"}, "seed_everything": 3}  # fmt: skip
    with pytest.raises(Built) as built:
        ParserAlone(["fit"])
    (parser,) = built.value.args
    path = tmp_path / "x.yaml"
    pieces = (b"&a [*a]", b"*b", b"!!python/object/apply:os.system ['touch harmed']", b"{" * 300, b"\t", b": :",
              b"1e999", b"- ", b"null", b"&x ", b"?", b"\x00", b"\xff", b"r: -1", b"9" * 5000, b"<<: ")  # fmt: skip

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(parser.parse_args, ["--config", str(path)])

    fuzz(count, mutations(yaml.safe_dump(settings_).encode(), pieces), check)
    assert not Path("harmed").exists()

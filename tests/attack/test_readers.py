"""Files whose contents would fill memory, recurse or never end: one line, in bounded memory."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_pl.cli.shared_options import early_value
from lora_pl.data import json_values, parquet
from lora_pl.data.examples import discover_labels
from lora_pl.data.rows import read_rows
from lora_pl.data.texts import TextStream
from lora_pl.errors import UserError
from lora_pl.storage.yaml_file import bounded_load, read_options
from tests.cli.mistakes import fails

MIB = 1 << 20


def key_of(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    return error.value.key


READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, resource.RLIM_INFINITY))
from lora_pl.data.rows import read_rows
from lora_pl.errors import UserError
try:
    for row in read_rows(sys.argv[1], ["text"]):
        pass
except UserError as error:
    print(error.key)
"""


def read_in_400_mib(path) -> str:
    """The key of the error that reading gives; the reader has 400 MiB, beside a Parquet decoder's own."""
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READ, str(path)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def repeated(path, rows: int, text: str) -> None:
    indices = pa.array([0] * rows, pa.int32())
    table = pa.table({"text": pa.DictionaryArray.from_arrays(indices, pa.array([text]))})
    pq.write_table(table, path, compression="zstd", row_group_size=rows)


@pytest.mark.parametrize(
    ("rows", "length"), [(8192, MIB), pytest.param(50_000_000, 100, marks=pytest.mark.attack)]
)  # fmt: skip
def test_a_dictionary_that_repeats_a_text(rows, length, tmp_path):
    repeated(tmp_path / "x.parquet", rows, "x" * length)
    assert (tmp_path / "x.parquet").stat().st_size < MIB
    assert read_in_400_mib(tmp_path / "x.parquet") == "data.format"


@pytest.mark.attack
def test_a_page_of_a_gibibyte(tmp_path):
    table = pa.table({"text": pa.array(["x" * MIB] * 600)})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False, data_page_size=1 << 30)
    assert read_in_400_mib(tmp_path / "x.parquet") == "data.format"


@pytest.mark.attack
def test_a_prefix_that_all_texts_share(tmp_path):
    table = pa.table({"text": [MIB * "y" + str(row) for row in range(300)]})
    encoding = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", **encoding)
    assert read_in_400_mib(tmp_path / "x.parquet") == "data.format"


def test_lists_and_bytes_are_no_texts(tmp_path):
    pq.write_table(pa.table({"text": [[["a"]]], "b": [b"a"]}), tmp_path / "x.parquet")
    assert key_of(lambda: list(read_rows(tmp_path / "x.parquet", ["text"]))) == "data.row"
    assert key_of(lambda: list(read_rows(tmp_path / "x.parquet", ["b"]))) == "data.row"
    assert key_of(lambda: list(read_rows(tmp_path / "x.parquet", ["c"]))) == "data.column"


TRUNCATED = """
import os, sys
import pyarrow as pa
batch = pa.record_batch({"text": ["a"] * 9000})
with pa.ipc.new_stream(sys.stdout.buffer, batch.schema) as stream:
    stream.write_batch(batch)
    %s
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.stdout.buffer.write(b'x' * (1 << 20))", "sys.exit(1)"])
def test_a_decoder_that_ends_early(end, tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    started = subprocess.Popen
    monkeypatch.setattr(
        parquet.subprocess,
        "Popen",
        lambda command, **options: started([sys.executable, "-c", TRUNCATED % end], **options),
    )
    assert key_of(lambda: list(read_rows(tmp_path / "x.parquet", ["text"]))) == "data.format"


def test_names_of_columns_that_no_command_takes(tmp_path):
    pq.write_table(pa.table({"a\0b": ["a"], "-c": ["b"]}), tmp_path / "x.parquet")
    ((_, row),) = read_rows(tmp_path / "x.parquet", ["a\0b", "-c"])
    assert row == ("a", "b")


@pytest.mark.parametrize("rows", [30_000, pytest.param(3_000_000, marks=pytest.mark.attack)])
def test_a_large_table_with_a_dictionary_is_read(rows, tmp_path):
    texts = [f"the film {row} is good" for row in range(rows)]
    labels = pa.array(["good", "bad"] * (rows // 2)).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "x.parquet")
    count = 0
    for count, (_, (text, label)) in enumerate(read_rows(tmp_path / "x.parquet", ["text", "label"]), 1):
        assert (text, label) == (texts[count - 1], "bad" if count % 2 == 0 else "good")
    assert count == rows


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":', '[[],{"b":'])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_nesting_whatever_the_limit_of_recursion(name, opening, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "getrecursionlimit", lambda: 10**6)
    for text in (opening * 200_000, '[{"text": ' + opening * 200_000, '{"text": "]]]}}", "b": ' + opening * 200_000):
        (tmp_path / name).write_text(text)
        before = sys.getrecursionlimit()
        assert key_of(lambda: list(read_rows(tmp_path / name, ["text"]))) == "data.format"
        assert sys.getrecursionlimit() == before


values = st.recursive(st.none() | st.booleans() | st.text() | st.integers(), st.lists, max_leaves=5)
objects = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=4).map(lambda row: {**row, "text": 'a["}]'}))


@pytest.mark.parametrize("count", [20, pytest.param(5000, marks=pytest.mark.attack)])
@pytest.mark.parametrize("ascii", [True, False])
def test_an_array_in_pieces_is_the_array(count, ascii, tmp_path, monkeypatch):
    monkeypatch.setattr(json_values, "PIECE", 7)

    @settings(max_examples=count, deadline=None, database=None)
    @given(objects, st.sampled_from([None, 1, "\t"]), st.sampled_from(["", " ", "\n\n"]))
    def check(rows, indent, around):
        text = around + json.dumps(rows, indent=indent, ensure_ascii=ascii) + around
        (tmp_path / "x.json").write_bytes(text.encode("utf-8", "replace"))
        found = list(read_rows(tmp_path / "x.json", ["text"]))
        assert [cells for _, cells in found] == [('a["}]',)] * len(rows)

    check()


@pytest.mark.parametrize(
    "text", ['[{"text": "a"}', '[{"text": "a"},]', '[{"text": "a"}] x', "[1", "[,]", '[{"text": "']
)
def test_arrays_that_are_none(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    assert key_of(lambda: list(read_rows(tmp_path / "x.json", ["text"]))) == "data.format"


def test_an_array_longer_than_memory(tmp_path):
    with (tmp_path / "x.json").open("w") as file:
        file.write("[" + ",".join('{"text": "%s"}' % ("a" * 10_000) for _ in range(10)))
        file.write("," + '{"text": "' + "a" * (17 * MIB))
    assert key_of(lambda: list(read_rows(tmp_path / "x.json", ["text"]))) == "data.long_line"


@pytest.mark.parametrize("end", ["\n", '","\n'], ids=["a quote", "many cells"])
def test_a_row_of_csv_without_an_end(end, tmp_path):
    (tmp_path / "x.csv").write_text('text\n"' + ("a" * 99_999 + end) * 200)
    assert key_of(lambda: list(read_rows(tmp_path / "x.csv", ["text"]))) == "data.long_line"


def test_labels_without_number(tmp_path):
    (tmp_path / "x.csv").write_text("label\n" + "\n".join(map(str, range(10**5))))
    assert key_of(lambda: discover_labels(tmp_path / "x.csv", "label")) == "data.label"
    (tmp_path / "x.csv").write_text("label\n0\n" + "1" * 10**6)
    assert key_of(lambda: discover_labels(tmp_path / "x.csv", "label")) == "data.label"


PIPED = {
    "": "a\nb\n",
    ".csv": 'text\na\n"b"',
    ".tsv": "text\na\nb",
    ".JSONL": '{"text": "a"}\n{"text": "b"}',
    ".json": '\n[{"text": "a"}, {"text": "b"}]',
}


@pytest.mark.parametrize("ending", PIPED)
def test_texts_of_a_pipe_are_read_once(ending, tmp_path):
    path = tmp_path / f"pipe{ending}"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(PIPED[ending],))
    stream = TextStream(str(path), ["text"])
    writer.start()
    assert (list(stream), stream.once) == ([["a", "b"]], True)
    writer.join()


def test_what_is_no_regular_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "folder.csv").mkdir()
    for path in tmp_path.iterdir():
        assert key_of(lambda path=path: list(read_rows(path, ["text"]))) == "data.missing"
        if path.name != "pipe.csv":
            assert key_of(lambda path=path: list(TextStream(str(path), ["text"]))) in ("input", "data.missing")
        assert key_of(lambda path=path: read_options(path)) == "config"
        assert early_value(["--config", str(path)], "run_name") is None
        assert fails(capsys, "fit", "--config", str(path), code=2) == "config"


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, "data: &a\n  <<: *a\n", "data: &a [*a]", "data: " + "[" * 5000, "data: " + "{a: " * 5000, "- " * 5000,
     "a" * (2 * MIB), "data: [" + "1, " * 50_000 + "]", "data: &a {<<: [*b]}"],
    ids=["laughs", "merge", "itself", "lists", "maps", "dashes", "long", "wide", "undefined"],
)  # fmt: skip
def test_a_configuration_without_bounds(text, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(text)
    assert key_of(lambda: read_options(tmp_path / "x.yaml")) == "config"
    assert fails(capsys, "fit", "--config", str(tmp_path / "x.yaml"), code=2) == "config"


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.attack)])
def test_any_text_is_a_value_or_a_yaml_error(count):
    pieces = st.sampled_from(
        ["&a ", "*a", "<<: ", "- ", "[", "{", "a: ", "\n", "  ", "1" * 5000, "!!int ", "2020-99-99", "? "]
    )

    @settings(max_examples=count, deadline=None, database=None)
    @given(st.lists(pieces | st.text(max_size=3)).map("".join))
    def check(text):
        with suppress(yaml.YAMLError):
            bounded_load(text)

    check()


def test_aliases_that_stay_small_are_read():
    assert bounded_load("a: &a {r: 1}\nb: {<<: *a, s: 2}\nc: *a\n") == {
        "a": {"r": 1},
        "b": {"r": 1, "s": 2},
        "c": {"r": 1},
    }

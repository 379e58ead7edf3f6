"""Tables of hostile bytes and hostile values: an error that says what is wrong, or a result."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from lora_pl.data.examples import discover_labels, read_examples
from lora_pl.data.rows import read_rows
from lora_pl.data.sources import read_glue_file
from lora_pl.data.tasks import get_task
from tests.attack.fuzzing import FEW, MANY, counts, fuzz, told
from tests.attack.mutations import changed_bytes

TEXTS = [f"the film is {'good' if i % 2 else 'dull'}" for i in range(12)]
LABELS = [i % 2 for i in range(12)]
ROWS = "".join(f"{text}\t{label}\n" for text, label in zip(TEXTS, LABELS, strict=True))


def parquet(table: pa.Table, **options: Any) -> bytes:
    made = io.BytesIO()
    pq.write_table(table, made, **options)
    return made.getvalue()


TABLES = {
    ".tsv": b"sentence\tlabel\n" + ROWS.encode(),
    ".csv": b"sentence,label\n" + b'"a ""fine"" film,\nreally",1\n' + ROWS.replace("\t", ",").encode(),
    ".jsonl": b"".join(b'{"sentence": "a fine film %d", "label": %d}\n' % (i, i % 2) for i in range(12)),
    ".json": b'[{"sentence": "a fine film", "label": 1}, {"sentence": "dull", "label": 0}]',
    ".parquet": parquet(pa.table({"sentence": TEXTS, "label": LABELS})),
}
# fewer Parquet files: each is decoded by a process of its own
COUNTS = {ending: (8, 500) if ending == ".parquet" else (FEW, MANY) for ending in TABLES}
every_table = pytest.mark.parametrize(
    ("ending", "count"),
    [
        pytest.param(ending, count, marks=[pytest.mark.attack] if count == most else [])
        for ending, (few, most) in COUNTS.items()
        for count in (few, most)
    ],
)


@every_table
def test_streamed_tables(ending, count, tmp_path):
    path = tmp_path / f"x{ending}"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(lambda: list(read_rows(path, ["sentence"])))

    fuzz(count, changed_bytes(TABLES[ending]), check)


@every_table
def test_training_tables(ending, count, tmp_path):
    path, task = tmp_path / f"x{ending}", get_task("sst2")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_examples, path, task, ["sentence"], "label")
        told(discover_labels, path, "label")

    fuzz(count, changed_bytes(TABLES[ending]), check)


@counts
def test_glue_files(count, tmp_path):
    path, task = tmp_path / "train.tsv", get_task("sst2")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_glue_file, path, task)

    fuzz(count, changed_bytes(TABLES[".tsv"]), check)


KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.float64(), pa.bool_(), pa.timestamp("ns"),
         pa.date32(), pa.duration("s"), pa.decimal128(9, 2), pa.list_(pa.string()), pa.struct({"a": pa.string()}),
         pa.map_(pa.string(), pa.string()), pa.null(), pa.dictionary(pa.int8(), pa.string())]  # fmt: skip
CELLS = ["", "a film", "1", 1, 0, 0.5, float("nan"), True, None, b"\xff", [], ["a"], {"a": "b"}, "\x1b[2J", "\ud800"]
NAMES = ["sentence", "label", "", "\x1b[2J", "sentence.label", "other"]


@st.composite
def parquet_files(draw: Any) -> bytes:
    """Columns of any type and name; few long cells that are stored once and repeated; page and group sizes."""
    rows = draw(st.integers(0, 9))
    columns, names = [], ["sentence", "label"]
    for name in (*names, *draw(st.lists(st.sampled_from(NAMES), max_size=1))):
        kind = draw(st.sampled_from(KINDS))
        try:
            columns.append(pa.array([draw(st.sampled_from(CELLS))] * rows, kind))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            columns.append(pa.nulls(rows, kind))
        names = [*names, name] if len(columns) > 2 else names
    if draw(st.integers(0, 19)) == 7:
        cell, rows = "x" * (1 << draw(st.sampled_from([0, 10, 18]))), draw(st.sampled_from([1, 4096, 5000]))
        columns = [pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [cell])] * len(names)
    table = pa.Table.from_arrays(columns, draw(st.sampled_from([names, names[::-1]])))
    return parquet(table, compression=draw(st.sampled_from(["none", "snappy", "zstd", "gzip"])),
                   row_group_size=draw(st.sampled_from([1, 3, 1 << 20])), store_schema=draw(st.booleans()))  # fmt: skip


@pytest.mark.parametrize("count", [8, pytest.param(500, marks=pytest.mark.attack)])
def test_parquet_values(count, tmp_path):
    path, task = tmp_path / "x.parquet", get_task("sst2")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_examples, path, task, ["sentence"], "label")

    fuzz(count, parquet_files(), check)

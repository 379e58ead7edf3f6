"""Tables come as they are written, or not at all."""

import json

import pytest

from lora_pl.data.examples import read_examples
from lora_pl.data.rows import TABLES, read_rows
from lora_pl.data.tasks import get_task
from lora_pl.errors import UserError
from tests.data.tables import write_table

VALUES = ["007", "NA", 'a "quoted" word', "", "1e5", "zwölf", "FALSE", "null", "2020-01-01", " x ", "1,5", "a\u2028b"]


@pytest.mark.parametrize("ending", TABLES)
def test_prediction_and_training_read_what_is_written(ending, tmp_path):
    path = write_table(tmp_path / f"x{ending}", ("id", "text", "label"), [(1, value, "1") for value in VALUES])
    assert [text for _, (text,) in read_rows(path, ["text"])] == VALUES
    assert read_examples(path, get_task("sst2"), ["text"], "label").texts == (VALUES,)


def test_a_json_file_may_be_one_array(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"text": value} for value in VALUES]))
    assert [text for _, (text,) in read_rows(tmp_path / "x.json", ["text"])] == VALUES


def test_numbers_in_json_are_texts_as_they_are_written(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": 1e5}\n{"text": 12.50}\n{"text": true}\n{"text": null}\n{"text": NaN}\n')
    assert [text for _, (text,) in read_rows(tmp_path / "x.jsonl", ["text"])] == ["1e5", "12.50", "True", "", ""]


def test_a_column_that_is_not_read_may_be_there_twice(tmp_path):
    (tmp_path / "x.csv").write_text("text,id,id\na,1,2\n")
    assert [cells for _, cells in read_rows(tmp_path / "x.csv", ["text"])] == [("a",)]


def test_quotes_and_lines_within_a_cell(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbftext,id\r\n"two\nlines, ""quoted""",1\r\n\r\nlast,2\r\n')
    rows = list(read_rows(tmp_path / "x.csv", ["id", "text"]))
    assert [cells for _, cells in rows] == [("1", 'two\nlines, "quoted"'), ("2", "last")]
    assert rows[-1][0].endswith("x.csv, line 5")


@pytest.mark.parametrize(
    ("name", "content", "key", "said"),
    [
        ("x.csv", "id,text\n1\n", "row", "x.csv, line 2"),
        ("x.csv", "id;text\n1;a\n", "column", "there are: id;text .save it with commas"),
        ("x.csv", "id,text\n1,a\n1,b,c\n", "row", "x.csv, line 3"),
        ("x.csv", 'text\n"open\n' + "x\n" * 9, "format", "x.csv, line 11"),
        ("x.csv", "id\n1\n", "column", "x.csv"),
        ("x.csv", "text,id,text\na,1,b\n", "column", "x.csv: there are several columns 'text'"),
        ("x.csv", "", "empty", "x.csv"),
        ("x.csv", b"text\ncaf\xe9\n", "encoding", "x.csv, line 2"),
        ("x.csv", "\n\n", "empty", "x.csv"),
        ("x.tsv", "text\n" + "a" * (1 << 24) + "\n", "long_line", "x.tsv, line 2"),
        ("x.jsonl", '{"text": "a"}\n{"text"\n', "format", "x.jsonl, line 2"),
        ("x.jsonl", '{"text": "a"}\n{}\n', "column", "x.jsonl, line 2"),
        ("x.jsonl", '{"text": "\\ud800"}\n', "encoding", "x.jsonl, line 1"),
        ("x.jsonl", "[" * 100_000, "format", "x.jsonl, line 1"),
        ("x.jsonl", '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}", "format", "x.jsonl, line 1"),
        ("x.json", "[" * 200_000, "format", "x.json"),
        ("x.json", '[{"text": "a"}, 3]', "format", "x.json, row 2"),
        ("x.jsonl", '{"text": {"a": 1}}\n', "row", "x.jsonl, line 1"),
        ("x.parquet", "PAR1", "format", "x.parquet"),
        ("x.xlsx", "x", "format", "x.xlsx"),
        ("x.csv", None, "missing", "x.csv"),
    ],
)
def test_tables_that_are_none(name, content, key, said, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^data.{key}: .*{said}"):
        list(read_rows(tmp_path / name, ["text"]))

"""Text from files never reaches a terminal or a page raw."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_pl import LoRAClassifier
from lora_pl.cli.main import main
from lora_pl.errors import UserError
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.importing import checkpoint_of
from lora_pl.formats.model_card import plain
from lora_pl.printable import CONTROLS, json_line, printable
from lora_pl.reporting import say

BEFORE = Path(__file__).resolve().parents[1] / "fixtures" / "before"
ENCODER = str(BEFORE / "encoder")
ESCAPES = "\x1b[31m\x1b]0;title\a\x9b2J\u202egnp\u2066\r\n\x7f| <script>alert(1)</script> [x](javascript:1) `"
RAW = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@settings(deadline=None, database=None, derandomize=True)
@given(st.text(alphabet=st.characters()))
def test_no_control_is_left(text):
    assert not CONTROLS.search(printable(text))
    assert not CONTROLS.search(json_line([text]))
    assert json.loads(json_line({text: text})) == {text: text}
    assert not CONTROLS.search(str(UserError("x", text)))


@pytest.mark.parametrize(
    "text", ["ü", "日本語", "नमस्ते", "עברית", "العربية", "👩\u200d👩\u200d👧", "naïve “quoted”", "a\u00a0b"]
)
def test_text_of_any_language_stays(text):
    assert printable(text) == text
    assert text in json_line(text)


def test_a_long_message_is_cut():
    assert len(str(UserError("x", "a" * 10**6))) < 3000


def test_what_is_said(capsys):
    say(f"split: {ESCAPES}")
    say("[red]no markup[/red]")
    said = capsys.readouterr().err
    assert not RAW.search(said)
    assert "[red]no markup[/red]" in said


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A checkpoint whose labels are escape sequences."""
    model = LoRAClassifier(encoder=ENCODER, task="custom", label_names=[f"bad{ESCAPES}", "good"])
    torch.save(checkpoint_of(model), tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_predictions_are_json_without_controls(hostile, capsys):
    Path("x.txt").write_text("a film\x1b[31m \u202e\nthe plot\n")
    assert main(["predict", "--ckpt_path", str(hostile), "--input", "x.txt"]) == 0
    out, err = capsys.readouterr()
    assert not RAW.search(out + err)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 2
    assert set(rows[0]["probabilities"]) == {f"bad{ESCAPES}", "good"}


@pytest.mark.parametrize("place", ["tensor", "setting", "value", "encoder", "base"])
def test_errors_about_a_checkpoint(place, hostile, capsys):
    stored = torch.load(hostile)
    if place == "tensor":
        stored["state_dict"][ESCAPES] = torch.zeros(2)
    elif place == "base":
        stored["lora_pl_base"] |= {"weights": ESCAPES, "encoder": ESCAPES}
    else:
        name = {"setting": ESCAPES, "value": "method", "encoder": "encoder"}[place]
        stored["hyper_parameters"][name] = ESCAPES
    torch.save(stored, hostile)
    for verb in ("predict", "validate"):
        assert main([verb, "--ckpt_path", str(hostile), "--data.source", "sample"]) == 1
        out, err = capsys.readouterr()
        assert not RAW.search(out + err)
        assert err.strip().splitlines()[-1].startswith(f"lora_pl {verb}: ")


def test_cards_are_markdown_of_ours(hostile, tmp_path):
    export_checkpoint(hostile, tmp_path / "out", "hf", sentences=8)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not RAW.search(card)
    assert "<script>" not in card.replace("\\<script", "")
    assert "\n| labels | bad" in card
    assert plain("a|b") == r"a\|b"


def test_the_report_of_a_study_escapes(tmp_path):
    from lora_pl.ablation.page import make_page
    from lora_pl.ablation.table import COLUMNS, FAILED, ResultTable

    table = ResultTable(tmp_path)
    table.rows = [{**dict.fromkeys(COLUMNS), "trial": ESCAPES, "status": FAILED, "error": ESCAPES, "seed": 0}]
    page = make_page(table, [], {"measured": [], "published": []}, {"model.encoder": ESCAPES}, [])
    assert not RAW.search(page)
    assert "<script>" not in page

"""What the package promises against its peers: `pytest benchmarks -m benchmark` measures it and prints the table."""

import pytest

from benchmarks.training import HEADER, SHARED, Row, measure

pytestmark = [pytest.mark.benchmark, pytest.mark.shared]
NOT_REACHED = pytest.mark.xfail(reason="5.5 to 6.1 measured: PEFT's fp32 step ran at 70% of the products' peak")


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, Row]]:
    """roberta-base's shape at batch 32, by precision and peer."""
    found = {}
    print(f"\n{HEADER}")
    for precision in ("bf16", "fp32"):
        rows = measure(SHARED / "models" / "roberta-base", precision, batch_size=32, rounds=9, memory=True)
        print("\n".join(row.line("roberta-base", precision, 32) for row in rows))
        found[precision] = {row.what: row for row in rows}
    return found


@pytest.mark.parametrize(
    ("precision", "peer", "times"),
    [
        ("bf16", "PEFT, bf16 weights", 2.6),
        ("bf16", "the original recipe", 3.7),
        pytest.param("bf16", "PEFT, its default fp32", 6.5, marks=NOT_REACHED),
        ("fp32", "PEFT", 2.4),
    ],
)
def test_a_step_is_faster_by(precision, peer, times, table):
    assert table[precision][peer].ratio >= times


@pytest.mark.parametrize(("precision", "peer", "share"), [("bf16", "PEFT, bf16 weights", 0.6), ("fp32", "PEFT", 0.75)])
def test_a_steps_memory_is_at_most(precision, peer, share, table):
    assert table[precision][peer].share_of_memory <= share

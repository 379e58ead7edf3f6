"""What the package promises against its peers: `pytest benchmarks -m benchmark` measures it and prints the table."""

import pytest

from benchmarks import memory
from benchmarks.training import HEADER, OURS, SHARED, Row, measure

pytestmark = [pytest.mark.benchmark, pytest.mark.shared]
NOT_REACHED = pytest.mark.xfail(reason="5.5 to 6.1 measured: PEFT's fp32 step ran at 70% of the products' peak")


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, Row]]:
    """roberta-base's shape at batch 32, by precision and peer."""
    found = {}
    print(f"\n{HEADER}")
    for precision in ("bf16", "fp32"):
        rows = measure(SHARED / "models" / "roberta-base", precision, batch_size=32, rounds=9)
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


@pytest.mark.parametrize(("encoder", "most"), [("roberta-base", 0.6), ("roberta-minilm", 0.75)])
def test_a_runs_memory_is_at_most(encoder, most):
    found = memory.measure(SHARED / "models" / encoder, steps=300)
    print("\n".join(memory.rows(encoder, found)))
    memory_of = {name: measured.memory for name, measured in found.items()}
    assert memory_of[OURS][300] <= most * memory_of["PEFT, bf16 weights"][300]
    assert memory_of[OURS][300] <= 1.05 * memory_of[OURS][100]

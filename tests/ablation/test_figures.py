from lora_pl.ablation.figures import along_axis, parameters_by_rank
from lora_pl.ablation.groups import Group, Series

RANK = "model.lora.r"


def test_parameters_have_a_line_per_series_and_a_law_where_one_holds():
    """DoRA's magnitudes are the same at every rank."""
    own = {"": 0, "on query": 0, "on value": 0, "on key": 0, "variant dora": 5}
    series = [
        Series(RANK, name, tuple(Group("", ({RANK: str(r), "trainable_lora": 32 * r + more},)) for r in (1, 4)))
        for name, more in own.items()
    ]
    axes = parameters_by_rank(series).axes[0]
    laws = [f"32 r ({name or 'this encoder'})" for name in list(own)[:-1]]
    assert axes.get_legend_handles_labels()[1][1:] == [*laws, "variant dora"]
    assert [list(line.get_ydata()) for line in axes.lines[-2:]] == [[32, 128], [37, 133]]


def test_more_values_than_a_line_has_letters():
    rows = [{"rate": str(rate), "seed": 0, "last": 0.5, "metric": "accuracy"} for rate in range(1, 100)]
    axes = along_axis([Series("rate", "", tuple(Group(row["rate"], (row,)) for row in rows))], []).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [row["rate"] for row in rows]

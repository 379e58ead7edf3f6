"""The figures of docs/results.md are those of the tables that are published beside it."""

from lora_pl.ablation.groups import arms_of, groups_of
from lora_pl.ablation.statistics import compare
from lora_pl.ablation.table import ResultTable
from tests.docs.pages import PAGES, ROOT


def test_what_each_part_of_the_recipe_is_worth():
    (arms,) = arms_of(groups_of(ResultTable(ROOT / "docs/studies/mini-stsb-recipe-fp32").rows))
    results = {group.name: group.results() for group in arms.groups}
    found = {each.one: each for each in compare(results, "recipe")}
    page = PAGES["docs/results.md"].split("## What each part of the recipe is worth")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    first, *others = rows[2 : 2 + len(results)]
    assert (first[0], {row[0] for row in others}) == ("nothing", found.keys())
    for name, _, by_seed, difference, p, _ in [["recipe", *first[1:]], *others]:
        assert by_seed == ", ".join(f"{100 * results[name][seed]:.1f}" for seed in sorted(results[name]))
        if name != "recipe":
            points, half = 100 * found[name].difference.mean, 100 * found[name].difference.half_width
            assert difference == f"{points:+.1f} ({points - half:+.1f} to {points + half:+.1f})"
            assert p == f"{found[name].adjusted_p:.2f}"

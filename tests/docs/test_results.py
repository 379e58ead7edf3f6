"""The figures of docs/results.md are those of the tables that are published beside it."""

import re

from lora_pl.ablation.groups import arms_of, groups_of
from lora_pl.ablation.statistics import Summary, compare, summarize
from lora_pl.ablation.table import ResultTable
from tests.docs.pages import PAGES, ROOT

STUDIES = {"SICK": "minilm-sick", "STS-B": "minilm-stsb", "MRPC": "minilm-mrpc", "RTE": "minilm-rte"}
RESULTS = " ".join(PAGES["docs/results.md"].split())
ARMS = ("recipe", "LoRA, r = 4 on query and value", "full fine-tuning")


def results_of(study):
    """Each arm's results after the last epoch, by seed; with several learning rates those of the best mean."""
    (arms,) = arms_of(groups_of(ResultTable(ROOT / "docs/studies" / study).rows))
    return {group.first["arm"]: group.results() for group in arms.groups}


def rows_behind(heading):
    """The rows of the first table behind a heading, its header first."""
    lines = re.findall(r"(?:^\|.*\n)+", PAGES["docs/results.md"].split(f"{heading}\n")[1], re.MULTILINE)[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return header, rows


def interval(difference: Summary):
    """As the page writes it, in points."""
    points, half = 100 * difference.mean, 100 * difference.half_width
    return f"{points:+.1f} ({points - half:+.1f} to {points + half:+.1f})"


def test_the_recipe_and_full_fine_tuning_with_roberta_minilm():
    header, (query_value, recipe, full, minus_full, minus_query_value) = rows_behind("#### Smaller tasks")
    assert [name.partition(",")[0] for name in header[2:]] == [*STUDIES]
    for column, (name, study) in enumerate(STUDIES.items(), 2):
        results = results_of(study)
        seeds = set.intersection(*(set(results[arm]) for arm in ARMS))
        of_arms = {arm: {seed: results[arm][seed] for seed in seeds} for arm in ARMS}
        assert header[column].endswith(f"{len(seeds)} seeds")
        for row, arm in zip((recipe, query_value, full), ARMS, strict=True):
            of_arm = summarize([100 * result for result in of_arms[arm].values()])
            assert row[column] == f"{of_arm.mean:.1f} ± {of_arm.std:.1f}", name
        if name != "SICK":
            (shown,) = re.findall(
                rf"^\| {name}.*roberta-minilm, five seeds (\|.*\|)$", PAGES["README.md"], re.MULTILINE
            )
            assert shown == f"| {query_value[column]} | {recipe[column]} | {full[column]} |"
        minus = {each.other: each.difference for each in compare(of_arms) if each.one == "recipe"}
        assert [minus_query_value[column], minus_full[column]] == [interval(minus[arm]) for arm in ARMS[1:]], name


def test_sick_with_five_seeds():
    results = results_of("minilm-sick-fp32")
    recipe, full = (summarize([100 * each for each in results[arm].values()]) for arm in ("recipe", "full fine-tuning"))
    (minus,) = compare(results, "full fine-tuning")
    said = f"has {recipe.mean:.1f} ± {recipe.std:.1f}, full fine-tuning at 1e-4 {full.mean:.1f} ± {full.std:.1f}"
    assert f"{said}, the recipe minus full fine-tuning {interval(minus.difference)}." in RESULTS
    assert f"(five seeds in fp32: {recipe.mean:.1f} and {full.mean:.1f})" in PAGES["README.md"]


def test_rte_from_sick():
    (started,) = groups_of(ResultTable(ROOT / "docs/studies/minilm-rte-from-sick").rows)
    results = results_of("minilm-rte")
    minus = {
        each.other: interval(each.difference)
        for each in compare({"started": started.results(), **{arm: results[arm] for arm in ARMS}})
        if each.one == "started"
    }
    of_all = summarize([100 * each for each in started.results().values()])
    said = (
        f"the recipe has {of_all.mean:.1f} ± {of_all.std:.1f} on RTE: {minus['recipe']} against the recipe without it, "
    )
    said += f"{minus['full fine-tuning']} against full fine-tuning without it."
    assert said in RESULTS


def test_sst2_with_five_epochs():
    results = {row["seed"]: row["last"] for row in ResultTable(ROOT / "docs/studies/minilm-sst2-long").rows}
    first, second, third = (f"{100 * results[seed]:.1f}" for seed in range(3))
    of_all = summarize([100 * each for each in results.values()])
    said = f"end at {first}, {second} and {third}, {of_all.mean:.1f} ± {of_all.std:.1f}."
    assert said in RESULTS


def test_what_each_part_of_the_recipe_is_worth():
    results = results_of("mini-stsb-recipe-fp32")
    found = {each.one: each for each in compare(results, "recipe")}
    _, (first, *others) = rows_behind("## What each part of the recipe is worth")
    assert (first[0], {row[0] for row in others}) == ("nothing", found.keys())
    for name, _, by_seed, difference, p, _ in [["recipe", *first[1:]], *others]:
        assert by_seed == ", ".join(f"{100 * results[name][seed]:.1f}" for seed in sorted(results[name]))
        if name != "recipe":
            assert difference == interval(found[name].difference)
            assert p == f"{found[name].adjusted_p:.2f}"

"""A file of one's own: `python -m benchmarks.own_file glue_data FOLDER` writes reviews.csv and held_out.csv there.

Three classes: 270 positive and 270 negative sentences of SST-2, and 100 of SICK without opinion; 54, 54 and 20 others
are held out.
"""

import csv
import random
import sys
from collections.abc import Iterable
from pathlib import Path

Classes = dict[str, list[str]]


def read(glue: Path) -> Classes:
    """Sentences of more than six words by class, in random order."""
    draw = random.Random(3)
    with (glue / "SST-2" / "train.tsv").open(encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    with (glue / "SICK" / "train.csv").open(encoding="utf-8", newline="") as file:
        neutral = [row["premise"] for row in csv.DictReader(file)]
    draw.shuffle(rows)
    draw.shuffle(neutral)
    long = [(text, label) for text, label in rows if len(text.split()) > 6]
    return {
        "très bon": [text for text, label in long if label == "1"],
        "very bad": [text for text, label in long if label == "0"],
        "no opinion": neutral,
    }


def write(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """id, review, stars, in random order."""
    shuffled = sorted(rows)
    random.Random(3).shuffle(shuffled)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "stars"])
        writer.writerows((number, text, label) for number, (text, label) in enumerate(shuffled))


def main(glue: str, folder: str) -> None:
    sizes = {"reviews.csv": (270, 270, 100), "held_out.csv": (54, 54, 20)}
    found, start = read(Path(glue)), 0
    for name, counts in sizes.items():
        parts = zip(found.items(), counts, strict=True)
        write(Path(folder) / name, ((text, label) for (label, texts), n in parts for text in texts[start : start + n]))
        start += 1000


if __name__ == "__main__":
    main(*sys.argv[1:])

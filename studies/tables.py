"""Computes the tables of both READMEs from studies/results and puts them where they belong.

    python studies/tables.py

A table follows a line <!-- FILE: BY: WHAT -->, and <!-- FILE: BY: WHAT -->text<!-- --> are the
numbers of one group within a sentence. FILE has a row for each run, as `figures.py --table` writes
it. BY names the settings that tell groups of runs apart: `op lr`. There `op=s5_xy`, a value or a
regular expression, leaves out all other runs, and `lr?` keeps, of the groups that differ in it, the
one that first reaches 99 % of validation accuracy; `frac>`, named last, has a column for each value
and a row for the rest of BY.
WHAT is said of a group: `n`, its number of runs; `reached`, how many reached 99 %; of a column, its
median and range (updates that are not there are "never"); `a~b`, Spearman's rank correlation of two
columns; and by `/lr=1` updates to 99 % by those of the control with lr 1, seed by seed, equal in
the rest of BY but what has a question mark: there each takes its own best.
<!-- FILE.py -->lines<!-- --> is the length of a file.
"""

import csv
import math
import re
import statistics
from pathlib import Path

from scipy.stats import spearmanr

STUDIES = Path(__file__).parent
READMES = STUDIES.parent / "README.md", STUDIES / "README.md"
MARKER = r"(<!-- ([\w-]+\.csv): (.*?): (.*?) -->)"
TITLES = dict(
    train_99="99 % of training",
    val_99="99 % of validation",
    reached="reached 99 %",
    then_val_acc="validation then",
    low_val_acc="lowest later",
    frac="of the table",
    best_val_acc="best accuracy",
    last_val_acc="last accuracy",
    steps="updates in all",
    seconds="seconds a run",
)


def said(value):
    if value == math.inf:
        return "never"
    return f"{value:,.0f}" if value == int(value) or value >= 10 else f"{value:.3f}"


def spread(values):
    """Median (least–greatest) as text."""
    if not values:
        return "–"
    low, high, to = said(min(values)), said(max(values)), " to " if min(values) < 0 else "–"
    return said(statistics.median(values)) + f" ({low}{to}{high})" * (low != high)


def values(runs, name):
    return [float(run[name] or "inf") for run in runs if run[name] or name.endswith("_99")]


def order(run, names):  # numbers by size
    return [
        (0, float(run[n]), "") if re.fullmatch(r"[\d.e-]*\d", run[n]) else (1, 0, run[n])
        for n in names
    ]


def groups(runs, by):
    """(names, free, lists of runs): what BY says of the rows of a file."""
    names, free = [], []
    for word in by.split():
        name, _, value = word.rstrip("?").partition("=")
        if value:
            runs = [run for run in runs if re.fullmatch(value, run[name])]
        else:
            names.append(name)
            free += [name] * word.endswith("?")
    told, first = {}, {}
    for run in sorted(runs, key=lambda run: order(run, names)):
        told.setdefault(tuple(run[name] for name in names), []).append(run)
    for group in told.values():
        rest = tuple(group[0][name] for name in names if name not in free)
        rank = (
            [
                statistics.median(values(group, "val_99")),
                -statistics.median(values(group, "best_val_acc")),
            ]
            if free
            else []
        )
        if rest not in first or rank < first[rest][0]:
            first[rest] = rank, group
    return names, free, [group for _, group in first.values()]


def ratios(group, runs, by, control):
    """Updates to 99 % of each run of a group by those of its control, the runs that have `control`,
    setting=value, and else the same of BY."""
    setting = control.split("=")[0]
    words = [word for word in by.split() if word.partition("=")[0] != setting]
    names, free, found = groups(runs, " ".join([*words, control]))
    same = [name for name in names if name not in free]
    (other,) = (g for g in found if all(g[0][name] == group[0][name] for name in same))
    mine, theirs = (
        {run["seed"]: v for run, v in zip(some, values(some, "val_99"))} for some in (group, other)
    )
    return [mine[seed] / theirs[seed] for seed in mine if theirs.get(seed, math.inf) < math.inf]


def cell(group, what, runs, by):
    """One thing said of a group of runs, as text."""
    if what == "n":
        return str(len(group))
    if what == "reached":
        return f"{sum(v < math.inf for v in values(group, 'val_99'))} of {len(group)}"
    if what[0] == "/":
        by_that = ratios(group, runs, by, what[1:])
        pairs = f", n = {len(by_that)}" * (len(by_that) < len(group))
        return spread(by_that) + pairs if by_that else "control never"
    if "~" in what:
        a, b = what.split("~")
        both = [run for run in group if run[a] and run[b]]
        return f"{spearmanr(values(both, a), values(both, b)).statistic:.2f}"
    return spread(values(group, what))


def cells(file, by, what):
    """The table as lists of text: the titles, then a row for each group."""
    with open(STUDIES / "results" / file, newline="") as opened:
        runs, what = list(csv.DictReader(opened)), what.split()
    names, _, found = groups(runs, by.rstrip(">"))
    if by.endswith(">"):
        *names, name = names
        rows, across = (
            {},
            dict.fromkeys(
                group[0][name] for group in sorted(found, key=lambda group: order(group[0], [name]))
            ),
        )
        for group in found:
            row = rows.setdefault(tuple(group[0][n] for n in names), {})
            row[group[0][name]] = cell(group, *what, runs, by)
        yield [*(TITLES.get(n, n) for n in names), *across]
        yield from ([*row, *(rows[row].get(value, "–") for value in across)] for row in rows)
        return
    yield [TITLES.get(w, f"by that of {w[1:]}" if w[0] == "/" else w) for w in [*names, *what]]
    for group in found:
        yield [*(group[0][name] for name in names), *(cell(group, w, runs, by) for w in what)]


def table(match):
    head, *rows = (f"| {' | '.join(row)} |\n" for row in cells(*match.groups()[1:4]))
    return f"{match[1]}\n{head}{'|---' * (head.count('|') - 1)}|\n{''.join(rows)}"


def sentence(match):
    _, row = cells(*match.groups()[1:4])
    return f"{match[1]}{', '.join(row[-len(match[4].split()) :])}<!-- -->"


def length(match):
    return f"{match[1]}{(STUDIES / match[2]).read_text().count(chr(10))}<!-- -->"


def computed(text):
    """A README with its numbers computed anew."""
    text = re.sub(r"(<!-- (\w+\.py) -->)[^\n]*?<!-- -->", length, text)
    text = re.sub(f"^{MARKER}\n(?:\\|.*\n)*", table, text, flags=re.M)
    return re.sub(f"{MARKER}[^\n]*?<!-- -->", sentence, text)


if __name__ == "__main__":
    for readme in READMES:
        readme.write_text(computed(readme.read_text()))

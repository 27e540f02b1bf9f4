"""Computes the tables of READMEs from the CSVs beside them and puts them where they belong.

    python studies/tables.py                  of all: the main one, studies/README.md, the rooms'
    python studies/tables.py README [README …]

A table follows a line <!-- FILE: BY: WHAT -->, and <!-- FILE: BY: WHAT -->text<!-- --> are the
numbers of one group within a sentence. FILE, looked for from the README's own folder, has a row for
each run, as `figures.py --table` writes it.

BY names the settings that tell groups of runs apart: `op lr`. There `op=s5_xy`, a value or a
regular expression, leaves out all other runs. `lr?` keeps, of the groups that differ in it, the one
that is first at 99 % of validation accuracy, `lr?val_95` the one that is first at 95 %. `frac>`,
named last, has a column for each value and a row for the rest of BY.

WHAT is said of a group: `n`, its number of runs; `reached` and `reached_95`, how many reached 99
and 95 %; of a column, its median and range, where updates that are not there are "never"; `a~b`,
Spearman's rank correlation of two columns; `COLUMN/lr=1`, the column by that of the control with
lr 1, seed by seed, and `/lr=1` for short where it is val_99; `/lr=1,p=7` names two settings. The
control is equal in the rest of BY, but for what has a question mark: there each takes its own best.

<!-- FILE.py -->lines<!-- --> is the length of a file.
"""

import csv
import math
import re
import statistics
import sys
from pathlib import Path

from scipy.stats import spearmanr

STUDIES = Path(__file__).parent
MARKER = r"(<!-- ([\w./-]+\.csv): (.*?): (.*?) -->)"
REACHED = dict(reached="val_99", reached_95="val_95")
TITLES = dict(
    train_50="50 % of training",
    val_50="50 % of validation",
    train_95="95 % of training",
    val_95="95 % of validation",
    train_99="99 % of training",
    val_99="99 % of validation",
    reached="reached 99 %",
    reached_95="reached 95 %",
    then_val_acc="validation then",
    low_val_acc="lowest later",
    frac="of the table",
    best_val_acc="best accuracy",
    last_val_acc="last accuracy",
    steps="updates in all",
    seconds="seconds a run",
)


# --- Groups of runs: lists of rows, which are dicts of text ---------------------------------------


def parsed(by):
    """What BY says: the settings that tell groups apart, those of them that take their best, each
    with the column that judges, and (setting, pattern) of what is kept."""
    names, free, kept = [], {}, []
    for word in by.split():
        name, equals, pattern = word.partition("=")
        if equals:
            kept.append((name, pattern))
            continue
        name, question, judge = word.partition("?")
        names.append(name)
        if question:
            free[name] = judge or "val_99"
    return names, free, kept


def groups(runs, by):
    names, free, kept = parsed(by)
    for name, pattern in kept:
        runs = [run for run in runs if re.fullmatch(pattern, run[name])]
    found = {}
    for run in sorted(runs, key=lambda run: [by_size(run[name]) for name in names]):
        found.setdefault(place(run, names), []).append(run)
    if not free:
        return list(found.values())
    fixed = [name for name in names if name not in free]
    *_, judge = free.values()
    return soonest(found.values(), fixed, judge)


def soonest(found, fixed, judge):
    """Of the groups that are equal in `fixed`, the one with the least updates; of those that never
    get there, the one with the highest accuracy."""

    def rank(group):
        accuracy = statistics.median(values(group, "best_val_acc"))
        return statistics.median(values(group, judge)), -accuracy

    best = {}
    for group in found:
        key = place(group[0], fixed)
        best[key] = min(best.get(key, group), group, key=rank)
    return list(best.values())


def place(run, names):
    return tuple(run[name] for name in names)


def by_size(text):
    """A key that sorts numbers by size, before words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def values(runs, column):
    """The numbers of a column. Updates that are not there are infinite; else they are left out."""
    updates = re.fullmatch(r"(train|val)_\d\d", column)
    cells = [run[column] for run in runs]
    return [float(cell or "inf") for cell in cells if cell or updates]


# --- What is said of a group ----------------------------------------------------------------------


def said(value, digits=3):
    if value == math.inf:
        return "never"
    whole = value == int(value) or value >= 10
    return f"{value:,.0f}" if whole else f"{value:.{digits}f}"


def spread(numbers, digits=3):
    """Median (least–greatest) as text."""
    if not numbers:
        return "–"
    values = min(numbers), statistics.median(numbers), max(numbers)
    low, middle, high = (said(value, digits) for value in values)
    if low == high:
        return middle
    to = " to " if low.startswith("-") else "–"
    return f"{middle} ({low}{to}{high})"


def ratios(group, runs, by, column, control):
    """The column of each run by that of the run with its seed in the control of the group."""
    wanted = control.split(",")
    settings = {word.partition("=")[0] for word in wanted}
    rest = [word for word in by.split() if re.split("[=?]", word)[0] not in settings]
    names, free, _ = parsed(" ".join(rest))
    fixed = [name for name in names if name not in free]
    same = place(group[0], fixed)
    controls = groups(runs, " ".join([*rest, *wanted]))
    (other,) = [some for some in controls if place(some[0], fixed) == same]
    mine, theirs = by_seed(group, column), by_seed(other, column)
    shared = [seed for seed in mine if theirs.get(seed, math.inf) < math.inf]
    return [mine[seed] / theirs[seed] for seed in shared]


def by_seed(runs, column):
    return {run["seed"]: value for run in runs for value in values([run], column)}


def ratio(group, runs, by, what):
    column, _, control = what.partition("/")
    found = ratios(group, runs, by, column or "val_99", control)
    if not found:
        return "control never"
    return spread(found, digits=2) + f", n = {len(found)}" * (len(found) < len(group))


def correlation(group, what):
    a, b = what.split("~")
    both = [run for run in group if run[a] and run[b]]
    rho = spearmanr(values(both, a), values(both, b)).statistic
    return f"{rho:.2f}"


def cell(group, what, runs, by):
    """One thing said of a group of runs, as text."""
    if what == "n":
        return str(len(group))
    if what in REACHED:
        there = [value for value in values(group, REACHED[what]) if value < math.inf]
        return f"{len(there)} of {len(group)}"
    if "/" in what:
        return ratio(group, runs, by, what)
    if "~" in what:
        return correlation(group, what)
    return spread(values(group, what))


def title(what):
    if "/" in what:
        column, _, control = what.partition("/")
        return f"{title(column)} ÷ that of {control}".strip()
    return TITLES.get(what, what)


# --- Tables, and where they stand -----------------------------------------------------------------


def table(runs, by, what):
    """The table as lists of text: the titles, then a row for each group."""
    if by.endswith(">"):
        return across(runs, by.rstrip(">"), what)
    names, columns = parsed(by)[0], what.split()
    rows = [[title(name) for name in (*names, *columns)]]
    for group in groups(runs, by):
        numbers = [cell(group, column, runs, by) for column in columns]
        rows.append([*place(group[0], names), *numbers])
    return rows


def across(runs, by, what):
    """The same with a column for each value of the last setting of BY."""
    *names, last = parsed(by)[0]
    cells = {}
    for group in groups(runs, by):
        row = cells.setdefault(place(group[0], names), {})
        row[group[0][last]] = cell(group, what, runs, by)
    places = sorted({place for row in cells.values() for place in row}, key=by_size)
    rows = [[*(title(name) for name in names), *places]]
    for names, row in cells.items():
        rows.append([*names, *(row.get(place, "–") for place in places)])
    return rows


def markdown(rows):
    head, *rest = (f"| {' | '.join(row)} |\n" for row in rows)
    return f"{head}{'|---' * len(rows[0])}|\n{''.join(rest)}"


def computed(text, folder):
    """A README of a folder with its numbers computed anew."""

    def read(file):
        with open(folder / file, newline="") as opened:
            return list(csv.DictReader(opened))

    def as_table(match):
        marker, file, by, what = match.groups()
        return f"{marker}\n{markdown(table(read(file), by, what))}"

    def as_sentence(match):
        marker, file, by, what = match.groups()
        _, row = table(read(file), by, what)
        numbers = row[-len(what.split()) :]
        return f"{marker}{', '.join(numbers)}<!-- -->"

    def as_length(match):
        lines = (folder / match[2]).read_text().count("\n")
        return f"{match[1]}{lines}<!-- -->"

    text = re.sub(r"(<!-- ([\w./]+\.py) -->)[^\n]*?<!-- -->", as_length, text)
    text = re.sub(f"^{MARKER}\n(?:\\|.*\n)*", as_table, text, flags=re.M)
    return re.sub(f"{MARKER}[^\n]*?<!-- -->", as_sentence, text)


def readmes():
    return [
        STUDIES.parent / "README.md",
        STUDIES / "README.md",
        *sorted(STUDIES.glob("[!.]*/README.md")),
    ]


def main(names):
    """Rewrites READMEs, by default all; returns the exit status."""
    status = 0
    for readme in map(Path, names or readmes()):
        try:
            before = readme.read_text()
            after = computed(before, readme.parent)
        except (OSError, KeyError, ValueError) as error:
            print(f"{readme}: {error!r}", file=sys.stderr)
            status = 1
            continue
        if after != before:
            readme.write_text(after)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

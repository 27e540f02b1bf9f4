"""Which measures move before validation accuracy does, and do they stay where nothing will come? Of
every column of run folders of measures.py, of one task, in which some runs generalise:

    moves     when it has gone half of its way, in units of the plateau: 0 is where training
              accuracy reaches 99 %, 1 where validation accuracy has gone half of its own way. Its
              way is from its value at 0 to that where validation accuracy reaches 99 %. Empty for a
              run that does not generalise or has by then, and for what ends where it began
    stays     from when on it has, for good: later than `moves` if noise got it there first
    lead      `moves` in updates before validation accuracy; negative if the column follows
    alarms    of the other runs, which do not generalise, the share in which the column, at any time
              after 99 % of training, has gone as far as half of that way
    farthest  how far it goes in them at most, in units of that way
    auc       area under the ROC curve of "will generalise" by the column's value where training
              accuracy reaches 99 %: 1 or 0 tells all runs apart, 0.5 none

    python studies/lead/lead.py runs/lead --random runs/random --out pictures

writes lead.csv, a row for each run that memorises and column, and lead.png. random_alarms and so on
are of the runs in --random instead. A loss has its logarithm beside it. `measure` is a column, or
all α, or all FACT, of single matrices; `place` is its turn, by the median of `moves`. Times, such
as generalised_50, are left out: they rise with `step` until they stop.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # figures.py, grok.py
import figures
import grok
import numpy as np

NO_MEASURE = "step|seconds|train_acc|memorised_.*|generalised_.*"
ALARMS = {1.36: "alarms", 1.52: "random_alarms"}  # and where they stand in the picture


class Curves:
    """The columns of a run that memorises, as arrays, from where training accuracy reaches 99 % on.
    `end` is the index where validation accuracy does, or None."""

    def __init__(self, settings, rows):
        self.settings = settings | dict(grok=rows.grok)
        start = figures.reached(rows, "train_acc")
        rows = [row for row in rows if row["step"] >= start]
        self.columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        for name in [name for name in rows[0] if name.endswith("_loss")]:
            self.columns[f"log_{name}"] = np.log(self.columns[name].clip(1e-9))
        self.end = next(iter(np.flatnonzero(self.columns["val_acc"] >= 0.99)), None)

    def halfway(self, name):
        """The updates since the start after which a column has gone half of its way, first and for
        good. None if there is no way to go."""
        values = self.columns[name][: self.end + 1]
        since = self.columns["step"] - self.columns["step"][0]
        way = values[-1] - values[0]
        if not way or not np.isfinite(way):
            return None
        short = (values - values[0]) / way < 0.5
        return since[short.argmin()], since[np.flatnonzero(short)[-1] + 1]


def read(folder):
    """The runs in a folder that memorise. Raises UsageError."""
    runs = figures.read_runs([folder])
    return [Curves(*run) for run in runs if figures.best(run[1], "train_acc") >= 0.99]


def moved(run, name, others):
    """When a column of a run moves, and how far it goes in others, {where: runs}. Empty if the run
    has no plateau or the column no way to go."""
    half = run.halfway(name) if run.end else None
    if not half:
        return {}
    whole, _ = run.halfway("val_acc")
    first, last = half
    row = dict(moves=first / whole, stays=last / whole, lead=int(whole - first))
    way = run.columns[name][run.end] - run.columns[name][0]
    for where, runs in others.items():
        columns = [other.columns[name] for other in runs]
        gone = np.array([((column - column[0]) / way).max() for column in columns])
        if runs:
            row |= {f"{where}alarms": (gone >= 0.5).mean(), f"{where}farthest": gone.max()}
    return row


def auc(name, yes, no):
    yes, no = ([run.columns[name][0] for run in runs] for runs in (yes, no))
    if not yes or not no:
        return ""
    wins = np.sign(np.subtract.outer(yes, no))  # 1, 0 for a tie, -1
    return (1 + wins.mean()) / 2


def rows_of(runs, random=()):
    """A row, a dict, for each run and column."""
    others = {"": [run for run in runs if run.end is None], "random_": random}
    waiting = [run for run in runs if run.end]
    rows = []
    for name in [name for name in runs[0].columns if not re.fullmatch(NO_MEASURE, name)]:
        measure = re.sub("^(alpha|fact)_.*", r"\1, all matrices", name)
        areas = {f"{where}auc": auc(name, waiting, some) for where, some in others.items()}
        for run in runs:
            row = dict(run.settings, measure=measure, column=name, at_99=run.columns[name][0])
            row["generalises"] = int(run.end is not None)
            rows.append(row | areas | moved(run, name, others))
    place = {measure: turn for turn, measure in enumerate(by_turn(rows), start=1)}
    return [row | dict(place=place.get(row["measure"], "")) for row in rows]


def by_turn(rows):
    """{measure: its rows that have moved}, the first to move first."""
    moving = {}
    for row in rows:
        if "moves" in row:
            moving.setdefault(row["measure"], []).append(row)
    medians = {name: np.median([row["moves"] for row in some]) for name, some in moving.items()}
    return {name: moving[name] for name in sorted(medians, key=medians.get)}


def picture(rows):
    """A line for each measure: a dot a run where it moves, drawn out to where it stays."""
    from matplotlib.figure import Figure

    turns = by_turn(rows)
    figure = Figure((8, 1.3 + 0.23 * len(turns)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color="0.6", lw=0.8)
    axes.set_yticks(range(len(turns)), turns, fontsize=8)
    axes.set_xlim(-0.03, 1.6)
    axes.set_ylim(len(turns), -1)
    axes.set_xticks(np.arange(0, 1.3, 0.2))
    axes.set_xlabel("0: 99 % of training; 1: validation accuracy half way up")
    axes.set_title("alarms: other runs, random answers", fontsize=8, loc="right")
    for y, some in enumerate(turns.values()):
        shares = {x: [row[n] for row in some if n in row] for x, n in ALARMS.items()}
        colour = figures.COLOURS[any(map(any, shares.values()))]
        for row in some:
            axes.plot([row["moves"], row["stays"]], [y, y], color=colour, lw=1, alpha=0.5)
            axes.plot(row["moves"], y, "o", color=colour, ms=4, alpha=0.6)
        for x in [x for x in shares if shares[x]]:
            share = np.mean(shares[x])
            axes.text(x, y, f"{share:.0%}", ha="center", va="center", fontsize=8)
    return figure


def main(argv=None):
    plain = argparse.RawDescriptionHelpFormatter
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=plain, allow_abbrev=False)
    cli.add_argument("folder", metavar="DIR")
    cli.add_argument("--random", metavar="DIR", help="runs on random answers")
    cli.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    given = cli.parse_args(argv)
    try:
        runs, random = read(given.folder), read(given.random) if given.random else ()
        figures.refuse(not runs, f"{given.folder}: no run in it reaches 99 % of training accuracy")
        rows = rows_of(runs, random)
        figures.write_rows(rows, given.out / "lead.csv")
        picture(rows).savefig(given.out / "lead.png", dpi=100)
    except KeyError as error:
        print(f"lead.py: some runs have no column {error}", file=sys.stderr)
        return 2
    except (grok.UsageError, OSError, ImportError) as error:
        print(f"lead.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

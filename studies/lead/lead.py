"""Which measures move before validation accuracy does, and do they stay where nothing will come? Of
every column of run folders of measures.py, of one task, in which some runs generalise:

    moves   when the column has gone half of its way, in units of the plateau: 0 is where training
            accuracy reaches 99 %, 1 where validation accuracy has gone half of its own way. Its way
            is from its value at 0 to that where validation accuracy reaches 99 %. Empty for a run
            that does not generalise or has by then, and for a column that ends where it began. It
            is a first crossing: noise on a short way moves early
    lead    the same in updates, before validation accuracy; negative if the column follows
    alarms  of the other runs, which do not generalise, and of those in --random, the share in which
            the column, at any time after 99 % of training, has gone as far as half of that way
    auc     area under the ROC curve of "will generalise" by the column's value where training
            accuracy reaches 99 %: 1 or 0 tells all runs apart, 0.5 none

    python studies/lead/lead.py runs/lead --random runs/random --out pictures

writes lead.csv, a row for each run that memorises and column, and lead.png, a row for each column.
"""

import argparse
import csv
import io
import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok
import numpy as np

NO_MEASURE = "step", "seconds", "train_acc"


def first(values, least):
    """The index at which a series first is `least` or more, or None."""
    return next(iter(np.flatnonzero(values >= least)), None)


def halfway(values):
    """The index at which a series first has gone half of the way from its first to its last, or
    None if there is no way to go."""
    way = values[-1] - values[0]
    return first((values - values[0]) / way, 0.5) if way and np.isfinite(way) else None


class Curves:
    """A run's columns as arrays, and where its plateau starts and ends (indices, or None)."""

    def __init__(self, record):
        self.settings = vars(record.config)
        self.columns = {name: np.array([row[name] for row in record.log]) for name in record.log[0]}
        self.start = first(self.columns["train_acc"], 0.99)
        self.end = first(self.columns["val_acc"], 0.99)
        self.waits = None not in (self.start, self.end) and self.end > self.start

    def from_start(self, name):
        return self.columns[name][self.start :]

    def plateau(self, name):
        return self.columns[name][self.start : self.end + 1]


def row_of(run, name, others):
    """The row of a run that memorises and a column, beside runs that do not generalise."""
    row = dict(
        run.settings,
        column=name,
        generalises=int(run.end is not None),
        moves="",
        lead="",
        alarms="",
        at_99=run.columns[name][run.start],
    )
    if not run.waits:
        return row
    mine, accuracy = (halfway(run.plateau(column)) for column in (name, "val_acc"))
    if mine is None:
        return row
    steps = run.plateau("step")
    row["moves"] = (steps[mine] - steps[0]) / (steps[accuracy] - steps[0])
    row["lead"] = int(steps[accuracy] - steps[mine])
    way = run.plateau(name)[-1] - run.plateau(name)[0]
    gone = [(other.from_start(name) - other.from_start(name)[0]) / way for other in others]
    if gone:
        row["alarms"] = statistics.fmean(g.max() >= 0.5 for g in gone)
    return row


def rows_of(runs, random=()):
    """A row, a dict, for each run that memorises and column."""
    runs = [run for run in runs if run.start is not None]
    others = [run for run in [*runs, *random] if run.end is None and run.start is not None]
    rows = []
    for name in [name for name in runs[0].columns if name not in NO_MEASURE] if runs else []:
        yes = [run.from_start(name)[0] for run in runs if run.waits]
        no = [run.from_start(name)[0] for run in others]
        wins = [(a > b) + (a == b) / 2 for a in yes for b in no]
        auc = statistics.fmean(wins) if wins else ""
        rows += [row_of(run, name, others) | dict(auc=auc) for run in runs]
    return rows


def picture(rows):
    """A row for each column: a dot a run where it moves, and its alarms as a number."""
    from matplotlib.figure import Figure

    moves = {}
    for row in rows:
        if row["moves"] != "":
            moves.setdefault(row["column"], []).append(row)
    order = sorted(moves, key=lambda name: -statistics.median(r["moves"] for r in moves[name]))
    figure = Figure((8, 1.2 + 0.22 * len(order)), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(order):
        places = [row["moves"] for row in moves[name]]
        alarms = [row["alarms"] for row in moves[name] if row["alarms"] != ""]
        axes.plot(places, [i] * len(places), "o", color="#0072B2", ms=4, alpha=0.6)
        axes.plot(statistics.median(places), i, "|", color="black", ms=12)
        if alarms:
            axes.text(1.22, i, f"{statistics.fmean(alarms):.0%}", va="center", fontsize=7)
    axes.axvline(1, color="0.6", lw=0.8)
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.set(xlim=(-0.05, 1.3), xlabel="0: training at 99 %, 1: validation accuracy half way up")
    axes.set_title("when a measure has gone half of its way; right: false alarms", fontsize=9)
    return figure


def write(rows, folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    grok.write(folder / "lead.csv", text.getvalue().encode())
    picture(rows).savefig(folder / "lead.png", dpi=110)


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("folder", metavar="DIR")
    cli.add_argument("--random", metavar="DIR", help="runs on random answers")
    cli.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    given = cli.parse_args(argv)
    try:
        runs, random = (
            [Curves(record) for record in grok.read(folder) if record.log] if folder else []
            for folder in (given.folder, given.random)
        )
        rows = rows_of(runs, random)
        if not rows:
            raise grok.UsageError(f"{given.folder}: no run in it reaches 99 % of training accuracy")
        write(rows, given.out)
    except (grok.UsageError, OSError) as error:
        print(f"lead.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

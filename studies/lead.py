"""Which measures move before validation accuracy does, and do they tell runs that will generalise?
Of every column of run folders of measures.py, one task each, in which some runs generalise:

lead    updates by which it has gone half of its way sooner than validation accuracy; its way is
        from where training accuracy reaches 99 % to where validation accuracy does. Negative if it
        follows; empty for a run that does not generalise or has by then, and for a column that
        ends where it began. It is a first crossing: noise on a short way counts as lead.
alarms  of the runs that do not generalise, the share in which the column, at any time after
        training accuracy reaches 99 %, has gone as far as half of that way.
auc     area under the ROC curve of "will generalise" by the column's value where training accuracy
        reaches 99 %: 1 or 0 tells all runs apart (by a greater, or a smaller, value), 0.5 none.
        Runs that have generalised by then are left out.

    python studies/lead.py runs/x_plus_y runs/s5_xy --out pictures

writes lead.csv, a row for each run that memorises and column, with the settings that differ within
a folder, and a picture of each folder.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path

import grok2 as grok
import measures
import numpy as np


def first(values, least):
    """The index at which a series first is `least` or more, or None."""
    return next(iter(np.flatnonzero(values >= least)), None)


def halfway(values):
    """The index at which a series first has gone half of the way from its first to its last, or
    None if there is no way to go."""
    way = values[-1] - values[0]
    return first((values - values[0]) / way, 0.5) if way and np.isfinite(way) else None


def rows_of(runs):
    """A row, a dict, for each run that memorises and column; of runs [(settings, columns)]."""
    rows, moments = [], []
    for settings, columns in runs:
        start, end = (first(columns[name], 0.99) for name in ("train_acc", "val_acc"))
        if start is not None:
            later = end is not None and end > start
            moments.append((settings, columns, start, end, later))
    for name in [name for name in runs[0][1] if name not in ("step", "seconds", "train_acc")]:
        yes = [columns[name][start] for _, columns, start, _, later in moments if later]
        others = [columns[name][start:] for _, columns, start, end, _ in moments if end is None]
        wins = [(a > b[0]) + (a == b[0]) / 2 for a in yes for b in others]
        for settings, columns, start, end, later in moments:
            ways = [columns[n][start : end + 1] for n in ("val_acc", name)] if later else []
            halves = [half for half in map(halfway, ways) if half is not None]
            lead, alarms = "", []
            if len(halves) == 2:
                lead = float(np.subtract(*columns["step"][start:][halves]))
                way = ways[1][-1] - ways[1][0]
                alarms = [((other - other[0]) / way).max() >= 0.5 for other in others]
            rows.append(
                settings
                | dict(
                    column=name,
                    generalises=int(end is not None),
                    lead=lead,
                    alarms=statistics.fmean(alarms) if alarms else "",
                    at_99=columns[name][start],
                    auc=statistics.fmean(wins) if wins else "",
                )
            )
    return rows


def picture(runs, title):
    """Every column over updates, blue for runs that generalise, over the accuracies in grey."""
    from matplotlib.figure import Figure

    names = [name for name in runs[0][1] if name not in ("step", "seconds")]
    rows = -(-len(names) // 5)
    figure = Figure((14, 2.1 * rows), layout="constrained")
    figure.suptitle(
        f"{title}: runs that generalise are blue, others orange; grey: accuracy of "
        "training (dotted) and of validation",
        fontsize=9,
    )
    axes = figure.subplots(rows, 5).flat
    for a in axes[len(names) :]:
        a.remove()
    for a, name in zip(axes, names):
        under = a.twinx()
        for _, columns in runs:
            there = first(columns["val_acc"], 0.99) is not None
            a.plot(columns["step"], columns[name], lw=0.8, color="#0072B2" if there else "#D55E00")
            for accuracy, dots in ("train_acc", ":"), ("val_acc", "-"):
                under.plot(columns["step"], columns[accuracy], dots, lw=0.5, color="0.7")
        under.set_axis_off()
        a.patch.set_visible(False)  # or it would hide what is under it
        a.set(xscale="log", zorder=1)
        a.set_title(name, fontsize=8)
    return figure


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("folders", nargs="+", metavar="DIR")
    cli.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    given, rows = cli.parse_args(argv), []
    try:
        for folder in map(Path, given.folders):
            runs = [
                (
                    run.config.columns(),
                    {name: np.array([row[name] for row in run.log]) for name in run.log[0]},
                )
                for run in grok.read(folder, measures.Config)
                if run.log
            ]
            found = [dict(folder=folder.name) | row for row in rows_of(runs)] if runs else []
            grok.refuse(not found, f"{folder}: no run in it reaches 99 % of training accuracy")
            rows += found
            given.out.mkdir(parents=True, exist_ok=True)
            picture(runs, folder.name).savefig(given.out / f"{folder.name}.png", dpi=80)
        with open(given.out / "lead.csv", "w", newline="") as opened:
            names = [
                name
                for name in rows[0]
                if name not in measures.Config().columns()
                or len({(row["folder"], row[name]) for row in rows}) > len(given.folders)
            ]
            table = csv.DictWriter(opened, names, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    except (grok.UsageError, OSError) as error:
        print(f"lead.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The course of training at each width and fraction of the table, of runs that differ in nothing
else but the seed.

    python studies/unified/courses.py runs/unified

Prints and draws, as unified.png in that folder, the course of most of the seeds (the first of those
that tie): neither; memorised, training alone; grokked, validation reaches 99 % at least twice as
late as training; and at once. With each go the median updates of training and of validation.
"""

import math
import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok

COLOURS = {"neither": "#d9d9d9", "memorised": "#fdae61", "grokked": "#3288bd", "at once": "#abdda4"}


def course(train, val):
    """A run's course, from the updates at which training and validation reached 99 %, or None."""
    if val is None:
        return "neither" if train is None else "memorised"
    return "grokked" if train is not None and val >= 2 * train else "at once"


def courses(records):
    """{(width, fraction): [(course, train, val) of each seed]}. Raises UsageError."""
    apart = dict(width=0, frac=0, seed=0)
    if len({str(vars(record.config) | apart) for record in records}) > 1:
        raise grok.UsageError("the runs differ beside width, frac and seed")
    found = {}
    for record in sorted(records, key=lambda record: (record.config.width, record.config.frac)):
        times = record.reached("train_acc"), record.reached()
        place = record.config.width, record.config.frac
        found.setdefault(place, []).append((course(*times), *times))
    return found


def said(group):
    """(course of most, text of a cell)."""
    kinds, *times = zip(*group, strict=True)
    most = statistics.mode(sorted(kinds, key=list(COLOURS).index))
    medians = [statistics.median(t or math.inf for t in column) for column in times]
    return most, " / ".join(f"{m:,.0f}" if m < math.inf else "never" for m in medians)


def draw(found):
    """A map: fractions across, widths up."""
    from matplotlib.figure import Figure

    widths, fracs = (sorted({place[i] for place in found}) for i in (0, 1))
    figure = Figure((1.5 + 1.3 * len(fracs), 1.5 + 0.6 * len(widths)), layout="constrained")
    axes = figure.subplots()
    axes.set_xticks(range(len(fracs)), fracs)
    axes.set_yticks(range(len(widths)), widths)
    axes.set(xlabel="fraction of the table in training", ylabel="width")
    for (width, frac), group in found.items():
        most, text = said(group)
        x, y = fracs.index(frac), widths.index(width)
        axes.bar(x, 1, 1, y - 0.5, color=COLOURS[most], edgecolor="white")
        axes.text(x, y, text, ha="center", va="center", fontsize=7)
    for kind, colour in COLOURS.items():
        axes.bar(0, 0, color=colour, label=kind)
    figure.suptitle("updates to 99 % of training / of validation", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def main(folder):
    try:
        found = courses(grok.read(folder))
        draw(found).savefig(Path(folder) / "unified.png", dpi=110)
    except (grok.UsageError, OSError, ImportError) as error:
        print(f"courses.py: {error}", file=sys.stderr)
        return 2
    for (width, frac), group in found.items():
        print(f"width {width:4}  fraction {frac:<5} {' '.join(said(group)):32} n = {len(group)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["runs/unified"]))

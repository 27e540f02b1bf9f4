"""Unified view (Huang et al. 2024, arXiv 2402.15175): memorising and generalising circuits compete,
and model size and data decide on the course of training. With too little data a network just
memorises; with more it groks; one too small to memorise generalises at once, or not at all.

    python studies/grok2.py --recipe fast --op x_plus_y --width 16 32 64 128 256 \
        --frac 0.1 0.2 0.3 0.5 0.7 --seed 0 1 2 --out runs/unified
    python studies/unified.py runs/unified

Prints and draws, as unified.png in that folder, the course of most of the seeds at each width and
fraction (the first of those that tie), by the updates to 99 %. Courses are told apart here as
neither; memorised, training alone; grokked, validation at least twice as late as training; and at
once. With each go the median updates of training and of validation.
"""

import math
import statistics
import sys
from pathlib import Path

import grok2 as grok

COURSES = "neither", "memorised", "grokked", "at once"
COLOURS = "#d9d9d9", "#fdae61", "#3288bd", "#abdda4"


def course(train, val):
    """A run's course, from the updates at which training and validation reached 99 %, or None."""
    if val is None:
        return "neither" if train is None else "memorised"
    return "grokked" if train is not None and val >= 2 * train else "at once"


def courses(runs):
    """{(width, fraction): [(course, train, val) of each seed]}."""
    found = {}
    others = [run.config.columns() | dict(width=0, frac=0, seed=0) for run in runs]
    grok.refuse(others.count(others[0]) < len(runs), "the runs differ beside width, frac and seed")
    for run in sorted(runs, key=lambda run: (run.config.width, run.config.frac)):
        times = run.reached("train_acc"), run.reached()
        place = run.config.width, run.config.frac
        found.setdefault(place, []).append((course(*times), *times))
    return found


def said(group):
    """(course of most, text of a cell)."""
    most = statistics.mode(sorted((kind for kind, *_ in group), key=COURSES.index))
    medians = [statistics.median(t or math.inf for t in times) for times in list(zip(*group))[1:]]
    return most, " / ".join(f"{m:,.0f}" if m < math.inf else "never" for m in medians)


def draw(found, file, title):
    from matplotlib.figure import Figure

    widths, fracs = (sorted({place[i] for place in found}) for i in (0, 1))
    figure = Figure((1.5 + 1.3 * len(fracs), 1.5 + 0.6 * len(widths)), layout="constrained")
    a = figure.subplots()
    a.set_xticks(range(len(fracs)), fracs)
    a.set_yticks(range(len(widths)), widths)
    a.set(xlabel="fraction of the table in training", ylabel="width")
    for (width, frac), group in found.items():
        most, text = said(group)
        x, y = fracs.index(frac), widths.index(width)
        a.bar(x, 1, 1, y - 0.5, color=COLOURS[COURSES.index(most)], edgecolor="white")
        a.text(x, y, text, ha="center", va="center", fontsize=7)
    for kind, colour in zip(COURSES, COLOURS):
        a.bar(0, 0, color=colour, label=kind)
    figure.suptitle(f"{title}: updates to 99 % of training / of validation", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=110)


def main(folder):
    try:
        runs = grok.read(folder)
        found = courses(runs)
        draw(found, Path(folder) / "unified.png", runs[0].config.op)
    except (grok.UsageError, OSError, ImportError) as error:
        print(f"unified.py: {error}", file=sys.stderr)
        return 2
    for (width, frac), group in found.items():
        print(f"width {width:4}  fraction {frac:<5} {' '.join(said(group)):32} n = {len(group)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["runs/unified"]))

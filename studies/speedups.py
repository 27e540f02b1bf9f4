"""Draws how much is left of each speed-up: the table of studies/README.md with a column "claimed".

    python studies/speedups.py

A cell begins with the factor, of which a range is drawn; "more than" before it gives an arrow. A
cell that begins otherwise, or with a count as "3 of 5", has no dot. It writes studies/speedups.png.
"""

import itertools
import re
from pathlib import Path

from matplotlib.figure import Figure

STUDIES = Path(__file__).parent
NUMBER = r"(\d+(?:\.\d+)?)"
FACTOR = re.compile(rf"(more than )?{NUMBER}\b(?! of )(?: \({NUMBER}–{NUMBER}\))?")
STYLES = [("#999999", "D"), ("#0072B2", "o"), ("#D55E00", "s")]


def factors(text):
    """{work: [(at least, factor, low, high) or None, for each of the three columns]}, and the
    columns' names, of the table in a page."""
    lines = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text).splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(r"\| work \| claimed", line))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    found = {row[0]: [factor(cell) for cell in row[1:4]] for row in rows}
    return found, head[1:4]


def factor(cell):
    """(whether it is more than that, the factor, low, high) of a cell, or None."""
    match = FACTOR.match(cell)
    if not match:
        return None
    more, middle, low, high = match.groups()
    return bool(more), float(middle), float(low or middle), float(high or middle)


def draw(found, columns):
    """A row for each work, a dot for each column, on a log axis."""
    figure = Figure((8, 1.4 + 0.42 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, cells in enumerate(found.values()):
        for column, (cell, (colour, marker)) in enumerate(zip(cells, STYLES, strict=True)):
            if cell is None:
                continue
            more, middle, low, high = cell
            y = row + 0.22 * (column - 1)
            axes.plot([low, high], [y, y], color=colour, lw=1.5)
            axes.plot(middle, y, marker, color=colour, ms=6)
            if more:
                axes.annotate("", (2 * middle, y), (middle, y), arrowprops=dict(arrowstyle="->"))
    for name, (colour, marker) in zip(columns, STYLES, strict=True):
        axes.plot([], [], marker, color=colour, label=name)
    axes.axvline(1, color="0.6", lw=0.8)
    axes.set_yticks(range(len(found)), [work.replace("⟂", "⊥") for work in found])  # a glyph
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.set_xlabel("times sooner than the control")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def main():
    drawn = factors((STUDIES / "README.md").read_text())
    note = dict(Description=str(drawn))  # by which a test sees that it is drawn anew
    draw(*drawn).savefig(STUDIES / "speedups.png", dpi=110, metadata=note)


if __name__ == "__main__":
    main()

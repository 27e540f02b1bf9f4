"""Draws run folders: learning curves, updates to 99 % against a setting, and groups side by side.

    python studies/figures.py DIR [DIR …] [--out DIR]            pictures of all in and below DIR
    python studies/figures.py DIR [DIR …] --columns weight_norm  pictures of these columns instead,
                                                                 A,B: in one panel
    python studies/figures.py DIR [DIR …] [--out DIR] --table    the numbers: Markdown, runs.csv

A run is told by its settings, the columns of metrics.csv after `seconds`; of two equal runs the
longer one counts. A setting that a file has no column for has its default there, or 0 if only a
study knows it. Numbers are medians over seeds, with the least and the greatest.
"""

import argparse
import csv
import functools
import io
import itertools
import json
import math
import statistics
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import grok
import numpy as np

COLOURS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
]  # Okabe and Ito's
ACCURACIES = "train_acc", "val_acc"


def refuse(wrong, problem):
    if wrong:
        raise grok.UsageError(" ".join(str(problem).split()))


# --- What the folders hold ------------------------------------------------------------------------


def number(text):
    """A finite number of a cell, whole if it says so. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(text) if text.lstrip("-").isdecimal() else value


def cell(name, text):
    """A setting as a number or, where it is none, a word. Raises ValueError."""
    usual = usual_settings().get(name)
    try:
        return number(text)
    except ValueError:
        if not text or isinstance(usual, (int, float)) or text.lower() in ("nan", "inf", "-inf"):
            raise
        return text


@functools.cache
def usual_settings():
    return grok.Config().fixed()


def read_table(file):
    """The runs of a metrics.csv: [(settings, rows)], two kinds of dicts. Raises ValueError."""
    runs = {}
    header, *lines = csv.reader(io.StringIO(file.read_text()))
    seconds = header.index("seconds")
    for line in lines:
        pairs = list(zip(header, line, strict=True))
        settings = {name: cell(name, text) for name, text in pairs[seconds + 1 :]}
        row = {
            name: number(text) if name in ("step", *ACCURACIES) else float(text)
            for name, text in pairs[: seconds + 1]
        }
        runs.setdefault(tuple(settings.items()), (settings, Rows()))[1].append(row)
    return list(runs.values())


class Rows(list):
    """The evaluations of a run; `grok` is the version of grok.py that trained it."""

    grok = ""


def version(folder):
    """The version of grok.py that a run's config.json names."""
    file = folder / "config.json"
    return json.loads(file.read_text())["grok"] if file.exists() else ""


def read_runs(paths):
    """The runs recorded in and below some folders, with the same settings: [(settings, Rows)].
    Raises UsageError."""
    found = []
    for path in map(Path, paths):
        refuse(not path.is_dir(), f"{path}: is not a folder")
        for file in sorted(path.rglob("metrics.csv")):
            try:
                made = read_table(file)
                for _, rows in made:
                    rows.grok = version(file.parent)
            except (KeyError, TypeError, ValueError, csv.Error):
                refuse(True, f"{file}: is damaged or not of grok.py; leave it out")
            found += made
    refuse(not found, f"{' '.join(map(str, paths))}: no metrics.csv there has a run in it")
    names = dict.fromkeys(name for settings, _ in found for name in settings)
    usual, longest = usual_settings(), {}
    for settings, rows in found:
        settings = {name: settings.get(name, usual.get(name, 0)) for name in names}
        p = settings.pop("p")
        if p != 97 and not settings["op"].startswith("s5"):
            settings["op"] += f" mod {p}"
        run, key = (settings, rows), tuple(settings.values())
        longest[key] = max(longest.get(key, run), run, key=lambda run: run[1][-1]["step"])
    return list(longest.values())


def reached(rows, column="val_acc", accuracy=0.99):
    """The first evaluated update with this accuracy; infinity if there is none."""
    return next((row["step"] for row in rows if row[column] >= accuracy), math.inf)


def best(rows, column="val_acc"):
    return max(row[column] for row in rows if column in row)


def last(rows, column="val_acc"):
    return rows[-1][column]


def grouped(runs, *apart):
    """The runs by their settings, but for seed and `apart`: (title, groups), what is common to them
    and a dict from what tells a group from most others, with its number of runs, to its runs."""

    def said(settings, names):
        values = [f"{v:g}" if isinstance(v := settings[name], float) else str(v) for name in names]
        return ", ".join(map(" ".join, zip(names, values, strict=True))).removeprefix("op ")

    def told(settings):
        return [
            name
            for name in varied
            if name == "op" or len(varied) == 1 or settings[name] != usual[name]
        ]

    names = [name for name in runs[0][0] if name not in ("seed", *apart)]
    usual = {name: statistics.mode(settings[name] for settings, _ in runs) for name in names}
    varied = [name for name in names if any(s[name] != usual[name] for s, _ in runs)]
    paper = usual_settings()
    recipes = {"the paper's settings": paper, "the fast recipe's": paper | grok.FAST}
    common = {
        recipe: [
            name
            for name in names
            if name not in varied and (name in ("op", "frac") or usual[name] != settings.get(name))
        ]
        for recipe, settings in recipes.items()
    }
    recipe = min(common, key=lambda recipe: len(common[recipe]))
    title = said(usual, common[recipe])
    title = textwrap.fill(f"{title}, else {recipe}" if title else recipe, 140)
    if len(varied) > 1:
        base = said(usual, [name for name in varied if name != "op"])
        title += "\n" + textwrap.fill(f"baseline: {base}", 140)

    def order(run):
        settings, _ = run
        values = [(isinstance(settings[name], str), settings[name]) for name in varied]
        return len(told(settings)), values

    groups = {}
    for settings, rows in sorted(runs, key=order):
        groups.setdefault(said(settings, told(settings)) or "baseline", []).append((settings, rows))
    return title, {f"{label} ({len(group)})": group for label, group in groups.items()}


def swept(runs):
    """The numeric settings worth an axis: three values or more; of fraction and outliers, two."""
    values = {name: {settings[name] for settings, _ in runs} for name in runs[0][0]}
    return [
        name
        for name, several in values.items()
        if name != "seed"
        and len(several) > 1 + (name not in ("frac", "outliers"))
        and not any(isinstance(value, str) for value in several)
    ]


# --- Pictures -------------------------------------------------------------------------------------


def look(i):
    """Colour and marker of group number i."""
    return COLOURS[i % len(COLOURS)], "os^Dvp*"[i // len(COLOURS) % 7]


def canvas(title, groups=(), height=3.8, panels=2):
    """A matplotlib Figure and its axes in rows of two, with a legend of the groups if several."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(groups) / 2) if len(groups) > 1 else 0
    down = math.ceil(panels / 2)
    figure = Figure((10, height * down + 0.2 * rows), layout="constrained")  # inches
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(down, 2).flatten()
    for a in axes:
        a.grid(alpha=0.3)
        a.spines[["top", "right"]].set_visible(False)
    for i, label in enumerate(groups):
        axes[0].plot([], [], look(i)[1], color=look(i)[0], label=label)
    if rows:
        figure.legend(loc="outside lower center", fontsize=7, ncols=2)
    return figure, axes


def band(group, column):
    """Median, least and greatest value of a column over the runs of a group, as arrays, at every
    update at which one was evaluated: (steps, median, low, high). A run that has ended keeps its
    last value."""
    steps, values = sorted({row["step"] for _, rows in group for row in rows}), []
    for _, rows in group:
        known = np.searchsorted([row["step"] for row in rows], steps, side="right") - 1
        values.append(np.array([row[column] for row in rows])[known.clip(0)])
    return np.array(steps), np.median(values, 0), np.min(values, 0), np.max(values, 0)


LINES = "-", "--", ":", "-."
PANELS = {
    "accuracy": {"train_acc": "--", "val_acc": "-"},
    "loss (nats)": {"train_loss": "--", "val_loss": "-"},
}


def curves(runs, columns=()):
    """Accuracy and loss, or these columns, over updates: each group of runs by its median over
    seeds and its range. Columns joined by commas share a panel."""
    title, groups = grouped(runs)
    panels = {
        names: dict(zip(names.split(","), itertools.cycle(LINES), strict=False))
        for names in columns
    }
    title += "\nsolid: validation, dashed: training" * (not columns) + f"; n = {len(runs)}"
    panels = panels or PANELS
    figure, axes = canvas(title, groups, panels=len(panels))
    for a, (name, lines) in itertools.zip_longest(axes, panels.items(), fillvalue=("", {})):
        for (i, group), (j, column) in itertools.product(
            enumerate(groups.values()), enumerate(lines)
        ):
            alone = len(groups) == 1 and columns  # colours tell columns apart
            colour, marker = look(j if alone else i)
            steps, median, low, high = band(group, column)
            style = marker + lines[column]
            a.plot(steps, median, style, color=colour, lw=1.3, ms=3, markevery=0.1, label=column)
            a.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
        if columns and len(lines) > 1:
            named = [line for line in a.lines if line.get_label() in lines]
            a.legend(named[: len(lines)], lines, fontsize=7)
        a.set(
            xscale="log",
            xlabel="updates",
            ylabel=name.replace(",", ", ") if len(name) < 40 else "",
            visible=bool(lines),
            yscale="log" if "loss" in name else "linear",
        )
    return figure


def medians(each, value):
    """Median, least and greatest value(rows) at each place of runs [(place, rows)]: arrays (place,
    median, low, high). What is infinite is left out."""
    points = []
    for place in sorted({place for place, _ in each}):
        values = [value(rows) for other, rows in each if other == place]
        if (median := statistics.median(values)) < math.inf:
            points.append((place, median, min(values), max(v for v in values if v < math.inf)))
    return np.array(points, dtype=float).reshape(-1, 4).T


def growth(fracs, updates):
    """How much more updates each 1 % of the table less costs, between neighbouring fractions: 0.45
    is 45 % more."""
    return (np.array(updates[:-1]) / updates[1:]) ** (0.01 / np.diff(fracs)) - 1


def against(runs, setting=None):
    """Updates to 99 % and accuracy against a numeric setting or, without one, for each group of
    runs. Medians over seeds, the range and each run; one that never got there is a cross at its
    last update. Accuracies are the best ones or, against outliers, the last."""
    title, groups = grouped(runs, *([setting] if setting else []))
    lines = {}  # {label: [(place, rows) of a run]}
    for i, (label, group) in enumerate(groups.items()):
        for settings, rows in group:
            line, place = (label, settings[setting]) if setting else ("", i)
            lines.setdefault(line, []).append((place, rows))
    title += (
        "\nfilled: validation, hollow: training; small: each run; × and +: not in so many "
        f"updates; n = {len(runs)}"
    )
    figure, axes = canvas(title, lines, 3.8 if setting else 1.6 + 0.22 * len(groups))
    accuracy = last if setting == "outliers" else best
    for i, each in enumerate(lines.values()):
        draw_line(axes, each, look(i), accuracy, setting is None)
    label_axes(axes, groups, setting, accuracy.__name__)
    if setting == "frac" and len(lines) == 1:
        fracs, updates, *_ = medians(each, reached)
        at = zip(np.sqrt(fracs[1:] * fracs[:-1]), np.sqrt(updates[1:] * updates[:-1]), strict=True)
        for point, more in zip(at, growth(fracs, updates), strict=True):
            axes[0].annotate(f"{more:+.0%}", point, (4, 4), textcoords="offset points", fontsize=7)
        axes[0].set_xlabel("fraction of the table in training (+n %: updates per 1 % less)")
    return figure


def draw_line(axes, each, looks, accuracy, across):
    """One line of `against`, of runs [(place, rows)]; `across`: places are on the y axis."""
    colour, marker = looks
    names = ("y", "x") if across else ("x", "y")

    def mark(a, style, points, **more):
        """Points, arrays (place, value) or (place, median, low, high)."""
        place, value, *ends = points
        spread = [value - ends[0], ends[1] - value] if ends else None
        a.errorbar(
            **{names[0]: place, names[1]: value, f"{names[1]}err": spread},
            fmt=style,
            capsize=2,
            color=colour,
            **more,
        )

    for column, line, fill, cross in (
        ("train_acc", "--", "white", "+"),
        ("val_acc", "-", colour, "x"),
    ):
        when = np.array(
            [(place, reached(rows, column), rows[-1]["step"]) for place, rows in each]
        ).T
        there = when[1] < math.inf
        mark(axes[0], cross, when[::2, ~there], ms=7)
        mark(axes[0], marker, when[:2, there], mfc=fill, ms=2.5)
        for a, value in zip(axes, (reached, accuracy), strict=True):
            points = medians(each, functools.partial(value, column=column))
            mark(a, marker + line * (not across), points, mfc=fill, ms=4.5)


def label_axes(axes, groups, setting, which):
    from matplotlib.ticker import EngFormatter, LogLocator

    value = "y" if setting else "x"
    axes[0].set(**{f"{value}scale": "log", f"{value}label": "updates to 99 %"})
    getattr(axes[0], f"{value}axis").set(
        major_locator=LogLocator(subs=(1, 2, 5)),
        minor_formatter="",
        major_formatter=EngFormatter(sep=""),
    )
    axes[1].set(**{f"{value}lim": (-0.03, 1.03), f"{value}label": f"{which} accuracy"})
    said = dict(
        frac="fraction of the table in training",
        outliers="training answers replaced by random ones",
    )
    for a, names in zip(axes, (groups, [""] * len(groups)), strict=True):
        if setting:
            a.set_xlabel(said.get(setting, setting))
        else:
            a.set_yticks(range(len(groups)), names, fontsize=7)
            a.invert_yaxis()


def figures(runs, columns=()):
    """The pictures that apply to some runs: yields (name, matplotlib Figure)."""
    for op in dict.fromkeys(settings["op"] for settings, _ in runs):
        kind = "columns" if columns else "curves"
        yield f"{kind}-{op}", curves([run for run in runs if run[0]["op"] == op], columns)
    for name in [] if columns else swept(runs) or [None] * (len(grouped(runs)[1]) > 1):
        yield f"against-{name}" if name else "compare", against(runs, name)


# --- Tables ---------------------------------------------------------------------------------------

MEASURES = {
    "99 % of training": lambda rows: reached(rows, "train_acc"),
    "99 % of validation": reached,
    "best accuracy": best,
    "last accuracy": last,
}


def spread(values):
    """Median (least–greatest) as text; updates as whole numbers, `never` for infinity."""

    def said(value):
        return "never" if value == math.inf else f"{value:,.0f}" if value > 1 else f"{value:.3f}"

    low, high = said(min(values)), said(max(values))
    return said(statistics.median(values)) + f" ({low}–{high})" * (low != high)


def markdown(runs):
    """A Markdown table: a row for each group of runs that differ in their seed alone."""
    title, groups = grouped(runs)
    yield title.replace("\n", "; ")
    yield ""
    yield f"| runs | n | reached 99 % | {' | '.join(MEASURES)} |"
    yield "|---" * (3 + len(MEASURES)) + "|"
    for label, group in groups.items():
        each = [rows for _, rows in group]
        there = sum(reached(rows) < math.inf for rows in each)
        cells = [spread([value(rows) for rows in each]) for value in MEASURES.values()]
        yield f"| {label.rpartition(' (')[0]} | {len(each)} | {there} | {' | '.join(cells)} |"


def rows_of(runs):
    """A row of text for each run: its settings, what came of it, empty where it never did, and the
    version of grok.py. train_95 is the update at which training reaches 95 %; then_val_acc the
    validation accuracy when training reaches 99 %, low_val_acc the lowest more than 200 updates
    after validation did; most_… and last_… are the greatest and the last value of what else was
    measured."""
    for settings, rows in runs:
        updates = {
            f"{column.removesuffix('_acc')}_{per_cent}": reached(rows, column, per_cent / 100)
            for per_cent in (50, 95, 99)
            for column in ACCURACIES
        }
        then = [row["val_acc"] for row in rows if row["step"] == updates["train_99"]]
        after = [row["val_acc"] for row in rows if row["step"] > updates["val_99"] + 200]
        yield dict(
            settings,
            **{name: "" if step == math.inf else step for name, step in updates.items()},
            then_val_acc=min(then, default=""),
            best_val_acc=best(rows),
            low_val_acc=min(after, default=""),
            last_val_acc=last(rows),
            steps=rows[-1]["step"],
            seconds=rows[-1]["seconds"],
            **{
                f"{said}_{name}": which(rows, name)
                for name in rows[-1]
                if name not in ("step", "seconds", *ACCURACIES)
                for said, which in (("most", best), ("last", last))
            },
            grok=rows.grok,
        )


def write_file(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    grok.write(path, data)


def draw(runs, folder, columns=()):
    """Writes every picture that applies into `folder`; yields the files. Raises UsageError."""
    known = set.intersection(*(set(row) for _, rows in runs for row in rows)) - {"step"}
    for name in itertools.chain.from_iterable(names.split(",") for names in columns):
        refuse(name not in known, f"--columns {name}: must be one of {', '.join(sorted(known))}")
    for name, figure in figures(runs, columns):
        data, name = io.BytesIO(), name.replace(" ", "-").replace("/", "-")
        figure.savefig(data, format="png", dpi=110)
        write_file(folder / f"{name}.png", data.getvalue())
        yield folder / f"{name}.png"


def write_rows(rows, file):
    """Writes dicts as a CSV, with a column for each name that any of them has."""
    rows, text = list(rows), io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row if name != "grok")
    names["grok"] = None  # the last one, whatever else was measured
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(file, text.getvalue().encode())


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("folders", nargs="+", metavar="DIR")
    cli.add_argument("--out", metavar="DIR", help="where to write [the first DIR]")
    cli.add_argument("--columns", nargs="+", default=(), metavar="NAME", help="what to draw")
    cli.add_argument("--table", action="store_true", help="numbers instead of pictures")
    given = cli.parse_args(argv)
    folder = Path(given.out or given.folders[0])
    try:
        runs = read_runs(given.folders)
        if given.table:
            print(*markdown(runs), sep="\n")
            write_rows(rows_of(runs), folder / "runs.csv")
        else:
            for file in draw(runs, folder, given.columns):
                print(file)
    except (grok.UsageError, OSError) as error:
        print("figures.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except ImportError as error:
        print(
            f"figures.py: needs {error.name}: pip install -r studies/requirements.txt",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the measures of tracing.py turn. Of each run in a folder:

    half             the first evaluated update with half of the validation equations right
    peak             the update with the largest dropout_var; peak_sd and peak_acc: its root and
                     dropout_acc there
    peak_at          the peak in units of the plateau: 0 is where training accuracy reaches 99 %,
                     1 is half. Empty for a run that does not come to half
    binomial         dropout_var by a (1 - a) / 512, which it is if each of 512 equations is right
                     with probability a = dropout_acc: the median over evaluations with
                     0.1 < a < 0.9, empty if there are none
    NAME_first, NAME_low, NAME_last   of embed_cosine and of zeros, at the first update, where they
                     are lowest, and at the end; NAME_low_step and NAME_low_at: when they are
                     lowest, in updates and in units of the plateau

    python studies/tracing/peaks.py runs/tracing --out pictures

writes peaks.csv, a row for each run.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # figures.py, grok.py
import figures
import grok

EQUATIONS = 512  # those of a pass of tracing.py, on a table that has as many for validation


def place(step, start, end):
    """An update in units of the plateau, or "" without one."""
    if start is None or end is None or end <= start:
        return ""
    return (step - start) / (end - start)


def binomial(log):
    """The variance under dropout by that of equations that are right independently."""
    ratios = []
    for row in log:
        accuracy = row["dropout_acc"]
        if 0.1 < accuracy < 0.9:
            expected = accuracy * (1 - accuracy) / EQUATIONS
            ratios.append(row["dropout_var"] / expected)
    return statistics.median(ratios) if ratios else ""


def lowest(log, name, start, half):
    """Where a column is lowest; empty for runs from before there was such a column."""
    low = min(log, key=lambda row: row.get(name, 0))
    return {
        f"{name}_first": log[0].get(name, ""),
        f"{name}_low": low.get(name, ""),
        f"{name}_last": log[-1].get(name, ""),
        f"{name}_low_step": low["step"] if name in low else "",
        f"{name}_low_at": place(low["step"], start, half) if name in low else "",
    }


def row_of(record):
    start, half = record.reached("train_acc"), record.reached(accuracy=0.5)
    peak = max(record.log, key=lambda row: row["dropout_var"])
    return vars(record.config) | dict(
        train_99=start,
        half=half,
        peak=peak["step"],
        peak_at=place(peak["step"], start, half),
        peak_sd=peak["dropout_var"] ** 0.5,
        peak_acc=peak["dropout_acc"],
        binomial=binomial(record.log),
        **lowest(record.log, "embed_cosine", start, half),
        **lowest(record.log, "zeros", start, half),
        grok=grok.__version__,
    )


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("folder", metavar="DIR")
    cli.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    given = cli.parse_args(argv)
    try:
        rows = [row_of(record) for record in grok.read(given.folder) if record.log]
        if not rows:
            raise grok.UsageError(f"{given.folder}: no run in it has been evaluated")
        figures.write_rows(rows, given.out / "peaks.csv")
    except KeyError as error:
        print(f"peaks.py: {given.folder}: runs without a column {error}", file=sys.stderr)
        return 2
    except (grok.UsageError, OSError) as error:
        print(f"peaks.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Transfer entropy (Pomarico et al. 2025, arXiv 2507.23346): what the past of a series tells of the
next value of another beyond that one's own past; theirs, between a tensor network's class masks.
Here, of two columns of metrics.csv: T(s → t) = I(t now; s `lag` evaluations ago | t last), in nats,
by counts in quantiles, over runs that differ in seed alone. The control has other runs as source:
what curves share that rise together, and the bias of counting; only the excess counts. `back` is
target → source, most_from … most_to the window with most excess of source → target. CSV comes out.

    python studies/grok2.py --recipe fast --frac 0.3 --until 0 --steps 2000 --seed 0 1 2 3 4 5 \
        --out runs/te
    python studies/transfer_entropy.py runs/te
"""

import argparse
import csv
import sys
from pathlib import Path

import grok2 as grok
import numpy as np

NAMES = "group source target n transfer control back back_control most_from most_to most_excess"


def entropy(*series):  # of their joint values, symbols, in nats
    counts = np.unique(np.stack([s.ravel() for s in series]), axis=1, return_counts=True)[1]
    return -(counts / counts.sum() * np.log(counts / counts.sum())).sum()


def transfer_entropy(source, target, lag=1):
    """Of symbols (runs, evaluations): H(now | last) - H(now | last, past)."""
    past, last, now = source[:, :-lag], target[:, lag - 1 : -1], target[:, lag:]
    return entropy(now, last) - entropy(last) - entropy(now, last, past) + entropy(last, past)


def with_control(source, target, lag):
    T = [transfer_entropy(np.roll(source, k, 0), target, lag) for k in range(len(source))]
    return T[0], np.mean(T[1:])


def read(folders):
    """{settings but the seed: {seed: {step: row}}} of the metrics.csv in and below the folders."""
    groups = {}
    for file in (file for folder in folders for file in sorted(Path(folder).rglob("metrics.csv"))):
        for cells in csv.reader(file.read_text().splitlines()):
            if "step" in cells:  # a header; a file may hold several
                names, step, seconds = cells, cells.index("step"), cells.index("seconds")
            else:
                row, settings = dict(zip(names, cells)), names[:step] + names[seconds + 1 :]
                key = tuple((name, row[name]) for name in settings if name != "seed")
                groups.setdefault(key, {}).setdefault(row["seed"], {})[int(row["step"])] = row
    grok.refuse(not groups, f"{' '.join(folders)}: no metrics.csv there has a run in it")
    return groups


def row_of(runs, every, source, target, lag, bins, window):  # of a group's {seed: {step: row}}
    steps = [n for n in sorted(set.intersection(*map(set, runs.values()))) if n % every == 0]
    grok.refuse(
        not 0 < lag < window - 1 < len(steps) or bins < 2 or len(runs) < 2,
        f"{len(runs)} runs share {len(steps)} evaluations: needs 2 runs, --bins 2, --lag 1"
        " or more, and --window from --lag + 2 to the evaluations shared",
    )
    grok.refuse(
        any({source, target} - run[steps[0]].keys() for run in runs.values()),
        f"--source {source}, --target {target}: must be columns of metrics.csv",
    )
    s, t = (
        np.array([[float(run[n][name]) for n in steps] for run in runs.values()])
        for name in (source, target)
    )
    s, t = (np.digitize(v, np.quantile(v, np.linspace(0, 1, bins + 1)[1:-1])) for v in (s, t))
    T = [f"{value:z.4f}" for ab in ((s, t), (t, s)) for value in with_control(*ab, lag)]
    excess = [
        np.subtract(*with_control(s[:, i : i + window], t[:, i : i + window], lag))
        for i in range(len(steps) - window + 1)
    ]
    most = steps[np.argmax(excess) :][:window]
    return source, target, len(runs), *T, most[0], most[-1], f"{max(excess):z.4f}"


def main(argv=None):
    cli = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split(":")[0])
    cli.add_argument("folders", nargs="+")
    for name, usual in dict(source="train_acc", target="val_acc", lag=1, bins=4, window=10).items():
        cli.add_argument(f"--{name}", type=type(usual), default=usual, help=f"[{usual}]")
    given = vars(cli.parse_args(argv))
    try:
        groups, rows = read(given.pop("folders")), [NAMES.split()]
        for key, runs in groups.items():
            title = " ".join(" ".join(own) for own in key if not all(own in k for k in groups))
            rows.append([title or key[0][1], *row_of(runs, int(dict(key)["eval_every"]), **given)])
        print(*(",".join(map(str, row)) for row in rows), sep="\n")
        return 0
    except (grok.UsageError, OSError) as error:
        print(f"transfer_entropy.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

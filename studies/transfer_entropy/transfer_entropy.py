"""Transfer entropy between curves of training, a question of our own: what does the past of one
column of metrics.csv tell of the next value of another, beyond that one's own past? (Pomarico et
al. 2025, arXiv 2507.23346, from whom the word is taken, measure it between class masks of a tensor
network on images. That is not tested here.)

T(s → t) = I(t now; s --lag evaluations ago | t last), in nats, by counts in --bins quantiles, over
runs that differ in seed alone. The control has other runs as source: what curves share that rise
together, and the bias of counting; only the excess counts. `back` is target → source; most_from …
most_to is the window of --window evaluations with most excess of source → target. CSV comes out.

    python grok.py --recipe fast --frac 0.3 --until 0 --steps 2000 --seed 0 1 2 3 4 5 --out runs/te
    python studies/transfer_entropy/transfer_entropy.py runs/te
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok
import numpy as np


def entropy(*series):
    """Of the joint values of series of symbols, in nats."""
    joint = np.stack([s.ravel() for s in series])
    counts = np.unique(joint, axis=1, return_counts=True)[1]
    shares = counts / counts.sum()
    return -(shares * np.log(shares)).sum()


def transfer_entropy(source, target, lag=1):
    """Of symbols (runs, evaluations): H(now | last) - H(now | last, past)."""
    past, last, now = source[:, :-lag], target[:, lag - 1 : -1], target[:, lag:]
    return entropy(now, last) - entropy(last) - entropy(now, last, past) + entropy(last, past)


def with_control(source, target, lag):
    """(transfer entropy, its mean with the sources of other runs)."""
    shifted = [np.roll(source, k, axis=0) for k in range(len(source))]
    mine, *others = (transfer_entropy(s, target, lag) for s in shifted)
    return mine, np.mean(others)


def groups_of(records):
    """{settings but the seed, as text: [records]}, for those that have rows."""
    groups = {}
    for record in records:
        if record.log:
            settings = vars(record.config) | dict(seed="")
            groups.setdefault(tuple(map(str, settings.items())), []).append(record)
    return groups


def symbols(records, steps, column, bins):
    """The quantile of each run's values at some updates: (runs, evaluations) of 0 … bins - 1."""
    logs = [{row["step"]: row for row in record.log} for record in records]
    values = np.array([[log[step][column] for step in steps] for log in logs])
    return np.digitize(values, np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))


def row_of(records, given):
    """The numbers of runs that differ in seed alone."""
    every = records[0].config.eval_every
    shared = set.intersection(*({row["step"] for row in record.log} for record in records))
    steps = sorted(step for step in shared if step % every == 0)
    lag, window = given.lag, given.window
    enough = 0 < lag < window - 1 < len(steps) and given.bins > 1 and len(records) > 1
    if not enough:
        raise grok.UsageError(
            f"{len(records)} runs share {len(steps)} evaluations: needs 2 runs, --bins 2, --lag 1"
            " or more, and --window from --lag + 2 to the evaluations shared"
        )
    if {given.source, given.target} - records[0].log[0].keys():
        raise grok.UsageError(
            f"--source {given.source}, --target {given.target}: must be columns of metrics.csv"
        )
    s, t = (symbols(records, steps, name, given.bins) for name in (given.source, given.target))
    excess = [
        np.subtract(*with_control(s[:, i : i + window], t[:, i : i + window], lag))
        for i in range(len(steps) - window + 1)
    ]
    most = int(np.argmax(excess))
    forth, back = with_control(s, t, lag), with_control(t, s, lag)
    return dict(
        source=given.source,
        target=given.target,
        n=len(records),
        transfer=f"{forth[0]:z.4f}",
        control=f"{forth[1]:z.4f}",
        back=f"{back[0]:z.4f}",
        back_control=f"{back[1]:z.4f}",
        most_from=steps[most],
        most_to=steps[most + window - 1],
        most_excess=f"{excess[most]:z.4f}",
    )


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("folders", nargs="+", metavar="DIR")
    for name, usual in dict(source="train_acc", target="val_acc", lag=1, bins=4, window=10).items():
        cli.add_argument(f"--{name}", type=type(usual), default=usual, help=f"[{usual}]")
    given = cli.parse_args(argv)
    try:
        groups = groups_of(record for folder in given.folders for record in grok.read(folder))
        rows = []
        for settings, records in groups.items():
            told = [one for one in settings if not all(one in other for other in groups)]
            rows.append(dict(group=" ".join(told)) | row_of(records, given))
        if not rows:
            raise grok.UsageError(f"{' '.join(given.folders)}: no run there has been evaluated")
    except (grok.UsageError, OSError) as error:
        print(f"transfer_entropy.py: {error}", file=sys.stderr)
        return 2
    table = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

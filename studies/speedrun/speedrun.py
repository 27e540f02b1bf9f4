"""Judges runs by the rules of the speedrun, and writes their row of records.csv.

    python studies/speedrun/speedrun.py FILE DIR [--turns 20]

FILE is grok.py or a study, DIR the folder of its runs, of one command, which went on for at least
1,000 updates after 99 % of validation (--until 0). The row has

    seeds          how many
    updates        to 99 % of validation: the median over seeds, the first and the last
    lowest         validation accuracy in any of the evaluations of the 1,000 updates after that
    mflop          of one update, forward, backward and step, as torch.utils.flop_counter counts
    gflop          of the training to 99 %, evaluations aside
    ms, paper_ms   an update here, and one of the paper's recipe by turns with it, one thread
    seconds        ms times updates

and valid says whether all arrived, stayed above 0.97, and are 20 or more, each of another seed.
"""

import argparse
import csv
import datetime
import statistics
import sys
import time
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
from torch.utils.flop_counter import FlopCounterMode

STAYS, AFTER, SEEDS = 0.97, 1000, 20


def lowest_after(record):
    """The lowest validation accuracy of the AFTER updates after 99 %, or None if they are not
    there."""
    first = record.reached()
    if first is None or record.step < first + AFTER:
        return None
    later = (r["val_acc"] for r in record.log if first <= r["step"] <= first + AFTER)
    return min(later)


def flops_of(run):
    """Of one update."""
    run.step += 1
    with FlopCounterMode(display=False) as counter:
        run.update(run.batch())
    return counter.get_total_flops()


def milliseconds(run, updates=10):
    start = time.perf_counter()
    for _ in range(updates):
        run.step += 1
        run.update(run.batch())
    return 1000 * (time.perf_counter() - start) / updates


def by_turns(run, other, turns):
    """Medians of the milliseconds of an update of both."""
    torch.set_num_threads(1)
    for warming in (run, other):
        milliseconds(warming)
    pairs = [(milliseconds(run), milliseconds(other)) for _ in range(turns)]
    return [statistics.median(column) for column in zip(*pairs, strict=True)]


def row_of(file, folder, turns):
    """The row of a folder. Raises UsageError."""
    config, method = models.study(file)
    records = grok.read(folder)
    kinds = {str(vars(r.config) | dict(seed=0)) for r in records}
    if len(kinds) != 1:
        raise grok.UsageError(f"{folder}: must hold runs that differ in --seed alone")
    updates = [r.reached() for r in records]
    lows = [lowest_after(r) for r in records]
    whole = None not in lows
    seeds = {r.config.seed for r in records}
    run = method(grok.read_config(records[0].folder, config, method, device="cpu"))
    flops = flops_of(run)
    ms, paper_ms = by_turns(run, grok.Run(grok.Config(device="cpu")), turns)
    median = statistics.median(updates) if None not in updates else None
    return dict(
        file=file.name,
        name=Path(folder).name,
        seeds=len(seeds),
        updates=median,
        first=min(updates) if median else None,
        last=max(updates) if median else None,
        lowest=min(lows) if whole else None,
        mflop=round(flops / 1e6),
        gflop=round(flops * median / 1e9, 2) if median else None,
        ms=round(ms, 2),
        paper_ms=round(paper_ms, 2),
        seconds=round(ms * median / 1000, 2) if median else None,
        valid=whole and min(lows) > STAYS and len(seeds) >= SEEDS,
        grok=grok.__version__,
        torch=torch.__version__,
        date=datetime.date.today().isoformat(),
    )


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("file", type=Path, metavar="FILE")
    cli.add_argument("folder", metavar="DIR")
    cli.add_argument("--turns", type=int, default=20, metavar="N")
    given = cli.parse_args(argv)
    try:
        row = row_of(given.file, given.folder, given.turns)
    except (grok.UsageError, ImportError) as error:
        print(f"speedrun.py: {error}", file=sys.stderr)
        return 2
    table = csv.DictWriter(sys.stdout, row, lineterminator="\n")
    table.writeheader()
    table.writerow(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())

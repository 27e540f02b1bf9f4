"""The paper's figures, a command each (Power et al. 2022, arXiv 2201.02177).

    python studies/power2022/power2022.py 2-left             trains what is missing, draws, counts
    python studies/power2022/power2022.py all --scale paper  as in the paper: on a GPU, or for days
    python studies/power2022/power2022.py 3 --dry-run        how many runs, how long, the commands

A figure is a few sweeps, command lines of grok.py. Its runs go to DIR/SCALE/FIGURE, where a command
that was stopped goes on, and any number of processes may share the work. Figures 4 and 7 look at
the runs of 1-left and 2-left once more. Flags that are not below go to grok.py: --jobs 2 --quiet.

The main README's picture is of five runs:

    python grok.py --seed 30000 30001 30002 30003 30004 --grad-clip 0.01 --out runs/curve
    python studies/figures.py runs/curve
"""

import argparse
import sys
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # figures.py, grok.py
import figures
import grok
import relations
import sharpness

MODULAR = "x_plus_y x_minus_y x_div_y x_div_y_if_y_odd_else_x_minus_y x2_plus_y2 x2_plus_xy_plus_y2"
MORE = "x2_plus_xy_plus_y2_plus_x x3_plus_xy x3_plus_xy2_plus_y"
TWELVE = f"{MODULAR} {MORE} s5_xy s5_xyxinv s5_xyx"
S5_FRACS = "0.25 0.26 0.27 0.28 0.29 0.3 0.4 0.5 0.6"
OUTLIERS = "0 100 300 1000 2000 3000"
LIGHT = "--layers 1 --embed-init-scale 0.1 --position-scale 0.1"  # needs no decay, given much data
FAST = "--recipe fast --eps 5e-7 --grad-clip 0.01 --decay-to origin"  # the one of the page's tables
SMALL = "--p 53 --frac 0.8 --weight-decay 0 --until 0"
SEEDS = {"1-centre": dict(paper=7, cpu=5)}  # elsewhere 3

MINIBATCH = [  # of figure 2, left: Adam without decay, and what is changed in it
    "--weight-decay 0",
    "--weight-decay 0 --lr 3e-4 3e-3",
    "--weight-decay 0 --weight-noise 0.01",
    "--weight-decay 0 --dropout 0.1",
    "--weight-decay 1 --decay-to origin init",
]
FULL_BATCH = "--batch-size 0 --update-noise 0 1"

PAPER = {
    "1-left": ["--weight-decay 0 --until 0 --steps 1000000"],
    "1-centre": [f"--op s5_xy --frac {S5_FRACS} --steps 500000"],
    "2-left": [
        f"--op s5_xy --frac 0.2 0.3 0.4 0.5 0.6 0.7 0.8 --until 0 {change}"
        for change in (*MINIBATCH, f"--weight-decay 0 {FULL_BATCH}")
    ],
    "2-right": [f"--op {TWELVE} --frac 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.95"],
    "3": ["--op x_plus_y s5_xy --until 0"],
    "6": [f"--outliers {OUTLIERS} --until 0"],
}
CPU = {  # the same in minutes to hours: the fast recipe, smaller tables and budgets
    "1-left": [
        f"{SMALL} {start} --grad-clip 0 0.01 --steps 10000" for start in (LIGHT, "--layers 1")
    ],
    "1-centre": [f"{FAST} --op s5_xy --frac {S5_FRACS}"],
    "2-left": [
        *(f"{LIGHT} --op s5_xy --frac 0.5 0.8 --until 0 --steps 5000 {c}" for c in MINIBATCH),
        f"{SMALL} {LIGHT} --steps 4000",
        f"{SMALL} {LIGHT} --steps 4000 {FULL_BATCH}",  # of a table where that is small, too
    ],
    "2-right": [f"{FAST} --op {TWELVE} --frac 0.3 0.4 0.5 0.6 0.7 0.8 --eval-every 100"],
    "3": [f"{FAST} --op x_plus_y s5_xy --until 0 --steps 2000"],
    "6": [f"{FAST} --outliers {OUTLIERS} --until 0 --steps 2000"],
}
SCALES = dict(paper=PAPER, cpu=CPU)
FOLDERS = {figure: figure for figure in PAPER} | {"4": "1-left", "7": "2-left"}  # whose runs


def commands(figure, scale, seeds=None):
    """The command lines of a figure's sweeps, with seeds from 0 on, as lists of words."""
    usual = SEEDS.get(figure, {}).get(scale, 3)
    numbers = [str(seed) for seed in range(usual if seeds is None else seeds)]
    lines = SCALES[scale][FOLDERS[figure]]
    return [[*line.split(), "--seed", *numbers] for line in lines]


def configs(words):
    """The Configs of a command line."""
    given = vars(grok.parser(grok.Config).parse_args([*words, "--out", "nowhere"]))
    return list(grok.asked_for(given, grok.Config, grok.Run).values())


def hours(config):
    """How long a run takes that spends its steps, without evaluations: from a few updates."""
    with grok.usual_torch(config):
        run = grok.Run(config)
        for _ in range(2):
            run.advance()
        begun = run.seconds
        for _ in range(5):
            run.advance()
    return (run.seconds - begun) / 5 * config.steps / 3600


def foretell(figure, lines):
    """Says what a figure takes, from the first run of each of its sweeps."""
    for words in lines:
        runs = configs(words)
        total = hours(runs[0]) * len(runs)
        print(f"{figure}: {len(runs)} runs, {total:,.1f} hours of one process:", *words)


def make(figure, folder):
    """Draws a figure from the runs in its folder, and prints or writes its table; returns the exit
    status."""
    if figure not in ("3", "7"):
        return figures.main([str(folder)]) or figures.main([str(folder), "--table"])
    finished = [record.folder for record in grok.read(folder) if not record.diverged]
    runs = [grok.load(run, device="cpu") for run in finished]
    if figure == "3":
        rows = [row for run in runs for row in relations.relation_rows(run)]
        for run in runs:
            name = f"map-{run.config.op}-{run.config.seed}.png"
            relations.output_map(run).savefig(folder / name, dpi=110)
    else:
        rows = [sharpness.sharpness_row(run) for run in runs]
        sharpness.sharpness_map(rows).savefig(folder / "sharpness.png", dpi=110)
    file = folder / {"3": "relations.csv", "7": "sharpness.csv"}[figure]
    figures.write_rows(rows, file)
    print(file)
    return 0


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("figure", choices=(*FOLDERS, "all"))
    cli.add_argument("--scale", choices=SCALES, default="cpu")
    cli.add_argument("--out", type=Path, default=Path("runs/power2022"), metavar="DIR")
    cli.add_argument("--seeds", type=int, metavar="N", help="seeds from 0 on [the figure's own]")
    cli.add_argument("--dry-run", action="store_true", help="say what it is, and train nothing")
    given, more = cli.parse_known_args(argv)
    for figure in FOLDERS if given.figure == "all" else [given.figure]:
        folder = given.out / given.scale / FOLDERS[figure]
        lines = commands(figure, given.scale, given.seeds)
        if given.dry_run:
            try:
                foretell(figure, [[*words, *more] for words in lines])
            except grok.UsageError as error:
                grok.complain(error)
                return 2
            continue
        for words in lines:
            if status := grok.main([*words, "--out", str(folder), *more]):
                return status
        if status := make(figure, folder):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())

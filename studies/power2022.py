"""The paper's figures, a command each (Power et al. 2022, arXiv 2201.02177).

    python studies/power2022.py 2-left                  trains what is missing, draws, tabulates
    python studies/power2022.py all --scale paper       as in the paper: for a GPU, or for days
    python studies/power2022.py 1-centre --dry-run      how many runs, and about how long

A figure is a list of Configs. Its runs go to DIR/SCALE/FIGURE, where a command that was stopped
goes on. Figures 4 and 7 look at the runs of 1-left and 2-left once more.
"""

import argparse
import csv
import functools
import itertools
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import grok2 as grok
import numpy as np
import torch
from grok2 import Config

TWELVE = [op for op in grok.OPS if op not in ("x_mul_y", "x_pow_y")]
TENTHS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
S5_FRACS = [0.25, 0.26, 0.27, 0.28, 0.29, 0.3, 0.4, 0.5, 0.6]
OUTLIERS = [0, 100, 300, 1000, 2000, 3000]
LIGHT = dict(layers=1, embed_init_scale=0.1, position_scale=0.1)  # needs no decay, given much data
FAST = grok.FAST | dict(eps=5e-7, grad_clip=0.01, decay_to="origin")  # README.md's $RECIPE
SMALL = dict(p=53, layers=1, frac=0.8, weight_decay=0.0, until=0.0)


def interventions(**base):
    """Figure 2 left: Adam without decay, and what each intervention has instead."""
    changes = [
        dict(),
        dict(batch_size=0),
        dict(batch_size=0, update_noise=1.0),
        dict(lr=3e-4),
        dict(lr=3e-3),
        dict(weight_noise=0.01),
        dict(dropout=0.1),
        dict(weight_decay=1.0),
        dict(weight_decay=1.0, decay_to="init"),
    ]
    return [c for change in changes for c in Config.grid(**base | dict(weight_decay=0.0) | change)]


def paper(n):
    """The Configs behind each figure, with n seeds or, if None, the paper's number."""
    seed = range(n or 3)
    return {
        "1-left": Config.grid(weight_decay=0.0, until=0.0, steps=1_000_000, seed=seed),
        "1-centre": Config.grid(op="s5_xy", frac=S5_FRACS, steps=500_000, seed=range(n or 7)),
        "2-left": interventions(op="s5_xy", frac=TENTHS, until=0.0, seed=seed),
        "2-right": Config.grid(op=TWELVE, frac=[*TENTHS, 0.95], seed=seed),
        "3": Config.grid(op=["x_plus_y", "s5_xy"], until=0.0, seed=seed),
        "6": Config.grid(outliers=OUTLIERS, until=0.0, seed=seed),
    }


def cpu(n):
    """The same in minutes to hours, with the fast recipe and smaller tables and budgets."""
    seed, long, rare = range(n or 3), FAST | dict(until=0, steps=2000), FAST | dict(eval_every=100)
    s5 = interventions(**LIGHT, op="s5_xy", frac=[0.5, 0.8], until=0.0, steps=5000, seed=seed)
    small = SMALL | LIGHT | dict(steps=4000, seed=seed)  # where a full batch is small, too
    return {
        "1-left": [
            c
            for start in (LIGHT, {})
            for c in Config.grid(**SMALL | start, grad_clip=[0.0, 0.01], steps=10_000, seed=seed)
        ],
        "1-centre": Config.grid(**FAST, op="s5_xy", frac=S5_FRACS, seed=range(n or 5)),
        "2-left": [c for c in s5 if c.batch_size]
        + Config.grid(**small)
        + [c for c in interventions(**small) if not c.batch_size],
        "2-right": Config.grid(**rare, op=TWELVE, frac=TENTHS[1:], seed=seed),
        "3": Config.grid(**long, op=["x_plus_y", "s5_xy"], seed=seed),
        "6": Config.grid(**long, outliers=OUTLIERS, seed=seed),
    }


SCALES = dict(cpu=cpu, paper=paper)
FOLDERS = {figure: figure for figure in cpu(1)} | {"4": "1-left", "7": "2-left"}  # whose runs

# --- Figure 3: the rows of the output layer, one for each element ---------------------------------


def cycles(element):
    """A permutation of S5 as the paper writes it: (0 3)(1 4)."""
    p, text = list(grok.PERMUTATIONS)[element], ""
    for i in range(5):
        cycle = [i]
        while p[cycle[-1]] != i:
            cycle.append(p[cycle[-1]])
        text += f"({' '.join(map(str, cycle))})" * (min(cycle) == i != p[i])
    return text


@functools.cache
def subgroups():
    """The subgroups of S5 but for 1 and S5, in 17 classes: [(name, its conjugates (C, order))]."""
    turned = grok.S5[grok.S5[grok.S5_INVERSE], np.arange(120)[:, None]]  # [g, x]: g⁻¹ · x · g
    found = {}
    for a, b in itertools.product(np.unique(turned.min(0)), range(120)):  # two generate each
        group = np.unique([0, a, b])
        while len(larger := np.unique(grok.S5[group][:, group])) > len(group):
            group = larger
        class_ = np.unique(np.sort(turned[:, group]), axis=0)
        found.setdefault(class_.tobytes(), (", ".join(cycles(x) for x in (a, b) if x), class_))
    return [(f"⟨{name}⟩", c) for name, c in found.values() if 1 < c.shape[1] < 120]


def relations(rows, op):
    """What may lie together among output rows (n, D), the clearest first: [(F, apart, size, name,
    families)]. In S5 the cosets of each subgroup, and size is its order: of its conjugates, and of
    left and right, those that lie nearest. Else z and z + k, and size is k. `apart` is the mean
    squared distance in a family by that of any two, F a one-way analysis's variance ratio (of z and
    z + k, 1 / apart). A name is that of one subgroup of its class."""
    apart = lambda families: rows[families].var(1, ddof=1).mean() / rows.var(0, ddof=1).mean()
    if op.startswith("s5"):
        tried = [
            (
                name,
                class_.shape[1],
                [
                    np.unique(np.sort(cosets), axis=0)
                    for group in class_  # row x: that of x
                    for cosets in (grok.S5[group].T, grok.S5[:, group])
                ],
            )
            for name, class_ in subgroups()
        ]
    else:
        z = np.arange(len(rows))
        tried = [
            (f"z+{k}", k, [np.stack([z, (z + k) % len(z)], 1)]) for k in z[1 : len(z) // 2 + 1]
        ]
    found = []
    for name, size, several in tried:
        value, _, families = min((apart(f), i, f) for i, f in enumerate(several))
        clear = ((len(rows) - 1) / value - len(rows) + len(families)) / (len(families) - 1)
        found.append((clear, value, size, name, families))
    return sorted(found, key=lambda relation: -relation[0])


def output_rows(run):
    """The rows (n, D) of a run's output layer that belong to elements."""
    head = run.config.model().weights(run.state["W"][None])["head"][0]  # (D, V)
    return head[:, : run.config.sizes()[0]].T.double().numpy()


def relation_rows(run):
    """What lies together in a run's output layer, and in its rows shuffled: a dict a relation."""
    rows = output_rows(run)
    for shuffled, some in enumerate((rows, np.random.default_rng([6, 0]).permutation(rows))):
        for rank, (clear, value, size, name, _) in enumerate(relations(some, run.config.op), 1):
            yield dict(
                op=run.config.op,
                seed=run.config.seed,
                shuffled=shuffled,
                relation=name,
                size=size,
                rank=rank,
                apart=value,
                F=clear,
            )


def output_map(run):
    """The rows of a run's output layer in the plane, a matplotlib Figure, and by lines what lies
    together in the paper (its subgroup has order 10) and what does most clearly here."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    rows = output_rows(run)
    found, theirs = relations(rows, run.config.op), 10 if run.config.op.startswith("s5") else 8
    points = TSNE(random_state=0, perplexity=len(rows) / 5).fit_transform(rows)
    figure = Figure((10, 4.8), layout="constrained")
    figure.suptitle(f"{run.name}, update {run.step:,}: t-SNE of the output layer", fontsize=9)
    shown = {"the paper's": next(f for f in found if f[2] == theirs), "the clearest": found[0]}
    for a, (whose, (_, value, _, name, families)) in zip(figure.subplots(1, 2), shown.items()):
        a.plot(*points.T, ".", color="0.5")
        a.plot(*points[families].transpose(2, 1, 0), "o-", ms=4, lw=0.6)
        for z, point in enumerate(points):
            a.annotate(str(z), point, (2, 2), textcoords="offset points", fontsize=5)
        a.set(xticks=[], yticks=[])
        a.set_title(f"{name}, {whose}: squared distances {value:.2f} of any two's", fontsize=7)
    return figure


# --- Figure 7: sharpness --------------------------------------------------------------------------

# φ's box: Keskar's, and one relative to each weight, whose size no rescaling of layers changes.
BOXES = dict(phi=lambda w: 1e-3 * (w.abs() + 1), phi_relative=lambda w: 0.01 * w.abs())


def sharpness(loss, w, box, steps=20):
    """Keskar et al. 2017 (arXiv 1609.04836), metric 2.1 in the full space, in per cent: φ =
    100 · (max f - f) / (1 + f), with the maximum of f = loss(w + z) over |z_i| ≤ box_i, found by
    projected ascent from a random point along the gradient's signs, with steps from the size of
    the box down to none. `loss` maps a vector (P,) to a scalar tensor."""
    z = box * torch.from_numpy(np.random.default_rng([5, 0]).uniform(-1, 1, w.shape)).to(w)
    at = highest = loss(w).item()
    for step in range(steps + 1):
        z.requires_grad_()
        value = loss(w + z)
        highest = max(highest, value.item())
        sign = torch.autograd.grad(value, z)[0].sign()
        z = (z.detach() + (1 - step / steps) * box * sign).clamp(-box, box)
    return 100 * (highest - at) / (1 + at)


def run_sharpness(run):
    """The sharpness, in per cent, of a trained run's loss on its training set, by box."""
    x, y, labels, mask = grok.split(run.config)
    x, y, labels = (torch.from_numpy(a[mask])[None] for a in (x, y, labels))
    model, w = run.config.model(), run.state["W"]
    loss = lambda w: grok.cross_entropy(model(w[None], x, y), labels).mean()
    return {name: sharpness(loss, w, box(w)) for name, box in BOXES.items()}


def sharpness_map(rows):
    """Sharpness against validation accuracy, and Spearman's rank correlation of the two."""
    from matplotlib.figure import Figure
    from scipy.stats import spearmanr

    figure = Figure((10, 4), layout="constrained")
    for a, name in zip(figure.subplots(1, len(BOXES)), BOXES):
        for op, frac in sorted({(row["op"], row["frac"]) for row in rows}):
            points = [(r[name], r["val_acc"]) for r in rows if (r["op"], r["frac"]) == (op, frac)]
            rho = spearmanr(*zip(*points)).statistic
            a.plot(*zip(*points), "o", label=f"{op}, {frac:.0%}: ρ = {rho:.3f}, n = {len(points)}")
        a.set(xscale="log", xlabel=f"sharpness {name} (%)", ylabel="validation accuracy")
        a.legend(fontsize=7)
    return figure


# --- The command ----------------------------------------------------------------------------------


def estimate(configs):
    """Seconds that some runs take if each spends its steps: from a few updates of each stack."""
    seconds, device = 0.0, grok.pick_device("auto")
    torch.set_num_threads(configs[0].threads or torch.get_num_threads())
    for group in grok.stacks([grok.Run(c, "") for c in configs], device):
        stack = grok.Stack(group, device)
        stack.advance(2)
        start = time.perf_counter()
        stack.advance(7)
        seconds += (time.perf_counter() - start) / 5 * stack.config.steps
    return seconds


def make(figure, folder):
    """Draws a figure from the runs in its folder, and prints or writes its table."""
    runs = [run for run in grok.read(folder) if not run.diverged]
    if figure == "3":
        rows, file = [row for run in runs for row in relation_rows(run)], folder / "relations.csv"
        for run in runs:
            output_map(run).savefig(folder / f"map-{run.config.op}-{run.config.seed}.png", dpi=110)
    elif figure == "7":
        rows = [run.config.columns() | run.log[-1] | run_sharpness(run) for run in runs]
        file = folder / "sharpness.csv"
        sharpness_map(rows).savefig(folder / "sharpness.png", dpi=110)
    else:
        for arguments in [], ["--table"]:
            subprocess.run(
                [sys.executable, Path(__file__).with_name("figures.py"), folder, *arguments],
                check=True,
            )
        return
    with open(file, "w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows([rows[0], *map(dict.values, rows)])
    print(file)


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
    cli.add_argument("--threads", type=int, default=0, metavar="N")
    cli.add_argument("--dry-run", action="store_true", help="say how much it is, and train nothing")
    given = cli.parse_args(argv)
    try:
        for figure in FOLDERS if given.figure == "all" else [given.figure]:
            folder = given.out / given.scale / FOLDERS[figure]
            configs = [
                replace(config, threads=given.threads)
                for config in SCALES[given.scale](given.seeds)[FOLDERS[figure]]
            ]
            if given.dry_run:
                print(
                    f"{figure}: {len(configs)} runs in {folder}, about "
                    f"{estimate(configs) / 3600:,.1f} hours without evaluations"
                )
            else:
                grok.train(configs, out=folder)
                make(figure, folder)
    except (grok.UsageError, OSError) as error:
        print(f"power2022.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

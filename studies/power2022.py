"""The paper's figures, a command each (Power et al. 2022, arXiv 2201.02177).

    python studies/power2022.py 2-left                  trains what is missing, draws, tabulates
    python studies/power2022.py all --scale paper       as in the paper: for a GPU, or for days
    python studies/power2022.py 1-centre --dry-run      how many runs, and about how long

A figure is a list of Configs. Its runs go to DIR/FOLDER, where a command that was stopped goes on.
At the scale "cpu" the fast recipe and smaller budgets stand in for the paper's, as said in
studies/README.md. Figures 4 and 7 look at the runs of 1-left and 2-left once more.
"""
import argparse
import io
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import grok
import numpy as np
import torch
from grok import Config

TWELVE = [op for op in grok.OPS if op not in ("x_mul_y", "x_pow_y")]
ADAM = dict(weight_decay=0.0)  # figure 2 left: what each intervention has instead
INTERVENTIONS = [dict(), dict(lr=3e-4), dict(lr=3e-3), dict(batch_size=0), dict(weight_noise=0.01),
                 dict(batch_size=0, update_noise=1.0), dict(dropout=0.1), dict(weight_decay=1.0),
                 dict(weight_decay=1.0, decay_to="init")]
SLOW_FAST = grok.FAST | dict(lr=1e-3, batch_size=512, batch_frac=0.5, warmup=10, eps=1e-8,
                             grad_clip=0.0, eval_every=100, steps=10_000)
TENTHS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]

def interventions(seeds, **base):
    return [c for change in INTERVENTIONS for c in Config.grid(**base | ADAM | change, seed=seeds)]

def runs_of(figure, scale, seeds):
    """The list of Configs behind a figure; `seeds` is a number, or None for the figure's own."""
    paper, few = scale == "paper", range(seeds or 3)
    if figure == "1-left":
        steps = 1_000_000 if paper else 50_000
        return Config.grid(**ADAM, steps=steps, until=0.0, eval_every=1000 if paper else 200,
                           seed=few if paper else range(seeds or 1))
    if figure == "1-centre":
        if paper:
            fracs = [0.25, 0.26, 0.27, 0.28, 0.29, 0.3, 0.4, 0.5, 0.6]
            return Config.grid(op="s5_xy", frac=fracs, steps=500_000, seed=range(seeds or 7))
        fracs = [0.2, 0.25, 0.27, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6]
        return Config.grid(op="s5_xy", frac=fracs, **grok.FAST | dict(steps=10_000), seed=few)
    if figure == "2-left":
        return (interventions(few, op="s5_xy", frac=TENTHS) if paper
                else interventions(few, **SLOW_FAST))
    if figure == "2-right":
        return Config.grid(op=TWELVE, frac=[*TENTHS, 0.95] if paper else 0.5, seed=few,
                           steps=100_000 if paper else 10_000)
    if figure == "3":
        return Config.grid(op=["x_plus_y", "s5_xy"], seed=few, steps=100_000 if paper else 25_000,
                           until=0.0 if paper else 0.99)
    outliers = [0, 100, 300, 1000, 2000, 3000] if paper else [0, 100, 300, 1000]   # figure 6
    base = {} if paper else grok.FAST | dict(steps=2000)
    return Config.grid(**base, outliers=outliers, until=0.0, seed=few)

FOLDERS = {"1-left": "1-left", "1-centre": "1-centre", "2-left": "2-left", "2-right": "2-right",
           "3": "3", "4": "1-left", "6": "6", "7": "2-left"}  # whose runs each figure shows

# --- Figure 3: the rows of the output layer, one for each element ---------------------------------

# Subgroups of S5 by two generators. The paper has D5: ⟨(0 3)(1 4), (1 2)(3 4)⟩.
SUBGROUPS = dict(D5=([3, 4, 2, 0, 1], [0, 2, 1, 4, 3]), A4=([1, 2, 0, 3, 4], [1, 0, 3, 2, 4]),
                 S4=([1, 2, 3, 0, 4], [1, 0, 2, 3, 4]), A5=([1, 2, 0, 3, 4], [1, 2, 3, 4, 0]),
                 S3=([1, 2, 0, 3, 4], [1, 0, 2, 3, 4]))

def strands(n, step):
    """The elements 0 … n-1 along z, z + step, z + 2 · step …, in closed lines."""
    g = math.gcd(n, step)
    return [(i + step * np.arange(n // g + 1)) % n for i in range(g)]

def distances(rows):
    """Mean squared distance of row z from row z + k, for k = 1 … n/2, by that of any two."""
    apart = np.array([((rows - np.roll(rows, k, 0)) ** 2).sum(1).mean()
                      for k in range(1, len(rows) // 2 + 1)])
    return apart / apart.mean()

def cosets(rows, generators):
    """Of a subgroup of S5, its conjugates, and left or right cosets, those that come nearest to
    clusters of rows (120, D): (share of the variance within them, the same by chance, cosets)."""
    group = [0, *(grok.PERMUTATIONS.tolist().index(generator) for generator in generators)]
    while len(larger := np.unique(grok.S5[group][:, group])) > len(group):
        group = larger
    found = []
    for g in range(120):
        conjugate = grok.S5[grok.S5[grok.S5_INVERSE[g], group], g]
        for table in grok.S5[conjugate].T, grok.S5[:, conjugate]:            # x's coset, as row x
            members = np.unique(np.sort(table), axis=0)
            found.append((rows[members].var(1).mean() / rows.var(0).mean(), members.tolist()))
    within, members = min(found)
    return within, (120 - len(members)) / 119, members

def families(rows, op):
    """What a map joins by lines among output rows (n, D), [(text, lists of elements)]: in S5 and
    for sums, what clustered in the paper's figure 3 and what comes nearest to that here."""
    if op.startswith("s5"):
        found = {name: cosets(rows, generators) for name, generators in SUBGROUPS.items()}
        nearest = min(found, key=lambda name: found[name][0] / found[name][1])
        return [(f"cosets of {name}, {note}: {1 - found[name][0]:.0%} of the variance between "
                 f"them, {1 - found[name][1]:.0%} by chance", found[name][2])
                for name, note in (("D5", "the paper's"),
                                   (nearest, f"the nearest of {', '.join(SUBGROUPS)}"))]
    steps = (8, "the paper's"), (1 + np.argmin(distances(rows)), "the nearest")
    return [(f"z to z + {step}, {note}", strands(len(rows), step)) for step, note in steps]

def output_rows(run):
    """The rows (n, D) of a run's output layer that belong to elements."""
    n, model = run.config.sizes()[0], run.config.model()
    return model.weights(run.state["W"][None])["head"][0, :, :n].T.double().numpy()

def output_map(run):
    """The rows of a trained run's output layer in the plane, a matplotlib Figure."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE
    rows = output_rows(run)
    points = TSNE(random_state=0, perplexity=len(rows) / 5).fit_transform(rows)
    found = families(rows, run.config.op)
    figure = Figure((10, 4.8), layout="constrained")
    figure.suptitle(f"{run.config.op}: t-SNE of the output layer of seed {run.config.seed}, update "
                    f"{run.step:,}, validation accuracy {run.log[-1]['val_acc']:.3f}", fontsize=9)
    for a, (text, joined) in zip(figure.subplots(1, len(found)), found):
        a.plot(*points.T, ".", color="0.5")
        for family in joined:
            a.plot(*points[family].T, "o-", ms=4, lw=0.6)
        for z, point in enumerate(points):
            a.annotate(str(z), point, (2, 2), textcoords="offset points", fontsize=5)
        a.set(xticks=[], yticks=[])
        a.set_title(text, fontsize=7)
    return figure

# --- Figure 7: sharpness --------------------------------------------------------------------------

def sharpness(loss, w, epsilon=1e-3, steps=20):
    """Keskar et al. 2017 (arXiv 1609.04836), metric 2.1 in the full space, in per cent: φ =
    100 · (max f - f) / (1 + f), with the maximum of f = loss(w + z) over the box |z_i| ≤ epsilon ·
    (|w_i| + 1), found by projected ascent along the gradient's signs, with steps from the size of
    the box down to none. It starts at a random point, as the gradient at a minimum is 0. `loss`
    maps a vector (P,) to a scalar tensor."""
    box = epsilon * (w.abs() + 1)
    z = box * torch.from_numpy(np.random.default_rng([5, 0]).uniform(-1, 1, w.shape)).to(w)
    at = highest = loss(w).item()
    for step in range(steps + 1):
        z.requires_grad_()
        value = loss(w + z)
        highest = max(highest, value.item())
        sign = torch.autograd.grad(value, z)[0].sign()
        z = (z.detach() + (1 - step / steps) * box * sign).clamp(-box, box)
    return 100 * (highest - at) / (1 + at)

def run_sharpness(run, epsilon=1e-3):
    """Sharpness φ, in per cent, of a trained run's loss on its training set."""
    x, y, labels, mask = grok.split(run.config)
    x, y, labels = (torch.from_numpy(a[mask])[None] for a in (x, y, labels))
    model = run.config.model()
    return sharpness(lambda w: grok.cross_entropy(model(w[None], x, y), labels).mean(),
                     run.state["W"], epsilon)

def sharpness_map(runs):
    """Sharpness against validation accuracy, with Spearman's rank correlation of the two."""
    from matplotlib.figure import Figure
    from scipy.stats import spearmanr
    points = [(run_sharpness(run), run.log[-1]["val_acc"]) for run in runs if not run.diverged]
    rho, p = spearmanr(*zip(*points))
    figure = Figure((6, 4), layout="constrained")
    a = figure.subplots()
    a.plot(*zip(*points), "o")
    a.set(xscale="log", xlabel="sharpness φ (%)", ylabel="validation accuracy")
    a.set_title(f"ε = 0.001, Spearman's ρ = {rho:.3f}, p = {p:.1g}, n = {len(points)}", fontsize=9)
    return figure

# --- The command ----------------------------------------------------------------------------------

def estimate(configs):
    """Seconds that some runs may take on this machine, if each spends its steps: from a few
    updates of a first stack of each shape."""
    seconds = 0.0
    for group in grok.stacks([grok.Run(c, "") for c in configs], grok.pick_device("auto")):
        stack = grok.Stack(group, grok.pick_device("auto"))
        stack.advance(2)
        start = time.perf_counter()
        stack.advance(7)
        seconds += (time.perf_counter() - start) / 5 * stack.config.steps
    return seconds

def save(figure, file):
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    file.write_bytes(data.getvalue())
    print(file)

def make(figure, folder):
    """Draws a figure from the runs in its folder, and prints its table."""
    if figure == "3":
        for run in grok.read(folder):
            if run.reached():
                save(output_map(run), folder / f"map-{run.config.op}-{run.config.seed}.png")
    elif figure == "7":
        save(sharpness_map(grok.read(folder)), folder / "sharpness.png")
    else:
        figures = [sys.executable, Path(__file__).with_name("figures.py"), folder]
        for arguments in [], ["--table"]:
            subprocess.run(figures + arguments, check=True)

def main(argv=None):
    cli = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("figure", choices=(*FOLDERS, "all"))
    cli.add_argument("--scale", choices=("cpu", "paper"), default="cpu")
    cli.add_argument("--out", type=Path, default=Path("runs/power2022"), metavar="DIR")
    cli.add_argument("--seeds", type=int, metavar="N", help="seeds from 0 on [the figure's own]")
    cli.add_argument("--threads", type=int, default=0, metavar="N")
    cli.add_argument("--dry-run", action="store_true", help="say how much it is, and train nothing")
    given = cli.parse_args(argv)
    try:
        for figure in FOLDERS if given.figure == "all" else [given.figure]:
            source = FOLDERS[figure]
            folder = given.out / given.scale / source
            configs = [replace(c, threads=given.threads) for c in
                       runs_of(source, given.scale, given.seeds)]
            if given.dry_run:
                print(f"{figure}: {len(configs)} runs in {folder}, at most "
                      f"{estimate(configs) / 3600:,.1f} hours")
            else:
                grok.train(configs, out=folder)
                make(figure, folder)
    except (grok.UsageError, OSError) as error:
        print(f"power2022.py: {error}", file=sys.stderr)
        return 2
    return 0

if __name__ == "__main__":
    sys.exit(main())

"""FACT of a gradient's mean. Where a ReLU's input crosses 0 the gradient jumps, and a run at a
constant rate goes to and fro across it: there the gradient of one moment is not what holds the
weights. Trains each run of a folder on for --updates updates. Columns, for each matrix NAME:

    now_NAME    fact_NAME of spectra.py before that
    mean_NAME   the same of the mean weights and the mean gradient over these updates
    near_zero   the share of the first layer's outputs, of units that are ever active, that are
                nearer to 0 than 2 % of their root mean square; of normal ones it is 0.016

    python studies/spectra/mean.py runs/fact --updates 200 --out pictures

writes mean.csv, a row for each run; the folder stays as it is. For --net mlp.
"""

import argparse
import sys
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # figures.py, grok.py
import figures
import grok
import torch
from spectra import Config, Spectra, fact


def cosines(run, weights, gradients):
    found = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        w, g = weight.double(), gradients[name].double()
        if not isinstance(run.model.get_submodule(layer), torch.nn.Linear):  # a table, (in, out)
            w, g = w.T, g.T
        found[layer] = fact(w, g).item()
    return found


@torch.no_grad()
def near_zero(run):
    inputs = (t[run.train_rows] for t in run.inputs)
    outputs = run.model.first(*inputs)
    outputs = outputs[:, (outputs > 0).any(0)]
    least = 0.02 * outputs.square().mean().sqrt()
    return (outputs.abs() < least).float().mean().item()


def weights_of(run):
    return {name: w.detach().clone() for name, w in run.model.named_parameters()}


def row_of(run, updates):
    weights, gradients = weights_of(run), run.whole_gradient(run.model)
    row = vars(run.config) | dict(step=run.step, updates=updates, near_zero=near_zero(run))
    for layer, value in cosines(run, weights, gradients).items():
        row[f"now_{layer}"] = value
    weights = {name: torch.zeros_like(w) for name, w in weights.items()}
    gradients = {name: torch.zeros_like(w) for name, w in weights.items()}
    for _ in range(updates):
        run.advance()
        whole = run.whole_gradient(run.model)
        for name, w in run.model.named_parameters():
            weights[name] += w.detach() / updates
            gradients[name] += whole[name] / updates
    for layer, value in cosines(run, weights, gradients).items():
        row[f"mean_{layer}"] = value
    return row | dict(grok=grok.__version__)


def main(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("folder", metavar="DIR")
    cli.add_argument("--updates", type=int, default=200, metavar="N")
    cli.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    given = cli.parse_args(argv)
    try:
        folders = [record.folder for record in grok.read(given.folder, net="mlp")]
        runs = [grok.load(folder, Config, Spectra, device="cpu") for folder in folders]
        figures.refuse(not runs, f"{given.folder}: has no run with --net mlp")
        rows = [row_of(run, given.updates) for run in runs]
        figures.write_rows(rows, given.out / "mean.csv")
    except (grok.UsageError, OSError) as error:
        print(f"mean.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

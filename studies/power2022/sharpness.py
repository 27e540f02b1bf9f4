"""Figure 7: the sharpness of minima (Keskar et al. 2017, arXiv 1609.04836) against the accuracy."""

import grok
import numpy as np
import torch
import torch.nn.functional as F


def keskars(w):
    return 1e-3 * (w.abs() + 1)


def relative(w):
    """A box whose size, relative to each weight, no rescaling of layers changes."""
    return 0.01 * w.abs()


BOXES = dict(phi=keskars, phi_relative=relative)


def sharpness(loss, w, box, steps=20):
    """Keskar et al.'s metric 2.1 in the full space, in per cent: φ = 100 · (max f - f) / (1 + f),
    with the maximum of f = loss(w + z) over |z_i| ≤ box_i, found by projected ascent from a random
    point along the gradient's signs, with steps from the size of the box down to none. `loss` maps
    a vector (P,) to a scalar tensor."""
    random = np.random.default_rng([5, 0])
    start = torch.from_numpy(random.uniform(-1, 1, w.shape))
    z = box * start.to(w)
    at = highest = loss(w).item()
    for step in range(steps + 1):
        z.requires_grad_()
        value = loss(w + z)
        highest = max(highest, value.item())
        (gradient,) = torch.autograd.grad(value, z)
        size = (1 - step / steps) * box
        moved = z.detach() + size * gradient.sign()
        z = moved.clamp(-box, box)
    return 100 * (highest - at) / (1 + at)


def training_loss(run):
    """The loss on a run's training set as a function of all weights (P,), and these weights."""
    weights = dict(run.model.named_parameters())
    sizes = [w.numel() for w in weights.values()]
    inputs = tuple(t[run.train_rows] for t in run.inputs)
    labels = run.labels[run.train_rows]

    def loss(vector):
        parts = zip(weights.items(), vector.split(sizes), strict=True)
        given = {name: part.view_as(w) for (name, w), part in parts}
        logits = torch.func.functional_call(run.model, given, inputs)
        return F.cross_entropy(logits, labels)

    flat = [w.detach().flatten() for w in weights.values()]
    return loss, torch.cat(flat)


def sharpness_row(run):
    """A run's settings, its last evaluation and its sharpness in each box, a dict."""
    loss, w = training_loss(run)
    found = {name: sharpness(loss, w, box(w)) for name, box in BOXES.items()}
    version = dict(grok=grok.__version__)
    return run.config.fixed() | run.log[-1] | found | version


def sharpness_map(rows):
    """Sharpness against validation accuracy, and Spearman's rank correlation of the two."""
    from matplotlib.figure import Figure
    from scipy.stats import spearmanr

    figure = Figure((10, 4), layout="constrained")
    tasks = {}
    for row in rows:
        tasks.setdefault((row["op"], row["frac"]), []).append(row)
    for axes, box in zip(figure.subplots(1, len(BOXES)), BOXES, strict=True):
        for (op, frac), here in sorted(tasks.items()):
            sharp = [row[box] for row in here]
            accuracy = [row["val_acc"] for row in here]
            rho = spearmanr(sharp, accuracy).statistic
            label = f"{op}, {frac:.0%}: ρ = {rho:.3f}, n = {len(here)}"
            axes.plot(sharp, accuracy, "o", label=label)
        axes.set(xscale="log", xlabel=f"sharpness {box} (%)")
        axes.set_ylabel("validation accuracy")
        axes.legend(fontsize=7)
    return figure

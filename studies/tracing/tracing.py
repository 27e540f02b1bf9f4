"""Tracing the path to grokking: embeddings, dropout, and network activation (Salah and Yevick 2025,
arXiv 2507.11645): when a network begins to generalise, its validation accuracy under dropout varies
most; the share of inactive hidden units falls while it memorises, then rises; and a pattern grows
in the embeddings' cosines. Columns:

    dropout_acc, dropout_var  mean and variance (unbiased) of the accuracy over --passes passes with
                              --mc-dropout on the hidden units, on at most 512 validation equations
    inactive                  share of hidden units that no equation of the table makes active
    zeros                     share of zeros among the outputs of all hidden units, over the table
    embed_cosine              mean |cosine| between two elements' embeddings

Each equation has a mask of its own: if each of B is right with probability a, the variance is
a (1 - a) / B, and largest at a = 1/2. --net theirs is an MLP on embeddings of two operands.

    python studies/tracing/tracing.py --net theirs --op x_plus_y --p 53 --frac 0.5 --lr 3e-4 \\
        --batch-size 128 --until 0 --steps 30000 --eval-every 200 --passes 100 --seed 0 1 2 \\
        --out runs/tracing
    python studies/tracing/peaks.py runs/tracing
"""

import contextlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config(grok.Config):
    mc_dropout: float = grok.setting(0.3, "dropout of the passes", "[0, 1)")
    passes: int = grok.setting(10, "such passes in an evaluation", "[2, inf)")
    net: str = grok.setting("grok", "grok.py's network or theirs, an MLP", ("grok", "theirs"))
    units: int = grok.setting(256, "hidden units of the MLP", "[1, inf)")

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.MLP.unread, "init_scale")
        else:
            models.refuse_unread(self, "units")


def readers(model):
    """The layers that read ReLUs."""
    if isinstance(model, models.MLP):
        return list(model.rest)
    if isinstance(model, models.NormlessTransformer):
        return [model.down]
    return [block.down for block in model.blocks]


@contextlib.contextmanager
def on_hidden_units(model, hook):
    """Within, hook(layer, inputs) sees, and may change, what each layer after a ReLU reads."""
    handles = [layer.register_forward_pre_hook(hook) for layer in readers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Tracing(grok.Run):
    @torch.no_grad()
    def build_model(self):
        c = self.config
        if c.net == "grok":
            return super().build_model()
        model = models.MLP(c.elements, [c.units], embed=c.width)
        for w in model.parameters():
            if w.ndim == 2:
                nn.init.xavier_normal_(w)
        return model

    def dropout_accuracies(self, model):
        """Of each of the passes (passes,)."""
        c, rows = self.config, self.val_rows[:512]  # which are in random order

        def drop(layer, inputs):
            return F.dropout(inputs[0], c.mc_dropout)

        with on_hidden_units(model, drop):
            logits = [model(*(t[rows] for t in self.inputs)) for _ in range(c.passes)]
        hits = [(z.argmax(1) == self.labels[rows]).float() for z in logits]
        return torch.stack(hits).mean(1)

    @torch.no_grad()
    def measure(self, model):
        active = {}  # {layer: whether each unit that it reads was active so far}
        counts = []  # of outputs above 0, and of all, for each batch and layer

        def watch(layer, inputs):
            on = (inputs[0] > 0).flatten(0, -2)
            active[layer] = active.get(layer, False) | on.any(0)
            counts.append((on.sum(), on.numel()))

        with on_hidden_units(model, watch):
            for inputs in zip(*(t.split(2**11) for t in self.inputs), strict=True):
                model(*inputs)
        accuracies = self.dropout_accuracies(model)
        n, place = self.config.elements, model.first if isinstance(model, models.MLP) else model
        above, of = (sum(numbers) for numbers in zip(*counts, strict=True))
        embed = F.normalize(place.embed.weight[:n], dim=1)
        return super().measure(model) | dict(
            dropout_acc=accuracies.mean(),
            dropout_var=accuracies.var(),
            inactive=1 - torch.cat(list(active.values())).float().mean(),
            zeros=1 - above / of,
            embed_cosine=(embed @ embed.T).triu(1).abs().sum() / math.comb(n, 2),
        )


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Tracing))

"""Lottery ticket (Minegishi et al. 2023, arXiv 2310.19470): the large weights of a network that has
generalised, set back to where they started and trained without the others, generalise with little
delay; the structure does it, not the smaller norm or the sparsity.

--ticket DIR takes the run in DIR with the same data, network and initial weights. The share --kept
of its weights that are largest in magnitude, over all matrices together, restarts at its initial
values; the others are held at 0. LayerNorm's are all kept. A DIR that was stopped before the
transition gives the tickets that fail. Controls: --ticket none, dense; --control random, as many
weights of each matrix, but random ones; --control norm, the dense network with all its matrices
scaled down to the norm of the ticket.

--net theirs sums embeddings of 500 numbers, which go through 48 ReLU units and 500 linear ones to
the answers, without biases; --pairs unordered keeps x + y with x < y, as their task does.

    THEIRS="--net theirs --pairs unordered --op x_plus_y --p 67 --frac 0.4 --batch-size 0"
    python studies/ticket/ticket.py $THEIRS --steps 30000 --seed 0 1 --out runs/dense
    python studies/ticket/ticket.py $THEIRS --steps 30000 --seed 0 1 --ticket runs/dense
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
from torch import nn


@dataclass(frozen=True)
class Config(grok.Config):
    ticket: str = grok.setting("none", "folder of the run whose large weights are kept, or none")
    kept: float = grok.setting(0.4, "share of the weights of matrices to keep", "(0, 1]")
    control: str = grok.setting(
        "magnitude", "which are kept; norm: all, scaled down", ("magnitude", "random", "norm")
    )
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))
    pairs: str = grok.setting("ordered", "which equations there are", ("ordered", "unordered"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.MLP.unread, "width")
        if self.ticket == "none":
            models.refuse_unread(self, "kept", "control")
        if self.pairs == "unordered" and self.outliers:
            raise grok.UsageError("--pairs unordered: goes without outliers")


class Ticket(grok.Run):
    saved = *grok.Run.saved, "masks"

    def build_data(self):
        inputs, labels, train, val = super().build_data()
        if self.config.pairs == "ordered":
            return inputs, labels, train, val
        x, y = inputs
        kept = x < y
        count = round(self.config.frac * int(kept.sum()))
        rows = torch.cat([train, val])  # all, shuffled by the seed
        rows = rows[kept[rows]]
        return inputs, labels, rows[:count], rows[count:]

    @torch.no_grad()
    def build_model(self):
        c = self.config
        if c.net == "theirs":
            model = models.SummedMLP(c.elements)
            for w in model.parameters():
                w *= c.init_scale
        else:
            model = super().build_model()
        matrices = {name: w for name, w in model.named_parameters() if w.ndim == 2}
        self.masks = self.find_masks(matrices) if c.ticket != "none" else {}
        if self.masks and c.control == "norm":
            kept = [w * self.masks[name] for name, w in matrices.items()]
            factor = nn.utils.get_total_norm(kept) / nn.utils.get_total_norm(matrices.values())
            for w in matrices.values():
                w *= factor
            self.masks = {}
        for name, mask in self.masks.items():
            matrices[name] *= mask
        self.masks = {name: mask.to(self.device) for name, mask in self.masks.items()}
        return model

    def find_masks(self, matrices):
        """{matrix: 1 for the weights that are kept, else 0, of its shape}."""
        c = self.config
        scales = "init_scale", "embed_init_scale", "position_scale"
        data = "op", "p", "frac", "seed", "outliers", "pairs"
        names = *data, *scales, "layers", "width", "heads", "net"
        same = {name: c.fixed()[name] for name in names} | dict(ticket="none")
        last = models.last_weights("--ticket", c.ticket, **same)
        magnitudes = torch.cat([last[name].abs().flatten() for name in matrices])
        least = magnitudes.topk(max(1, round(c.kept * len(magnitudes)))).values[-1]
        masks = {name: (last[name].abs() >= least).float() for name in matrices}
        if c.control == "random":
            for name, mask in masks.items():
                order = grok.permutation(mask.numel(), c.seed, f"mask of {name}")
                masks[name] = mask.flatten()[order].view_as(mask)
        return masks

    def loss(self, logits, labels):  # in float64, as in their code
        return super().loss(logits.double() if self.config.net == "theirs" else logits, labels)

    def on_after_backward(self):  # clipping and AdamW see the kept weights alone
        for name, mask in self.masks.items():
            self.model.get_parameter(name).grad.mul_(mask)

    def update(self, rows):
        super().update(rows)
        with torch.no_grad():
            for name, mask in self.masks.items():  # also beside noise
                self.model.get_parameter(name).mul_(mask)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Ticket))

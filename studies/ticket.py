"""Lottery ticket (Minegishi et al. 2023, arXiv 2310.19470): the large weights of a network that has
generalised, set back to where they started and trained without the others, generalise with little
delay; the structure does it, not the smaller norm or the sparsity.

--ticket DIR takes the run in DIR of the same operation, seed, model and initial weights. The share
--kept of its weights that are largest in magnitude, over all matrices together, restarts at its
initial values; the others are held at 0. LayerNorm's are all kept. A DIR that was stopped before
the transition gives the work's tickets that fail. The controls are --ticket none, dense; --control
random, as many weights of each matrix, but random ones; and --control norm, the dense network with
all its matrices scaled down to the norm of the ticket.

    python studies/ticket.py --recipe fast --frac 0.3 --seed 0 1 2 --out runs/dense
    python studies/ticket.py --recipe fast --frac 0.3 --seed 0 1 2 --ticket none runs/dense
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    ticket: str = grok.setting("none", "folder whose large weights are kept", None, shared=False)
    kept: float = grok.setting(0.4, "share of the weights of matrices to keep", "(0, 1]")
    control: str = grok.setting(
        "magnitude",
        "which weights are kept; norm: all",
        ("magnitude", "random", "norm"),
        shared=False,
    )

    def __post_init__(self):
        super().__post_init__()
        self.factor()

    def factor(self):
        """(P,): what the initial weights are multiplied by, 0 if pruned. Raises UsageError."""
        model = self.model()
        if self.ticket == "none":
            return torch.ones(sum(model.sizes))
        names = "op", "p", "seed", "layers", "width", "heads", "init_scale", "embed_init_scale"
        same = {name: getattr(self, name) for name in names}
        runs = [run for run in grok.read(self.ticket, **same) if run.state]
        said = ", ".join(f"{grok.flag(name)} {value}" for name, value in same.items())
        grok.refuse(
            len(runs) != 1,
            f"--ticket {self.ticket}: must hold one trained run with {said}; it holds {len(runs)}",
        )
        matrix = torch.cat(
            [
                torch.full((size,), "norm" not in name)
                for name, size in zip(model.shapes, model.sizes)
            ]
        )
        magnitude = runs[0].state["W"].abs().where(matrix, torch.inf)
        mask, kept = torch.zeros_like(magnitude), round(self.kept * int(matrix.sum()))
        mask[magnitude.topk(int((~matrix).sum()) + kept).indices] = 1
        if self.control == "random":  # by other numbers than the initial weights
            random = grok.rng(self.seed, "init", 1)
            mask = torch.cat(
                [part[random.permutation(len(part))] for part in mask.split(model.sizes)]
            )
        if self.control == "norm":
            first = matrix * model.initial(self.seed, self.init_scale, self.embed_init_scale)
            mask = torch.where(matrix, (mask * first).norm() / first.norm(), 1)
        return mask


class Ticket(grok.Stack):
    state = *grok.Stack.state, "mask"  # (R, P), 1 for the weights that are kept

    def initial(self):
        factor = torch.stack([run.config.factor() for run in self.runs])  # (R, P)
        self.mask = (factor > 0).float()
        return super().initial() * factor

    def gradient(self, rows):  # clipping and AdamW see the kept weights alone
        return super().gradient(rows) * self.mask

    def update(self, rows):
        super().update(rows)
        self.W *= self.mask  # also beside noise


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Ticket))

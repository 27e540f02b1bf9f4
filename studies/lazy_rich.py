"""Lazy to rich (Kumar et al. 2023, arXiv 2310.06110): a network whose output is scaled up fits the
training set with nearly fixed features and groks late; scaled down, it learns features at once.
Omnigrok (Liu et al. 2022, arXiv 2210.01117): with the weights held at the right norm nothing waits.

The logits are α (f - f₀): --output-scale is α, and --centre 1 subtracts those of the initial
weights, f₀, as Kumar et al. do. The learning rate is divided by α, so that α f moves at first as f
does: theirs, of plain descent, by α², but Adam's updates do not grow with the gradient. Decay per
update, lr times --weight-decay, shrinks with it. --hold-norm rescales all weights of a run to that
norm, at the start and after each update; Liu et al. do so without decay. --init-scale is another
way to be lazy. Controls: --output-scale 1, also at the other learning rates; --hold-norm 0.

    python studies/lazy_rich.py --recipe fast --frac 0.3 --output-scale 0.25 1 4 --seed 0 1 2
    python studies/lazy_rich.py --recipe fast --frac 0.3 --weight-decay 0 --hold-norm 0 40 80
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    output_scale: float = grok.setting(
        1.0, "factor on the logits; the lr is divided by it", "(0, inf)"
    )
    centre: int = grok.setting(0, "1: the initial network's logits are subtracted", "[0, 1]")
    hold_norm: float = grok.setting(0.0, "norm to hold the weights at; 0 = off", "[0, inf)")


class Scaled:
    """The model of a stack, with the logits α (f - f₀) of each run."""

    def __init__(self, stack):
        self.stack, self.model = stack, stack.model

    def __getattr__(self, name):  # all else is that of the Transformer
        return getattr(self.model, name)

    def __call__(self, W, x, y, drop=None):
        s, logits = self.stack, self.model(W, x, y, drop)  # (R, B, V)
        if s.on("centre"):
            logits = logits - s.centre[..., None] * self.model(s.first, x, y)
        return logits * s.output_scale[..., None]


class LazyRich(grok.Stack):
    def __init__(self, runs, device=torch.device("cpu")):
        super().__init__(runs, device)
        self.lr = self.lr / self.output_scale
        self.first = self.initial().to(device)  # (R, P), of f₀
        self.model = Scaled(self)  # in training and in evaluation

    def held(self, W):
        norm = self.hold_norm.to(W.device)  # (R, 1)
        return W * torch.where(norm > 0, norm / W.norm(dim=1, keepdim=True), 1)

    def initial(self):
        return self.held(super().initial())

    def update(self, rows):
        super().update(rows)
        self.W = self.held(self.W)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=LazyRich))

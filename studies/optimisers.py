"""Optimisers. Muon (Tveit et al. 2025, arXiv 2504.16041): 95 % of validation after 103 epochs, with
AdamW after 153. EGD (Saheb Pasand and Dohmatob 2025, arXiv 2510.04930): a gradient with equal
singular values takes 1/46 of SGD's epochs, one with its columns divided by their norms 1/16.

    python studies/optimisers.py --recipe fast --optimizer adamw muon --lr 3e-3 6e-3 --seed 0 1 2
    python studies/optimisers.py --optimizer sgd columns --mlp 1 --init-scale 2.449 --lr 7 30

Muon moves the inner matrices and AdamW the rest, in steps of one size (arXiv 2502.16982) times
--lr-ratio. SGD's decay is L2, in the gradient before columns, units' incoming weights, are divided.
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    optimizer: str = grok.setting(
        "adamw",
        "adamw (the control), muon, sgd or columns",
        ("adamw", "muon", "sgd", "columns"),
        shared=False,
    )
    lr_ratio: float = grok.setting(1.0, "factor on lr where AdamW is not at work", "(0, inf)")
    mlp: int = grok.setting(0, "1: EGD's net less biases, one-hot x and y", "[0, 1]", shared=True)

    def model(self):
        return MLP(self.sizes()[0], self.width) if self.mlp else super().model()


class MLP(grok.Transformer):
    def __init__(self, n, width):
        self.n, self.activation = n, torch.relu
        self.shapes = {"0.up": (2 * n, width), "head": (width, n)}
        self.sizes = [2 * n * width, width * n]

    def __call__(self, W, x, y, drop=None):
        up, head = self.weights(W).values()
        h = self.activation(grok.take(up, x) + grok.take(up, self.n + y))[:, :, None]
        return grok.linear(h if drop is None else drop(h), head)[:, :, 0]


def orthogonal(G):  # about U Vᵀ of G = U S Vᵀ (R, M, N), with the root mean square 0.2 of AdamW
    if G.shape[1] > G.shape[2]:
        return orthogonal(G.mT).mT
    G = G / G.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):  # Newton–Schulz takes S to 0.7 … 1.2; in float32, the authors' is bfloat16
        A = G @ G.mT
        G = 3.4445 * G + (2.0315 * A @ A - 4.7750 * A) @ G
    return 0.2 * G.shape[2] ** 0.5 * G


class Optimisers(grok.Stack):
    state = *grok.Stack.state, "momentum"  # (R, P), zeros at first

    def __init__(self, *args):
        super().__init__(*args)
        self.inner = [name for name in self.model.shapes if "." in name and "norm" not in name]
        ours = torch.zeros_like(self.W)  # 1 where AdamW is not at work
        for name, part in self.model.weights(ours).items():
            part[self.rows("sgd", "columns") + self.rows("muon") * (name in self.inner)] = 1
        self.lr, self.rate = self.lr * (1 - ours), self.lr * self.lr_ratio * ours  # now (R, P)

    def rows(self, *names):
        return [i for i, run in enumerate(self.runs) if run.config.optimizer in names]

    def gradient(self, rows):
        self.grad = super().gradient(rows)
        return self.grad

    def update(self, rows):
        super().update(rows)  # AdamW's part: it alone is clipped and has noise
        self.momentum.lerp_(self.grad, 0.05)
        decay = self.weight_decay * (self.W - self.anchor)
        step, ahead = self.grad + decay, self.grad.lerp(self.momentum, 0.95)  # Nesterov's
        parts, ahead, decays = map(self.model.weights, (step, ahead, decay))
        muon, columns = self.rows("muon"), self.rows("columns")
        for name in self.inner:
            parts[name][columns] /= parts[name][columns].norm(dim=1, keepdim=True).clamp(min=0.01)
            parts[name][muon] = orthogonal(ahead[name][muon]) + decays[name][muon]
        self.W -= min(1, self.step / max(1, self.config.warmup)) * self.rate * step


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Optimisers))

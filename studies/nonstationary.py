r"""Learning under nonstationarity (Lyle et al. 2025, arXiv 2507.20057): features are learned when
updates are large relative to the weights, the effective learning rate; raised late in training, it
makes a network that has memorised generalise, provided that its weights cannot grow along.

--project 1 rescales each matrix to its initial norm after each update; the scales and shifts of
LayerNorm stay free, and --weight-decay acts on them alone, which the work finds necessary beside
LayerNorm. --rewarm STEP warms the learning rate up from --lr to --rewarm-lr, linearly over --warmup
updates of which STEP is the first. (Theirs then falls by a cosine; here it stays.) The controls are
--project 0 and --rewarm 0; --rewarm 1 has the high learning rate from the start.

    python studies/nonstationary.py --recipe fast --frac 0.3 --lr 1e-4 --project 0 1 \
        --rewarm 0 1000 --rewarm-lr 6e-3 --steps 4000 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    project: int = grok.setting(0, "1: matrices keep their initial norms", "[0, 1]")
    rewarm: int = grok.setting(
        0, "update from which the lr is warmed up again; 0 = off", "[0, inf)"
    )
    rewarm_lr: float = grok.setting(0.01, "learning rate after that", "(0, inf)")


class Nonstationary(grok.Stack):
    def norms(self, W):
        """(R, M): of each of the M tensors in the weights W (R, P)."""
        return torch.stack([part.norm(dim=1) for part in W.split(self.model.sizes, 1)], 1)

    def initial(self):
        W = super().initial()
        self.first = self.norms(W).to(self.device)  # (R, M)
        return W

    def update(self, rows):
        lr, done = self.lr, (self.step + 1 - self.rewarm) / max(1, self.config.warmup)
        self.lr = lr.lerp(self.rewarm_lr, done.clamp(0, 1) * (self.rewarm > 0))
        super().update(rows)
        self.lr = lr  # that of --lr again
        if self.on("project"):
            matrix = torch.tensor(["norm" not in name for name in self.model.shapes])  # (M,)
            chosen = (self.project > 0) & matrix.to(self.device)  # (R, M)
            scale = torch.where(chosen, self.first / self.norms(self.W), 1)
            sizes = torch.tensor(self.model.sizes, device=self.device)
            self.W *= scale.repeat_interleave(sizes, 1)  # (R, P)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Nonstationary))

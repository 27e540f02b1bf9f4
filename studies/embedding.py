"""Embedding layer (AlquBoj et al. 2025, arXiv 2505.15624): an embedding with a learning rate of its
own, ten times that of the rest, ends the wait sooner (there in an MLP). Adam's steps are multiplied
by the ratio (and update noise with them), decay per update is not: it stays lr · weight_decay.
Each row with --embed-lr-ratio 1 is a control in the same sweep.

    python studies/embedding.py --recipe fast --embed-lr-ratio 0.1 1 10 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    embed_lr_ratio: float = grok.setting(
        1.0, "embedding's lr in units of lr; 1 is the control", "(0, inf)"
    )


class Embedding(grok.Stack):
    def __init__(self, *args):
        super().__init__(*args)
        ratio = torch.ones_like(self.W)
        self.model.weights(ratio)["embed"].mul_(self.embed_lr_ratio[:, :, None])  # a view of it
        self.lr, self.weight_decay = self.lr * ratio, self.weight_decay / ratio  # now (R, P)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Embedding))

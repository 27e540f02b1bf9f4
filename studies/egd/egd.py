r"""EGD (Saheb Pasand and Dohmatob 2025, arXiv 2510.04930): gradient descent waits much less if the
gradient of the hidden layer's weights W is changed, so that slow directions are as fast as others:

    --optimizer svd       all its singular values become 1
    --optimizer columns   the part of it that belongs to one hidden unit gets the norm 1

The control is --optimizer sgd. --weight-decay is L2 in all three: a part of the gradient, of W
before it is changed, and none for biases. --net theirs has one-hot inputs and one layer of --width
hidden units with a bias, which --bias false takes away. An epoch of theirs is 9 updates.

    python studies/egd/egd.py --net theirs --op x_plus_y --width 512 --weight-decay 1e-4 \
        --warmup 0 --eval-every 9 --optimizer sgd columns svd --lr 0.7 2 --seed 0 1 2 3 4
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
from torch import nn


def unit_columns(grad):
    """A gradient (inputs, units) with columns of norm 1; those below 0.01 stay short."""
    return grad / grad.norm(dim=0).clamp(min=0.01)


def equal_singular_values(grad):
    """U Vᵀ of a gradient U S Vᵀ; singular values below 1e-6 stay small."""
    u, s, vt = torch.linalg.svd(grad, full_matrices=False)
    return (u * (s / s.clamp(min=1e-6))) @ vt


TRANSFORMS = dict(columns=unit_columns, svd=equal_singular_values)
OPTIMIZERS = "adamw", "sgd", *TRANSFORMS


@dataclass(frozen=True)
class Config(grok.Config):
    optimizer: str = grok.setting("adamw", f"one of {', '.join(OPTIMIZERS)}", OPTIMIZERS)
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))
    bias: bool = grok.setting(True, "whether their hidden layer has a bias")

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.MLP.unread, "init_scale")
        else:
            models.refuse_unread(self, "bias")
            if self.optimizer in TRANSFORMS:
                raise grok.UsageError(f"--optimizer {self.optimizer}: needs --net theirs")
        if self.optimizer != "adamw":
            models.refuse_unread(self, "beta1", "beta2", "eps", "decay_to")


class EGD(grok.Run):
    @torch.no_grad()
    def build_model(self):
        c = self.config
        if c.net == "grok":
            return super().build_model()
        model = models.MLP(c.elements, [c.width], bias=False)
        nn.init.normal_(model.first.weight, std=c.elements**-0.5)
        nn.init.normal_(model.rest[0].weight, std=(2 / c.width) ** 0.5)
        if c.bias:
            model.first.bias = nn.Parameter(torch.zeros(c.width))
        return model

    def build_optimizer(self):
        if self.config.optimizer == "adamw":
            return super().build_optimizer()
        return torch.optim.SGD(self.model.parameters(), lr=self.config.lr)

    @torch.no_grad()
    def on_after_backward(self):
        c = self.config
        if c.optimizer != "adamw":
            for w in self.model.parameters():
                if w.ndim > 1:
                    w.grad.add_(w, alpha=c.weight_decay)
        if c.optimizer in TRANSFORMS:
            first = self.model.first.weight
            first.grad = TRANSFORMS[c.optimizer](first.grad)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=EGD))

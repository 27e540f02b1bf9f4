"""Lazy to rich (Kumar et al. 2023, arXiv 2310.06110): a network whose output is scaled up fits the
training set while its features hardly move, and generalises only when they do, late; scaled down,
it learns features at once. No decay is needed, and the norm of the weights does not tell.

The logits are α (f - f₀): --output-scale is α, and --centre true subtracts the logits f₀ of the
initial weights. Plain gradient descent, --optimizer sgd, takes the rate lr / α², so that α f moves
at first as f does at lr; the steps of Adam do not grow with the gradient and take lr / α. (Decay
per update, rate · --weight-decay, shrinks with it.) The control is --output-scale 1.

Their setting is --net theirs, one hidden layer with a square activation on one-hot codes:

    THEIRS="--net theirs --op x_plus_y --p 23 --frac 0.9 --width 100 --loss mse --centre true"
    python studies/lazy_rich/lazy_rich.py $THEIRS --optimizer sgd --lr 10 --weight-decay 0 \\
        --batch-size 0 --warmup 1 --steps 50000 --eval-every 20 \\
        --output-scale 0.25 0.5 1 2 4 --seed 0 1 2 3 4
"""

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
    output_scale: float = grok.setting(1.0, "α, factor on the logits; 1 = off", "(0, inf)")
    centre: bool = grok.setting(False, "subtract the logits of the initial weights")
    loss: str = grok.setting(
        "cross_entropy", "or the squared error to one-hot answers", ("cross_entropy", "mse")
    )
    optimizer: str = grok.setting("adamw", "or plain gradient descent", ("adamw", "sgd"))
    net: str = grok.setting("grok", "grok.py's network or that of their text", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.MLP.unread)
        if self.optimizer == "sgd":
            models.refuse_unread(self, "beta1", "beta2", "eps", "decay_to")


class Scaled(nn.Module):
    """α (f - f₀). `first` holds f₀ for all pairs of elements, (n, n, V)."""

    def __init__(self, net, n, scale, centre):
        super().__init__()
        self.net, self.scale, self.centre = net, scale, centre
        if centre:
            x, y = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
            self.register_buffer("first", net.eval()(x, y).unflatten(0, (n, n)))
            net.train()

    def forward(self, x, y):
        logits = self.net(x, y)
        if self.centre:
            logits = logits - self.first[x, y]
        return self.scale * logits


class LazyRich(grok.Run):
    @torch.no_grad()
    def build_model(self):
        c = self.config
        if c.net == "theirs":
            net = models.MLP(c.elements, [c.width], bias=False, activation="square")
            for w in net.parameters():
                w *= c.init_scale
        else:
            net = super().build_model()
        off = c.output_scale == 1 and not c.centre
        return net if off else Scaled(net, c.elements, c.output_scale, c.centre)

    def build_optimizer(self):
        c = self.config
        if c.optimizer == "sgd":
            weights, lr = self.model.parameters(), c.lr / c.output_scale**2
            return torch.optim.SGD(weights, lr, weight_decay=c.weight_decay)
        optimizer = super().build_optimizer()
        for group in optimizer.param_groups:
            group["lr"] /= c.output_scale
        return optimizer

    def loss(self, logits, labels):
        if self.config.loss == "mse":
            return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).float())
        return super().loss(logits, labels)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=LazyRich))

"""Embedding layer (AlquBoj et al. 2025, arXiv 2505.15624): with a learning rate of its own, ten
times that of the rest, the embedding lets the network generalise sooner. --embed-lr-ratio 1 is the
control; it is due its own best --lr, as the others are.

Adam's steps on the embedding are multiplied by the ratio. What AdamW's --weight-decay takes off in
an update is not, nor is --update-noise.

Their setting is --net theirs, a network of one hidden layer that reads x ∘ y = side by side, with
--l2 in the gradient, as torch.optim.Adam has it, and that optimiser's defaults:

    THEIRS="--net theirs --op x_mul_y --frac 0.3 --weight-decay 0 --l2 0.001 --beta2 0.999"
    python studies/embedding/embedding.py $THEIRS --warmup 1 --steps 3000 --eval-every 50 \\
        --embed-lr-ratio 1 3 10 --lr 0.003 0.01 0.02 --seed 0 1 2 3 4
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    embed_lr_ratio: float = grok.setting(
        1.0, "embedding's learning rate in units of lr; 1 = off", "(0, inf)"
    )
    l2: float = grok.setting(0.0, "factor on the weights, added to the gradient", "[0, inf)")
    net: str = grok.setting("grok", "grok.py's network or that of their text", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        models.refuse_two_decays(self)
        if self.net == "theirs":
            models.refuse_unread(self, "layers", "heads", "dropout", "init_scale", "position_scale")


class Embedding(grok.Run):
    def build_data(self):
        (x, y), *rest = super().build_data()
        if self.config.net == "grok":
            return [x, y], *rest
        operation, equals = (torch.full_like(x, self.config.elements + i) for i in range(2))
        return [x, operation, y, equals], *rest

    def build_model(self):
        c = self.config
        if c.net == "grok":
            return super().build_model()
        n, hidden = c.elements, [4 * c.width]
        model = models.MLP(n + 2, hidden, embed=c.width, tokens=4, outputs=n)
        model.first.embed.weight.data *= c.embed_init_scale
        return model

    def build_optimizer(self):
        """The rest is the first group, so that update noise goes by its rate."""
        optimizer, c = super().build_optimizer(), self.config
        model = self.model if c.net == "grok" else self.model.first
        (rest,) = optimizer.param_groups
        rest["params"] = [w for w in rest["params"] if w is not model.embed.weight]
        optimizer.add_param_group(
            dict(
                params=[model.embed.weight],
                lr=c.lr * c.embed_lr_ratio,
                weight_decay=c.weight_decay / c.embed_lr_ratio,  # AdamW multiplies it by the rate
            )
        )
        return optimizer

    def on_after_backward(self):
        if self.config.l2:
            for w in self.model.parameters():
                w.grad.add_(w.detach(), alpha=self.config.l2)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Embedding))

"""Omnigrok (Liu et al. 2022, arXiv 2210.01117): with the norm of all weights held at the right
value, hardly anything is left of grokking. --hold-norm true scales all weights, after each update,
back to the norm at which they have started, of which --init-scale is a factor. The control is
--hold-norm false, at its own best --weight-decay.

Their setting is --net theirs, a transformer without LayerNorm, whose loss is computed in float64.
(Weights before a LayerNorm act by their direction alone: there the norm is no size of the function,
but the inverse of a learning rate.)

    THEIRS="--net theirs --op x_plus_y --p 113 --frac 0.3 --batch-size 0 --eval-every 20"
    python studies/omnigrok/omnigrok.py $THEIRS --hold-norm true --weight-decay 0 --steps 600 \\
        --init-scale 0.6 0.7 0.8 0.9 1 --seed 0 1 2
    python studies/omnigrok/omnigrok.py $THEIRS --steps 25000 --seed 0 1 2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
from torch.nn.utils import get_total_norm


@dataclass(frozen=True)
class Config(grok.Config):
    hold_norm: bool = grok.setting(False, "keep the norm of all weights at its first value")
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, "layers", "dropout", "embed_init_scale", "position_scale")


class Omnigrok(grok.Run):
    def __init__(self, config):
        super().__init__(config)
        self.norm = get_total_norm(self.model.parameters())  # the same whenever it is built

    @torch.no_grad()
    def build_model(self):
        c = self.config
        if c.net == "grok":
            return super().build_model()
        model = models.NormlessTransformer(c.elements, c.width, c.heads)
        for w in model.parameters():
            w *= c.init_scale
        return model

    def loss(self, logits, labels):
        return super().loss(logits.double() if self.config.net == "theirs" else logits, labels)

    def update(self, rows):
        super().update(rows)
        if self.config.hold_norm:
            self.hold()

    @torch.no_grad()
    def hold(self):
        factor = self.norm / get_total_norm(self.model.parameters())
        for w in self.model.parameters():
            w *= factor


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Omnigrok))

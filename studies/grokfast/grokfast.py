"""Grokfast (Lee et al. 2024, arXiv 2405.20233): the slow part of the gradient, an average over
updates, is added to it, --grokfast times; this is to shorten the wait. --grokfast 0 is the control.

Their setting is --op x_mul_y_from_1 --net theirs, with --l2 in the gradient, as torch.optim.Adam
has it, in place of AdamW's --weight-decay. It is added after the filter, so that a filter of a
steady gradient makes the part of the L2 1 + λ times smaller: the control for that is a smaller L2.

    python studies/grokfast/grokfast.py --op x_mul_y_from_1 --net theirs --weight-decay 0 \\
        --eval-every 50 --steps 3000 --grokfast 0 2 --l2 0 0.0017 0.005 --seed 0 1 2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch

grok.OPS["x_mul_y_from_1"] = grok.OPS["x_mul_y"]._replace(y_from=1)


@dataclass(frozen=True)
class Config(grok.Config):
    grokfast: float = grok.setting(0.0, "λ, factor on the slow gradient; 0 = off", "[0, inf)")
    grokfast_alpha: float = grok.setting(0.98, "α, decay rate of the slow gradient", "[0, 1)")
    l2: float = grok.setting(0.0, "factor on the weights, added to the gradient", "[0, inf)")
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.GrokfastTransformer.unread)
        models.refuse_two_decays(self)


class Grokfast(grok.Run):
    saved = *grok.Run.saved, "slow"
    slow: list[torch.Tensor] | None = None  # the average of each weight's gradients

    def build_model(self):
        c = self.config
        if c.net == "theirs":
            return models.GrokfastTransformer(c.elements, c.layers, c.width, c.heads)
        return super().build_model()

    def on_after_backward(self):
        c, weights = self.config, list(self.model.parameters())
        if c.grokfast:
            if self.slow is None:
                self.slow = [w.grad.clone() for w in weights]
            for w, slow in zip(weights, self.slow, strict=True):
                slow.lerp_(w.grad, 1 - c.grokfast_alpha)
                w.grad.add_(slow, alpha=c.grokfast)
        for w in weights:
            w.grad.add_(w.detach(), alpha=c.l2)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Grokfast))

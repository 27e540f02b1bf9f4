"""Learning under nonstationarity (Lyle et al. 2025, arXiv 2507.20057): features are learned when
updates are large relative to the weights, the effective learning rate; raised late in training, it
makes a network that has memorised generalise, provided that its weights cannot grow along.

--project 1 rescales each matrix to its initial norm after each update; the scales and shifts of
LayerNorm stay free, and --weight-decay acts on them (on held matrices it is a rate of lr / (1 - lr
decay)), which the work finds necessary beside LayerNorm. --rewarm STEP warms the learning rate up
from --lr to --rewarm-lr, linearly over --warmup updates of which STEP is the first. (Theirs then
falls by a cosine; here it stays.) --net theirs has no LayerNorm. Controls: --project 0 and --rewarm
0; --rewarm 1 has the high rate from the start.

    python studies/nonstationary/nonstationary.py --net theirs --op x_plus_y --p 117 --frac 0.2 \\
        --beta2 0.999 --weight-decay 0 --project 0 1 --lr 1e-3 1e-2 --steps 20000 --seed 0 1 2
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
    project: int = grok.setting(0, "1: matrices keep their initial norms", "[0, 1]")
    rewarm: int = grok.setting(0, "update that starts a second warm-up; 0 = off", "[0, inf)")
    rewarm_lr: float = grok.setting(0.01, "learning rate after that", "(0, inf)")
    net: str = grok.setting("grok", "grok.py's network or one like theirs", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.NormlessTransformer.unread)
        if not self.rewarm:
            models.refuse_unread(self, "rewarm_lr")


class Nonstationary(grok.Run):
    def build_model(self):
        c = self.config
        if c.net == "theirs":
            model = models.NormlessTransformer(c.elements, c.width, c.heads)
        else:
            model = super().build_model()
        matrices = [w for w in model.parameters() if w.ndim == 2] if c.project else []
        self.norms = {w: w.detach().norm().to(self.device) for w in matrices}
        return model

    def build_schedule(self):
        c, first = self.config, max(1, self.config.warmup)

        def factor(t):  # of lr, at update t + 1
            usual = min(1, (t + 1) / first)
            again = min(1, max(0, (t + 2 - c.rewarm) / first)) if c.rewarm else 0
            return usual + again * (c.rewarm_lr / c.lr - usual)

        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def update(self, rows):
        super().update(rows)
        with torch.no_grad():
            for w, norm in self.norms.items():
                w.mul_(norm / w.norm())


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Nonstationary))

"""Unified view (Huang et al. 2024, arXiv 2402.15175): memorising and generalising circuits compete,
and model size and data decide on the course of training. With too little data a network just
memorises; with more it groks; one too small to memorise generalises at once, or not at all.

--net theirs is a one-layer transformer without LayerNorm; its feed-forward part is 4 x --width.

    python studies/unified/unified.py --net theirs --op x_plus_y --p 113 --batch-size 0 --lr 3e-3 \\
        --width 8 16 32 64 --frac 0.2 0.3 0.4 --seed 0 --steps 10000 --out runs/unified
    python studies/unified/courses.py runs/unified

prints and draws the course of training at each width and fraction.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models


@dataclass(frozen=True)
class Config(grok.Config):
    net: str = grok.setting("grok", "grok.py's network or one like theirs", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.NormlessTransformer.unread)


class Unified(grok.Run):
    def build_model(self):
        c = self.config
        if c.net == "theirs":
            return models.NormlessTransformer(c.elements, c.width, c.heads)
        return super().build_model()


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Unified))

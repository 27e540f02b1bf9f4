"""The shortest way to 99 % so far: not a transformer, but one hidden layer of squares. x and y each
have a row of weights; their sum is squared, unit by unit, and read linearly. (a + b)² holds a · b,
which is what a convolution needs, and AdamW bears a rate and a decay that let it generalise while
it memorises: there is no delay left. The network is Gromov's (2023, arXiv 2301.02679), who trains
it by plain gradient descent with squared error.

    SQUARE="--net square --width 256 --batch-size 0 --lr 0.1 --weight-decay 3 --warmup 1"
    python studies/speedrun/square.py $SQUARE --eval-every 5 --steps 100
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models


@dataclass(frozen=True)
class Config(grok.Config):
    net: str = grok.setting("grok", "grok.py's network, or squares", ("grok", "square"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "square":
            models.refuse_unread(self, *models.MLP.unread, "init_scale")


class Square(grok.Run):
    def build_model(self):
        c = self.config
        if c.net == "square":
            return models.MLP(c.elements, [c.width], bias=False, activation="square")
        return super().build_model()


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Square))

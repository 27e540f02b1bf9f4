"""Grokfast (Lee et al. 2024, arXiv 2405.20233): adding the slow part of the gradient, an average
over updates, to it is to shorten the wait. Each row with --grokfast 0 is a control of the sweep.

    python studies/grokfast.py --recipe fast --grokfast 0 2 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok


@dataclass(frozen=True)
class Config(grok.Config):
    grokfast: float = grok.setting(0.0, "factor on the slow gradient; 0 is the control", "[0, inf)")
    grokfast_alpha: float = grok.setting(0.98, "decay rate of the slow gradient", "[0, 1)")


class Grokfast(grok.Stack):
    state = *grok.Stack.state, "slow"  # (R, P), kept in checkpoints

    def gradient(self, rows):
        grad = super().gradient(rows)
        self.slow = grad if self.step == 1 else self.slow.lerp(grad, 1 - self.grokfast_alpha)
        return grad + self.grokfast * self.slow


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Grokfast))

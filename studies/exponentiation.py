"""Learning Modular Exponentiation with Transformers (Africa et al. 2025, arXiv 2506.23679): x^y mod
p is learned suddenly, and much better when training has y^x wherever it has x^y (reciprocal
operands); the embedding then knows number theory. There: an encoder and decoder over digits, many
moduli; here one, x_pow_y, an element a token. --reciprocal 1 draws pairs {x, y} for training.

With a primitive root g, log x^y = y · log x mod p - 1: which order of the elements 1 … p - 1 does
the embedding know? The columns are Gini coefficients of the norms of its Fourier coefficients (0:
all alike, near 1: one frequency) in three orders: gini_log, by log_g; gini_plain, 1 to p - 1, as an
exponent counts; gini_random, an order drawn once, which shows what chance gives.

    python studies/exponentiation.py --recipe fast --op x_pow_y --reciprocal 0 1 --p 59 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import numpy as np
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    reciprocal: int = grok.setting(0, "1: training has (y, x) with every (x, y)", "[0, 1]")

    def __post_init__(self):
        super().__post_init__()
        p, (_, N, n_train, _) = self.p, self.sizes()
        grok.refuse(
            grok.OPS[self.op].n or p < 3 or not all(p % d for d in range(2, p)),
            f"--op {self.op} --p {p}: must be modulo an odd prime, as x_pow_y is",
        )
        grok.refuse(
            self.reciprocal and (p**2 > N or n_train + 1 == N or self.outliers),
            "--reciprocal 1: must be with all pairs, two validation equations, no outliers",
        )


def orders(p):
    """The elements 1 … p - 1 in three orders: name -> (p - 1,)."""
    powers = ([pow(g, i, p) for i in range(p - 1)] for g in range(1, p))
    by_log = next(order for order in powers if len(set(order)) == p - 1)
    random = np.random.default_rng(0).permutation(np.arange(1, p)).tolist()
    return dict(gini_log=by_log, gini_plain=list(range(1, p)), gini_random=random)


def gini(embed):
    """Gini coefficient of the norms of the Fourier coefficients of rows (R, n, D): (R,)."""
    norms = torch.fft.rfft(embed, dim=1)[:, 1:].norm(dim=2).sort(1).values
    n = norms.shape[1]
    ranks = 2 * torch.arange(n, device=embed.device) + 1 - n
    return (ranks * norms).sum(1) / (n * norms.sum(1))


class Exponentiation(grok.Stack):
    def initial(self):
        for i, run in enumerate(self.runs):
            if (c := run.config).reciprocal:
                x, y = (t[i].cpu().numpy() for t in (self.x, self.y))
                first = grok.rng(c.seed, "split", 1).permutation(np.flatnonzero(x <= y))
                pairs = np.stack([first, y[first] * c.p + x[first]], 1)  # (x, y) and (y, x)
                count = np.cumsum(1 + (x[first] < y[first]))
                rows = pairs[: np.searchsorted(count, c.sizes()[2]) + 1]  # at most one more
                self.train[i] = False
                self.train[i, torch.from_numpy(rows).flatten()] = True
        return super().initial()

    def measure(self):
        embed = self.model.weights(self.W)["embed"]
        ginis = {name: gini(embed[:, order]) for name, order in orders(self.config.p).items()}
        return super().measure() | ginis


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Exponentiation))

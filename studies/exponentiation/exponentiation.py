"""x^y mod p, a study of our own: does it help to train on (y, x) wherever there is (x, y), and what
of number theory does the embedding know? (Learning Modular Exponentiation with Transformers, Africa
et al. 2025, arXiv 2506.23679, is another experiment: digits, many moduli, operands drawn uniformly
or log-uniformly, 3 · 10⁶ updates. It is not tested here.)

--reciprocal 1 draws pairs {x, y} for training. With a primitive root g, log x^y = y · log x mod
p - 1: which order of the elements 1 … p - 1 does the embedding know? The columns are Gini
coefficients of the norms of its Fourier coefficients (0: all alike, near 1: one frequency) in three
orders: gini_log, by log_g; gini_plain, 1 to p - 1, as an exponent counts; gini_random, an order
drawn once, which shows what chance gives.

    python studies/exponentiation/exponentiation.py --recipe fast --op x_pow_y --p 59 \\
        --reciprocal 0 1 --seed 0 1 2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    reciprocal: int = grok.setting(0, "1: training has (y, x) with every (x, y)", "[0, 1]")

    def __post_init__(self):
        super().__post_init__()
        op = grok.OPS[self.op]
        if op.n or self.p < 3 or not grok.is_prime(self.p):
            raise grok.UsageError(
                f"--op {self.op} --p {self.p}: must be modulo an odd prime, as x_pow_y is"
            )
        if self.reciprocal and (op.y_from or self.outliers):
            raise grok.UsageError("--reciprocal 1: goes with all pairs, and without outliers")


def orders(p):
    """The elements 1 … p - 1 in three orders: {name: (p - 1,)}."""
    powers = ([pow(g, i, p) for i in range(p - 1)] for g in range(1, p))
    by_log = next(order for order in powers if len(set(order)) == p - 1)
    random = 1 + grok.permutation(p - 1, 0, "order")
    return dict(gini_log=by_log, gini_plain=list(range(1, p)), gini_random=random.tolist())


def gini(embed):
    """Gini coefficient of the norms of the Fourier coefficients of rows (n, D)."""
    norms = torch.fft.rfft(embed, dim=0)[1:].norm(dim=1).sort().values
    n = len(norms)
    ranks = 2 * torch.arange(n, device=embed.device) + 1 - n
    return (ranks * norms).sum() / (n * norms.sum())


class Exponentiation(grok.Run):
    def build_data(self):
        inputs, labels, train, val = super().build_data()
        c, (x, y) = self.config, inputs
        if not c.reciprocal:
            return inputs, labels, train, val
        rows = torch.cat([train, val])  # all, in random order
        first = rows[x[rows] <= y[rows]]
        mirror = y[first] * c.p + x[first]  # of (x, y) it is (y, x)
        count = torch.cumsum(1 + (x[first] < y[first]).long(), 0)
        some = int((count < c.train_size).sum()) + 1  # at most one equation more
        trained = torch.zeros_like(labels, dtype=torch.bool)
        trained[first[:some]] = True
        trained[mirror[:some]] = True
        return inputs, labels, rows[trained[rows]], rows[~trained[rows]]

    @torch.no_grad()
    def measure(self, model):
        embed = model.embed.weight
        ginis = {name: gini(embed[order]) for name, order in orders(self.config.p).items()}
        return super().measure(model) | ginis


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Exponentiation))

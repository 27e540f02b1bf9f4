"""Local grokking (Li et al. 2025, arXiv 2506.21551): in the pretraining of a large language model
there is no one moment of grokking. Groups of data are memorised at different times and generalise
at different times, the late ones late. This is that part of it in one table; their measures of
routing are in experts.py.

Kept for each equation: the update of the evaluation since which every evaluation found it right.
memorised_10, _50, _90: by which update 10, 50 and 90 % of the training equations were so;
generalised_10, _50, _90: of the validation equations. An equation that is wrong counts as right
only now: a value equal to `step` says not yet. --parts 2 adds the same for the equations with even
y, generalised_50_y0 and so on, and with odd y, generalised_50_y1. local_x, local_y, local_z: over
the groups of equations that have x (or y, or z) in common, the correlation of the mean update of a
group's training equations with that of its validation equations; 0 where there is none to compute.
If an equation's time has nothing to do with its group, it is 0 ± 1/√p; if it depends on the
partners alone, it is negative, as the two sets share these out.

    python studies/llm.py --recipe fast --frac 0.3 0.5 --eval-every 5 --seed 0 1 2 --out runs/llm
    python studies/llm.py --recipe fast --op x_div_y_if_y_odd_else_x_minus_y --parts 2

A map of the table: grok.read("runs/llm", seed=0, frac=0.5)[0].state["since"] (N,), 0 where wrong.
"""

import itertools
import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    parts: int = grok.setting(1, "columns of their own for y mod this, from 2 on", "[1, 9]", True)


def by_group(when, mask, group, n):
    """The mean of `when` over each group's equations in `mask`, (R, n), and their number. Sums of
    whole numbers are exact in float64, in any order."""
    zeros = torch.zeros(len(when), n, dtype=torch.float64)
    count = zeros.scatter_add(1, group, mask.double())
    return zeros.scatter_add(1, group, when * mask) / count.clamp(min=1), count


def correlation(a, b, among):
    """Pearson's, of a and b (R, n) over `among`: (R,)."""
    a, b = (
        among * (t - (t * among).sum(1, keepdim=True) / among.sum(1, keepdim=True).clamp(min=1))
        for t in (a, b)
    )
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)


class LocalGrokking(grok.Stack):
    state = *grok.Stack.state, "since"  # (R, N): an update, or 0 where the last answer was wrong

    def initial(self):
        self.since = torch.zeros_like(self.x, dtype=torch.float32)
        return super().initial()

    def measure(self):
        columns, now = super().measure(), torch.tensor(float(self.step))
        right = self.hit > 0
        self.since = torch.where(self.since > 0, self.since, now) * right
        when = torch.where(right, self.since, now).cpu().double()
        sets, q = dict(memorised=self.train.cpu(), generalised=~self.train.cpu()), [0.1, 0.5, 0.9]
        y, n = self.y.cpu(), self.config.parts
        parts = {"": y >= 0} | {f"_y{k}": y % n == k for k in range(n) if n > 1}
        for (name, mask), (part, among) in itertools.product(sets.items(), parts.items()):
            times = when.where(mask & among, torch.nan).nanquantile(torch.tensor(q).double(), 1)
            columns |= {f"{name}_{100 * share:.0f}{part}": time for share, time in zip(q, times)}
        for name, group in dict(x=self.x, y=self.y, z=self.labels).items():
            (a, m), (b, n) = (
                by_group(when, mask, group.cpu(), self.model.n) for mask in sets.values()
            )
            columns[f"local_{name}"] = correlation(a, b, (m > 0) & (n > 0))
        return columns


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=LocalGrokking))

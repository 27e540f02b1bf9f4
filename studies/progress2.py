"""Progress measures for grokking via mechanistic interpretability (Nanda et al. 2023, arXiv
2301.05217): before validation accuracy jumps, a solution grows that turns by x and by y at a few
key frequencies w. Columns: embed_gini, the Gini coefficient of the norms of the embedding's Fourier
coefficients (0: all alike, near 1: just one); restricted_loss, on all equations, when of how logits
depend on x and y just cos and sin of w(x + y) are left; excluded_loss, on training equations, when
just these are taken away. And med, the mean ‖e(i + 1) - e(i)‖ of Grokking-Insight (Gu et al. 2025,
arXiv 2504.03162). Key are the --keys largest frequencies of the embedding as it is or, with
--keys-of DIR and in the paper, as it is at the end of the same run, in DIR. For x · y and x / y mod
a prime elements are in the order of their logarithms, to the least primitive root; 0 has none and
is left out. Other operations are refused. Cost: two evaluations.

    python studies/progress.py --op x_plus_y --recipe fast --seed 0 1 2 --out runs/first
    python studies/progress.py --op x_plus_y --recipe fast --seed 0 1 2 --keys-of runs/first
"""

import functools
import sys
from dataclasses import dataclass, fields

import grok2 as grok
import torch

PRODUCTS, NAMES = ["x_mul_y", "x_div_y"], ["embed_gini", "restricted_loss", "excluded_loss", "med"]


@dataclass(frozen=True)
class Config(grok.Config):
    keys: int = grok.setting(5, "key frequencies", "[1, inf)")
    keys_of: str = grok.setting("none", "run folder whose weights name them", None, shared=False)

    def __post_init__(self):
        super().__post_init__()
        prime = self.p > 2 and all(self.p % d for d in range(2, self.p))
        known = ["x_plus_y", "x_minus_y"] + prime * PRODUCTS
        grok.refuse(
            self.op not in known,
            f"--op {self.op} --p {self.p}: must be x_plus_y, "
            "x_minus_y or, with an odd prime, x_mul_y, x_div_y",
        )
        same = {f.name: getattr(self, f.name) for f in fields(grok.Config) if f.metadata["fixed"]}
        given = self.keys_of != "none"
        named_by = [run for run in grok.read(self.keys_of, **same) if run.state] if given else []
        grok.refuse(given and not named_by, f"--keys-of {self.keys_of}: must hold this run")
        object.__setattr__(self, "named_by", named_by)  # no setting: the Run that one names


@functools.cache
def cycle(op, p):
    """Elements (n,), in an order in which positions add up, and rows (n, n) with each as answer."""
    powers = ([pow(root, i, p) for i in range(p - 1)] for root in range(1, p))
    order = next(s for s in powers if len(set(s)) == p - 1) if op in PRODUCTS else range(p)
    order, z = torch.tensor(order), torch.from_numpy(grok.equations(op, p)[2])
    n, by_answer = len(order), z.argsort(stable=True)  # those of 0, if left out, come first
    return order, by_answer[-n * n :].view(n, n)[order - order.min()]


class Progress(grok.Stack):
    @torch.no_grad()
    def progress(self, i):
        """The columns of run i. cos and sin of w(x + y) are functions of the answer: the logits'
        part along them is that of their means over the equations of each answer."""
        config, W = self.runs[i].config, self.W[i : i + 1]
        order, rows = (t.to(self.device) for t in cycle(config.op, config.p))
        x, y, labels, train = (t[i, rows] for t in (self.x, self.y, self.labels, self.train))
        n, chunks = len(order), torch.arange(len(order)).split(max(1, 512 // len(order)))
        logits = lambda s: self.model(W, x[s].view(1, -1), y[s].view(1, -1)).view(*x[s].shape, -1)
        last = config.named_by[0].state["W"][None].to(self.device) if config.named_by else W
        now, last = (self.model.weights(w)["embed"][0, order] for w in (W, last))  # (n, D)
        norms, by = (torch.fft.rfft(e, dim=0)[1:].norm(dim=1) for e in (now, last))  # (n // 2,)
        key = by.topk(min(config.keys, n // 2)).indices + 1
        means = torch.cat([logits(s).mean(1) for s in chunks])  # (n, V)
        waves = torch.fft.rfft(means, dim=0)
        turning = torch.fft.irfft(torch.zeros_like(waves).index_copy(0, key, waves[key]), n, 0)
        restricted = grok.cross_entropy((turning + means.mean(0))[None], order[None]).mean()
        excluded = [grok.cross_entropy(logits(s) - turning[s, None], labels[s]) for s in chunks]
        ranks = 2 * torch.arange(n // 2, device=self.device) + 1 - n // 2
        gini = (ranks * norms.sort().values).sum() / (n // 2 * norms.sum())
        excluded = (torch.cat(excluded) * train).sum() / train.sum().clamp(min=1)
        return torch.stack([gini, restricted, excluded, (now[1:] - now[:-1]).norm(dim=1).mean()])

    def measure(self):
        values = torch.stack([self.progress(i) for i in range(len(self.runs))], 1)  # (4, R)
        return super().measure() | dict(zip(NAMES, values))


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Progress))

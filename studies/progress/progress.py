"""Progress measures for grokking via mechanistic interpretability (Nanda et al. 2023, arXiv
2301.05217): long before validation accuracy jumps a solution grows that turns by x and by y, at a
few key frequencies w. Columns:

    embed_gini       Gini coefficient of the norms of the embedding's Fourier coefficients
    restricted_loss  on all equations, if logits had only their cos and sin of w(x + y)
    excluded_loss    on training equations, if logits had all but these
    med              mean ‖e(i + 1) - e(i)‖ of the embedding (Gu et al. 2025, arXiv 2504.03162)

Key are the --keys largest frequencies of the embedding as it is or, with --keys-of DIR and in the
paper, as it is at the end of the same run, in DIR. For x · y and x / y elements are in the order of
their logarithms; 0 has none and is left out.

    python studies/progress/progress.py --net theirs --op x_plus_y --p 113 --frac 0.3 --batch-size 0
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
import torch.nn.functional as F

PRODUCTS = "x_mul_y", "x_div_y"


@dataclass(frozen=True)
class Config(grok.Config):
    keys: int = grok.setting(5, "key frequencies", "[1, inf)")
    keys_of: str = grok.setting("none", "folder of the same runs, whose last weights name them")
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        products = PRODUCTS if self.p > 2 and grok.is_prime(self.p) else ()
        known = "x_plus_y", "x_minus_y", *products
        if self.op not in known:
            raise grok.UsageError(f"--op {self.op}: must be one of {', '.join(known)}")
        if self.net == "theirs":
            models.refuse_unread(self, *models.NormlessTransformer.unread)


def cycle(op, p):
    """Elements (n,) in an order in which positions add up, and for each of them, as an answer, the
    numbers of its equations: (n, n)."""
    order = torch.arange(p)
    if op in PRODUCTS:
        powers = ([pow(root, i, p) for i in range(p - 1)] for root in range(1, p))
        order = torch.tensor(next(s for s in powers if len(set(s)) == p - 1))
    z = torch.from_numpy(grok.equations(op, p)[2])
    return order, torch.stack([(z == answer).nonzero().flatten() for answer in order])


def spectrum(embedding):
    """The norms (n // 2,) of the Fourier coefficients of an embedding (n, D), from frequency 1."""
    return torch.fft.rfft(embedding, dim=0)[1:].norm(dim=1)


def gini(sizes):
    """Of sizes (n,): 0 if all are alike, 1 - 1/n if there is just one."""
    n = len(sizes)
    ranks = 2 * torch.arange(n, device=sizes.device) + 1 - n
    return (ranks * sizes.sort().values).sum() / (n * sizes.sum())


class Progress(grok.Run):
    saved = *grok.Run.saved, "named"

    def __init__(self, config):
        super().__init__(config)
        order, rows = cycle(config.op, config.p)
        self.order, self.rows = order.to(self.device), rows.to(self.device)
        self.named = None  # the embedding that names the keys
        if config.keys_of != "none":
            same = config.fixed() | dict(keys_of="none")
            weights = models.last_weights("--keys-of", config.keys_of, **same)
            self.named = weights["embed.weight"].to(self.device)

    def build_model(self):
        c = self.config
        if c.net == "theirs":
            return models.NormlessTransformer(c.p, c.width, c.heads)
        return super().build_model()

    def loss(self, logits, labels):
        return super().loss(logits.double() if self.config.net == "theirs" else logits, labels)

    @torch.no_grad()
    def measure(self, model):
        n = len(self.order)
        now = model.embed.weight[self.order]
        named = now if self.named is None else self.named[self.order]
        keys = spectrum(named).topk(min(self.config.keys, n // 2)).indices + 1
        x, y = self.inputs
        logits = torch.cat([model(x[r], y[r]) for r in self.rows.flatten().split(2**11)])
        logits = logits.view(n, n, -1)  # of each answer, its equations
        means = logits.mean(1)  # cos and sin of w(x + y) are functions of the answer
        waves = torch.fft.rfft(means, dim=0)
        key_waves = torch.zeros_like(waves).index_copy(0, keys, waves[keys])
        turning = torch.fft.irfft(key_waves, n, dim=0)  # (n, V)
        labels, trained = self.labels[self.rows], torch.isin(self.rows, self.train_rows)
        rest = logits - turning[:, None]
        return super().measure(model) | dict(
            embed_gini=gini(spectrum(now)),
            restricted_loss=F.cross_entropy(turning + means.mean(0), self.order),
            excluded_loss=F.cross_entropy(rest[trained], labels[trained]),
            med=now.diff(dim=0).norm(dim=1).mean(),
        )


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Progress))

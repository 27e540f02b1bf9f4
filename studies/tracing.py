"""Tracing the path to grokking: embeddings, dropout, and network activation (Salah and Yevick 2025,
arXiv 2507.11645): when a network begins to generalise, its validation accuracy under dropout varies
most, fewer hidden units are never active, and a pattern grows in the embeddings' cosines.

Columns: dropout_acc and dropout_var, mean and variance (unbiased) of the accuracy over --passes
passes with --mc-dropout on the feed-forward branch, on at most 512 validation equations, the same
throughout; inactive, the share of ReLU units that no equation of the table makes active at any
position; embed_cosine, the mean |cosine| between two elements' embeddings. Each equation has a mask
of its own, as in training: so if each of B is right with probability a, the variance is
a (1 - a) / B, and largest at a = 1/2. The cost is about one evaluation.

    python studies/tracing.py --op x_plus_y --recipe fast --seed 0 1 2
"""

import itertools
import math
import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    mc_dropout: float = grok.setting(0.3, "dropout of the passes", "[0, 1)")
    passes: int = grok.setting(10, "such passes in an evaluation", "[2, inf)", shared=True)


class Tracing(grok.Stack):
    @torch.no_grad()
    def accuracies(self, i):
        """(passes,), of run i. All that is random follows from seed and update, as in training, and
        from numbers of its own: no update of training is number 0, and none has the 1."""
        c, W, held_out = self.runs[i].config, self.W[i : i + 1], (~self.train[i]).nonzero()[:, 0]
        rows = grok.rng(c.seed, "noise", 0, 1).permutation(held_out.cpu().numpy())[:512]
        x, y, labels = (table[i : i + 1, rows] for table in (self.x, self.y, self.labels))
        seed = grok.rng(c.seed, "noise", self.step, 1).integers(2**62).item()
        generator, kept = torch.Generator(self.device).manual_seed(seed), 1 - c.mc_dropout
        drop = lambda h: h * torch.empty_like(h).bernoulli_(kept, generator=generator) / kept
        hits = [self.model(W, x, y, drop).argmax(2) == labels for _ in range(c.passes)]
        return torch.cat(hits).float().mean(1)

    def measure(self):
        L, relu, active, calls = self.model.layers, self.model.activation, {}, itertools.count()

        def watched(h):  # (R, M, T, 4 D): of each layer x ∘ and then y =, but of the last only =
            layer = next(calls) % (2 * L - 1) // 2
            active[layer] = active.get(layer, False) | (h > 0).any(2).any(1)
            return relu(h)

        self.model.activation = watched
        columns = super().measure()
        self.model.activation = relu
        accuracies = torch.stack([self.accuracies(i) for i in range(len(self.runs))])
        embed = self.model.weights(self.W)["embed"][:, : self.model.n]  # (R, n, D)
        embed = torch.nn.functional.normalize(embed, dim=2)
        cosines = torch.triu(embed @ embed.mT, 1).abs().sum((1, 2))  # (R,), over n(n-1)/2
        return columns | dict(
            dropout_acc=accuracies.mean(1),
            dropout_var=accuracies.var(1),
            inactive=1 - torch.stack(list(active.values()), 1).float().mean((1, 2)),
            embed_cosine=cosines / math.comb(self.model.n, 2),
        )


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Tracing))

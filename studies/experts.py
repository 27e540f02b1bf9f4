"""Routing in a mixture of experts (Li et al. 2025, arXiv 2506.21551): while a language model begins
to generalise, its data go through more similar experts, and smoother from layer to layer. Here a
feed-forward layer is cut into --experts parts; a position uses the --top-k with the greatest shares
of a softmax, each times its share. Columns, of the position "=":

route_distance: mean edit distance of two training equations' experts by layer, then share;
route_distance_z: of two with one answer. route_load: greatest share of equations with one expert
first. route_consistency: mean cosine of successive layers' sums of router columns times shares.

    python studies/experts.py --recipe fast --layers 2 --experts 1 4 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    experts: int = grok.setting(1, "experts in each feed-forward layer", "[1, 64]", shared=True)
    top_k: int = grok.setting(1, "of which a position uses so many", "[1, 64]", shared=True)

    def model(self):
        return Experts(self) if self.experts > 1 else super().model()


class Experts(grok.Transformer):
    """A Transformer whose `up` has the router's columns first: (D, experts + hidden units)."""

    def __init__(self, c):  # a Config
        super().__init__(c.sizes()[0], c.layers, c.width, c.heads, c.position_scale)
        self.experts, self.top_k = c.experts, min(c.top_k, c.experts)
        self.activation, self.seen = self.mixture, []
        units = c.experts * max(1, 4 * c.width // c.experts)
        for i in range(c.layers):
            self.shapes |= {f"{i}.up": (c.width, c.experts + units), f"{i}.down": (units, c.width)}
        self.sizes = [rows * columns for rows, columns in self.shapes.values()]

    def mixture(self, h):
        """(R, M, T, hidden) of h (R, M, T, experts + hidden), in place of a ReLU."""
        shares, hidden = h[..., : self.experts].softmax(3), h[..., self.experts :].relu()
        shares = shares * (shares >= shares.topk(self.top_k).values[..., -1:])
        self.seen += [] if h.requires_grad else [shares[:, :, -1]]  # (R, M, experts)
        return (hidden.unflatten(3, (self.experts, -1)) * shares.unsqueeze(4)).flatten(3)


def edit_distance(a, b):
    """Levenshtein's, of sequences a and b (N, L) of symbols: (N,)."""
    above = [torch.full(a.shape[:1], j) for j in range(b.shape[1] + 1)]
    for x in a.T:
        row = [above[0] + 1]
        for j, y in enumerate(b.T):
            row.append(torch.minimum(above[j] + (x != y), torch.minimum(above[j + 1], row[j]) + 1))
        above = row
    return above[-1].float()


class Routing(grok.Stack):
    def measure(self):
        model, L, self.model.seen = self.model, self.model.layers, []
        columns, E, found = super().measure(), self.config.experts, []
        if E == 1:
            return columns
        # Of each chunk of the table a layer sees "x ∘" and then "y =", the last one "=" alone.
        seen = [model.seen[min(2 * i + 1, 2 * L - 2) :: 2 * L - 1] for i in range(L)]
        seen, weights = [torch.cat(s, 1).cpu() for s in seen], model.weights(self.W.cpu())
        for i, m in enumerate(self.train.cpu()):
            rows = grok.rng(self.runs[i].config.seed, "noise", 0, 2).permutation(m.nonzero()[:, 0])
            z, shares = self.labels[i, rows].cpu(), [s[i, rows] for s in seen]
            towards = [s @ weights[f"{k}.up"][i, :, :E].T for k, s in enumerate(shares)]
            cosines = [torch.cosine_similarity(*two).mean() for two in zip(towards, towards[1:])]
            path = torch.cat([s.topk(model.top_k).indices for s in shares], 1)
            load = [s.argmax(1).bincount().max() / len(rows) for s in shares]
            by_z = z.argsort(stable=True)  # beside each another with its answer
            same = edit_distance(path[by_z], path[by_z.roll(1)])[z[by_z] == z[by_z.roll(1)]]
            found.append(
                [
                    edit_distance(path, path.roll(1, 0)).mean(),
                    same.mean(),
                    sum(load) / L,
                    sum(cosines) / max(1, L - 1),
                ]
            )
        names = "distance", "distance_z", "load", "consistency"
        return columns | {f"route_{n}": torch.tensor(c) for n, c in zip(names, zip(*found))}


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Routing))

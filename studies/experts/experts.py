"""Routing in a mixture of experts, an analogy to the pretraining of large language models (Li et
al. 2025, arXiv 2506.21551): while such a model begins to generalise, its data go through more
similar experts, and smoother from layer to layer. Here the feed-forward layer is cut into --experts
parts; a position uses the --top-k with the greatest shares of a softmax, each times its share.
Columns, of the position "=" of training equations:

    route_distance     mean edit distance of two equations' experts, by layer, then share
    route_distance_z   of two with one answer
    route_load         greatest share of equations with one expert first, mean over layers
    route_consistency  mean cosine of successive layers' sums of router weights times shares

    python studies/experts/experts.py --recipe fast --layers 2 --experts 1 4 --seed 0 1 2
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config(grok.Config):
    experts: int = grok.setting(1, "experts in each feed-forward layer", "[1, 64]")
    top_k: int = grok.setting(1, "of which a position uses so many", "[1, 64]")


class Mixture(nn.Module):
    """A feed-forward layer of `units` ReLUs in as many parts as there are experts."""

    def __init__(self, width, units, experts, top_k):
        super().__init__()
        self.experts, self.top_k = experts, min(top_k, experts)
        units = experts * max(1, units // experts)
        self.router = nn.Linear(width, experts, bias=False)
        self.shares = nn.Identity()  # a place for hooks
        self.up = nn.Linear(width, units, bias=False)
        self.down = nn.Linear(units, width, bias=False)

    def forward(self, h):
        shares = self.router(h).softmax(-1)
        least = shares.topk(self.top_k).values[..., -1:]
        shares = self.shares(shares * (shares >= least))  # (B, T, experts)
        hidden = F.relu(self.up(h)).unflatten(-1, (self.experts, -1))
        return self.down((hidden * shares.unsqueeze(-1)).flatten(-2))


class MixtureBlock(grok.Block):
    def __init__(self, width, heads, dropout, experts, top_k):
        super().__init__(width, heads, dropout)
        self.mixture = Mixture(width, 4 * width, experts, top_k)
        del self.up, self.down  # which are in the mixture

    def forward(self, h, context=None):
        keys, values = (self.key_value(h) if context is None else context).chunk(2, dim=2)
        h = self.norm1(h + self.out(self.attention(self.query(h), keys, values)))
        return self.norm2(h + self.dropout(self.mixture(h)))


def edit_distance(a, b):
    """Levenshtein's, of sequences a and b (N, L) of symbols: (N,)."""
    above = [torch.full(a.shape[:1], j) for j in range(b.shape[1] + 1)]
    for x in a.T:
        row = [above[0] + 1]
        for j, y in enumerate(b.T):
            replaced = above[j] + (x != y)
            row.append(torch.minimum(replaced, torch.minimum(above[j + 1], row[j]) + 1))
        above = row
    return above[-1].float()


class Routing(grok.Run):
    @torch.no_grad()
    def build_model(self):
        c, model = self.config, super().build_model()
        if c.experts == 1:
            return model
        blocks = (
            MixtureBlock(c.width, c.heads, c.dropout, c.experts, c.top_k) for _ in model.blocks
        )
        model.blocks = nn.ModuleList(blocks)
        for module in model.blocks.modules():
            if isinstance(module, nn.Linear):
                module.weight *= c.init_scale
        return model

    def shares(self, model, rows):
        """Of each layer, the shares of its experts (B, experts) at "=" of some equations."""
        seen = []
        places = [block.mixture.shares for block in model.blocks]
        keep = [p.register_forward_hook(lambda m, i, out: seen.append(out[:, -1])) for p in places]
        model(*(t[rows] for t in self.inputs))
        for handle in keep:
            handle.remove()
        return [s.cpu() for s in seen]

    @torch.no_grad()
    def measure(self, model):
        columns = super().measure(model)
        if self.config.experts == 1:
            return columns
        rows = self.train_rows  # in random order, so that neighbours are a random pair
        layers = self.shares(model, rows)
        routers = [block.mixture.router.weight.cpu() for block in model.blocks]
        towards = [s @ router for s, router in zip(layers, routers, strict=True)]
        pairs = itertools.pairwise(towards)
        cosines = [torch.cosine_similarity(a, b).mean() for a, b in pairs] or [torch.tensor(0.0)]
        top_k = min(self.config.top_k, self.config.experts)
        path = torch.cat([s.topk(top_k).indices for s in layers], dim=1)
        labels = self.labels[rows].cpu()
        by_z = labels.argsort(stable=True)  # beside each another with its answer
        same = labels[by_z] == labels[by_z.roll(1)]
        load = [s.argmax(1).bincount().max() / len(rows) for s in layers]
        return columns | dict(
            route_distance=edit_distance(path, path.roll(1, 0)).mean(),
            route_distance_z=edit_distance(path[by_z], path[by_z.roll(1)])[same].mean(),
            route_load=torch.stack(load).mean(),
            route_consistency=torch.stack(cosines).mean(),
        )


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Routing))

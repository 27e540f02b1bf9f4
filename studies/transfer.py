"""GrokTransfer (Xu et al. 2025, arXiv 2504.13292): a large model whose embedding starts as that of
a small one, which saw the same training equations, generalises without delay; both together take a
fifth of its time. The embedding is E = A·B: A starts as the small model's, B at random, and both
are trained. A row with --transfer none is a control, in a stack of its own; with --rank as well, it
is the work's other control, A at random. The time of the small runs is in their metrics.csv.

    python studies/grok2.py --recipe fast --width 32 --until 0.3 --seed 0 1 2 --out runs/small
    python studies/transfer.py --recipe fast --transfer none runs/small --seed 0 1 2 --stack 1
    python studies/transfer.py --recipe fast --transfer none --rank 32 --seed 0 1 2 --stack 1
"""

import math
import sys
from dataclasses import dataclass

import grok2 as grok


@dataclass(frozen=True)
class Config(grok.Config):
    transfer: str = grok.setting(
        "none", "run folder of small models, which has to stay, or none", None
    )
    rank: int = grok.setting(
        0, "columns of A; 0 = as in --transfer, with none no A and B", "[0, 65536]", shared=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.transfer != "none" and not self.rank:
            object.__setattr__(self, "rank", self.small().config.width)

    def small(self):
        """The run in --transfer with the same training equations. Raises UsageError."""
        same = {name: getattr(self, name) for name in ("op", "p", "frac", "seed", "outliers")}
        same |= {"width": self.rank} if self.rank else {}
        runs = [run for run in grok.read(self.transfer, **same) if run.state]
        grok.refuse(
            len(runs) != 1,
            f"--transfer {self.transfer}: has {len(runs)} trained runs, "
            f"not one, of {', '.join(f'{name} {value}' for name, value in same.items())}",
        )
        return runs[0]

    def model(self):
        shape = self.sizes()[0], self.layers, self.width, self.heads, self.position_scale
        return Factored(self.rank, *shape) if self.rank else super().model()


class Factored(grok.Transformer):
    """Its weights hold A as "embed" and B as "lift"; weights() gives the product as "embed"."""

    def __init__(self, rank, *shape):
        super().__init__(*shape)
        V, D = self.shapes["embed"]
        self.shapes |= {"embed": (V, rank), "lift": (rank, D)}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]

    def weights(self, W):
        w = super().weights(W)
        return w | {"embed": w["embed"] @ w["lift"]}


class Transfer(grok.Stack):
    def initial(self):
        W = super().initial()
        for row, run in zip(W, self.runs):
            if run.config.transfer != "none":
                small = run.config.small()
                A = small.config.model().weights(small.state["W"][None])["embed"].flatten()
                row[: len(A)] = A  # the embedding is the first of the weights
        return W


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Transfer))

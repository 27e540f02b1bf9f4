"""GrokTransfer (Xu et al. 2025, arXiv 2504.13292): a large model whose embedding starts as that of
a small one, which saw the same training equations and has generalised, generalises without delay;
both together take a fifth of its time. The embedding is E = A · B: A starts as the small model's, B
at random, and both are trained.

--net mlp is theirs: embeddings of --embed numbers, side by side, then layers of the widths
--hidden, without biases. Controls: --transfer none, from scratch; with --rank as well, A at random;
a small model that has not generalised.

    TASK="--net mlp --op x_plus_y --p 113 --frac 0.25 --batch-size 0 --beta2 0.999 --seed 10"
    SMALL="--embed 4 --hidden 16 --lr 0.03 --weight-decay 0.3"
    LARGE="--init-scale 0.3 --lr 0.005 --weight-decay 3 --steps 600 --eval-every 10"
    python studies/transfer/transfer.py $TASK $SMALL --until 0.6 --out runs/weak
    python studies/transfer/transfer.py $TASK $LARGE --transfer runs/weak
    python studies/transfer/transfer.py $TASK $LARGE --rank 0 4
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
from torch import nn


@dataclass(frozen=True)
class Config(grok.Config):
    transfer: str = grok.setting("none", "folder of small models, or none")
    rank: int = grok.setting(0, "columns of a random A; 0 = an embedding as usual", "[0, 65536]")
    net: str = grok.setting("grok", "grok.py's network or theirs, an MLP", ("grok", "mlp"))
    embed: int = grok.setting(128, "width of the MLP's embeddings", "[1, 65536]")
    hidden: tuple = grok.setting((512, 512), "widths of the MLP's layers", "[1, 65536]")

    def __post_init__(self):
        super().__post_init__()
        if self.net == "mlp":
            models.refuse_unread(self, *models.MLP.unread, "width")
        else:
            models.refuse_unread(self, "embed", "hidden")
        if self.transfer != "none" and self.rank:
            raise grok.UsageError(f"--rank {self.rank}: --transfer names A, leave one of them out")


class Transfer(grok.Run):
    @torch.no_grad()
    def build_model(self):
        c = self.config
        if c.net == "mlp":
            model = models.MLP(c.elements, c.hidden, embed=c.embed, bias=False)
            place = model.first  # where its embedding is
            for w in model.parameters():
                w *= c.init_scale
        else:
            model = place = super().build_model()
        if small := self.small_embedding():
            place.embed = self.factored(place.embed, small[0].shape[1])
            first = place.embed[0].weight
            shared = min(len(first), len(small[0]))  # one may lack the tokens after the elements
            first[:shared] = small[0][:shared]
        elif c.rank:
            place.embed = self.factored(place.embed, c.rank)
        return model

    def factored(self, embedding, rank):
        """E = A · B, (V, rank) times (rank, D), with A and B drawn as the other weights are."""
        V, D = embedding.weight.shape
        factors = nn.Sequential(nn.Embedding(V, rank), nn.Linear(rank, D, bias=False))
        for w in factors.parameters():
            w *= self.config.init_scale
        factors[0].weight *= self.config.embed_init_scale
        return factors

    def small_embedding(self):
        """[the embedding (V, rank) of the small model that saw the same equations], or []."""
        c = self.config
        if c.transfer == "none":
            return []
        same = {name: c.fixed()[name] for name in ("op", "p", "frac", "seed", "outliers")}
        weights = models.last_weights("--transfer", c.transfer, **same)
        found = [w for name, w in weights.items() if name.endswith("embed.weight")]
        if not found:
            raise grok.UsageError(f"--transfer {c.transfer}: its embedding is a product itself")
        return found


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Transfer))

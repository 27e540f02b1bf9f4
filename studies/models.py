"""The networks of the works reproduced here, as plain modules that give logits of equations.

    MLP                  EGD's, ⟂Grad's, lazy to rich's, the embedding rate's, and others'
    SummedMLP            the lottery ticket's: two linear layers after the ReLU
    NormlessTransformer  Nanda et al.'s, Omnigrok's, Varma et al.'s: one layer, no LayerNorm
    GrokfastTransformer  Grokfast's and NeuralGrok's: pre-norm, GELU, biases, learned positions

And what rooms share: refuse_unread, refuse_two_decays, last_weights, study.

Shapes: B batch, n elements, D width, H heads.
"""

import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import grok
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = dict(relu=F.relu, gelu=F.gelu, square=torch.square)


def refuse_unread(config: grok.Config, *names: str) -> None:
    """Raises UsageError if a setting that a network or an optimiser does not read is not at its
    default. One head is none: with it any width goes."""
    for name in names:
        value = getattr(config, name)
        if value != getattr(type(config), name) and (name, value) != ("heads", 1):
            raise grok.UsageError(f"{grok.flag(name)}: has no effect here; leave it out")


def refuse_two_decays(config: grok.Config) -> None:
    """Raises UsageError if weights have an L2 in their gradient and AdamW's decay beside it."""
    if config.l2 and config.weight_decay:
        raise grok.UsageError(f"--l2 {config.l2}: goes with --weight-decay 0")


def last_weights(flag: str, folder: str, **settings: object) -> dict[str, Tensor]:
    """The weights that the one run with these settings in a folder ended with, a state_dict.
    Raises UsageError, which names the flag, also if that run has not ended."""
    records = grok.read(folder, **settings)
    if len(records) != 1:
        wanted = ", ".join(f"{name} {value}" for name, value in settings.items())
        raise grok.UsageError(
            f"{flag} {folder}: must hold one run with {wanted}; it holds {len(records)}"
        )
    (record,) = records
    if not record.finished():
        raise grok.UsageError(f"{flag} {folder}: its run is at update {record.step}; end it first")
    return grok.read_checkpoint(record.folder)["state"]["model"]


def study(file: Path) -> tuple[type[grok.Config], type[grok.Run]]:
    """The Config and the Run of a study's file, or of grok.py: the last ones defined there. Raises
    UsageError."""
    sys.path.insert(0, str(file.resolve().parent))
    module = importlib.import_module(file.stem)
    own = [v for v in vars(module).values() if getattr(v, "__module__", None) == file.stem]
    classes = [v for v in own if isinstance(v, type)]
    configs, runs = ([c for c in classes if issubclass(c, k)] for k in (grok.Config, grok.Run))
    if not configs or not runs:
        raise grok.UsageError(f"{file}: has no Config and Run of a study")
    return configs[-1], runs[-1]


class OneHot(nn.Module):
    """nn.Linear of the one-hot codes of several elements, side by side, without the codes: one of
    them times a matrix is a row of it. `weight` (tokens · n, width) is nn.Linear's, transposed."""

    def __init__(self, n: int, width: int, tokens: int = 2, bias: bool = True) -> None:
        super().__init__()
        like = nn.Linear(tokens * n, width, bias)
        self.n = n
        self.weight = nn.Parameter(like.weight.detach().T.contiguous())
        self.bias = like.bias

    def forward(self, *elements: Tensor) -> Tensor:
        rows = [F.embedding(e + i * self.n, self.weight) for i, e in enumerate(elements)]
        return sum(rows) if self.bias is None else sum(rows) + self.bias


class Embedded(nn.Module):
    """nn.Linear of the embeddings of several elements, side by side or summed."""

    def __init__(
        self, n: int, width: int, embed: int, tokens: int = 2, summed: bool = False, **options: bool
    ) -> None:
        super().__init__()
        self.summed = summed
        self.embed = nn.Embedding(n, embed)
        self.up = nn.Linear(embed if summed else tokens * embed, width, **options)

    def forward(self, *elements: Tensor) -> Tensor:
        parts = [self.embed(e) for e in elements]
        return self.up(sum(parts) if self.summed else torch.cat(parts, dim=1))


class MLP(nn.Module):
    """Layers of the widths `hidden`, then one logit for each of `outputs` answers (all n). `embed`
    is the width of the elements' embeddings; 0 reads one-hot codes. Weights are PyTorch's."""

    unread = "layers", "heads", "dropout", "embed_init_scale", "position_scale"  # settings

    def __init__(
        self,
        n: int,
        hidden: Sequence[int],
        embed: int = 0,
        summed: bool = False,
        tokens: int = 2,
        outputs: int = 0,
        bias: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if not hidden:
            raise grok.UsageError("--hidden: must name a layer")
        self.activation = ACTIVATIONS[activation]
        if embed:
            self.first = Embedded(n, hidden[0], embed, tokens, summed, bias=bias)
        else:
            self.first = OneHot(n, hidden[0], tokens, bias)
        widths = [*hidden, outputs or n]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.rest = nn.ModuleList(nn.Linear(a, b, bias) for a, b in pairs)

    def forward(self, *elements: Tensor) -> Tensor:
        """Logits (B, outputs) of the elements (B,) of equations."""
        h = self.first(*elements)
        for layer in self.rest:
            h = layer(self.activation(h))
        return h


class SummedMLP(MLP):
    """Summed embeddings of 500 numbers, 48 ReLU units, then two matrices with nothing in between.
    Weights are N(0, 1 / fan-in); an embedding's fan-in is its one-hot code's."""

    def __init__(self, n: int) -> None:
        super().__init__(n, [48], embed=500, summed=True, outputs=500, bias=False)
        self.head = nn.Linear(500, n, bias=False)
        for w in self.parameters():
            fan_in = n if w is self.first.embed.weight else w.shape[1]
            nn.init.normal_(w, std=1 / math.sqrt(fan_in))

    def forward(self, *elements: Tensor) -> Tensor:
        return self.head(super().forward(*elements))


class NormlessTransformer(nn.Module):
    """One layer without LayerNorm that reads x y = and answers at "=", the element n. Attention has
    no biases, the feed-forward part has. The positions are learned. Weights are N(0, 1/D), the
    head's N(0, 1/outputs).

    Only "=" is read, and its query is the same for all equations. So scores and values are tables,
    a row for each element in each place, and an equation takes its rows."""

    unread = "layers", "dropout", "init_scale", "embed_init_scale", "position_scale"  # settings

    def __init__(self, n: int, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.n, self.heads = n, heads
        self.embed = nn.Embedding(n + 1, width)
        self.positions = nn.Parameter(torch.empty(3, width))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.head = nn.Linear(width, n + 1, bias=False)
        for name, w in self.named_parameters():
            variance = 1 / (n + 1) if name == "head.weight" else 1 / width
            nn.init.normal_(w, std=0 if name.endswith("bias") else math.sqrt(variance))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (B, n + 1) of the elements x and y (B,)."""
        tokens = [x, y, torch.full_like(x, self.n)]
        if self.embed._forward_hooks:  # which are to see a row for each equation
            return self.of_embeddings(self.embed(torch.stack(tokens, dim=1)))
        places = self.embed.weight + self.positions[:, None]  # (3, n + 1, D)
        scores, values = self.scores_and_values(places, places[2, self.n])
        return self.answer(
            torch.stack([F.embedding(t, s) for t, s in zip(tokens, scores, strict=True)], dim=1),
            torch.stack([F.embedding(t, v) for t, v in zip(tokens, values, strict=True)], dim=1),
            places[2, self.n],
        )

    def of_embeddings(self, embedded: Tensor) -> Tensor:
        """The same of the embedded tokens (B, 3, D) of each equation, without tables."""
        h = embedded + self.positions
        scores, values = self.scores_and_values(h, h[:, 2:])
        return self.answer(scores, values, h[:, 2])

    def scores_and_values(self, h: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """What "=", `last`, gives to h (…, D): scores (…, H) and values (…, D)."""
        query = self.query(last).unflatten(-1, (self.heads, -1))
        keys = self.key(h).unflatten(-1, (self.heads, -1))
        return (keys * query).sum(-1) / math.sqrt(query.shape[-1]), self.value(h)

    def answer(self, scores: Tensor, values: Tensor, last: Tensor) -> Tensor:
        """Logits from what "=" sees: scores (B, 3, H), values (B, 3, D), itself (B, D) or (D,)."""
        pattern = scores.softmax(dim=1).unsqueeze(-1)  # (B, 3, H, 1)
        attended = (pattern * values.unflatten(2, (self.heads, -1))).sum(1).flatten(1)
        h = last + self.out(attended)
        return self.head(h + self.down(F.relu(self.up(h))))


class GrokfastBlock(grok.Block):
    """Pre-norm, GELU, biases. As in the authors' code the sum goes on from the normalised input:
    h ← LN₁(h), then h + attention(h), then h + MLP(LN₂(h))."""

    def __init__(self, width: int, heads: int) -> None:
        nn.Module.__init__(self)  # with biases, so none of grok.Block's layers
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.keys_and_values = nn.Linear(width, 2 * width)
        self.pattern = nn.Identity()
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        for layer in (self.query, self.keys_and_values):  # as nn.MultiheadAttention's (3 D, D)
            bound = math.sqrt(6 / (4 * width))
            nn.init.uniform_(layer.weight, -bound, bound)
        for layer in (self.query, self.keys_and_values, self.out):
            nn.init.zeros_(layer.bias)

    def key_value(self, h: Tensor) -> Tensor:
        return self.keys_and_values(self.norm1(h))

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            context = self.key_value(h)
        keys, values = context.chunk(2, dim=2)
        h = self.norm1(h)
        h = h + self.out(self.attention(self.query(h), keys, values))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


class GrokfastTransformer(grok.CachedTransformer):
    """The decoder of Grokfast's code. Embeddings and positions are learned, from N(0, 1)."""

    unread = "dropout", "init_scale", "embed_init_scale", "position_scale"  # settings

    def __init__(self, n: int, layers: int = 2, width: int = 128, heads: int = 4) -> None:
        super().__init__(n, 0, width, heads)
        self.blocks = nn.ModuleList(GrokfastBlock(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n + 2, bias=False))
        del self.positions  # which were fixed
        self.positions = nn.Parameter(torch.randn(4, width))

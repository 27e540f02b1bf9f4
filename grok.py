# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "torch==2.13.0"]
# ///
# SPDX-License-Identifier: MIT
"""Grokking (Power et al. 2022, arXiv 2201.02177) in one file: a small transformer sees part of the
table of a binary operation, memorises it and, much later, suddenly knows the rest.

    python grok.py --op x_div_y --frac 0.5                 the paper's recipe: some minutes
    python grok.py --recipe fast --expect 0.99             the same jump in seconds, as a CI gate
    python grok.py --op s5_xy --frac 0.4 0.5 --seed 0 1 2  a sweep of six runs
    python grok.py --resume runs/DIR                       goes on, to the same metrics

Sections 1 to 5 are all of grokking: operations, settings, data, model, training. They stand alone
and can be copied out. Sections 6 and 7 are how it is recorded, resumed, swept and called.

Departures from the paper or its released code: the loss is on the answer alone, batches are all of
one size, warm-up starts at lr / 10, update noise is not scaled by Adam. As in that code: post-norm
blocks, no biases in linear maps, fixed positions, an untied head, decay on every parameter.

Shapes: B batch, T positions, D width, H heads, N equations of the table, V vocabulary.
"""

import argparse
import atexit
import contextlib
import csv
import functools
import gc
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import platform
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, Self

if "OMP_WAIT_POLICY" not in os.environ:  # read once, when torch is loaded: threads that wait for
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # each other must not spin beside other work
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__version__ = "3.0.0"


class UsageError(ValueError):
    """A mistake of the caller's, said in one line: what was given, and what would do."""

    def __init__(self, problem: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in problem))


# --- 1. Operations. To add one: grok.OPS["mine"] = grok.Op("x + 2y mod p", lambda x, y, p: ...) ---


class Op(NamedTuple):
    """A binary operation on the elements 0 … n-1."""

    formula: str
    function: Callable  # (x, y, p) -> z, int64 arrays of elements
    n: int | None = None  # number of elements; None: the modulus p
    y_from: int = 0  # least y of the domain; 1 leaves out division by 0
    prime: bool = False  # whether p must be prime


# S5: the permutations in lexicographic order; S5[x, y] is x first, then y: (x·y)[i] = y[x[i]]
PERMUTATIONS = {perm: number for number, perm in enumerate(itertools.permutations(range(5)))}
S5 = np.array([[PERMUTATIONS[tuple(y[i] for i in x)] for y in PERMUTATIONS] for x in PERMUTATIONS])
S5_INVERSE = S5.argmin(axis=1)  # x · x⁻¹ is the identity, element 0
power = np.vectorize(pow, otypes=[np.int64])  # power(x, y, p) = x^y mod p


def divide(x: np.ndarray, y: np.ndarray, p: int) -> np.ndarray:
    return x * power(np.arange(p), p - 2, p)[y] % p  # y⁻¹ = y^(p-2) mod a prime p (Fermat)


def divide_or_subtract(x: np.ndarray, y: np.ndarray, p: int) -> np.ndarray:
    return np.where(y % 2 == 1, divide(x, y, p), (x - y) % p)


OPS = {
    "x_plus_y": Op("x + y mod p", lambda x, y, p: (x + y) % p),
    "x_minus_y": Op("x - y mod p", lambda x, y, p: (x - y) % p),
    "x_mul_y": Op("x · y mod p", lambda x, y, p: x * y % p),
    "x_div_y": Op("x / y mod p", divide, y_from=1, prime=True),
    "x_div_y_if_y_odd_else_x_minus_y": Op(
        "x / y if y is odd, else x - y, mod p", divide_or_subtract, prime=True
    ),
    "x_pow_y": Op("x^y mod p, with 0^0 = 1", power),
    "x2_plus_y2": Op("x² + y² mod p", lambda x, y, p: (x**2 + y**2) % p),
    "x2_plus_xy_plus_y2": Op("x² + xy + y² mod p", lambda x, y, p: (x**2 + x * y + y**2) % p),
    "x2_plus_xy_plus_y2_plus_x": Op(
        "x² + xy + y² + x mod p", lambda x, y, p: (x**2 + x * y + y**2 + x) % p
    ),
    "x3_plus_xy": Op("x³ + xy mod p", lambda x, y, p: (x**3 + x * y) % p),
    "x3_plus_xy2_plus_y": Op("x³ + xy² + y mod p", lambda x, y, p: (x**3 + x * y**2 + y) % p),
    "s5_xy": Op("x · y in S5", lambda x, y, p: S5[x, y], n=120),
    "s5_xyxinv": Op("x · y · x⁻¹ in S5", lambda x, y, p: S5[S5[x, y], S5_INVERSE[x]], n=120),
    "s5_xyx": Op("x · y · x in S5", lambda x, y, p: S5[S5[x, y], x], n=120),
}


def equations(op: str, p: int = 97) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The table of an operation: int64 arrays x, y, z (N,), for each equation x ∘ y = z. Elements
    count from 0, those of S5 as in PERMUTATIONS. Raises UsageError if there is no such table."""
    config = Config(op=op, p=p)
    n, y_from = config.elements, OPS[op].y_from
    x, y = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(y_from, n), indexing="ij"))
    z = np.asarray(OPS[op].function(x.copy(), y.copy(), config.p))
    if z.shape != x.shape or z.dtype.kind not in "iu" or z.min() < 0 or z.max() >= n:
        raise UsageError(f"--op {op}: its function must give whole numbers in [0, {n - 1}]")
    return x, y, z.astype(np.int64)


# --- 2. Settings. A run is a Config; the command line is made of its fields. ----------------------


def setting(default: object, help: str, allowed: object = None, fixed: bool = True) -> Field:
    """A field of Config: a float, int, bool, str or tuple of ints. `allowed` is an interval of
    numbers, "(0, 1]", or the choices of a text. What is `fixed` makes the run what it is; the rest
    may change when it is resumed."""
    return field(default=default, metadata=dict(help=help, allowed=allowed, fixed=fixed))


@dataclass(frozen=True)
class Config:
    """All settings of a run; the defaults are the paper's. Raises UsageError."""

    op: str = setting("x_div_y", "operation, see --list-ops", OPS)
    p: int = setting(97, "modulus of the modular operations", "[2, 4096]")
    frac: float = setting(0.5, "fraction of the table to train on", "(0, 1)")
    seed: int = setting(0, "seed of split, weights, batches and noise", "[0, inf)")
    outliers: int = setting(0, "training answers replaced by random ones", "[0, inf)")

    layers: int = setting(2, "transformer blocks", "[1, 1024]")
    width: int = setting(128, "width of the residual stream", "[1, 65536]")
    heads: int = setting(4, "attention heads, which share the width", "[1, inf)")
    dropout: float = setting(0.0, "dropout on the feed-forward branch", "[0, 1)")
    init_scale: float = setting(1.0, "factor on all initial weights but LayerNorm's", "(0, inf)")
    embed_init_scale: float = setting(1.0, "further factor on the embedding's", "(0, inf)")
    position_scale: float = setting(1.0, "factor on the fixed positions", "[0, inf)")

    batch_size: int = setting(512, "equations in a batch at most; 0 = full batch", "[0, inf)")
    batch_frac: float = setting(0.5, "share of the training set in a batch at most", "(0, 1]")
    lr: float = setting(1e-3, "learning rate after warm-up", "(0, inf)")
    warmup: int = setting(10, "updates of linear warm-up", "[0, inf)")
    beta1: float = setting(0.9, "AdamW's decay rate of the gradient's mean", "[0, 1)")
    beta2: float = setting(0.98, "and of its square", "[0, 1)")
    eps: float = setting(1e-8, "AdamW's epsilon", "[0, inf)")
    weight_decay: float = setting(1.0, "decay per unit of lr, on every parameter", "[0, inf)")
    decay_to: str = setting(
        "origin",
        "what decay pulls to; init: first values; identity: LayerNorm's scales 1, else 0",
        ("origin", "init", "identity"),
    )
    weight_noise: float = setting(0.0, "σ of noise on the weights in training", "[0, inf)")
    update_noise: float = setting(0.0, "σ of noise on each update, in units of lr", "[0, inf)")
    grad_clip: float = setting(0.0, "greatest norm of the gradient; 0 = off", "[0, inf)")

    eval_every: int = setting(100, "updates between evaluations", "[1, inf)")
    steps: int = setting(100_000, "updates at most", "[1, inf)", fixed=False)
    until: float = setting(0.99, "validation accuracy to stop at; 0 = none", "[0, 1]", fixed=False)
    expect: float = setting(0.0, "status 1 if missed; raises --until", "[0, 1]", fixed=False)
    device: str = setting(
        "auto",
        "cpu, cuda, mps; auto: cuda if it is there",
        ("auto", "cpu", "cuda", "mps"),
        fixed=False,
    )
    threads: int = setting(0, "CPU threads; 0 = PyTorch's choice", "[0, 1024]", fixed=False)

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, checked(f, getattr(self, f.name)))
        if OPS[self.op].prime and not is_prime(self.p):
            nearest = sorted(filter(is_prime, range(4096)), key=lambda n: abs(n - self.p))[:2]
            near = ", ".join(map(str, sorted(nearest)))
            raise UsageError(f"--p {self.p}: {self.op} needs a prime modulus (nearest: {near})")
        if self.width % self.heads:
            raise UsageError(f"--heads {self.heads}: must divide --width {self.width}")
        size, some = self.table_size, self.train_size
        if not 0 < some < size:
            raise UsageError(f"--frac {self.frac}: must be some of {size} equations, is {some}")
        if self.outliers > some:
            raise UsageError(f"--outliers {self.outliers}: only {some} training answers")

    @classmethod
    def grid(cls, **settings: object) -> list[Self]:
        """The product of settings, each a value or several (a list, a range or an array)."""
        axes = [
            [value] if isinstance(value, (str, tuple)) or not np.iterable(value) else value
            for value in settings.values()
        ]
        product = itertools.product(*axes)
        return [cls(**dict(zip(settings, values, strict=True))) for values in product]

    @property
    def elements(self) -> int:
        return OPS[self.op].n or self.p

    @property
    def table_size(self) -> int:
        return self.elements * (self.elements - OPS[self.op].y_from)

    @property
    def train_size(self) -> int:
        return round(self.frac * self.table_size)

    def fixed(self) -> dict[str, object]:
        """The settings that make it the run it is; p is the number of elements: S5 ignores p."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["fixed"]}
        return kept | dict(p=self.elements)


FAST = dict(  # --recipe fast, where it is not the paper's
    layers=1,
    init_scale=3.0,
    embed_init_scale=0.1,
    position_scale=0.1,
    warmup=50,
    lr=6e-3,
    batch_size=2048,
    batch_frac=0.2,
    eps=5e-10,
    grad_clip=1e-5,
    decay_to="identity",
    steps=5000,
    eval_every=20,
)


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_number(kind: type, text: str, interval: str) -> int | float | None:
    """A text as an int or a float, or None if it is none, or not in the interval."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    try:
        exact = int(text) if kind is int and text.isdecimal() else float(text)
        value = kind(exact)
    except (ValueError, OverflowError):
        return None
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return value if value == exact and above and below else None


def checked(f: Field, given: object) -> object:
    """`given`, a value or a text, as a value of the field `f`. Raises UsageError."""
    if "allowed" not in f.metadata:
        raise UsageError(f"{flag(f.name)}: a setting is made by grok.setting")
    allowed, text = f.metadata["allowed"], str(given)
    kind = float if f.type in (float, "float") else type(f.default)
    interval = allowed or "(-inf, inf)"
    if kind is str:
        value = text if not allowed or text in allowed else None
        wanted = f"one of {', '.join(allowed or ())}"
    elif kind is bool:
        value = dict(true=True, false=False).get(text.lower())
        wanted = "true or false"
    elif kind is tuple:
        parts = [parse_number(int, part, interval) for part in re.findall(r"[^()\[\], ]+", text)]
        value = None if None in parts else tuple(parts)
        wanted = f"whole numbers in {interval}, as in 64,64"
    else:
        value = parse_number(kind, text, interval)
        wanted = f"a {'whole ' * (kind is int)}number in {interval}"
    if value is None:
        raise UsageError(f"{flag(f.name)} {text[:60]}: must be {wanted}")
    return value


# --- 3. Data. Every random choice follows from seed, purpose and update. --------------------------


def seed_of(seed: int, purpose: str, number: int = 0) -> int:
    """A seed of its own for each purpose and number, for numpy's and torch's generators alike."""
    entropy = [number, len(purpose), *purpose.encode(), seed]  # seed, of any length, comes last
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def permutation(n: int, seed: int, purpose: str, number: int = 0) -> Tensor:
    """The numbers 0 … n-1 (n,), shuffled."""
    return torch.from_numpy(np.random.default_rng(seed_of(seed, purpose, number)).permutation(n))


def split(config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The table of a run: x, y, labels (N,), and the row indices of its training and of its
    validation equations. The labels are the answers, but `outliers` training equations have that
    of another, drawn at random."""
    x, y, z = (torch.from_numpy(a) for a in equations(config.op, config.p))
    train, val = permutation(len(z), config.seed, "split").tensor_split([config.train_size])
    labels = z.clone()
    random_answers = z[permutation(len(z), config.seed, "outliers")]
    labels[train[: config.outliers]] = random_answers[: config.outliers]
    return x, y, labels, train, val


# --- 4. The model. --------------------------------------------------------------------------------


class Block(nn.Module):
    """Causal attention, then a ReLU feed-forward of 4 x width; LayerNorm after each sum."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.pattern = nn.Identity()  # a place for hooks: who attends to whom, (B, Tq, Tk, H)
        self.out = nn.Linear(width, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """h (B, Tq, D) to the same shape. The context (B, Tk, 2 D) has the keys and values of all
        positions so far, of which those of h are the last Tq; by default it is made of h alone."""
        if context is None:
            context = self.key_value(h)
        keys, values = context.chunk(2, dim=2)
        h = self.norm1(h + self.out(self.attention(self.query(h), keys, values)))
        return self.norm2(h + self.dropout(self.down(F.relu(self.up(h)))))

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of q (B, Tq, D) to k and v (B, Tk, D): (B, Tq, D). With four positions,
        sums of products are faster than fused kernels, and the pattern can be seen."""
        q, k, v = (t.unflatten(2, (self.heads, -1)) for t in (q, k, v))  # (B, T, H, D/H)
        scores = (q[:, :, None] * k[:, None]).sum(-1) / math.sqrt(q.shape[-1])  # (B, Tq, Tk, H)
        ones = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        later = ones.triu(1 + k.shape[1] - q.shape[1])[:, :, None]
        pattern = self.pattern(scores.masked_fill(later, -math.inf).softmax(2))
        return (pattern.unsqueeze(-1) * v[:, None]).sum(2).flatten(2)


class Transformer(nn.Module):
    """A decoder-only transformer over n elements that reads x ∘ y = and names z. Its vocabulary is
    the elements 0 … n-1, the operation n, and "=" n+1. Weights start as PyTorch draws them."""

    def __init__(
        self, n: int, layers: int = 2, width: int = 128, heads: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.n = n
        self.embed = nn.Embedding(n + 2, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.head = nn.Linear(width, n + 2, bias=False)
        angle = torch.arange(4)[:, None] * 1e4 ** (-torch.arange(0, width, 2) / width)
        waves = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]
        self.register_buffer("positions", waves)  # (4, D), fixed

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (B, V) at "=", for equations of the elements x and y (B,)."""
        h = torch.cat([self.pair(x, self.n), self.pair(y, self.n + 1)], dim=1) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(h[:, -1])

    def pair(self, elements: Tensor, token: int) -> Tensor:
        """The embeddings (B, 2, D) of elements (B,), each followed by a token."""
        return self.embed(torch.stack([elements, torch.full_like(elements, token)], dim=1))


class CachedTransformer(Transformer):
    """The same function at less than half the cost. x ∘ come first and never see y: like a cached
    prompt, they are computed once for each of the n elements; so are, in the first layer, the keys
    and values of y =; and in the last layer only "=" is computed. Where one equation may differ
    from the next by more than its elements, or the batch is small, it is a plain Transformer."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if len(x) < self.n or self.needs_each_equation():
            return super().forward(x, y)
        elements = torch.arange(self.n, device=x.device)
        past = self.pair(elements, self.n) + self.positions[:2]  # (n, 2, D), x ∘ for each x
        here = self.pair(elements, self.n + 1) + self.positions[2:]  # (n, 2, D), y = for each y
        h = lookup(here, y)  # (B, 2, D)
        for i, block in enumerate(self.blocks):
            own = lookup(block.key_value(here), y) if i == 0 else block.key_value(h)
            context = torch.cat([lookup(block.key_value(past), x), own], dim=1)  # (B, 4, 2 D)
            last = i == len(self.blocks) - 1
            past = None if last else block(past)
            h = block(h[:, 1:] if last else h, context)
        return self.head(h[:, -1])

    def needs_each_equation(self) -> bool:
        """Whether dropout is on somewhere, or a hook wants to see a row for each equation."""
        return any(
            m._forward_hooks
            or m._forward_pre_hooks
            or m._backward_hooks
            or m._backward_pre_hooks
            or (isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0)
            for m in self.modules()
        )


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """table[index], (B, …). The backward of F.embedding is deterministic on a CPU, and faster."""
    return F.embedding(index, table.flatten(1)).unflatten(1, table.shape[1:])


# --- 5. Training: run = Run(Config()), and while not run.finished(): run.advance() ----------------


class AnchoredAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, whose decay pulls weights to their `anchors`, {weight: tensor of its
    shape}, and those that have none to the origin."""

    def __init__(self, params: object, anchors: dict[Tensor, Tensor], **options: object) -> None:
        super().__init__(params, **options)
        self.anchors = anchors

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | dict(anchors=self.anchors)  # for a copy

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = super().step(closure)
        for group in self.param_groups:
            for w in group["params"]:
                if w in self.anchors and w.grad is not None:  # AdamW skips what has no gradient
                    w.add_(self.anchors[w], alpha=group["lr"] * group["weight_decay"])
        return loss


@dataclass(eq=False)
class Record:
    """How far a run has come."""

    config: Config | SimpleNamespace
    folder: Path | None = None
    step: int = 0  # updates done
    seconds: float = 0.0  # of training, without evaluations
    diverged: bool = False  # whether its loss or its weights were not finite
    log: list[dict[str, float]] = field(default_factory=list, repr=False)  # rows of metrics.csv

    def best(self) -> float:
        """The highest validation accuracy of all evaluations."""
        return max((row["val_acc"] for row in self.log), default=0.0)

    def reached(self, column: str = "val_acc", accuracy: float = 0.99) -> int | None:
        """The first evaluated update with at least this accuracy, or None."""
        return next((row["step"] for row in self.log if row[column] >= accuracy), None)

    def finished(self) -> bool:
        c = self.config
        last = self.log[-1] if self.log else dict(step=0, val_acc=0.0)
        ended = self.step >= c.steps and last["step"] == self.step
        arrived = c.until > 0 and last["val_acc"] >= max(c.until, c.expect)
        return self.diverged or ended or (arrived and self.due(last["step"]))

    def due(self, step: int) -> bool:
        """Whether an update is to be evaluated."""
        c = self.config
        return step in (1, 2, 5, 10, 20, 50, 100, c.steps) or step % c.eval_every == 0


class Run(Record):
    """A Config in training. A study subclasses it and overrides one of its short methods; the
    control of an intervention is a run where its setting is off."""

    saved = "model", "optimizer", "schedule"  # what a checkpoint keeps; a study adds to it

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.device = pick_device(config.device)
        inputs, *rest = self.build_data()
        self.inputs = [t.to(self.device) for t in inputs]
        self.labels, self.train_rows, self.val_rows = (t.to(self.device) for t in rest)
        self.epochs: dict[int, Tensor] = {}  # those that the latest batch is of
        seed_torch(seed_of(config.seed, "weights"), self.device)
        self.model = self.build_model().to(self.device)
        self.optimizer = self.build_optimizer()
        self.schedule = self.build_schedule()

    def build_data(self) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """What the model is called with, tensors (N, …); labels (N,); the row indices to train on;
        those to validate on."""
        x, y, labels, train, val = split(self.config)
        return [x, y], labels, train, val

    @torch.no_grad()
    def build_model(self) -> nn.Module:
        """A model that gives logits (B, V)."""
        c = self.config
        model = CachedTransformer(c.elements, c.layers, c.width, c.heads, c.dropout)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight *= c.init_scale
        model.embed.weight *= c.embed_init_scale
        model.positions *= c.position_scale
        return model

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW of all weights, which are on their device by then."""
        c, weights = self.config, list(self.model.parameters())
        options = dict(
            lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.weight_decay, fused=True
        )
        if c.decay_to == "origin":
            return torch.optim.AdamW(weights, **options)
        if c.decay_to == "init":
            anchors = {w: w.detach().clone() for w in weights}
        else:
            norms = [m for m in self.model.modules() if isinstance(m, nn.LayerNorm)]
            anchors = {m.weight: torch.ones_like(m.weight) for m in norms if m.elementwise_affine}
        return AnchoredAdamW(weights, anchors, **options)

    def build_schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the learning rate, stepped after each update: linear warm-up."""
        warmup = max(1, self.config.warmup)
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: min(1, (t + 1) / warmup))

    def batch(self) -> Tensor:
        """The rows (B,) of this update: an endless stream of shuffled epochs, cut into batches. Any
        part of it follows from the seed, so that nothing need be stored to go on."""
        c, n = self.config, len(self.train_rows)
        size = min(c.batch_size, math.ceil(n * c.batch_frac)) or n
        first = (self.step - 1) * size
        needed = range(first // n, (first + size - 1) // n + 1)
        self.epochs = {e: self.epochs[e] if e in self.epochs else self.shuffled(e) for e in needed}
        return torch.cat(
            [rows[max(0, first - e * n) : first + size - e * n] for e, rows in self.epochs.items()]
        )

    def shuffled(self, epoch: int) -> Tensor:
        """The training rows in the order of an epoch."""
        order = permutation(len(self.train_rows), self.config.seed, "batches", epoch)
        return self.train_rows[order.to(self.device)]

    def advance(self) -> None:
        """Trains one update, with random numbers of its own, and evaluates if that is due."""
        start = time.perf_counter()
        self.step += 1
        seed_torch(seed_of(self.config.seed, "noise", self.step), self.device)
        self.update(self.batch())
        if self.due(self.step) and self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.seconds += time.perf_counter() - start
        if self.due(self.step):
            self.evaluate()

    def update(self, rows: Tensor) -> None:
        """One update, on the training rows (B,). Nothing in it waits for the device."""
        c = self.config
        self.model.zero_grad()  # not the optimiser's, which may not have all weights
        with self.noisy_weights():
            logits = self.model(*(t[rows] for t in self.inputs))
            loss = self.loss(logits, self.labels[rows])
            loss.backward()
        self.on_after_backward()
        if c.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip)
        self.optimizer.step()
        if c.update_noise:
            self.add_noise(c.update_noise * self.schedule.get_last_lr()[0])
        self.schedule.step()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is trained on: a scalar. Evaluations stay with cross-entropy."""
        return F.cross_entropy(logits, labels)

    def on_after_backward(self) -> None:
        """Where a study changes the gradients, w.grad of the model's parameters."""

    @contextlib.contextmanager
    def noisy_weights(self) -> Iterator[None]:
        """Within, the weights are off by noise: the gradient is taken there."""
        if self.config.weight_noise:
            with untouched(self.model):
                self.add_noise(self.config.weight_noise)
                yield
        else:
            yield

    @torch.no_grad()
    def add_noise(self, sigma: float) -> None:
        for w in self.model.parameters():
            if w.requires_grad:
                w.add_(torch.randn_like(w), alpha=sigma)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, Tensor]:
        """The columns of an evaluation, scalars: loss and accuracy of the model on all training and
        on all validation rows, and the norm of all its weights."""
        losses, hits = [], []
        size = 2**11 if self.device.type == "cpu" else 2**17  # rows that fit its caches
        pieces = [t.split(size) for t in (*self.inputs, self.labels)]
        for *inputs, labels in zip(*pieces, strict=True):
            logits = model(*inputs)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            hits.append((logits.argmax(1) == labels).float())
        loss, hit = torch.cat(losses), torch.cat(hits)
        return dict(
            train_loss=loss[self.train_rows].mean(),
            train_acc=hit[self.train_rows].mean(),
            val_loss=loss[self.val_rows].mean(),
            val_acc=hit[self.val_rows].mean(),
            weight_norm=nn.utils.get_total_norm(model.parameters()),
        )

    def evaluate(self) -> None:
        """Adds a row to the log, and leaves no trace in the model. A run whose loss or weights are
        not finite ends here, without a row. Raises UsageError where columns come and go."""
        with untouched(self.model):  # whatever a study swaps in to measure
            self.model.eval()
            measured = self.measure(self.model)
        digits = {name: f"{float(value):.7g}" for name, value in measured.items()}  # a float32's
        columns = {name: float(text) for name, text in digits.items()}
        row = dict(step=self.step, **columns, seconds=round(self.seconds, 3))
        if self.log and list(self.log[0]) != list(row):
            raise UsageError(f"measure: {', '.join(row)}: not the columns of the rows before")
        self.diverged = not math.isfinite(row["train_loss"] + row["val_loss"] + row["weight_norm"])
        if not self.diverged:
            self.log.append(row)

    def state_dict(self) -> dict[str, object]:
        """What `saved` names: modules, optimisers and the like by their state_dict."""
        parts = {name: getattr(self, name) for name in self.saved}
        return parts | {name: parts[name].state_dict() for name in self.stateful()}

    def stateful(self) -> list[str]:
        """Those of `saved` with a state_dict, which a resumed run must have to load it into."""
        return [name for name in self.saved if hasattr(getattr(self, name), "load_state_dict")]

    def load_state_dict(self, state: dict[str, object]) -> None:
        if odd := sorted(state.keys() ^ set(self.saved)):
            raise UsageError(f"{', '.join(odd)}: is in `saved` or in the checkpoint, not in both")
        for name, value in state.items():
            if name in self.stateful():
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within, weights and modes may change; afterwards they are as before, to the bit. Buffers,
    such as a running mean, keep their changes."""
    clean = [w.detach().clone() for w in model.parameters()]
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for w, before in zip(model.parameters(), clean, strict=True):
                w.copy_(before)
        for module, mode in modes.items():
            module.training = mode


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not getattr(torch, name).is_available():
        raise UsageError(f"--device {name}: there is none here")
    return torch.device(name)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of a device, not of each device as torch.manual_seed
    does, which takes a hundred times as long."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


# --- 6. Records. A run folder is config.json, metrics.csv, checkpoint.pt, and survives a kill. ----


def train(
    config: Config, out: str | Path | None = None, quiet: bool = False, method: type[Run] = Run
) -> Run:
    """Trains a Config, in the folder `out` if it is given: if the same run is there, it goes on.
    Afterwards the model is in evaluation mode. Raises UsageError, and what a study raises."""
    run = fit(config, Path(out) if out else None, method, None if quiet else show)
    if not quiet:
        summary([config.op], [run])
    return run


def fit(
    config: Config, folder: Path | None, method: type[Run], report: Callable[[Run], None] | None
) -> Run:
    """Trains a run, in its folder if there is one; calls report(run) at evaluations."""
    lock = locked(folder) if folder else contextlib.nullcontext()
    with lock, usual_torch(config):
        if folder:
            lay_out(folder, config, method)
        run = method(config)
        run.folder = folder
        files = Files(run) if folder else None
        while not run.finished():
            if run.step < config.steps:
                run.advance()
            else:  # its steps are fewer now
                run.evaluate()
            if files:
                files.keep()
            if report and run.due(run.step):
                report(run)
        if files:
            files.close()
        run.model.eval()
    return run


ONE_AT_A_TIME = threading.RLock()  # generators and default types are those of the process


@contextlib.contextmanager
def usual_torch(config: Config) -> Iterator[None]:
    """Within, torch is as after its import, whatever the caller has made of it; afterwards it is
    the caller's again, random generators and all."""
    device = pick_device(config.device)
    devices = [] if device.type == "cpu" else [device]  # by default fork_rng opens every GPU
    elsewhere = torch.get_default_device().type != "cpu"  # else spare a context that slows calls
    with (
        ONE_AT_A_TIME,
        torch.inference_mode(False),  # which also switches gradients on
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices, device_type=device.type),
        torch.device("cpu") if elsewhere else contextlib.nullcontext(),
    ):
        dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
        mode = torch.get_deterministic_debug_mode()
        if device.type == "cuda":  # where lookup's gradient of more than 3,072 rows else varies
            torch.set_deterministic_debug_mode("warn")
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(config.threads or threads)
        torch.empty(31 * 2**18)  # 31 MB, once freed, teach glibc to keep memory (man mallopt)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(mode)


def rehearse(method: type[Run], config: Config, updates: int = 6) -> None:
    """Trains twice as many updates, once straight on and once restored half way from a checkpoint,
    after an evaluation. Raises UsageError if the weights or what is measured then differ by a bit:
    something that `saved` does not name, or that is not in its state_dict, had a part in them."""
    updates = min(updates, max(1, config.steps // 2))  # a schedule may end where the run does
    with usual_torch(config):
        whole, resumed = method(config), method(config)
        for _ in range(updates):
            whole.advance()
        whole.evaluate()
        restore(resumed, unpacked(pack(whole), whole.device))
        for _ in range(updates):
            whole.advance()
            resumed.advance()
    again = resumed.model.state_dict()
    for name, w in whole.model.state_dict().items():
        if not torch.allclose(w, again[name], rtol=0, atol=0, equal_nan=True):
            raise UsageError(
                f"{method.__name__}: does not resume exactly: {name} differs; is all that has a "
                "part in an update in `saved`, and in its state_dict?"
            )
    rows = [str([row | dict(seconds=0) for row in run.log]) for run in (whole, resumed)]
    if rows[0] != rows[1]:
        raise UsageError(
            f"{method.__name__}: does not resume exactly: what it measures differs; is all that "
            "has a part in `measure` in `saved`?"
        )


class Busy(UsageError):
    """Another process has the lock of this run."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, the folder of a run is this process's alone. Raises Busy."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder}: another process is training in this folder") from None
        except (ImportError, OSError) as error:  # Windows; a file system that has no locks
            complain_once(f"no locks here ({error}): start no second process on these runs")
        yield


def lay_out(folder: Path, config: Config, method: type[Run], command: object = None) -> None:
    """Writes the config.json of a run, once. Raises UsageError if that of another is there."""
    mine = identity(config, method)
    if (folder / "config.json").exists():
        compare(folder, expected(read_about(folder)), mine, names=mine)
        return
    about = dict(
        settings=asdict(config) | config.fixed(),
        method=mine["its method"],
        table=mine["its table"],
        command=command,
        grok=__version__,
        python=platform.python_version(),
        numpy=np.__version__,
        torch=torch.__version__,
        device=str(pick_device(config.device)),
        threads=config.threads or torch.get_num_threads(),
    )
    write(folder / "config.json", json.dumps(about, indent=1).encode())


def identity(config: Config, method: type[Run]) -> dict[str, object]:
    """What makes a run what it is: its fixed settings, and two names that no setting can have."""
    table = checksum(config.op, OPS[config.op], config.p)
    return config.fixed() | {"its method": method.__name__, "its table": table}


@functools.cache
def checksum(name: str, op: Op, p: int) -> int:
    """Of an operation's table. `op` is a key of the cache alone: its name may come to mean another
    operation."""
    return zlib.crc32(equations(name, p)[2].tobytes())


def compare(
    folder: Path | None, there: dict[str, object], here: dict[str, object], names: Iterable[str]
) -> None:
    """Raises UsageError if a folder holds another run than the one at hand, by these names."""
    if odd := [name for name in names if there.get(name) != here.get(name)]:
        said = ", ".join(f"{name} {there.get(name)}, not {here.get(name)}" for name in odd)
        raise UsageError(f"{folder}: holds another run ({said}); name another folder")


class Files:
    """What a run in training writes into its folder. The checkpoint is what counts: it holds the
    evaluations, too, and where a run goes on metrics.csv is written anew from them."""

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder
        self.next_save = -math.inf  # when the next checkpoint is due
        self.stateful = run.stateful()
        if has_checkpoint(self.folder):
            restore(run, read_checkpoint(self.folder, run.device))
            if run.log and run.step < run.config.steps and not run.due(run.log[-1]["step"]):
                run.log.pop()  # of a last update that is not the last any more
        else:
            self.save()
        self.rewrite()

    def keep(self) -> None:
        """After each update: a row if there is a new one, and a checkpoint for at most 1 % of the
        time, but after the first update in any case: what cannot be kept is refused early."""
        run = self.run
        if run.log and run.log[-1]["step"] == run.step:
            with open(self.folder / "metrics.csv", "a", newline="", encoding="utf-8") as file:
                file.write(csv_text(run, run.log[-1:]))
        if run.step == 1 or time.monotonic() > self.next_save:
            self.save()

    def close(self) -> None:
        self.rewrite()  # whatever has befallen it meanwhile
        self.save()

    def rewrite(self) -> None:
        if self.run.log:
            write(self.folder / "metrics.csv", csv_text(self.run, self.run.log).encode())
        else:  # its rows are later than the checkpoint, and come again
            (self.folder / "metrics.csv").unlink(missing_ok=True)

    def save(self) -> None:
        start = time.monotonic()
        if built := set(self.run.stateful()) ^ set(self.stateful):
            raise UsageError(f"{', '.join(built)}: build it in __init__, as a resumed run would")
        write(self.folder / "checkpoint.pt", pack(self.run))
        end = time.monotonic()
        self.next_save = end + 100 * (end - start)


def csv_text(run: Run, rows: list[dict[str, float]]) -> str:
    """Evaluations as CSV, each with the run's settings; a header before the run's first one."""
    settings, text = run.config.fixed(), io.StringIO()
    cells = [dict(**row, **settings) for row in rows]  # a TypeError where a column hides another
    writer = csv.DictWriter(text, cells[0], lineterminator="\n")
    if rows[0] is run.log[0]:
        writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


def pack(run: Run) -> bytes:
    """A checkpoint. Raises UsageError if torch would not read it back."""
    state, file = run.state_dict(), io.BytesIO()
    if lost := [name for name, part in state.items() if not survives(part)]:
        raise UsageError(
            f"{type(run).__name__}: what `saved` names must be tensors, numbers, texts, lists or "
            f"dicts of these, or have a state_dict; so not {', '.join(lost)}"
        )
    progress = dict(step=run.step, seconds=run.seconds, diverged=run.diverged, log=run.log)
    record = dict(identity=identity(run.config, type(run)), progress=progress)
    torch.save(dict(state=state), file)  # a zip archive, which has room for the record:
    with zipfile.ZipFile(file, "a") as archive:  # it is read in a third of the time of tensors
        archive.writestr("archive/record.json", json.dumps(record))
    return file.getvalue()


def survives(part: object) -> bool:
    """Whether torch reads back what it writes of this."""
    file = io.BytesIO()
    try:
        torch.save(part, file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except (AttributeError, TypeError, pickle.PickleError):
        return False
    return True


def restore(run: Run, saved: dict[str, object]) -> None:
    """Brings a run to where a checkpoint is. Raises UsageError if that is another run's."""
    there, here = saved["identity"], identity(run.config, type(run))
    compare(run.folder, there, here, names=there | here)
    for name, value in saved["progress"].items():
        setattr(run, name, value)
    run.load_state_dict(saved["state"])


def read_checkpoint(folder: Path, device: torch.device | str | None = "cpu") -> dict[str, object]:
    """The checkpoint of a folder; without a device, what it says of the run alone. Raises
    UsageError."""
    try:
        return unpacked((folder / "checkpoint.pt").read_bytes(), device)
    except Exception as error:  # those of zip and pickle have no class in common
        raise UsageError(f"{folder}/checkpoint.pt: cannot be read: {error!r:.100}") from None


def unpacked(data: bytes, device: torch.device | str | None) -> dict[str, object]:
    """What `pack` has packed; without a device, all but the state."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    if damaged := archive.testzip():  # torch ignores the checksums
        raise ValueError(f"checksum of {damaged}")
    saved = json.loads(archive.read("archive/record.json"))
    saved["identity"] = with_tuples(saved["identity"])
    if device is None:
        return saved
    return saved | torch.load(io.BytesIO(data), weights_only=True, map_location=device)


def with_tuples(settings: dict[str, object]) -> dict[str, object]:
    """Settings as JSON gives them back, whose lists were tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}


def read_about(folder: Path) -> dict[str, object]:
    """What config.json says; lists are tuples again. Raises UsageError."""
    try:
        about = json.loads((folder / "config.json").read_bytes())
        about["settings"] = with_tuples(about["settings"])
        return {name: about[name] for name in ("settings", "method", "table", "command")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{folder}/config.json: cannot be read: {error!r:.100}") from None


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has one. Raises UsageError if it has been lost."""
    measured = (folder / "metrics.csv").exists()  # asked first, as it is written after the other
    there = (folder / "checkpoint.pt").exists()
    if measured and not there:
        raise UsageError(f"{folder}: has metrics.csv but no checkpoint.pt; put that back")
    return there


def expected(about: dict[str, object]) -> dict[str, object]:
    """The identity of a run as its config.json has it, beside settings that are not fixed."""
    return about["settings"] | {f"its {name}": about[name] for name in ("method", "table")}


def read_record(folder: Path, config: Config | SimpleNamespace, mine: dict[str, object]) -> Record:
    """How far the run of a folder has come, whoever trains it. Raises UsageError, also if it has
    another identity than `mine`."""
    if not has_checkpoint(folder):
        return Record(config, folder)
    saved = read_checkpoint(folder, device=None)
    compare(folder, saved["identity"], mine, names=saved["identity"])
    return Record(config, folder, **saved["progress"])


def read(folder: str | Path, **settings: object) -> list[Record]:
    """The runs recorded in a sweep's folder, or in a run's, that have these settings. Nothing is
    built: their `config` is a namespace of settings. Raises UsageError."""
    abouts = {path: read_about(path) for path in runs_in(folder)}
    known = set().union(*(about["settings"] for about in abouts.values()))
    if unknown := settings.keys() - known:
        raise UsageError(f"{folder}: no run there has a setting {', '.join(unknown)}")
    return [
        read_record(path, SimpleNamespace(**about["settings"]), expected(about))
        for path, about in abouts.items()
        if settings.items() <= about["settings"].items()
    ]


def load(
    folder: str | Path, config: type[Config] = Config, method: type[Run] = Run, **free: object
) -> Run:
    """The run of a folder, built and as its checkpoint left it, in evaluation mode. What is not
    fixed, such as device="cpu", may differ from what is recorded. Raises UsageError."""
    folder = Path(folder)
    c = read_config(folder, config, method, **free)
    with usual_torch(c):
        run = method(c)
        run.folder = folder
        restore(run, read_checkpoint(folder, run.device))
        run.model.eval()
    return run


def read_config(folder: Path, config: type[Config], method: type[Run], **free: object) -> Config:
    """The Config of a folder, with changes. Raises UsageError if another method trained there."""
    about = read_about(folder)
    if about["method"] != method.__name__:
        program = about["command"][0] if about["command"] else "the program that has it"
        raise UsageError(f"{folder}: is of the method {about['method']}: go on with {program}")
    if odd := about["settings"].keys() ^ {f.name for f in fields(config)}:
        raise UsageError(f"{folder}: is of a program with other settings: {', '.join(odd)}")
    settings = about["settings"] | free
    if (op := OPS.get(settings["op"])) and op.n:
        del settings["p"]  # is the number of elements, which may be no modulus
    try:
        return config(**settings)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None


def runs_in(folder: str | Path) -> list[Path]:
    """The folders of the runs in a folder, which may be one itself. Raises UsageError."""
    found = [*Path(folder).glob("config.json"), *sorted(Path(folder).glob("*/config.json"))]
    if not found:
        raise UsageError(f"{folder}: holds no runs")
    return [file.parent for file in found]


def write(file: Path, data: bytes) -> None:
    """Writes a file, on the disk as a whole or not at all."""
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with open(temporary, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    except OSError as error:
        error.filename = error.filename or str(file)  # which a full disk does not name
        raise
    finally:
        temporary.unlink(missing_ok=True)


# --- 7. What is said, and the command line. -------------------------------------------------------


def on_terminal() -> bool:
    try:
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # an object that can only write; a closed one
        return False


def say(text: str, live: bool = False) -> None:
    """Prints on standard output, whatever that is: where nobody can read it, training goes on. On a
    terminal, the next text takes the place of a live one."""
    letters = getattr(sys.stdout, "encoding", None) or "utf-8"  # may lack the summary's "▁"
    text = text.encode(letters, "replace").decode(letters)
    if live:
        text = text[: shutil.get_terminal_size().columns - 1]
    try:
        print("\r\x1b[K" * on_terminal() + text, end="" if live else "\n", flush=True)
    except (AttributeError, ValueError):
        pass  # it cannot be flushed, or is closed
    except OSError:  # its reader is gone, or the disk is full: empty its buffer elsewhere
        with contextlib.suppress(OSError, AttributeError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())


def complain(problem: object) -> None:
    """Prints on standard error; if nobody can read that, training goes on, too."""
    say("", live=True)  # clears the live line
    with contextlib.suppress(AttributeError, OSError, ValueError):
        print(f"grok.py: {problem}", file=sys.stderr, flush=True)


complain_once = functools.cache(complain)


def show(run: Run) -> None:
    """Says how far a run is: on a terminal in place, elsewhere at each power of two."""
    rate, row = run.step / max(run.seconds, 1e-9), run.log[-1] if run.log else dict()
    train, val = row.get("train_acc", math.nan), row.get("val_acc", math.nan)
    text = f"update {run.step:>7,}  train {train:.3f}  val {val:.3f}  {rate:,.1f} updates/s"
    if on_terminal():
        left = (run.config.steps - run.step) / rate / 60
        say(f"{text}, at most {left:,.1f} min left", live=True)
        return
    before = run.log[-2]["step"] if len(run.log) > 1 else 0
    if run.step.bit_length() > before.bit_length() or run.finished():
        say(text)


def summary(names: list[str], records: list[Record]) -> None:
    """Says how runs have ended, a line for each."""
    wide = max(map(len, names))
    say(f"{'':{wide}}  train 99 %    val 99 %  best val   updates   seconds  validation")
    for name, record in zip(names, records, strict=True):
        say(f"{name:{wide}}{result(record)}")


def result(record: Record) -> str:
    """How a run has ended, with the curve of its validation accuracy over log-spaced updates."""
    train, val = (record.reached(column) or "never" for column in ("train_acc", "val_acc"))
    steps = [0, *(row["step"] for row in record.log)]
    values = [0.0, *(row["val_acc"] for row in record.log)]
    seen = np.searchsorted(steps, max(1, record.step) ** np.linspace(0, 1, 40) + 1e-6) - 1
    curve = "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * values[i]))] for i in seen)
    numbers = f"{train:>12}{val:>12}{record.best():10.4f}{record.step:10,}{record.seconds:10,.1f}"
    return f"{numbers}  {curve}{' diverged' * record.diverged}"


class Sweep:
    """The runs of a command, {folder: Config}. Any number of processes may share them, started here
    or by the same command elsewhere: each takes what is neither finished nor in other hands."""

    def __init__(self, runs: dict[Path, Config], method: type[Run], jobs: int, quiet: bool) -> None:
        self.runs, self.method, self.jobs, self.quiet = runs, method, jobs, quiet
        self.names = dict(zip(runs, names_of(runs.values()), strict=True))
        self.records: dict[Path, Record] = {}  # of the runs that are known to be finished
        self.looked = 0.0  # when `look` last spoke

    def train(self) -> dict[Path, int]:
        """Trains until all runs have ended, whoever has them; returns the exit status of each."""
        if self.jobs > 1:
            self.employ()
        status: dict[Path, int | None] = dict.fromkeys(self.runs)
        while left := [folder for folder, s in status.items() if s is None]:
            for folder in left:
                status[folder] = self.take(folder)
            if None in status.values():
                time.sleep(1)  # those are in other hands, which may leave them
        return status

    def employ(self) -> None:
        """Has workers go through what is not finished. What they leave, this process finds."""
        left = {}
        for folder, config in self.runs.items():
            with contextlib.suppress(UsageError):  # what is damaged `take` will say
                if not self.read(folder).finished():
                    left[folder] = config
        context = multiprocessing.get_context("spawn")  # forks of torch's threads would hang
        task = dict(target=work, args=(left, self.method), daemon=True)
        workers = [context.Process(**task) for _ in range(min(self.jobs, len(left)))]
        try:
            with no_ctrl_c():
                for worker in workers:
                    worker.start()
            while any(worker.is_alive() for worker in workers):
                time.sleep(0.1)
                self.look()
        finally:
            for worker in workers:
                if worker.is_alive():  # which it is not where its start has failed
                    worker.terminate()

    def take(self, folder: Path) -> int | None:
        """Trains a run. Returns the exit status it calls for; None if it is in other hands."""
        report = show if len(self.runs) == 1 and not self.quiet else lambda run: self.look()
        try:
            if not self.read(folder).finished():
                fit(self.runs[folder], folder, self.method, report)
            return 0
        except Busy:
            return None
        except UsageError as error:
            complain(error)
            return 2
        except Exception as error:
            lack = isinstance(error, (OSError, MemoryError, RuntimeError))  # memory, disk, GPU
            if not lack or self.method is not Run:
                traceback.print_exc()
            said = " ".join(f"{type(error).__name__}: {error}".split())
            complain(f"{folder}: ended by {said}; what its checkpoint.pt holds is kept")
            return 3

    def read(self, folder: Path) -> Record:
        """How far a run is; what is finished is read once."""
        if folder in self.records:
            return self.records[folder]
        config = self.runs[folder]
        record = read_record(folder, config, identity(config, self.method))
        if record.finished():
            self.records[folder] = record
        return record

    def look(self) -> None:
        """Says what is new, at most once a second: on a terminal in one live line, elsewhere in a
        line for each run that has ended."""
        if self.quiet or len(self.runs) == 1 or time.monotonic() < self.looked + 1:
            return
        training, self.looked = 0, time.monotonic()
        for folder in [folder for folder in self.runs if folder not in self.records]:
            with contextlib.suppress(UsageError):  # what is damaged `take` will say
                record = self.read(folder)
                training += record.step > 0 and not record.finished()
                if record.finished() and not on_terminal():
                    say(f"{self.names[folder]}{result(record)}")
        if on_terminal():
            done, count = len(self.records), len(self.runs)
            text = f"{done} of {count} runs done, {training} in training"
            if done:
                spent = sum(record.seconds for record in self.records.values())
                minutes = spent / done * (count - done) / self.jobs / 60
                text += f", about {minutes:,.1f} min left"
            say(text, live=True)


def work(runs: dict[Path, Config], method: type[Run]) -> None:
    """Goes through runs once, in a process of its own, and trains what is neither finished nor in
    other hands. Errors are left to the parent process, which tries again and says them; a worker
    ends when its parent does."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(130)), daemon=True).start()
    for folder, config in runs.items():
        with contextlib.suppress(Exception):
            if not read_record(folder, config, identity(config, method)).finished():
                fit(config, folder, method, None)


@contextlib.contextmanager
def no_ctrl_c() -> Iterator[None]:
    """Within, Ctrl-C does nothing, and never anything to the processes that start within."""
    here = threading.current_thread() is threading.main_thread()  # elsewhere there is no Ctrl-C
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGINT, before)


class Parser(argparse.ArgumentParser):
    """Its errors take one line, and its help any standard output."""

    def error(self, message: str) -> None:
        raise UsageError(message)

    def print_help(self, file: object = None) -> None:
        say(self.format_help())


def parser(config: type[Config]) -> Parser:
    """The command line of a Config. What is not given is not in the result."""
    cli = Parser(
        description=sys.modules[config.__module__].__doc__,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawTextHelpFormatter,
        epilog="[default]; a flag with several values makes a sweep of runs",
        allow_abbrev=False,
    )
    for f in fields(config):
        fast = f"; fast: {FAST[f.name]}" if f.name in FAST else ""
        text = f"{f.metadata['help']} [{f.default}{fast}]".replace("%", "%%")
        cli.add_argument(
            flag(f.name), nargs="+", action="extend", metavar=f.name[0].upper(), help=text
        )
    cli.add_argument("--recipe", choices=("paper", "fast"), help="defaults of the settings [paper]")
    cli.add_argument("--jobs", type=int, metavar="N", help="processes [one a core, a thread each]")
    cli.add_argument("--out", metavar="DIR", help="folder of the runs [runs/DATE-TIME]")
    cli.add_argument("--resume", metavar="DIR", help="go on with the runs in a folder")
    cli.add_argument("--quiet", action="store_true", help="print nothing but errors")
    cli.add_argument("--list-ops", action="store_true", help="list the operations and exit")
    cli.add_argument("--version", action="version", version=f"grok.py {__version__}")
    return cli


def main(
    argv: list[str] | None = None, config: type[Config] = Config, method: type[Run] = Run
) -> int:
    """The command line; returns the exit status. A study gives its own Config and Run."""
    given: dict[str, object] = {}
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        given = vars(parser(config).parse_args(words))
        if "list_ops" not in given:
            return command(given, [sys.argv[0], *words], config, method)
        for name, op in OPS.items():
            c = Config(op=name, p=given.get("p", [97])[0])
            domain = f"0 ≤ x < {c.elements}, {op.y_from} ≤ y < {c.elements}"
            say(f"{name:32} {op.formula:38} {domain}: {c.table_size:,}")
        return 0
    except (UsageError, OSError) as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        again = ["--resume", given.get("resume", "")]
        for name in changeable(config):
            if name in given:
                again += [flag(name), given[name][0]]
        launcher = ["uv", "run"] if "UV_RUN_RECURSION_DEPTH" in os.environ else [sys.executable]
        line = (
            f"main({again})" if argv is not None else shlex.join([*launcher, sys.argv[0], *again])
        )
        begun = "resume" in given
        complain(f"stopped; go on with: {line}" if begun else "stopped before the first run")
        return 130
    except Exception:  # of a study, before its first run
        traceback.print_exc()
        return 3


def command(
    given: dict[str, object], words: list[str], config: type[Config], method: type[Run]
) -> int:
    """Does what the flags say; returns the exit status."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker, starting
        raise UsageError("workers import this program: call main under if __name__ == '__main__':")
    if given.get("jobs", 1) < 1:
        raise UsageError(f"--jobs {given['jobs']}: must be a whole number in [1, inf)")
    runs = (resumed if "resume" in given else asked_for)(given, config, method)
    out = given["resume"]
    first = next(iter(runs.values()))
    cores = torch.get_num_threads() if pick_device(first.device).type == "cpu" else 1
    usual = max(1, cores // max(1, first.threads))
    jobs = min(given.get("jobs", usual), len(runs))
    if not (importable(config) and importable(method)):
        jobs = 1
    if jobs > 1:
        runs = {folder: replace(c, threads=c.threads or 1) for folder, c in runs.items()}
    for folder, c in runs.items():  # all of them first, so that --resume knows the whole sweep
        if not (folder / "config.json").exists():
            with contextlib.suppress(Busy), locked(folder):
                lay_out(folder, c, method, words)
    sweep = Sweep(runs, method, jobs, "quiet" in given)
    status = sweep.train()
    records = {folder: sweep.read(folder) for folder in runs if status[folder] == 0}
    if records and not sweep.quiet:
        summary([sweep.names[folder] for folder in records], list(records.values()))
        say(out)
    missed = [record for record in records.values() if record.best() < record.config.expect]
    if missed:
        expect = missed[0].config.expect
        count = f"{len(missed)} of {len(records)} runs"
        complain(f"--expect {expect}: missed in {count}; see {out}")
    return max(status.values()) or min(1, len(missed))


def importable(kind: type) -> bool:
    """Whether another process can import a class, as a worker must."""
    module = sys.modules[kind.__module__]
    return hasattr(module, "__file__") and getattr(module, kind.__qualname__, None) is kind


def names_of(configs: Iterable[Config]) -> list[str]:
    """What tells the runs of a command apart."""
    rows = [c.fixed() for c in configs]
    varied = [name for name in rows[0] if len({row[name] for row in rows}) > 1 and name != "op"]
    return [", ".join([row["op"], *(f"{name} {row[name]}" for name in varied)]) for row in rows]


def asked_for(
    given: dict[str, object], config: type[Config], method: type[Run]
) -> dict[Path, Config]:
    """The runs that the flags ask for, in folders that are the same for the same runs."""
    settings = {f.name: given[f.name] for f in fields(config) if f.name in given}
    configs = config.grid(**(FAST if given.get("recipe") == "fast" else {}) | settings)
    if "p" in settings and all(OPS[c.op].n for c in configs):
        raise UsageError(f"--p {' '.join(settings['p'])}: {configs[0].op} has no modulus")
    for name in changeable(config):
        if len(settings.get(name, [])) > 1:
            raise UsageError(f"{flag(name)}: takes one value")
    runs = {run_name(c, method): c for c in configs}
    if len(runs) < len(configs):
        several = [f"{flag(name)} {' '.join(v)}" for name, v in settings.items() if len(v) > 1]
        raise UsageError(f"{' '.join(several)}: some run is given twice")
    pick_device(configs[0].device)  # or refuse it before anything is written
    out = Path(given["out"]) if "out" in given else None
    if method is not Run and not (out and any(out.glob("*/checkpoint.pt"))):
        for c in {configs[0], configs[-1]}:  # of which one may be a control
            try:
                rehearse(method, c)
            except OSError as error:  # of the study, so no mistake in the command
                raise RuntimeError(f"{method.__name__}: {error}") from error
    given["resume"] = str(out or new_folder())
    for name in changeable(config):  # what --resume has to be given to go as far as this command
        given[name] = [str(getattr(configs[0], name))]
    return {Path(given["resume"]) / name: c for name, c in runs.items()}


def resumed(
    given: dict[str, object], config: type[Config], method: type[Run]
) -> dict[Path, Config]:
    """The runs of a folder, with those settings that may change."""
    free = changeable(config)
    changes = {name: values[0] for name, values in given.items() if name in free}
    odd = [name for name in given if name not in (*free, "resume", "jobs", "quiet")]
    odd += [name for name in changes if len(given[name]) > 1]
    if odd:
        goes = ", ".join(map(flag, ["jobs", "quiet", *free]))
        raise UsageError(f"{flag(odd[0])}: --resume goes with single values of {goes}")
    return {f: read_config(f, config, method, **changes) for f in runs_in(given["resume"])}


def changeable(config: type[Config]) -> list[str]:
    """The settings that may change when a run is resumed."""
    return [f.name for f in fields(config) if not f.metadata["fixed"]]


def run_name(config: Config, method: type[Run]) -> str:
    """The name of a run's folder, the same whoever starts it."""
    text = json.dumps([config.fixed(), method.__name__], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return re.sub(r"[^\w.-]", "_", f"{config.op}-{config.frac:g}-seed{config.seed}-{digest}")


def new_folder() -> Path:
    """Makes a folder that nobody else has, whatever starts in the same second."""
    for number in itertools.count(1):
        folder = Path(f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


if __name__ == "__main__":
    atexit.register(gc.freeze)  # spares a last collection, half a second through all of torch
    sys.exit(main())

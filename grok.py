# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "torch==2.13.0"]
# ///
# SPDX-License-Identifier: MIT
"""Grokking (Power et al. 2022, arXiv 2201.02177) in one file: a small transformer sees part of the
table of a binary operation, memorises it and, much later, suddenly knows the rest.

    python grok.py --op x_div_y --frac 0.5                 the paper's recipe: minutes on two cores
    python grok.py --recipe fast --expect 0.99             the same jump in seconds, as a CI gate
    python grok.py --op s5_xy --frac 0.4 0.5 --seed 0 1 2  a grid of runs
    python grok.py --plot runs/DIR                         its figures

One idea shapes the code: a run is a row. Weights, batches, settings and metrics carry a leading
axis R of independent runs, so that a sweep is one tensor program and a single run is R = 1.

Departures from the paper and its released code: the loss is on the answer alone, not on a closing
token too; warm-up starts at lr/10, not at 0. The rest is theirs: post-norm blocks without biases,
fixed sinusoidal positions, an untied head, decay on every parameter, S5 composed x first.

Shapes: R runs, B batch, T positions, D width, H heads, N equations, n elements, V vocabulary,
P parameters.
"""
import argparse
import contextlib
import csv
import datetime
import difflib
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

try:
    import fcntl
except ImportError:  # Windows: run folders go without a lock
    fcntl = None

__version__ = "1.0.0"


# --------------------------------------------------------------------------------------------------
# 1. Settings. One dataclass holds every knob; the command line and its checks are made from it.

class UsageError(ValueError):
    """A mistake of the caller's, said in one line: what was given, and what would do."""


# Settings of model and optimiser. A recipe differs from "paper" in what it names.
RECIPES = {
    "paper": dict(layers=2, width=128, heads=4, dropout=0.0, init_scale=1.0, embed_init_scale=1.0,
                  position_scale=1.0, steps=100_000, batch_size=512, lr=1e-3, betas=(0.9, 0.98),
                  eps=1e-8, weight_decay=1.0, decay_to="origin", warmup=10, weight_noise=0.0,
                  update_noise=0.0, eval_every=100),
    "fast": dict(layers=1, init_scale=3.0, embed_init_scale=0.1, position_scale=0.1, steps=5000,
                 batch_size=768, lr=7e-3, warmup=50, eval_every=20),
}


def knob(default, help, allowed=None, nargs=None):
    """A field of Config. `allowed` is an interval such as "(0, 1]" or a tuple of choices; `nargs`
    is "+" for a field that takes one value or several, or the number of values it takes."""
    return field(default=default, metadata=dict(help=help, allowed=allowed, nargs=nargs))


@dataclass
class Config:
    """Everything that defines a command. Fields with "+" take one value or a list, and the grid
    of runs is their product. A field that is None takes the recipe's value, if there is one."""
    op: str = knob("x_div_y", "operation, see --list-ops", nargs="+")
    p: int = knob(97, "modulus of the modular operations", "[2, 4096]")
    frac: float = knob(0.5, "fraction of the table to train on", "(0, 1)", "+")
    seed: int = knob(0, "seed of split, weights, batches and noise", "[0, inf)", "+")
    outliers: int = knob(0, "training answers replaced by random ones", "[0, inf)", "+")

    recipe: str = knob("paper", "values of the settings below, where not given", tuple(RECIPES))
    layers: int = knob(None, "transformer blocks", "[1, 1024]")
    width: int = knob(None, "width of the residual stream", "[1, 65536]")
    heads: int = knob(None, "attention heads, which share the width", "[1, inf)")
    dropout: float = knob(None, "dropout on the feed-forward branch", "[0, 1)", "+")
    init_scale: float = knob(None, "factor on all initial weights but LayerNorm's", "(0, inf)", "+")
    embed_init_scale: float = knob(None, "factor on the token embedding's, on top", "(0, inf)", "+")
    position_scale: float = knob(None, "factor on the fixed positions", "[0, inf)")

    steps: int = knob(None, "updates at most", "[1, inf)")
    batch_size: int = knob(None, "equations per update, at most half the training set; "
                                 "0 = full batch", "[0, inf)", "+")
    lr: float = knob(None, "learning rate after warm-up", "(0, inf)", "+")
    betas: float = knob(None, "AdamW's decay rates of its two moments", "[0, 1)", 2)
    eps: float = knob(None, "AdamW's epsilon", "[0, inf)")
    weight_decay: float = knob(None, "decay per unit of lr, on every parameter", "[0, inf)", "+")
    decay_to: str = knob(None, "where decay pulls the weights", ("origin", "init"), "+")
    warmup: int = knob(None, "updates of linear warm-up", "[0, inf)")
    weight_noise: float = knob(None, "standard deviation of noise on the weights in each training "
                                     "pass", "[0, inf)", "+")
    update_noise: float = knob(None, "standard deviation of noise on each update, in units of lr",
                               "[0, inf)", "+")
    variant: str = knob("", "NAME=VALUE,NAME=VALUE: what a run of the grid has instead, of the "
                            "flags that take several values", nargs="+")

    until: float = knob(0.99, "a run stops at this validation accuracy; 0 = spend all steps",
                        "[0, 1]")
    expect: float = knob(None, "exit with status 1 unless every run reaches this validation "
                               "accuracy", "[0, 1]")

    out: str = knob(None, "run folder; the command line makes runs/DATE-TIME-OP by default")
    eval_every: int = knob(None, "updates between evaluations", "[1, inf)")
    checkpoint_every: int = knob(None, "updates between checkpoints; by default as often as costs "
                                       "about 1 %% of the time", "[1, inf)")
    quiet: bool = knob(False, "print nothing but errors")

    device: str = knob("auto", "auto takes CUDA where there is one", ("auto", "cpu", "cuda", "mps"))
    threads: int = knob(None, "CPU threads; by default PyTorch's choice", "[1, 1024]")
    stack: int = knob(None, "runs trained together at most; by default 64 on a GPU, 4 on a CPU",
                      "[1, inf)")
    compile: bool = knob(False, "torch.compile the model")


FIELDS = {f.name: f for f in fields(Config)}
STARRED = [f.name for f in fields(Config) if f.metadata["nargs"] == "+" and f.name != "variant"]


def flag(name, value=""):
    """How a setting looks on the command line, for messages."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(["--" + name.replace("_", "-"), *map(str, values)]).rstrip()


def checked(f, value):
    """A single value of field `f`, in its type; a UsageError if it is not allowed."""
    said, allowed = flag(f.name, value), OPS if f.name == "op" else f.metadata["allowed"]
    if allowed is None:
        if not isinstance(value, (f.type, os.PathLike)):
            raise UsageError(f"{said}: must be a {f.type.__name__}")
        return value if f.type is bool else os.fspath(value)
    if f.type is str:
        if value in allowed:
            return value
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{said}: must be one of {', '.join(allowed)}{hint}")
    try:
        number = float("nan" if isinstance(value, bool) else value)
        if f.type is int and number == number:
            exact = isinstance(value, int) or str(value).isdecimal()
            number = int(value) if exact else int(number) if number.is_integer() else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    low, high = map(float, allowed[1:-1].split(","))
    if not (low < number < high or number == low and allowed[0] == "["
            or number == high and allowed[-1] == "]"):
        hint = "; separate several values by spaces" if "," in str(value) else ""
        raise UsageError(f"{said}: must be a {'whole ' * (f.type is int)}number in {allowed}{hint}")
    return number


def resolve(config):
    """`config` with the recipe filled in and every value checked; fields with "+" come back as
    lists. Raises UsageError."""
    recipe = RECIPES["paper"] | RECIPES[checked(FIELDS["recipe"], config.recipe or "paper")]
    values = {}
    for name, f in FIELDS.items():
        value, nargs = getattr(config, name), f.metadata["nargs"]
        if value is None:
            value = recipe.get(name, f.default)
        if nargs:
            given = list(value) if isinstance(value, (list, tuple, range, np.ndarray)) else [value]
            value = [checked(f, v) for v in given]
            if nargs == "+" and len(set(value)) < max(1, len(value)):
                problem = "a value is given twice" if value else "needs a value"
                raise UsageError(f"{flag(name, given)}: {problem}")
            if nargs != "+" and len(value) != nargs:
                raise UsageError(f"{flag(name, given)}: takes {nargs} values")
        elif value is not None:
            value = checked(f, value)
        values[name] = value
    config = Config(**values)
    if config.width % config.heads:
        raise UsageError(f"--heads {config.heads}: must divide --width {config.width}")
    known = {}
    for run in grid(config):
        c = run.config
        N = table_size(c.op, c.p)[1]
        n_train = round(c.frac * N)
        if not 0 < n_train < N:
            raise UsageError(f"--frac {c.frac}: gives {n_train} of the {N} equations of {c.op} to "
                             "training; both sides need at least one")
        if c.outliers > n_train:
            raise UsageError(f"--outliers {c.outliers}: {c.op} at --frac {c.frac} has only "
                             f"{n_train} training equations")
        key = tuple(getattr(c, name) for name in STARRED)
        if key in known:
            raise UsageError(f"--variant '{known[key]}' '{c.variant}': give the same run twice")
        known[key] = c.variant
    return config


def overrides(variant):
    """The settings, a dict, that a variant NAME=VALUE,NAME=VALUE puts in the place of a grid's."""
    settings = {}
    for word in filter(None, variant.split(",")):
        name, _, value = word.partition("=")
        name = name.replace("-", "_")
        if name in settings:
            raise UsageError(f"--variant {variant}: names {name} twice")
        if name not in STARRED:
            raise UsageError(f"--variant {variant}: {name} must be one of {', '.join(STARRED)}")
        try:
            settings[name] = checked(FIELDS[name], value)
        except UsageError as error:
            problem = error if value else f"{name} needs a value: {name}=VALUE"
            raise UsageError(f"--variant {variant}: {problem}")
    return settings


PURPOSES = "split", "outliers", "init", "batches", "noise", "sharpness"


def rng(seed, purpose, *more):
    """A generator of its own for each seed and purpose: a run draws the same numbers whatever it
    is trained beside and wherever."""
    return np.random.default_rng([PURPOSES.index(purpose), seed, *more])


# --------------------------------------------------------------------------------------------------
# 2. Operations. To add one: grok.OPS["mine"] = ("x + 2y mod p", lambda x, y, p: (x + 2 * y) % p)

class Op(NamedTuple):
    """A binary operation; function(x, y, p) maps int64 arrays of elements 0 … n-1 to another."""
    formula: str
    function: Callable
    n: int = None        # number of elements; None: the modulus p
    y_from: int = 0      # least y of the domain; 1 leaves out division by 0
    prime: bool = False  # whether p must be prime


# S5: the permutations in lexicographic order; S5[x, y] is x first, then y: (x·y)[i] = y[x[i]]
PERMUTATIONS = np.array(list(itertools.permutations(range(5))))  # (120, 5)
DIGITS = 5 ** np.arange(4, -1, -1)  # read as numbers in base 5 the permutations ascend
S5 = np.searchsorted(PERMUTATIONS @ DIGITS, PERMUTATIONS[:, PERMUTATIONS] @ DIGITS).T
S5_INVERSE = S5.argmin(axis=1)  # x · x⁻¹ is the identity, element 0

power = np.vectorize(pow, otypes=[np.int64])  # power(x, y, p) = x^y mod p


def divide(x, y, p):
    return x * power(y, p - 2, p) % p  # y⁻¹ = y^(p-2) mod a prime p (Fermat)


OPS = {
    "x_plus_y": Op("x + y mod p", lambda x, y, p: (x + y) % p),
    "x_minus_y": Op("x - y mod p", lambda x, y, p: (x - y) % p),
    "x_mul_y": Op("x · y mod p", lambda x, y, p: x * y % p),
    "x_div_y": Op("x / y mod p", divide, y_from=1, prime=True),
    "x_div_y_if_y_odd_else_x_minus_y": Op(
        "x / y if y is odd, else x - y, mod p", prime=True,
        function=lambda x, y, p: np.where(y % 2 == 1, divide(x, y, p), (x - y) % p)),
    "x_pow_y": Op("x^y mod p, with 0^0 = 1", power),
    "x2_plus_y2": Op("x² + y² mod p", lambda x, y, p: (x**2 + y**2) % p),
    "x2_plus_xy_plus_y2": Op("x² + xy + y² mod p", lambda x, y, p: (x**2 + x * y + y**2) % p),
    "x2_plus_xy_plus_y2_plus_x": Op("x² + xy + y² + x mod p",
                                    lambda x, y, p: (x**2 + x * y + y**2 + x) % p),
    "x3_plus_xy": Op("x³ + xy mod p", lambda x, y, p: (x**3 + x * y) % p),
    "x3_plus_xy2_plus_y": Op("x³ + xy² + y mod p", lambda x, y, p: (x**3 + x * y**2 + y) % p),
    "s5_xy": Op("x · y in S5", lambda x, y, p: S5[x, y], n=120),
    "s5_xyxinv": Op("x · y · x⁻¹ in S5", lambda x, y, p: S5[S5[x, y], S5_INVERSE[x]], n=120),
    "s5_xyx": Op("x · y · x in S5", lambda x, y, p: S5[S5[x, y], x], n=120),
}


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def table_size(op, p=97):
    """(n, N): how many elements and equations an operation has. Raises UsageError."""
    checked(FIELDS["op"], op)
    op_ = Op(*OPS[op])
    if op_.prime and not is_prime(p):
        below = [q for q in range(2, p) if is_prime(q)][-1:]
        near = [*below, next(filter(is_prime, itertools.count(p)))]
        raise UsageError(f"--p {p}: {op} needs a prime modulus "
                         f"(nearest: {', '.join(map(str, near))})")
    n = op_.n or p
    return n, n * (n - op_.y_from)


def equations(op, p=97):
    """The table of an operation: int64 arrays x, y, z of length N, for each equation x ∘ y = z.
    Elements are numbered from 0, those of S5 in lexicographic order of their one-line notation.
    Raises UsageError for an unknown operation or a modulus it has no table for."""
    n, _ = table_size(op, p)
    op_ = Op(*OPS[op])
    x, y = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(op_.y_from, n), indexing="ij"))
    z = np.asarray(op_.function(x, y, p))
    if z.shape != x.shape or z.dtype.kind not in "iu" or z.min() < 0 or z.max() >= n:
        raise UsageError(f"--op {op}: its function must give each equation an integer in "
                         f"[0, {n - 1}]")
    return x, y, z.astype(np.int64)


def split(run):
    """A run's labels (N,) and training rows (n_train,), by its seed. The labels are the answers,
    but `outliers` training rows have the answer of an equation drawn at random."""
    z = equations(run.op, run.p)[2]
    train = rng(run.seed, "split").permutation(len(z))[:round(run.frac * len(z))]
    random, labels = rng(run.seed, "outliers"), z.copy()
    labels[random.choice(train, run.outliers, replace=False)] = random.choice(z, run.outliers)
    return labels, train


# --------------------------------------------------------------------------------------------------
# 3. The model: R transformers that read x ∘ y = and name z, as the rows of one matrix of weights.

def take(table, index):
    """Rows of each run's table (R, M, ...), by number: index (R, B) gives (R, B, ...). The backward
    of F.embedding is deterministic on a CPU and twice as fast as that of table[index]."""
    (R, M), tail = table.shape[:2], table.shape[2:]
    offset = torch.arange(0, R * M, M, device=index.device)[:, None]
    return F.embedding(index + offset, table.reshape(R * M, -1)).view(*index.shape, *tail)


def linear(h, w):
    """h (R, ..., D_in) times each run's w (R, D_in, D_out)."""
    return torch.bmm(h.flatten(1, -2), w).view(*h.shape[:-1], -1)


def normed(h, w):
    """LayerNorm of h (R, B, T, D) with each run's scale and shift, w (R, 2, D)."""
    scale, shift = w[:, :, None, None].unbind(1)
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-5), scale)


def attention(q, k, v, heads):
    """Causal attention of the queries q (R, B, Tq, D) of the last positions. Keys k and values v
    are lists of (R, B, T, D), earlier positions first. Each query meets just what it may see, so no
    mask is needed; with four positions, sums of products beat fused kernels, and parts left apart
    beat one concatenated tensor."""
    split_heads = lambda h: h.unflatten(3, (heads, -1))                      # (R, B, T, H, D/H)
    (*past_k, own_k), (*past_v, own_v) = map(split_heads, k), map(split_heads, v)
    heard, first = [], own_k.shape[2] - q.shape[2] + 1
    for t, query in enumerate(split_heads(q).split(1, 2), first):
        keys, values = [*past_k, own_k[:, :, :t]], [*past_v, own_v[:, :, :t]]
        scores = torch.cat([(query * part).sum(-1) for part in keys], 2)     # (R, B, Tk, H)
        shares = (scores / math.sqrt(query.shape[-1])).softmax(2).unsqueeze(-1)
        shares = shares.split([part.shape[2] for part in values], 2)
        heard.append(sum((s * part).sum(2) for s, part in zip(shares, values)).flatten(2))
    return torch.stack(heard, 2)                                             # (R, B, Tq, D)


class Transformer(nn.Module):
    """`runs` decoder-only transformers over n elements; their weights are the rows of W (R, P).

    Tokens: elements 0 … n-1, the operation n, "=" n+1. A block adds causal attention, then a ReLU
    feed-forward of 4 x width to the stream, with LayerNorm after each sum; no other biases."""

    def __init__(self, n, runs=1, layers=2, width=128, heads=4, position_scale=1.0):
        super().__init__()
        self.n, self.layers, self.heads = n, layers, heads
        self.shapes = {"embed": (n + 2, width), "head": (width, n + 2)}  # linear maps: (in, out)
        for i in range(layers):
            square = (width, width)
            block = dict(q=square, k=square, v=square, out=square, norm1=(2, width),
                         up=(width, 4 * width), down=(4 * width, width), norm2=(2, width))
            self.shapes |= {f"{i}.{name}": shape for name, shape in block.items()}
        P = sum(map(math.prod, self.shapes.values()))
        self.W = nn.Parameter(torch.zeros(runs, P, dtype=torch.float32))
        rate = 1e4 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angle = torch.arange(4, dtype=torch.float32)[:, None] * rate
        positions = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :width]
        self.register_buffer("positions", position_scale * positions)        # (4, D), fixed

    def initial(self, seed, init_scale=1.0, embed_init_scale=1.0):
        """A row (P,) of initial weights as PyTorch draws them: N(0, 1) for the embedding,
        U(-1/√fan_in, 1/√fan_in) for linear maps."""
        random, parts = rng(seed, "init"), []
        for name, shape in self.shapes.items():
            if name == "embed":
                part = random.standard_normal(shape) * init_scale * embed_init_scale
            elif "norm" in name:
                part = np.repeat([1.0, 0.0], shape[1])
            else:
                part = random.uniform(-1, 1, shape) * init_scale / math.sqrt(shape[0])
            parts.append(part.ravel())
        return torch.from_numpy(np.concatenate(parts)).to(torch.float32)

    def weights(self, W=None):
        """The named weights, views (R, *shape) of W: weights()["embed"][0] is run 0's embedding."""
        parts = (self.W if W is None else W).split(list(map(math.prod, self.shapes.values())), 1)
        return {name: part.unflatten(1, shape) for part, (name, shape)
                in zip(parts, self.shapes.items())}

    def forward(self, x, y, W=None, dropout=None, generator=None):
        """Logits (R, B, V) at "=" for each run's equations; x, y (R, B) are element numbers. `W`
        stands in for the parameter; `dropout` (R, 1) holds rates, drawn from `generator`.

        Under the causal mask the positions x ∘ depend on x alone: they are computed once per
        distinct x, like a cached prompt, and gathered. So are the first layer's keys, values and
        queries of y =. Dropout draws a mask per equation, so that nothing can be shared; then, and
        for small batches, the same path starts from the batch's own rows."""
        w, n = self.weights(W), self.n
        shared = dropout is None and x.shape[1] > n
        element = w["embed"][:, :n]                                          # (R, n, D)
        operation, equals = w["embed"][:, n:, None].expand(-1, -1, n, -1).unbind(1)
        prefix = torch.stack([element, operation], 2) + self.positions[:2]   # (R, n, 2, D)
        h = torch.stack([element, equals], 2) + self.positions[2:]
        if not shared:
            prefix, h = take(prefix, x), take(h, y)                          # (R, B, 2, D)
        for i in range(self.layers):
            w_q, w_k, w_v, *rest = (w[f"{i}.{name}"] for name in
                                    ("q", "k", "v", "out", "norm1", "up", "down", "norm2"))
            last = i == self.layers - 1
            rows = h[:, :, 1:] if last else h                                # at last, just "="
            past_k, past_v = linear(prefix, w_k), linear(prefix, w_v)
            if not last:
                prefix = self.block(prefix, linear(prefix, w_q), [past_k], [past_v], rest, dropout,
                                    generator)
            q, k, v = linear(rows, w_q), linear(h, w_k), linear(h, w_v)
            if shared:
                past_k, past_v = take(past_k, x), take(past_v, x)
                if i == 0:
                    rows, q, k, v = (take(t, y) for t in (rows, q, k, v))
            h = self.block(rows, q, [past_k, k], [past_v, v], rest, dropout, generator)
        return linear(h[:, :, 0], w["head"])

    def block(self, h, q, k, v, weights, dropout, generator):
        """What follows the projections: the rows h (R, M, Tq, D) attend, then feed forward."""
        out, norm1, up, down, norm2 = weights
        h = normed(h + linear(attention(q, k, v, self.heads), out), norm1)
        branch = linear(linear(h, up).relu(), down)
        if dropout is not None:
            rate = dropout[:, :, None, None]
            random = torch.rand(branch.shape, dtype=h.dtype, device=h.device, generator=generator)
            branch = branch * (random >= rate) / (1 - rate)
        return normed(h + branch, norm2)


# --------------------------------------------------------------------------------------------------
# 4. Optimisation: what turns a gradient into the next weights. Settings may differ between rows.

def losses(logits, labels):
    """Cross-entropy (R, B) of logits (R, B, V), in nats."""
    flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view_as(labels)


@torch.no_grad()
def adamw(W, grad, m, v, t, lr, weight_decay, betas=(0.9, 0.98), eps=1e-8, anchor=None):
    """Update number t (from 1) of torch.optim.AdamW, in place on W and its moments m, v (R, P).
    lr and weight_decay are columns (R, 1); decay pulls toward `anchor` (R, P), or the origin."""
    if anchor is None:
        W.mul_(1 - lr * weight_decay)
    else:
        W.lerp_(anchor, lr * weight_decay)
    m.lerp_(grad, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    debias = math.sqrt(1 - betas[1] ** t)  # of √v; that of m is in the last line
    W.addcmul_(m / v.sqrt().add_(eps * debias), lr * debias / (1 - betas[0] ** t), value=-1)


def batches(seed, train_rows, size, first, last):
    """The rows (last - first, size) of updates first + 1 … last: an endless stream of reshuffled
    epochs, cut into full batches. Any part of it follows from the seed, so that a resumed run finds
    its place with no stored state."""
    start, n = first * size, len(train_rows)
    epochs = range(start // n, -(-last * size // n))
    stream = [rng(seed, "batches", epoch).permutation(train_rows) for epoch in epochs]
    return np.concatenate(stream)[start % n:][:(last - first) * size].reshape(-1, size)


# --------------------------------------------------------------------------------------------------
# 5. Training. Runs of one shape form a stack, which goes batch, forward, backward, update.

@dataclass
class Run:
    """A row of the table of runs: its settings, a Config of single values, and how far it is."""
    config: Config
    name: str                 # the settings that tell it from the others of its grid
    step: int = 0             # updates done
    seconds: float = 0.0      # of training of its stack, without evaluation
    val_acc: float = 0.0      # at the last evaluation
    best: float = 0.0         # the highest val_acc
    train_99: int = None      # first evaluated update with 99 % training accuracy
    val_99: int = None        # and with 99 % validation accuracy
    diverged: int = None      # the update whose loss was not finite
    W: torch.Tensor = None    # (P,) weights, and AdamW's moments
    m: torch.Tensor = None
    v: torch.Tensor = None
    noise: torch.Tensor = None  # state of its stack's generator of dropout and noise

    def shape(self):
        """What runs must share to be stacked: n, N, batch size, updates done."""
        c = self.config
        n, N = table_size(c.op, c.p)
        n_train = round(c.frac * N)
        half = math.ceil(n_train / 2)
        return n, N, min(c.batch_size, half) if c.batch_size else n_train, self.step

    def settings(self):
        """What makes it the run it is, as in metrics.csv, where p is the number of elements."""
        columns = {name: value for name, value in vars(self.config).items() if name in COLUMNS}
        return columns | dict(p=self.shape()[0], betas="{} {}".format(*self.config.betas))

    def model(self):
        """Its Transformer (R = 1), with its last weights."""
        c = self.config
        model = Transformer(self.shape()[0], 1, c.layers, c.width, c.heads, c.position_scale)
        model.W.data[0] = self.W
        return model

    def finished(self, config):
        goal = max(config.until, config.expect or 0) if config.until else math.inf
        return self.diverged is not None or self.step >= config.steps or self.val_acc >= goal

    def note(self, metrics):
        """Takes in an evaluation; one that is not finite means that the run has diverged."""
        if not all(map(math.isfinite, metrics.values())):
            self.diverged = self.step
            return
        self.val_acc, self.best = metrics["val_acc"], max(self.best, metrics["val_acc"])
        if self.train_99 is None and metrics["train_acc"] >= 0.99:
            self.train_99 = self.step
        if self.val_99 is None and metrics["val_acc"] >= 0.99:
            self.val_99 = self.step


def grid(config):
    """The table of runs of a resolved Config: the product of its fields with "+", where a variant
    has the last word."""
    names, runs = [*STARRED, "variant"], []
    told = [name for name in names if name in ("op", "seed") or len(getattr(config, name)) > 1]
    for values in itertools.product(*(getattr(config, name) for name in names)):
        c = replace(config, **dict(zip(names, values)) | overrides(values[-1]))
        name = ", ".join(f"{name} {value}" for name in told if (value := getattr(c, name)) != "")
        runs.append(Run(c, name.removeprefix("op ")))
    return runs


def stacks(runs, limit):
    """The runs in groups of one shape, of at most `limit` runs."""
    groups = {}
    for run in runs:
        groups.setdefault(run.shape(), []).append(run)
    return [group[i:i + limit] for group in groups.values() for i in range(0, len(group), limit)]


def build(runs, device):
    """A stack's model and tensors: table, labels and training mask (R, N), settings (R, 1), AdamW's
    moments and the anchor of decay, the origin or the initial weights (R, P)."""
    c = runs[0].config
    model = Transformer(runs[0].shape()[0], len(runs), c.layers, c.width, c.heads, c.position_scale)
    anchor = torch.stack([model.initial(run.config.seed, run.config.init_scale,
                                        run.config.embed_init_scale) for run in runs])
    to_init = torch.tensor([[run.config.decay_to == "init"] for run in runs])
    s = dict(anchor=anchor * to_init, m=torch.zeros_like(anchor), v=torch.zeros_like(anchor))
    model.W.data.copy_(anchor)
    for i, run in enumerate(runs):
        if run.W is not None:
            model.W.data[i], s["m"][i], s["v"][i] = run.W, run.m, run.v
    for name in "lr", "weight_decay", "dropout", "weight_noise", "update_noise":
        column = [[getattr(run.config, name)] for run in runs]
        s[name] = torch.tensor(column, dtype=torch.float32)
    tables = {op: equations(op, c.p)[:2] for op in {run.config.op for run in runs}}
    xs, ys = zip(*(tables[run.config.op] for run in runs))
    labels, train_rows = zip(*(split(run.config) for run in runs))
    for name, arrays in ("x", xs), ("y", ys), ("labels", labels):
        s[name] = torch.from_numpy(np.stack(arrays))
    s["train"] = torch.zeros(s["x"].shape, dtype=torch.bool)
    for mask, rows in zip(s["train"], train_rows):
        mask[rows] = True
    return model.to(device), {name: t.to(device) for name, t in s.items()}


@torch.no_grad()
def evaluate(model, s):
    """Loss and accuracy of each run on all its training and all its validation equations, without
    dropout or noise, and the norm of its weights: a list of dicts, from one pass over the table."""
    chunk = 512 if model.W.device.type == "cpu" else max(256, 2**17 // len(model.W))
    loss, hit, columns = [], [], {}
    for x, y, labels in zip(*(s[name].split(chunk, 1) for name in ("x", "y", "labels"))):
        logits = model(x, y)
        loss.append(losses(logits, labels))
        hit.append(logits.argmax(2) == labels)
    loss, hit = torch.cat(loss, 1), torch.cat(hit, 1)                        # (R, N)
    for name, mask in ("train", s["train"]), ("val", ~s["train"]):
        columns[f"{name}_loss"] = (loss * mask).sum(1) / mask.sum(1)
        columns[f"{name}_acc"] = (hit & mask).sum(1).float() / mask.sum(1)
    columns["weight_norm"] = model.W.norm(dim=1)
    return [{name: float(f"{value:.7g}") for name, value in zip(columns, values)}
            for values in torch.stack(list(columns.values()), 1).tolist()]


def next_evaluation(step, config):
    """The first update after `step` at which the runs are evaluated."""
    later = (step // config.eval_every + 1) * config.eval_every
    early = [e for e in (1, 2, 5, 10, 20, 50, 100) if e > step]
    return min([*early, later, config.steps])


def train_stack(runs, config, device, folder, console, stop=()):
    """Trains runs of one shape until each has reached its goal, diverged or spent its steps; once
    `stop` is not empty, finishes the update, writes a checkpoint and raises Interrupted."""
    model, s = build(runs, device)
    forward = torch.compile(model) if config.compile else model
    console.begin(runs, device, model.W.shape[1])
    train_rows = [mask.nonzero().flatten().numpy() for mask in s["train"].cpu()]
    *_, batch_size, step = runs[0].shape()
    used = {name: t.any().item() for name, t in s.items()}   # by any run
    generator = torch.Generator(device)
    generator.manual_seed(int(rng(runs[0].config.seed, "noise").integers(2**63)))
    noise_state = runs[0].noise
    if noise_state is not None and len(noise_state) == len(generator.get_state()):  # same device
        generator.set_state(noise_state)

    def noise(name):
        return s[name] * torch.randn(model.W.shape, dtype=torch.float32, device=device,
                                     generator=generator)

    def store(rows):
        for i in rows:
            runs[i].W, runs[i].m, runs[i].v = (t[i].detach().to("cpu", copy=True)
                                               for t in (model.W, s["m"], s["v"]))
            runs[i].noise = generator.get_state()

    live = list(range(len(runs)))                                            # rows in training
    while live:
        first, due = step, next_evaluation(step, config)
        last = min(due, step + 100, folder.next_checkpoint(step))
        block = np.stack([batches(run.config.seed, rows, batch_size, first, last)
                          for run, rows in zip(runs, train_rows)], 1)
        block = torch.from_numpy(block).to(device)                           # (updates, R, B)
        finite = torch.zeros(len(runs), device=device)
        start = time.perf_counter()
        for rows in block:                                  # nothing in here waits for a GPU
            if stop:
                break
            step += 1
            lr = s["lr"] * min(1, step / max(1, config.warmup))
            x, y, labels = (s[name].gather(1, rows) for name in ("x", "y", "labels"))
            W = model.W + noise("weight_noise") if used["weight_noise"] else model.W
            logits = forward(x, y, W, s["dropout"] if used["dropout"] else None, generator)
            loss = losses(logits, labels).mean(1)                            # (R,)
            grad, = torch.autograd.grad(loss.sum(), model.W)  # summed: no run scales another's
            adamw(model.W, grad, s["m"], s["v"], step, lr, s["weight_decay"], config.betas,
                  config.eps, s["anchor"] if used["anchor"] else None)
            if used["update_noise"]:
                model.W.data.add_(lr * noise("update_noise"))
            finite += loss.isfinite()
        finite = finite.tolist()                                             # waits for the device
        seconds = time.perf_counter() - start

        metrics = evaluate(model, s) if step == due else None
        for i in live:
            run = runs[i]
            run.step, run.seconds = step, run.seconds + seconds
            if finite[i] < step - first:
                run.diverged = first + int(finite[i]) + 1
            elif metrics:
                run.note(metrics[i])
            if run.diverged:
                console.line(f"{run.name}: the loss is not finite at update {run.diverged:,}; "
                             "this run ends here")
            elif metrics:
                folder.record(run, metrics[i])
        healthy = [metrics[i] for i in live if metrics and not runs[i].diverged]
        console.progress(step, config.steps, healthy)

        done = [i for i in live if runs[i].finished(config)]
        store(done)
        live = [i for i in live if i not in done]
        if stop or not live or folder.checkpoint_due(step):
            store(live)
            folder.checkpoint()
        if stop:
            raise Interrupted
        # Finished runs leave the stack. A compiled one shrinks by halves: each shape is compiled.
        if live and len(live) <= (len(runs) // 2 if config.compile else len(runs) - 1):
            runs, train_rows = [runs[i] for i in live], [train_rows[i] for i in live]
            s = {name: t[live] for name, t in s.items()}
            model.W = nn.Parameter(model.W.detach()[live])
            live = list(range(len(runs)))


def pick_device(name):
    """The torch.device of --device; under torchrun each process takes its own GPU."""
    here = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available())
    if not here.get(name, True):
        raise UsageError(f"--device {name}: there is none here; auto takes what there is")
    if name == "cuda" or name == "auto" and here["cuda"]:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu" if name == "auto" else name)


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def train_all(folder, console, stop=()):
    """Trains a folder's unfinished runs, one stack after another."""
    config, device, threads = folder.config, folder.device, torch.get_num_threads()
    limit = config.stack or (4 if device.type == "cpu" else 64)
    try:
        torch.set_num_threads(config.threads or threads)
        groups = stacks([run for run in folder.runs if not run.finished(config)], limit)
        console.brief = len(groups) > 8
        for group in groups:
            train_stack(group, config, device, folder, console, stop)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise UsageError(f"--stack {limit}: {len(group)} runs of this size do not fit into memory; "
                         "smaller --stack, --batch-size, --width or --layers would")
    finally:
        torch.set_num_threads(threads)


def train(config):
    """Trains every run of a Config. Returns the rows of metrics.csv, a list of dicts; writes a run
    folder if `config.out` names one; prints nothing if `config.quiet`. Raises UsageError, which is
    a ValueError."""
    config = resolve(config)
    with Folder(config.out, config) as folder:
        train_all(folder, Console(config.quiet))
    return folder.rows


# --------------------------------------------------------------------------------------------------
# 6. Records. A run folder holds a command's settings, metrics and checkpoint, and survives a kill.

class Interrupted(Exception):
    """Training stopped by request, after a checkpoint."""


FORMAT = 3  # of config.json and checkpoint.pt
COLUMNS = ("op p frac seed lr weight_decay decay_to dropout weight_noise update_noise outliers "
           "step train_loss train_acc val_loss val_acc weight_norm seconds "
           "batch_size init_scale embed_init_scale position_scale layers width heads betas eps "
           "warmup").split()
STATE = [f.name for f in fields(Run) if f.name not in ("config", "name")]
RESUMABLE = "steps", "until", "expect", "device", "threads", "checkpoint_every", "quiet"


def write_file(path, data):
    """Puts bytes at `path`, on the disk, as a whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(f"{path}: cannot be written: {error.strerror}; nothing there was lost: "
                         "mend that, then try again or --resume")


class Folder:
    """The run folder of a command: config.json, metrics.csv, checkpoint.pt. With `path` None the
    rows stay in memory. `share` is (rank, processes) under torchrun; `about` is the config.json of
    a folder to go on in. While it is open, a lock keeps other processes out."""

    def __init__(self, path, config, share=(0, 1), about=None):
        self.path, self.config, self.share = path and Path(path), config, share
        self.runs, self.rows = grid(config)[share[0]::share[1]], []
        self.resumed, self.about = about is not None, about or {"format": FORMAT, "commands": []}
        self.identity = {name: value for name, value in vars(config).items()
                         if name not in (*RESUMABLE, "out")}
        self.length, self.digest = 0, hashlib.sha256()       # of metrics.csv
        self.saved, self.cost = time.monotonic(), 0.1        # of the last checkpoint, in seconds

    def __enter__(self):
        self.device = pick_device(self.config.device)
        try:
            with contextlib.ExitStack() as opened:
                if self.path:
                    self.open(opened)
                self.close = opened.pop_all().close
        except OSError as error:
            raise UsageError(f"--out {self.path}: cannot be a run folder: {error.strerror}")
        return self

    def __exit__(self, *_):
        self.close()

    def open(self, opened):
        self.path.mkdir(parents=True, exist_ok=True)
        if fcntl:
            lock = os.open(self.path, os.O_RDONLY)
            opened.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.path}: another process is training in this folder; wait "
                                 "for it or stop it")
        names = "config.json", "metrics.csv", "checkpoint.pt"
        held = [name for name in names if (self.path / name).exists()]
        if held and not self.resumed:
            raise UsageError(f"--out {self.path}: already holds a run ({held[0]}); name another "
                             f"folder, or go on with --resume {self.path}")
        known = self.restore() if "checkpoint.pt" in held else b""
        self.about |= dict(config=vars(self.config), share=list(self.share),
                           device=device_name(self.device), **versions(),
                           commands=[*self.about["commands"], shlex.join(sys.argv)])
        write_file(self.path / "config.json", json.dumps(self.about, indent=1).encode() + b"\n")
        mode = "r+b" if "metrics.csv" in held else "xb"
        self.csv = opened.enter_context(open(self.path / "metrics.csv", mode, buffering=0))
        self.csv.truncate(len(known))                        # rows after the checkpoint come again
        self.csv.seek(len(known))
        self.length = len(known)
        self.digest.update(known)
        if not known:
            self.write(COLUMNS)

    def restore(self):
        """Puts the runs where checkpoint.pt left them; returns the part of metrics.csv it knows."""
        path, table = self.path / "checkpoint.pt", self.path / "metrics.csv"
        remedy = f"; put the right one back, or delete {path} to start again from update 0"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is wrong is said below, in one line
                saved = torch.load(path, weights_only=True, map_location="cpu")
            length, digest = saved["csv_bytes"], saved["csv_sha256"]
            identity, states = saved["identity"], [{k: s[k] for k in STATE} for s in saved["runs"]]
        except Exception as error:  # pickle, zip, key and type errors have no class in common
            raise UsageError(f"{path}: is damaged or not a checkpoint of grok.py "
                             f"({type(error).__name__}){remedy}")
        if identity != self.identity or len(states) != len(self.runs):
            raise UsageError(f"{path}: is the checkpoint of another command{remedy}")
        text = table.read_bytes()[:length] if table.exists() else b""
        if len(text) < length or hashlib.sha256(text).hexdigest() != digest:
            raise UsageError(f"{table}: was edited or cut short after the checkpoint{remedy}")
        for run, state in zip(self.runs, states):
            vars(run).update(state)
        self.rows = read_rows(text.decode())
        return text

    def record(self, run, metrics):
        """Adds a row to metrics.csv."""
        row = run.settings() | metrics | dict(step=run.step, seconds=round(run.seconds, 3))
        self.rows.append({name: row[name] for name in COLUMNS})
        if self.path:
            self.write(self.rows[-1].values())

    def write(self, values):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        data = text.getvalue().encode()
        try:
            if self.csv.write(data) < len(data):
                raise OSError(None, "no room for a whole row")
        except OSError as error:
            raise UsageError(f"{self.path / 'metrics.csv'}: cannot be written: {error.strerror}; "
                             "the last checkpoint is intact: mend that, then go on with --resume")
        self.digest.update(data)
        self.length += len(data)

    def next_checkpoint(self, step):
        """The next update at which --checkpoint-every wants a checkpoint."""
        every = self.config.checkpoint_every
        return (step // every + 1) * every if every else math.inf

    def checkpoint_due(self, step):
        if not self.path:
            return False
        if self.config.checkpoint_every:
            return step % self.config.checkpoint_every == 0
        return time.monotonic() - self.saved > 100 * self.cost

    def checkpoint(self):
        if not self.path:
            return
        start, data = time.monotonic(), io.BytesIO()
        runs = [{name: getattr(run, name) for name in STATE} for run in self.runs]
        torch.save(dict(identity=self.identity, csv_bytes=self.length,
                        csv_sha256=self.digest.hexdigest(), runs=runs), data)
        os.fsync(self.csv.fileno())
        write_file(self.path / "checkpoint.pt", data.getvalue())
        self.saved = time.monotonic()
        self.cost = self.saved - start


def versions():
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return dict(grok=__version__, grok_sha256=digest, python=platform.python_version(),
                numpy=np.__version__, torch=torch.__version__)


def read_rows(text):
    """The rows of a metrics.csv, or of several in one, numbers as numbers."""
    def cell(value):
        for kind in int, float:
            with contextlib.suppress(ValueError):
                return kind(value)
        return value
    return [dict(zip(COLUMNS, map(cell, line), strict=True))
            for line in csv.reader(io.StringIO(text)) if line not in (COLUMNS, [])]


def read_folder(path, changes=None):
    """The Folder at `path`, ready to be gone on with under `changes` (a dict) to its settings."""
    file = Path(path) / "config.json"
    try:
        about = json.loads(file.read_bytes())
        if about["format"] != FORMAT:
            raise UsageError(f"has format {about['format']}, and this grok.py reads {FORMAT}; use "
                             "the one that wrote it")
        stored = resolve(replace(Config(**about["config"]), out=path))
        share, about["commands"] = [int(n) for n in about["share"]], list(about["commands"])
    except OSError as error:
        raise UsageError(f"{path}: is not a run folder: {file.name}: {error.strerror}")
    except UsageError as error:
        raise UsageError(f"{file}: {error}")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file}: is damaged or not of this grok.py ({error!r}); put it back")
    config = resolve(replace(stored, **changes or {}))
    for name in changes or {}:
        old, new = getattr(stored, name), getattr(config, name)
        if old != new and name not in RESUMABLE:
            raise UsageError(f"{flag(name, new)}: cannot change on --resume (it is "
                             f"{flag(name, old)}); these can: {', '.join(map(flag, RESUMABLE))}")
    return Folder(path, config, share, about)


def load(path, run=0):
    """(config, model): the settings of a run of a folder, by its number in the grid, and its
    Transformer (R = 1) with the weights of the last checkpoint. Raises UsageError."""
    folder = read_folder(path)
    if (folder.path / "checkpoint.pt").exists():
        folder.restore()
    try:
        return folder.runs[run].config, folder.runs[run].model()
    except (IndexError, TypeError):
        raise UsageError(f"{path}: has no weights of run {run}; it has {len(folder.runs)} runs")


# --------------------------------------------------------------------------------------------------
# 7. Figures, drawn from run folders alone. Only here are matplotlib and scikit-learn imported.

MEASURED = "step", "train_loss", "train_acc", "val_loss", "val_acc", "weight_norm", "seconds"
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()  # Okabe and Ito's


def optional(module):
    """A module that only figures need. Raises UsageError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = "matplotlib" if module.startswith("matplotlib") else "scikit-learn"
        raise UsageError(f"--plot: needs {package}, which is not installed: pip install {package}")


def named(row):
    """What makes a run the run it is, from a row of metrics.csv; the name of its operation has the
    modulus with it where that is not the paper's."""
    settings = {name: row[name] for name in COLUMNS if name not in (*MEASURED, "p")}
    if row["p"] != 97 and not row["op"].startswith("s5"):
        settings["op"] += f" mod {row['p']}"
    return settings


def below(paths, name):
    """The files of that name in and below some folders."""
    return list({file.resolve(): file for path in paths for file in sorted(Path(path).rglob(name))}
                .values())


def read_runs(paths):
    """The runs recorded in and below some folders: a list of (settings, rows), a dict and a list of
    the dicts of metrics.csv. Of a run that was done twice, the longer one. Raises UsageError."""
    for path in paths:
        if not Path(path).is_dir():
            raise UsageError(f"--plot {path}: is not a folder")
    found = {}
    for file in below(paths, "metrics.csv"):
        runs = {}
        try:
            for row in read_rows(file.read_text()):
                settings = named(row)
                run = runs.setdefault(tuple(settings.values()), (settings, []))
                run[1].append({name: row[name] + 0 for name in MEASURED})
        except (OSError, AttributeError, TypeError, ValueError, csv.Error):
            raise UsageError(f"{file}: is damaged or not of this grok.py; leave it out")
        for key, run in runs.items():
            found[key] = max(found.get(key, run), run, key=lambda run: run[1][-1]["step"])
    if not found:
        raise UsageError(f"{flag('plot', paths)}: no metrics.csv there or below has a run in it")
    return list(found.values())


def grouped(runs, *apart):
    """The runs by their settings, but for seed and `apart`: (title, groups), what is common to them
    and a dict from what tells a group from most others, with its number of runs, to its runs."""
    def said(settings, names):
        values = [f"{v:g}" if isinstance(v := settings[name], float) else str(v) for name in names]
        return ", ".join(map(" ".join, zip(names, values))).removeprefix("op ")

    def told(settings):
        return [name for name in varied
                if name == "op" or len(varied) == 1 or settings[name] != usual[name]]

    names = [name for name in runs[0][0] if name not in ("seed", *apart)]
    usual = {name: statistics.mode(settings[name] for settings, _ in runs) for name in names}
    varied = [name for name in names if any(s[name] != usual[name] for s, _ in runs)]
    paper = dict(RECIPES["paper"], outliers=0, betas="0.9 0.98")
    title = said(usual, [name for name in names if name not in varied
                         and usual[name] != paper.get(name)])
    title += ", else the paper's settings" if title else "the paper's settings"
    if len(varied) > 1:
        title += f"\nbaseline: {said(usual, [name for name in varied if name != 'op'])}"
    groups = {}
    for settings, rows in sorted(runs, key=lambda run: (len(told(run[0])),
                                                        [run[0][name] for name in varied])):
        groups.setdefault(said(settings, told(settings)) or "baseline", []).append((settings, rows))
    return title, {f"{label} ({len(group)})": group for label, group in groups.items()}


def reached(rows, column="val_acc"):
    """The first evaluated update with 99 % accuracy; infinity if there is none."""
    return next((row["step"] for row in rows if row[column] >= 0.99), math.inf)


def band(group, column):
    """Median, least and greatest value of a column over the runs of a group, as arrays, at every
    update at which one was evaluated: (steps, median, low, high). A run that has ended keeps its
    last value."""
    steps, values = sorted({row["step"] for _, rows in group for row in rows}), []
    for _, rows in group:
        last = np.searchsorted([row["step"] for row in rows], steps, side="right") - 1
        values.append(np.array([row[column] for row in rows])[last.clip(0)])
    return np.array(steps), np.median(values, 0), np.min(values, 0), np.max(values, 0)


def growth(fracs, updates):
    """How much more updates each 1 % of the table less costs, between neighbouring fractions: 0.45
    is 45 % more."""
    return (np.array(updates[:-1]) / updates[1:]) ** (0.01 / np.diff(fracs)) - 1


def look(i):
    """Colour and marker of group number i."""
    return COLOURS[i % len(COLOURS)], "os^Dvp*"[i // len(COLOURS) % 7]


def canvas(title, groups=(), height=3.8, columns=2):
    """A matplotlib Figure and its axes, with a legend of the groups below if there are several."""
    rows = math.ceil(len(groups) / 2) if len(groups) > 1 else 0
    size = (10, height + 0.2 * rows)                                         # inches
    figure = optional("matplotlib.figure").Figure(size, layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for a in axes:
        a.grid(alpha=0.3)
        a.spines[["top", "right"]].set_visible(False)
    for i, label in enumerate(groups):
        colour, marker = look(i)
        axes[0].plot([], [], marker, color=colour, label=label)
    if rows:
        figure.legend(loc="outside lower center", fontsize=7, ncols=2)
    return figure, axes


def curves(runs):
    """Accuracy and loss over updates: each group of runs by its median over seeds and its range."""
    title, groups = grouped(runs)
    figure, axes = canvas(f"{title}\nsolid: validation, dashed: training; n = {len(runs)}", groups)
    for i, group in enumerate(groups.values()):
        colour, marker = look(i)
        for a, quantity in zip(axes, ("acc", "loss")):
            for part, style in ("train", "--"), ("val", "-"):
                steps, median, low, high = band(group, f"{part}_{quantity}")
                a.plot(steps, median, marker + style, color=colour, lw=1.3, ms=3, markevery=0.1)
                a.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
    for a, name in zip(axes, ("accuracy", "loss (nats)")):
        a.set(xscale="log", xlabel="updates", ylabel=name)
    axes[1].set_yscale("log")
    return figure


def medians(each, value):
    """Median, least and greatest value(rows) at each place of runs [(place, rows)]: arrays (place,
    median, low, high). What is infinite is left out."""
    points = []
    for place in sorted({place for place, _ in each}):
        values = [value(rows) for other, rows in each if other == place]
        if (median := statistics.median(values)) < math.inf:
            points.append((place, median, min(values), max(v for v in values if v < math.inf)))
    return np.array(points, dtype=float).reshape(-1, 4).T


def sweep(runs, setting=None):
    """Updates to 99 % and accuracy against a numeric setting or, without one, for each group of
    runs. Medians over seeds, the range and each run; one that never got there is a cross at its
    last update. Accuracies are the best ones or, against outliers, the last."""
    title, groups = grouped(runs, setting)
    lines, which = {}, "last" if setting == "outliers" else "best"
    for i, (label, group) in enumerate(groups.items()):      # {label: [(place, rows) of a run]}
        for settings, rows in group:
            line, place = (label, settings[setting]) if setting else ("", i)
            lines.setdefault(line, []).append((place, rows))
    title += ("\nfilled: validation, hollow: training; small: each run; × and +: not in so many "
              f"updates; n = {len(runs)}")
    figure, axes = canvas(title, lines, 3.8 if setting else 1.6 + 0.22 * len(groups))
    along, across = "xy" if setting else "yx"                # the axes of places and of values

    def accuracy(rows, column):
        return rows[-1][column] if which == "last" else max(row[column] for row in rows)

    def mark(a, style, points, **more):
        """Draws points, arrays (place, value) or (place, median, low, high)."""
        place, value, *ends = points
        spread = [value - ends[0], ends[1] - value] if ends else None
        a.errorbar(**{along: place, across: value, f"{across}err": spread}, fmt=style, capsize=2,
                   **more)

    for i, each in enumerate(lines.values()):
        colour, marker = look(i)
        for column, line, fill, cross in (("train_acc", "--", "white", "+"),
                                          ("val_acc", "-", colour, "x")):
            when = np.array([(place, reached(rows, column), rows[-1]["step"])
                             for place, rows in each]).T
            there = when[1] < math.inf
            mark(axes[0], cross, when[::2, ~there], color=colour, ms=7)
            mark(axes[0], marker, when[:2, there], color=colour, mfc=fill, ms=2.5)
            for a, value in zip(axes, (reached, accuracy)):
                points = medians(each, lambda rows: value(rows, column))
                mark(a, marker + line * bool(setting), points, color=colour, mfc=fill, ms=4.5)

    axes[0].set(**{f"{across}scale": "log", f"{across}label": "updates to 99 %"})
    axis, ticker = getattr(axes[0], f"{across}axis"), optional("matplotlib.ticker")
    axis.set(major_locator=ticker.LogLocator(subs=(1, 2, 5)), minor_formatter="",
             major_formatter=ticker.EngFormatter(sep=""))
    axes[1].set(**{f"{across}lim": (-0.03, 1.03), f"{across}label": f"{which} accuracy"})
    if not setting:
        for a, names in zip(axes, (groups, [])):
            a.set_yticks(range(len(groups)), names or [""] * len(groups), fontsize=7)
            a.invert_yaxis()
        return figure
    for a in axes:
        a.set_xlabel(dict(frac="fraction of the table in training",
                          outliers="training answers replaced by random ones")[setting])
    if setting == "frac" and len(lines) == 1:
        fracs, updates, *_ = medians(each, reached)
        at = zip(np.sqrt(fracs[1:] * fracs[:-1]), np.sqrt(updates[1:] * updates[:-1]))
        for point, more in zip(at, growth(fracs, updates)):
            axes[0].annotate(f"{more:+.0%}", point, (4, 4), textcoords="offset points", fontsize=7)
        if len(fracs) > 1:
            axes[0].set_xlabel("fraction of the table in training (+n %: updates per 1 % less)")
    return figure


# Subgroups of S5 by two generators. Figure 3 has D5: ⟨(0 3)(1 4), (1 2)(3 4)⟩.
SUBGROUPS = dict(D5=([3, 4, 2, 0, 1], [0, 2, 1, 4, 3]), A4=([1, 2, 0, 3, 4], [1, 0, 3, 2, 4]),
                 S4=([1, 2, 3, 0, 4], [1, 0, 2, 3, 4]))


def strands(n, step):
    """The elements 0 … n-1 along z, z + step, z + 2 · step …, in closed lines."""
    g = math.gcd(n, step)
    return [(i + step * np.arange(n // g + 1)) % n for i in range(g)]


def cosets(rows, generators):
    """Of a subgroup of S5, its conjugates, and left or right cosets, those that come nearest to
    clusters of rows (120, D): (share of the variance within them, the same by chance, cosets)."""
    group = [0, *(PERMUTATIONS.tolist().index(generator) for generator in generators)]
    while len(larger := np.unique(S5[group][:, group])) > len(group):
        group = larger
    found = []
    for g in range(120):
        conjugate = S5[S5[S5_INVERSE[g], group], g]
        for table in S5[conjugate].T, S5[:, conjugate]:      # row x: the elements of x's coset
            members = np.unique(np.sort(table), axis=0)
            found.append((rows[members].var(1).mean() / rows.var(0).mean(), members.tolist()))
    within, members = min(found)
    return within, (120 - len(members)) / 119, members


def families(rows, op):
    """What a map joins by lines among output rows (n, D), [(text, lists of elements)]: in S5 and
    for sums, what clustered in the paper's figure 3 and what comes nearest to that here."""
    if op.startswith("s5"):
        found = {name: cosets(rows, generators) for name, generators in SUBGROUPS.items()}
        nearest = min(found, key=lambda name: found[name][0] / found[name][1])
        return [(f"cosets of {name}, {note}: {1 - found[name][0]:.0%} of the variance between "
                 f"them, {1 - found[name][1]:.0%} by chance", found[name][2])
                for name, note in (("D5", "the paper's"),
                                   (nearest, f"the nearest of {', '.join(SUBGROUPS)}"))]
    if op in ("x_plus_y", "x_minus_y"):
        n = len(rows)
        distance = [((rows - np.roll(rows, k, axis=0)) ** 2).sum() for k in range(1, n // 2 + 1)]
        return [(f"z to z + {step}, {note}", strands(n, step))
                for step, note in ((8, "the paper's"), (1 + np.argmin(distance), "the nearest"))]
    return [("", [])]


def output_map(run):
    """Figure 3: the rows of a trained run's output layer, one for each element, in the plane."""
    op, n = run.config.op, run.shape()[0]
    rows = run.model().weights()["head"][0, :, :n].T.detach().double().numpy()   # (n, D)
    points = optional("sklearn.manifold").TSNE(random_state=0, perplexity=n / 5).fit_transform(rows)
    found = families(rows, op)
    title, _ = grouped([(named(run.settings()), run)])
    title += (f"\nt-SNE of the output layer of seed {run.config.seed} at update {run.step:,}, "
              f"validation accuracy {run.val_acc:.3f}")
    figure, axes = canvas(title, height=4.8, columns=len(found))
    for a, (text, joined) in zip(axes, found):
        a.plot(*points.T, ".", color="0.5")
        for i, family in enumerate(joined):
            colour, marker = look(i)
            a.plot(*points[family].T, marker + "-", color=colour, ms=4, lw=0.6)
        for z, point in enumerate(points):
            a.annotate(str(z), point, (2, 2), textcoords="offset points", fontsize=5)
        a.set(xticks=[], yticks=[])
        a.set_title(text, fontsize=7)
    return figure


def sharpness(loss, w, epsilon=1e-3, steps=20):
    """Keskar et al. 2017 (arXiv 1609.04836), metric 2.1 in the full space: φ = 100 · (max f - f) /
    (1 + f), with the maximum of f = loss(w + z) over the box |z_i| ≤ epsilon · (|w_i| + 1), found
    by projected gradient ascent along the gradient's signs, with steps from the size of the box
    down to none. It starts at a random point, as the gradient at a minimum is 0. `loss` maps a
    vector (P,) to a scalar tensor."""
    box = epsilon * (w.abs() + 1)
    z = box * torch.from_numpy(rng(0, "sharpness").uniform(-1, 1, w.shape)).to(w)
    at = highest = loss(w).item()
    for step in range(steps + 1):
        z.requires_grad_()
        value = loss(w + z)
        highest = max(highest, value.item())
        sign = torch.autograd.grad(value, z)[0].sign()
        z = (z.detach() + (1 - step / steps) * box * sign).clamp(-box, box)
    return 100 * (highest - at) / (1 + at)


def run_sharpness(run, epsilon=1e-3):
    """Sharpness φ, in per cent, of a trained run's loss on its training set."""
    model, (labels, train) = run.model(), split(run.config)
    x, y, _ = equations(run.config.op, run.config.p)
    x, y, labels = (torch.from_numpy(a[train])[None] for a in (x, y, labels))
    loss = lambda w: losses(model(x, y, w[None]), labels).mean()
    return sharpness(loss, model.W.detach()[0], epsilon)


def trained(paths):
    """The runs below some folders that have finite weights. Raises UsageError."""
    for file in below(paths, "checkpoint.pt"):
        folder = read_folder(file.parent)
        folder.restore()
        yield from (run for run in folder.runs if run.W is not None and not run.diverged)


def correlation(points):
    """Figure 7, from (settings, (sharpness, validation accuracy)) of runs, with Spearman's rank
    correlation of the two."""
    rho, p = optional("scipy.stats").spearmanr(*zip(*(point for _, point in points)))
    title, groups = grouped(points)
    title += f"\nε = 0.001, Spearman's ρ = {rho:.3f}, p = {p:.1g}, n = {len(points)}"
    figure, (a,) = canvas(title, groups, columns=1)
    for i, group in enumerate(groups.values()):
        colour, marker = look(i)
        a.plot(*zip(*(point for _, point in group)), marker, color=colour, ms=5)
    a.set(xscale="log", xlabel="sharpness φ (%)", ylabel="validation accuracy")
    return figure


def figures(paths, sharp=False):
    """The figures that apply to what is in some folders: yields (name, matplotlib Figure). `sharp`
    adds figure 7 for each operation and fraction with three runs or more, which takes seconds for
    each run. Raises UsageError."""
    runs, best, points = read_runs(paths), {}, {}
    for op in dict.fromkeys(settings["op"] for settings, _ in runs):
        yield f"curves-{op}", curves([run for run in runs if run[0]["op"] == op])
    swept = [name for name in ("frac", "outliers") if len({s[name] for s, _ in runs}) > 1]
    for name in swept or [None] * (len(grouped(runs)[1]) > 1):
        yield f"sweep-{name}" if name else "compare", sweep(runs, name)
    for run in trained(paths):
        settings = named(run.settings())
        op, key = settings["op"], tuple(settings.values())
        if run.val_99 and (op not in best or run.val_acc > best[op].val_acc):
            best[op] = run
        if sharp:
            point = run_sharpness(run), run.val_acc
            points.setdefault(f"{op}-{run.config.frac}", {})[key] = settings, point
    for op, run in best.items():
        yield f"map-{op}", output_map(run)
    if sharp and max(map(len, points.values()), default=0) < 3:
        raise UsageError("--sharpness: needs at least three runs with a checkpoint, of one "
                         "operation and fraction")
    for name, each in points.items():
        if len(each) > 2:
            yield f"sharpness-{name}", correlation(list(each.values()))


def plot(paths, out=None, sharp=False, console=None):
    """Draws run folders: every figure that applies, as PNG in `out` or the first of the folders.
    Returns the files. Raises UsageError."""
    folder, files = Path(out or paths[0]), []
    for name, figure in figures(paths, sharp):
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {folder}: cannot be a folder of pictures: {error.strerror}")
        files.append(folder / f"{name.replace(' ', '-').replace('/', '-')}.png")
        write_file(files[-1], data.getvalue())
        if console:
            console.line(str(files[-1]))
    return files


# --------------------------------------------------------------------------------------------------
# 8. The command line.

class Console:
    """What a person sees: on a terminal a line that updates itself; elsewhere a line now and then,
    or, when `brief`, just one for each stack."""

    def __init__(self, quiet=False):
        self.quiet, self.live, self.brief = quiet, sys.stdout.isatty(), False

    def line(self, text, end="\n", always=False):
        if self.quiet:
            if always:
                print(f"grok.py: {text}", file=sys.stderr)
            return
        try:
            print(("\r\x1b[K" if self.live else "") + text, end=end, flush=True)
        except BrokenPipeError:  # the reader left; the training goes on
            self.quiet, sys.stdout = True, open(os.devnull, "w")

    def begin(self, runs, device, parameters):
        """Says what is trained, and starts the clock of updates/s."""
        self.start, self.next, self.shown = (runs[0].step, time.perf_counter()), 0, ""
        n, N, batch_size, _ = runs[0].shape()
        where = device_name(device)
        where += f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        others = f" and {len(runs) - 1} more runs" if len(runs) > 1 else ""
        self.line(f"{runs[0].name}{others}: {N:,} equations over {n} elements, batches of "
                  f"{batch_size}, {parameters:,} parameters, {where}")

    def progress(self, step, steps, metrics):
        """Shows where a stack is; `metrics` are the evaluations of its runs, if there are any."""
        rate = (step - self.start[0]) / (time.perf_counter() - self.start[1])
        if metrics:
            train, val = (statistics.median(m[name] for m in metrics)
                          for name in ("train_acc", "val_acc"))
            medians = f" (medians of {len(metrics)} runs)" if len(metrics) > 1 else ""
            self.shown = f"train {train:.3f}  val {val:.3f}{medians}"
        text = f"update {step:>7,}  {self.shown}  {rate:,.1f} updates/s"
        if self.live:
            left = datetime.timedelta(seconds=round(min(1e9, (steps - step) / max(rate, 1e-3))))
            width = shutil.get_terminal_size().columns - 1
            self.line(f"{text}, at most {left} left"[:width], end="")
        elif metrics and not self.brief and (step >= self.next or step == steps):
            self.line(text)
            self.next = 1.3 * step


def sparkline(steps, values, width=40):
    """Values in [0, 1], known from each of `steps` on, drawn over log-spaced updates."""
    drawn = ""
    for i in range(width):
        update = steps[-1] ** (i / (width - 1)) + 1e-6
        known = [value for step, value in zip(steps, values) if step <= update]
        drawn += "▁▂▃▄▅▆▇█"[min(7, int(8 * known[-1]))]
    return drawn


def summary(folder):
    """The lines that close a command: on each run or, for a big grid, medians over the seeds."""
    groups, big = {}, len(folder.runs) > 8
    for run in folder.runs:
        parts = [p for p in run.name.split(", ") if not (big and p.startswith("seed "))]
        groups.setdefault(", ".join(parts), []).append(run)
    for name, runs in groups.items():
        yield f"{name}: medians over seeds, n = {len(runs)}" if big else name
        found = []
        for attribute in "train_99", "val_99":
            updates = [getattr(run, attribute) for run in runs if getattr(run, attribute)]
            found.append(f"at update {statistics.median_low(updates):,}" if updates else "never")
            found[-1] += f" ({len(updates)} of {len(runs)} runs)" if big else ""
        yield (f"  99 % of training {found[0]}, 99 % of validation {found[1]}, seen every "
               f"{runs[0].config.eval_every} updates")
        best, seconds, step = (statistics.median(getattr(run, name) for run in runs)
                               for name in ("best", "seconds", "step"))
        yield (f"  best validation accuracy {best:.4f}; {step:,.0f} updates in {seconds:,.1f} s of "
               f"training, {step / max(seconds, 1e-9):,.1f} updates/s")
        curve = [row for row in folder.rows if not big
                 and all(row[name] == getattr(runs[0].config, name) for name in STARRED)]
        for name in ("train", "val") if curve else ():
            steps = [row["step"] for row in curve]
            drawn = sparkline(steps, [row[f"{name}_acc"] for row in curve])
            yield f"  {name:5} {drawn}  update 1 … {steps[-1]:,}, log scale"


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, where argparse would print its usage first
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        known = re.findall(r"--[\w-]+", self.format_usage())
        near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise UsageError(f"{message.removeprefix('argument ')} ({hint})")


def parser():
    """The command line, made from Config; the result holds only flags that were given."""
    cli = Parser("grok.py", description=__doc__.split("\n\nOne idea")[0], allow_abbrev=False,
                 argument_default=argparse.SUPPRESS, epilog="[default]; flags with more than one "
                 "value make a grid of runs", formatter_class=argparse.RawDescriptionHelpFormatter)
    titles = dict(op="data", recipe="model", steps="optimiser", until="stopping", out="records",
                  device="system")  # by the first field of each group
    for f in fields(Config):
        group = cli.add_argument_group(titles[f.name]) if f.name in titles else group
        values = [f"{'' if name == 'paper' else name + ': '}{flag('', recipe[f.name])[3:]}"
                  for name, recipe in RECIPES.items() if f.name in recipe]
        text = f"{f.metadata['help']} [{'; '.join(values) or f.default}]"
        if f.type is bool:
            group.add_argument(flag(f.name), action="store_true", help=text)
        else:
            choices = f.metadata["allowed"] if isinstance(f.metadata["allowed"], tuple) else None
            group.add_argument(flag(f.name), help=text, nargs=f.metadata["nargs"],
                               metavar="|".join(choices) if choices else f.name[0].upper())
    group = cli.add_argument_group("other")
    group.add_argument("--resume", metavar="DIR", help="go on with a run folder, to the same bytes")
    group.add_argument("--plot", metavar="DIR", nargs="+", help="draw run folders and stop; the "
                       "pictures go to --out or the first DIR")
    group.add_argument("--sharpness", action="store_true", help="with --plot: sharpness too")
    group.add_argument("--list-ops", action="store_true", help="list the operations and exit")
    group.add_argument("--version", action="version", version=f"grok.py {__version__}")
    return cli


def list_ops(p):
    for name, op in OPS.items():
        op = Op(*op)
        try:
            n, N = table_size(name, p)
            range_ = f"0 ≤ x < {n}, {op.y_from} ≤ y < {n}"
            domain = "x, y in S5" if name.startswith("s5") else range_
            yield f"{name:32} {op.formula:38} {domain:24} {N:6,} equations"
        except UsageError as error:
            yield f"{name:32} {op.formula:38} {error}"


@contextlib.contextmanager
def signals():
    """Gives a list to which Ctrl-C and SIGTERM add their number; a second one acts as before."""
    stop, main_thread = [], threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
              if main_thread}

    def note(number, frame):
        stop.append(number)
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, note)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def folders(given, rank, world):
    """The folders the flags ask for: a new one, or those to go on with; under torchrun the part of
    this rank."""
    if "resume" not in given:
        config = resolve(Config(**given))
        if world > 1 and not config.out:
            raise UsageError("--out: is needed under torchrun, for all processes to share")
        now = datetime.datetime.now()
        path = Path(config.out or f"runs/{now:%Y%m%d-%H%M%S-%f}-{config.op[0]}")
        for held in path.glob("config.json" if world > 1 else "rank-*"):  # by other processes
            raise UsageError(f"--out {path}: already holds a run ({held.name}); name another")
        return [Folder(path / f"rank-{rank}" if world > 1 else path, config, (rank, world))]
    path = Path(given.pop("resume"))
    parts = [path / f"rank-{rank}"] if world > 1 else [path]
    if not (parts[0] / "config.json").exists():
        parts = sorted(path.glob("rank-*")) or [path]
    found = [read_folder(part, given) for part in parts]
    if world > 1 and world != found[0].share[1]:
        raise UsageError(f"--resume {path}: was started as {found[0].share[1]} processes, so it "
                         f"cannot go on as {world}; one process can go on with all of them")
    return found


def command(given):
    """Does what the flags (a dict) say; returns the exit status."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    console, missed = Console(given.get("quiet", False)), 0
    for folder in folders(given, rank, world):
        config, about, now = folder.config, dict(folder.about), versions()
        for name in "grok_sha256", "torch":
            if folder.resumed and about.get(name) != now[name]:
                console.line(f"note: {folder.path} was written by another {name.split('_')[0]} "
                             f"({about.get(name, 'unknown')}); going on")
        with folder, signals() as stop:
            if folder.resumed and all(run.finished(config) for run in folder.runs):
                console.line(f"{folder.path}: is finished already; a higher --steps or --until "
                             "goes on")
            try:
                train_all(folder, console, stop)
            except Interrupted:
                console.line("stopped; go on with: python grok.py --resume "
                             f"{folder.path}", always=True)
                return 128 + stop[0]
        for text in summary(folder):
            console.line(text)
        console.line(f"{folder.path}" + (f" ({len(folder.runs)} runs of rank {rank})"
                                         if world > 1 else ""))
        missed += sum(run.best < (config.expect or 0) for run in folder.runs)
    if world > 1 and config.expect:  # judged together at the very end: torchrun stops all ranks as
        import torch.distributed as dist  # soon as one exits with another status than 0
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
        total = torch.tensor(missed)
        dist.all_reduce(total)
        missed = int(total)
        dist.destroy_process_group()
    if missed:
        path = folder.path.parent if world > 1 else folder.path
        console.line(f"--expect {config.expect}: missed in {missed} run{'s' * (missed > 1)}; see "
                     f"{path}", always=True)
    return 1 if missed else 0


def draw(given):
    """--plot; returns the exit status."""
    if "plot" not in given:
        raise UsageError("--sharpness: goes with --plot DIR")
    other = set(given) - {"plot", "sharpness", "out", "quiet"}
    if other:
        raise UsageError(f"{flag(min(other), given[min(other)])}: has no use beside --plot")
    plot(given["plot"], given.get("out"), "sharpness" in given, Console("quiet" in given))
    return 0


def main(argv=None):
    """The command line; returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for terminals that cannot draw blocks
    try:
        given = vars(parser().parse_args(argv))
        if given.pop("list_ops", False):
            print(*list_ops(resolve(Config(op="x_plus_y", p=given.get("p"))).p), sep="\n")
            return 0
        if "plot" in given or "sharpness" in given:
            return draw(given)
        return command(given)
    except UsageError as error:
        print(f"grok.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside training
        print("grok.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

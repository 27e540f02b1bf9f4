# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "torch==2.13.0"]
# ///
# SPDX-License-Identifier: MIT
"""Version 2 of grok.py, kept only until the studies are ported to version 3.

Grokking (Power et al. 2022, arXiv 2201.02177) in one file: a small transformer sees part of the
table of a binary operation, memorises it and, much later, suddenly knows the rest.

    python grok.py --op x_div_y --frac 0.5                 the paper's recipe: a minute or two
    python grok.py --recipe fast --expect 0.99             the same jump in seconds, as a CI gate
    python grok.py --op s5_xy --frac 0.4 0.5 --seed 0 1 2  a grid of runs
    python grok.py --resume runs/DIR                       goes on, to the same metrics

One idea shapes the code: a run is a row. Weights, batches, settings and metrics have a leading axis
R of runs: a stack of runs is one tensor program, and a control is a row like any other.

Departures from the paper or its released code: the loss is on the answer alone, batches are all of
one size, warm-up starts at lr/10, update noise is not scaled by Adam. As in that code: post-norm
blocks, no biases in linear maps, fixed positions, an untied head, decay on every parameter.

Shapes: R runs, B batch, T positions, D width, H heads, N equations, V vocabulary, P parameters.
"""

import gc
import os
import signal

if __name__ == "__main__":  # Ctrl-C during the other imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
import argparse
import contextlib
import datetime
import io
import itertools
import json
import math
import shlex
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

# Threads of OpenMP that wait must not spin for long beside other work; a choice of the user's wins.
if spin := not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "2000"
import numpy as np
import torch
import torch.nn.functional as F

if spin:
    del os.environ["GOMP_SPINCOUNT"]
torch.empty(31 * 2**18)  # freed, these 31 MB teach glibc to keep memory for reuse (man mallopt)
__version__ = "2.0.0"


class UsageError(ValueError):
    """A mistake of the caller's, said in one line: what was given, and what would do."""


def refuse(wrong, problem):
    if wrong:  # in one line, whatever characters a value has
        raise UsageError("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(problem)))


# --- 1. Operations. To add one: grok.OPS["mine"] = grok.Op("x + 2y mod p", lambda x, y, p: ...) ---
class Op(NamedTuple):  # function(x, y, p) maps int64 arrays of elements 0 … n-1 to another
    formula: str
    function: Callable
    n: int = None  # number of elements; None: the modulus p
    y_from: int = 0  # least y of the domain; 1 leaves out division by 0
    prime: bool = False  # whether p must be prime


# S5: the permutations in lexicographic order; S5[x, y] is x first, then y: (x·y)[i] = y[x[i]]
PERMUTATIONS = {x: number for number, x in enumerate(itertools.permutations(range(5)))}
S5 = np.array([[PERMUTATIONS[tuple(y[i] for i in x)] for y in PERMUTATIONS] for x in PERMUTATIONS])
S5_INVERSE = S5.argmin(axis=1)  # x · x⁻¹ is the identity, element 0
power = np.vectorize(pow, otypes=[np.int64])  # power(x, y, p) = x^y mod p


def divide(x, y, p):
    return x * power(np.arange(p), p - 2, p)[y] % p  # y⁻¹ = y^(p-2) mod a prime p (Fermat)


OPS = {
    "x_plus_y": Op("x + y mod p", lambda x, y, p: (x + y) % p),
    "x_minus_y": Op("x - y mod p", lambda x, y, p: (x - y) % p),
    "x_mul_y": Op("x · y mod p", lambda x, y, p: x * y % p),
    "x_div_y": Op("x / y mod p", divide, y_from=1, prime=True),
    "x_div_y_if_y_odd_else_x_minus_y": Op(
        "x / y if y is odd, else x - y, mod p",
        prime=True,
        function=lambda x, y, p: np.where(y % 2 == 1, divide(x, y, p), (x - y) % p),
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


def equations(op, p=97):
    """The table of an operation: int64 arrays x, y, z of length N, for each equation x ∘ y = z.
    Elements count from 0, S5's as in PERMUTATIONS. Raises UsageError if there is no such table."""
    config = Config(op=op, p=p)
    n, how = config.sizes()[0], OPS[config.op]
    x, y = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(how.y_from, n), indexing="ij"))
    z = np.asarray(how.function(x, y, config.p))
    refuse(
        z.shape != x.shape or z.dtype.kind not in "iu" or z.min() < 0 or z.max() >= n,
        f"--op {op}: its function must give whole numbers in [0, {n - 1}]",
    )
    return x, y, z.astype(np.int64)


# --- 2. A run is a Config: one value for each setting. The command line is made of its fields. ----
def setting(default, help, allowed, shared=None, fixed=True):
    """A field of Config: a number in the interval `allowed`, "(0, 1]", or a text of these choices,
    None: any. `shared`: one value in a stack (a text's default). `fixed`: --resume must keep it."""
    shared = not isinstance(allowed, str) if shared is None else shared
    return field(default=default, metadata=locals())


@dataclass(frozen=True)
class Config:
    """Everything that defines a run. The defaults are the paper's. Raises UsageError."""

    op: str = setting("x_div_y", "operation, see --list-ops", OPS, shared=False)
    p: int = setting(97, "modulus of the modular operations", "[2, 4096]")
    frac: float = setting(0.5, "fraction of the table to train on", "(0, 1)")
    seed: int = setting(0, "seed of split, weights, batches and noise", "[0, inf)")
    outliers: int = setting(0, "training answers replaced by random ones", "[0, inf)")
    layers: int = setting(2, "transformer blocks", "[1, 1024]", shared=True)
    width: int = setting(128, "width of the residual stream", "[1, 65536]", shared=True)
    heads: int = setting(4, "attention heads, which share the width", "[1, inf)", shared=True)
    dropout: float = setting(0.0, "dropout on the feed-forward branch", "[0, 1)")
    init_scale: float = setting(1.0, "factor on all initial weights but LayerNorm's", "(0, inf)")
    embed_init_scale: float = setting(1.0, "further factor on the embedding's", "(0, inf)")
    position_scale: float = setting(1.0, "factor on the fixed positions", "[0, inf)", shared=True)
    batch_size: int = setting(512, "equations in a batch at most; 0 = full batch", "[0, inf)")
    batch_frac: float = setting(0.5, "share of the training set in a batch at most", "(0, 1]")
    lr: float = setting(1e-3, "learning rate after warm-up", "(0, inf)")
    warmup: int = setting(10, "updates of linear warm-up", "[0, inf)", shared=True)
    beta1: float = setting(0.9, "AdamW's decay rate of the gradient's mean", "[0, 1)", shared=True)
    beta2: float = setting(0.98, "and AdamW's of its square", "[0, 1)", shared=True)
    eps: float = setting(1e-8, "AdamW's epsilon", "[0, inf)", shared=True)
    weight_decay: float = setting(1.0, "decay per unit of lr, on every parameter", "[0, inf)")
    decay_to: str = setting(
        "origin",
        "what decay pulls to: origin, init, or identity (LayerNorm's scales to 1, all else to 0)",
        ("origin", "init", "identity"),
        shared=False,
    )
    weight_noise: float = setting(0.0, "σ of noise on the weights in training", "[0, inf)")
    update_noise: float = setting(0.0, "σ of noise on each update, in units of lr", "[0, inf)")
    grad_clip: float = setting(0.0, "greatest norm of a run's gradient; 0 = off", "[0, inf)")
    eval_every: int = setting(100, "updates between evaluations", "[1, inf)", shared=True)
    steps: int = setting(100_000, "updates at most", "[1, inf)", True, False)
    until: float = setting(0.99, "validation accuracy to stop at; 0 = none", "[0, 1]", fixed=False)
    expect: float = setting(0.0, "status 1 if missed; raises --until", "[0, 1]", fixed=False)
    device: str = setting("auto", "cpu, cuda or mps", ("auto", "cpu", "cuda", "mps"), True, False)
    threads: int = setting(0, "CPU threads; 0 = PyTorch's choice", "[0, 1024]", True, False)
    stack: int = setting(0, "runs at once; 0 = 4, on a GPU 64", "[0, inf)", True, False)

    def __post_init__(self):
        for f in fields(self):  # in their types; see section 7
            object.__setattr__(self, f.name, checked(f, getattr(self, f.name)))
        c, (_, N, n_train, _) = self, self.sizes()
        prime = all(c.p % d for d in range(2, math.isqrt(c.p) + 1))
        refuse(OPS[c.op].prime and not prime, f"--p {c.p}: {c.op} needs a prime modulus")
        refuse(c.width % c.heads, f"--heads {c.heads}: must divide --width {c.width}")
        refuse(not 0 < n_train < N, f"--frac {c.frac}: must be some of {N} equations, is {n_train}")
        refuse(c.outliers > n_train, f"--outliers {c.outliers}: only {n_train} training answers")

    @classmethod
    def grid(cls, **settings):
        """The product of settings, each a value or several: a list of Configs."""
        axes = [[v] if isinstance(v, str) or not np.iterable(v) else v for v in settings.values()]
        return [cls(**dict(zip(settings, values))) for values in itertools.product(*axes)]

    def sizes(self):
        """Numbers of elements, equations, training equations, and equations in a batch."""
        n = OPS[self.op].n or self.p
        N = n * (n - OPS[self.op].y_from)
        n_train = round(self.frac * N)
        return n, N, n_train, min(self.batch_size, math.ceil(n_train * self.batch_frac)) or n_train

    def columns(self):
        """What makes it the run it is, as in metrics.csv, where p is the number of elements."""
        fixed = (f.name for f in fields(self) if f.metadata["fixed"])
        return {name: getattr(self, name) for name in fixed} | dict(p=self.sizes()[0])

    def model(self):
        n = self.sizes()[0]
        return Transformer(n, self.layers, self.width, self.heads, self.position_scale)


FAST = dict(
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
PURPOSES = "split", "outliers", "init", "batches", "noise"  # their order is part of each seed


def rng(seed, purpose, *more):
    """A generator of its own for each seed and purpose, whatever a run is trained beside."""
    return np.random.default_rng([PURPOSES.index(purpose), seed, *more])


def split(config):
    """A run's table x, y, labels and the mask of its training rows, each (N,), by its seed. The
    labels are the answers, but `outliers` training rows have that of an equation at random."""
    x, y, z = equations(config.op, config.p)
    rows = rng(config.seed, "split").permutation(len(z))[: config.sizes()[2]]
    random, labels = rng(config.seed, "outliers"), z.copy()
    labels[random.choice(rows, config.outliers, replace=False)] = random.choice(z, config.outliers)
    return x, y, labels, np.isin(np.arange(len(z)), rows)


def batches(seed, train_rows, size, first, last):
    """The rows (last - first, size) of updates first + 1 … last: an endless stream of reshuffled
    epochs, cut into such batches. Any part of it follows from the seed: no state is stored."""
    start, n = first * size, len(train_rows)
    epochs = range(start // n, -(-last * size // n))
    stream = [rng(seed, "batches", epoch).permutation(train_rows) for epoch in epochs]
    return np.concatenate(stream)[start % n :][: (last - first) * size].reshape(-1, size)


# --- 3. The model: R transformers that read x ∘ y = and name z, with weights W (R, P). ------------
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
    are lists of (R, B, T, D), earlier positions first. A query meets only the keys that it may see:
    no mask. With four positions this beats fused kernels, and joining the parts."""
    split_heads = lambda h: h.unflatten(3, (heads, -1))  # (R, B, T, H, D/H)
    (*past_k, own_k), (*past_v, own_v) = map(split_heads, k), map(split_heads, v)
    heard, first = [], own_k.shape[2] - q.shape[2] + 1
    for t, query in enumerate(split_heads(q).split(1, 2), first):
        keys, values = [*past_k, own_k[:, :, :t]], [*past_v, own_v[:, :, :t]]
        scores = torch.cat([(query * part).sum(-1) for part in keys], 2)  # (R, B, Tk, H)
        shares = (scores / math.sqrt(query.shape[-1])).softmax(2).unsqueeze(-1)
        shares = shares.split([part.shape[2] for part in values], 2)
        heard.append(sum((s * part).sum(2) for s, part in zip(shares, values)).flatten(2))
    return torch.stack(heard, 2)  # (R, B, Tq, D)


class Transformer:
    """A decoder-only transformer over n elements, as a function of its weights: model(W, x, y).
    Tokens: elements 0 … n-1, the operation n, "=" n+1. A block adds causal attention, then a ReLU
    feed-forward of 4 x width to the stream, with LayerNorm after each sum; no other biases."""

    def __init__(self, n, layers=2, width=128, heads=4, position_scale=1.0):
        self.n, self.layers, self.heads, self.activation = n, layers, heads, torch.relu
        self.shapes = {"embed": (n + 2, width), "head": (width, n + 2)}  # linear maps: (in, out)
        for i in range(layers):
            square, up = (width, width), (width, 4 * width)
            block = dict(
                q=square,
                k=square,
                v=square,
                out=square,
                norm1=(2, width),
                up=up,
                down=up[::-1],
                norm2=(2, width),
            )
            self.shapes |= {f"{i}.{name}": shape for name, shape in block.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]  # P is their sum
        angle = torch.arange(4)[:, None] * 1e4 ** (-torch.arange(0, width, 2).float() / width)
        positions = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :width]
        self.positions = position_scale * positions  # (4, D), fixed

    def initial(self, seed, init_scale=1.0, embed_init_scale=1.0):
        """A row (P,), as PyTorch draws it: embedding N(0, 1), linear maps U(-1, 1)/√fan_in."""
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

    def weights(self, W):
        """The named weights, views (R, *shape) of W: weights(W)["embed"][0] is run 0's."""
        return {
            name: part.unflatten(1, shape)
            for part, (name, shape) in zip(W.split(self.sizes, 1), self.shapes.items())
        }

    def __call__(self, W, x, y, drop=None):
        """Logits (R, B, V) at "=" for each run's equations; x, y (R, B) are element numbers, and
        drop(h) is dropout on a feed-forward branch (R, B, T, D). Positions x ∘ never see y: they
        are computed once for each of the n elements, like a cached prompt, and gathered by x; so
        are, by y, the first layer's q, k and v of y =. Not so with dropout or in small batches."""
        w, n, positions = self.weights(W), self.n, self.positions.to(W.device)
        shared = drop is None and x.shape[1] > n
        element = w["embed"][:, :n]  # (R, n, D)
        operation, equals = w["embed"][:, n:, None].expand(-1, -1, n, -1).unbind(1)
        prefix = torch.stack([element, operation], 2) + positions[:2]  # (R, n, 2, D)
        h = torch.stack([element, equals], 2) + positions[2:]
        if not shared:
            prefix, h = take(prefix, x), take(h, y)  # (R, B, 2, D)
        for i in range(self.layers):
            w_q, w_k, w_v, *rest = (w[name] for name in w if name.startswith(f"{i}."))
            last = i == self.layers - 1
            rows = h[:, :, 1:] if last else h  # at last, just "="
            past_k, past_v = linear(prefix, w_k), linear(prefix, w_v)
            if not last:
                prefix = self.block(prefix, linear(prefix, w_q), [past_k], [past_v], rest, drop)
            q, k, v = linear(rows, w_q), linear(h, w_k), linear(h, w_v)
            if shared:
                past_k, past_v = take(past_k, x), take(past_v, x)
                if i == 0:
                    rows, q, k, v = (take(t, y) for t in (rows, q, k, v))
            h = self.block(rows, q, [past_k, k], [past_v, v], rest, drop)
        return linear(h[:, :, 0], w["head"])

    def block(self, h, q, k, v, weights, drop):
        """What follows the projections: the rows h (R, M, Tq, D) attend, then feed forward."""
        out, norm1, up, down, norm2 = weights
        h = normed(h + linear(attention(q, k, v, self.heads), out), norm1)
        branch = linear(self.activation(linear(h, up)), down)
        return normed(h + (branch if drop is None else drop(branch)), norm2)


def cross_entropy(logits, labels):
    """(R, B) of logits (R, B, V), in nats."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


# --- 4. Optimisation. A stack goes batch, forward, backward, update; a study overrides a step. ----
@torch.no_grad()
def adamw(W, grad, m, v, t, lr, weight_decay, betas=(0.9, 0.98), eps=1e-8, anchor=0):
    """Update number t (from 1) of torch.optim.AdamW, in place on W and its moments m, v (R, P).
    lr and weight_decay are columns (R, 1); decay pulls toward `anchor` (R, P), 0 for the origin."""
    W.mul_(1 - lr * weight_decay).add_(lr * weight_decay * anchor)
    m.lerp_(grad, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    debias = math.sqrt(1 - betas[1] ** t)  # of √v; that of m is in the last line
    W.addcmul_(m / v.sqrt().add_(eps * debias), lr * debias / (1 - betas[0] ** t), value=-1)


@dataclass
class Run:
    """How far a Config has come."""

    config: Config
    name: str  # what tells it from the others of its command
    step: int = 0  # updates done
    seconds: float = 0.0  # of training of its stack, without evaluation
    diverged: bool = False  # whether its loss or weights were not finite
    log: list = field(default_factory=list)  # its evaluations, dicts of the metrics' columns
    state: dict = field(default_factory=dict)  # its rows of the stack's state: W (P,), m, v

    def best(self):  # validation accuracy
        return max((metrics["val_acc"] for metrics in self.log), default=0.0)

    def reached(self, column="val_acc", accuracy=0.99):  # at which evaluated update, or None
        return next((metrics["step"] for metrics in self.log if metrics[column] >= accuracy), None)

    def finished(self):
        c, last = self.config, self.log[-1]["val_acc"] if self.log else 0
        goal = max(c.until, c.expect) if c.until else math.inf
        return self.diverged or self.step >= c.steps or last >= goal

    def restore(self, saved):  # from a checkpoint, if that has the types and shapes it must have
        P, state, step = sum(self.config.model().sizes), saved["state"], saved["step"]
        refuse(
            any(type(saved[k]) is not type(v) for k, v in vars(self).items() if k != "config")
            or any(saved["config"].get(k, v) != v for k, v in self.config.columns().items())
            or any(
                state[name].shape != (P,) or state[name].dtype != torch.float32
                for name in Stack.state
                if step or state
            )
            or step < 0
            or not all(math.isfinite(row["step"] + row["val_acc"]) for row in saved["log"]),
            f"wrong types, shapes or settings of {self.name}",
        )
        vars(self).update(saved, config=self.config)


class Stack:
    """Runs of one shape, trained together. A tensor that is an attribute has a row per run: the
    table x, y, labels and the training mask (R, N), each number of Config as a column (R, 1), and
    what `state` names: W (R, P) and AdamW's moments, which are kept in checkpoints. An intervention
    is a subclass with a setting of its own; its control is a row where that setting is off."""

    state = "W", "m", "v"

    def __init__(self, runs, device=torch.device("cpu")):
        self.runs, self.step, self.device, self.generators = runs, 0, device, {}
        self.config = runs[0].config  # for the settings that are shared
        self.model, configs = self.config.model(), [run.config for run in runs]
        tables = zip(("x", "y", "labels", "train"), zip(*map(split, configs)))
        columns = {name: torch.from_numpy(np.stack(table)) for name, table in tables}
        names = [f.name for f in fields(self.config) if f.type is not str]
        refuse(
            taken := sorted({*dir(self), *columns, *self.state, "anchor", "hit"} & {*names}),
            f"{', '.join(map(flag, taken))}: is the name of a Stack's attribute; take another",
        )
        columns |= {
            name: torch.tensor([[float(getattr(c, name))] for c in configs]).float()
            for name in names
        }
        vars(self).update({name: t.to(device) for name, t in columns.items()})
        self.W, self.step = self.initial().to(device, torch.float32), runs[0].step
        identity = self.model.initial(0, init_scale=0.0).to(device)  # LayerNorm's alone
        self.anchor = torch.stack(
            [
                dict(origin=0 * row, init=row, identity=identity)[c.decay_to]
                for c, row in zip(configs, self.W)
            ]
        )
        for name in self.state:  # W, what initial() has set, or zeros
            start = getattr(self, name, torch.zeros_like(self.W))
            rows = [run.state.get(name, row).to(device) for run, row in zip(runs, start)]
            setattr(self, name, torch.stack(rows))

    def initial(self):
        """The weights (R, P) to start from; `step` is 0 here, resumed or not."""
        return torch.stack(
            [
                self.model.initial(c.seed, c.init_scale, c.embed_init_scale)
                for c in (run.config for run in self.runs)
            ]
        )

    def keep(self, left):  # the runs with these numbers; the others leave
        rows = {name: t for name, t in vars(self).items() if torch.is_tensor(t)}
        refuse(
            odd := ", ".join(n for n, t in rows.items() if t.shape[:1] != self.W.shape[:1]),
            f"{odd}: a tensor that is an attribute of a Stack must have a row for each run",
        )
        vars(self).update({n: t[left] for n, t in rows.items()}, runs=[self.runs[i] for i in left])

    def save(self):  # the state's rows, in the runs
        for i, run in enumerate(self.runs):
            run.state = {name: getattr(self, name)[i].to("cpu", copy=True) for name in self.state}

    def on(self, name):  # whether some run has this setting on
        return any(getattr(run.config, name) for run in self.runs)

    def random(self, name, draw, like):
        """Numbers in the shape of `like` (R, ...), by draw(row, generator=...), for the runs whose
        setting `name` is on. They follow from seed and update: no run disturbs another."""
        numbers = torch.zeros_like(like)
        for i, run in enumerate(self.runs):
            if getattr(run.config, name):
                if i not in self.generators:  # one for all that the run draws in this update
                    seed = rng(run.config.seed, "noise", self.step).integers(2**62).item()
                    self.generators[i] = torch.Generator(self.device).manual_seed(seed)
                draw(numbers[i], generator=self.generators[i])
        return numbers

    def drop(self, h):  # dropout on h (R, B, T, D)
        rate = self.dropout[:, :, None, None]
        return h * (self.random("dropout", torch.Tensor.uniform_, h) >= rate) / (1 - rate)

    def losses(self, logits, labels):
        """What is trained on: (R, B) of logits (R, B, V). Evaluation stays with cross-entropy."""
        return cross_entropy(logits, labels)

    def gradient(self, rows):
        """Of the mean loss on each run's equations `rows` (R, B): (R, P)."""
        x, y, labels = (table.gather(1, rows) for table in (self.x, self.y, self.labels))
        W = self.W
        if self.on("weight_noise"):
            W = W + self.weight_noise * self.random("weight_noise", torch.Tensor.normal_, W)
        W = W.detach().requires_grad_()
        logits = self.model(W, x, y, self.drop if self.on("dropout") else None)
        loss = self.losses(logits, labels).mean(1)  # (R,)
        return torch.autograd.grad(loss.sum(), W)[0]  # of the sum: no run scales another's

    def update(self, rows):
        """Update number `step`, on the equations `rows` (R, B); nothing here waits for a GPU."""
        c, lr = self.config, self.lr * min(1, self.step / max(1, self.config.warmup))
        grad = self.gradient(rows)
        if self.on("grad_clip"):  # each run as torch.nn.utils.clip_grad_norm_ does
            scale = self.grad_clip / (grad.norm(dim=1, keepdim=True) + 1e-6)
            grad = grad * torch.where(self.grad_clip > 0, scale.clamp(max=1), 1)
        adamw(
            self.W,
            grad,
            self.m,
            self.v,
            self.step,
            lr,
            self.weight_decay,
            (c.beta1, c.beta2),
            c.eps,
            self.anchor,
        )
        if self.on("update_noise"):
            noise = self.random("update_noise", torch.Tensor.normal_, self.W)
            self.W += lr * self.update_noise * noise

    def advance(self, target):
        """Trains up to update number `target`."""
        size, masks = self.config.sizes()[3], self.train.cpu().numpy()
        block = np.stack(
            [
                batches(run.config.seed, np.flatnonzero(mask), size, self.step, target)
                for run, mask in zip(self.runs, masks)
            ],
            1,
        )
        for rows in torch.from_numpy(block).to(self.device):  # (R, B)
            self.step, self.generators = self.step + 1, {}
            self.update(rows)
        self.W[0, 0].item()  # waits for the device

    @torch.no_grad()
    def over_table(self, function):
        """function(logits, labels) -> (..., B), on the table in cache-sized chunks: (..., N)."""
        chunk = max(1024, (2**11 if self.device.type == "cpu" else 2**17) // len(self.runs))
        chunks = zip(*(table.split(chunk, 1) for table in (self.x, self.y, self.labels)))
        return torch.cat([function(self.model(self.W, x, y), z) for x, y, z in chunks], -1)

    def measure(self):
        """The columns (R,) of an evaluation, without dropout or noise: loss and accuracy on all
        training and on all validation equations, and the norm of the weights. Sets hit (R, N)."""
        loss, self.hit = self.over_table(
            lambda logits, labels: torch.stack(
                [cross_entropy(logits, labels), (logits.argmax(2) == labels).float()]
            )
        )
        columns = {}
        for name, mask in ("train", self.train), ("val", ~self.train):  # (R, N)
            columns[f"{name}_loss"] = (loss * mask).sum(1) / mask.sum(1)
            columns[f"{name}_acc"] = (self.hit * mask).sum(1) / mask.sum(1)
        return columns | {"weight_norm": self.W.norm(dim=1)}


# --- 5. Training, from a list of Configs to the rows of metrics.csv. ------------------------------
def stacks(runs, device):
    """Lists of unfinished runs to stack. Finished ones keep their place, as --resume needs it."""
    groups, count, limit = {}, {}, 4 if device.type == "cpu" else 64
    for run in runs:
        c, (n, N, _, size) = run.config, run.config.sizes()
        shape = n, N, size, *(getattr(c, f.name) for f in fields(c) if f.metadata["shared"])
        count[shape] = count.get(shape, -1) + 1
        groups.setdefault((shape, count[shape] // (c.stack or limit)), []).append(run)
    for group in groups.values():
        left = [run for run in group if not run.finished()]
        for step in sorted({run.step for run in left}):
            yield [run for run in left if run.step == step]


def fit(stack, records):
    """Trains a stack until each run has reached its goal, diverged or spent its steps."""
    c, (n, N, _, size), (R, P) = stack.config, stack.config.sizes(), stack.W.shape
    records.say(
        f"{stack.runs[0].name}{f' and {R - 1} more' * (R > 1)}: {N:,} equations of {n} "
        f"elements, batches of {size}, {P:,} parameters, {stack.device}"
    )
    while stack.runs:
        early = [update for update in (1, 2, 5, 10, 20, 50, 100) if update > stack.step]
        due = min(*early, (stack.step // c.eval_every + 1) * c.eval_every, c.steps)  # to evaluate
        start = time.perf_counter()
        stack.advance(min(due, stack.step + 100))  # so that a checkpoint can come sooner
        seconds = time.perf_counter() - start
        for run in stack.runs:
            run.step, run.seconds = stack.step, run.seconds + seconds
        if stack.step == due:
            evaluate(stack, records)
        left = [i for i, run in enumerate(stack.runs) if not run.finished()]
        if records.due() or len(left) < len(stack.runs) or stack.step == 1:
            stack.save()
            records.checkpoint(last=False)
            stack.keep(left)  # at update 1 too: what it refuses, it does early


def evaluate(stack, records):
    """Records what the stack measures. A run whose loss or weights are not finite ends here."""
    columns = {name: column.tolist() for name, column in stack.measure().items()}
    records.show(stack, columns)
    for run, *values in zip(stack.runs, *columns.values(), strict=True):
        row = {name: float(f"{value:.7g}") for name, value in zip(columns, values)}
        run.diverged = not math.isfinite(row["train_loss"] + row["val_loss"] + row["weight_norm"])
        if run.diverged:
            records.say(f"{run.name}: diverged by update {run.step:,}; this run ends here")
        else:
            records.add(run, dict(step=run.step, **row, seconds=round(run.seconds, 3)))


def pick_device(name):  # the processes of torchrun share out the GPUs
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    refuse(not getattr(torch, name).is_available(), f"--device {name}: there is none here")
    return torch.device(name, ranks()[0] % torch.cuda.device_count() if name == "cuda" else None)


def train(configs, out=None, quiet=False, method=Stack, **changes):
    """Trains a Config or a list of them, with `changes` to each. Returns the Runs, with their
    weights. `out` names a run folder; one that holds the same runs is gone on with. Raises
    UsageError, and OSError where that folder cannot be written."""
    configs = [configs] if isinstance(configs, Config) else configs
    runs, threads = named([replace(c, **changes) for c in configs]), torch.get_num_threads()
    device = pick_device(runs[0].config.device)
    with contextlib.ExitStack() as opened:
        records = Records(out, runs, quiet, opened)
        opened.callback(torch.set_num_threads, threads)
        torch.set_num_threads(runs[0].config.threads or threads)
        if all(run.finished() for run in records.runs):
            records.say(f"{out}: is finished already; a higher --steps and --until may go on")
        for group in stacks(records.runs, device):
            fit(method(group, device), records)
        records.checkpoint()
        records.summary()
    return records.runs


# --- 6. Records. A run folder is config.json, metrics.csv, checkpoint.pt, and survives a kill. ----
def named(configs):
    """The Runs of a command, named by what tells them apart. Raises UsageError."""
    refuse(not configs, "there are no runs")
    varied = [
        f.name
        for f in fields(configs[0])
        if f.name == "seed" or f.name != "op" and len({getattr(c, f.name) for c in configs}) > 1
    ]
    runs = {}
    for c in configs:
        run = Run(c, ", ".join([c.op, *(f"{name} {getattr(c, name)}" for name in varied)]))
        refuse(
            runs.setdefault(tuple(c.columns().values()), run) is not run,
            f"{run.name}: this run is given twice",
        )
    return list(runs.values())


def load(path, config):
    """(runs, text of metrics.csv, config.json) of a folder, as its checkpoint, if any, left it."""
    path, text = Path(path), None
    try:
        about = json.loads((path / "config.json").read_bytes())
        runs = named([config(**settings) for settings in about["runs"]])
        refuse([type(about[k]) for k in ("ranks", "commands")] != [int, list], "wrong types")
        if (file := path / "checkpoint.pt").exists():
            refuse(zipfile.ZipFile(file).testzip(), "wrong checksum")  # torch checks none
            saved = torch.load(file, weights_only=True, map_location="cpu")
            text = saved["csv"].encode()
            for run, state in zip(runs, saved["runs"], strict=True):
                run.restore(state)
    except Exception as error:  # those of JSON, zip and pickle have no class in common
        refuse(True, f"{path}: is no run folder, or another study's, or damaged: {error!r:.180}")
    return runs, text, about


def read(path, config=Config, **settings):
    """The Runs of a folder that have these settings, with their weights. Raises UsageError."""
    return [
        run
        for run in load(path, config)[0]
        if {name: getattr(run.config, name) for name in settings} == settings
    ]


def say(text, end="\n"):
    try:
        letters = getattr(sys.stdout, "encoding", None) or "utf-8"  # may lack the summary's "▁"
        print(text.encode(letters, "replace").decode(letters), end=end, flush=True)
    except OSError:  # nobody can read it any more; training goes on
        sys.stdout = open(os.devnull, "w")


class Records:
    """What a command leaves: lines on the screen and, if `path` is not None, a run folder. There
    the checkpoint is what counts: it holds metrics.csv too, and puts that back where it differs."""

    leading = "op p frac seed lr weight_decay decay_to dropout weight_noise update_noise outliers"

    def __init__(self, path, runs, quiet, opened):
        self.path, self.runs, self.text = path and Path(path), runs, b""  # of metrics.csv
        self.quiet, self.live = quiet, bool(sys.stdout and sys.stdout.isatty())
        self.saved, self.cost = time.monotonic(), 0.0  # of the last checkpoint, in seconds
        if path:
            self.lock(opened)
            self.open()

    def lock(self, opened):  # until `opened` closes; on Windows there is none
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ImportError):
            import fcntl

            opened.callback(os.close, folder := os.open(self.path, os.O_RDONLY))
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refuse(True, f"{self.path}: another process is training in this folder")

    def open(self):  # checks what the folder holds, and only then writes
        configs, there, about, text = [run.config for run in self.runs], self.table(), {}, None
        if (self.path / "config.json").exists():
            self.runs, text, about = load(self.path, type(configs[0]))
        refuse(
            [run.config.columns() for run in self.runs] != [c.columns() for c in configs],
            f"--out {self.path}: holds other runs; name another folder",
        )
        held = there or (self.path / "checkpoint.pt").exists()
        refuse(
            held and (text is None or not (there.startswith(text) or text.startswith(there))),
            f"{self.path}: metrics.csv, checkpoint.pt and config.json do not go together: put "
            "back what belongs there; without metrics.csv what the checkpoint knows counts",
        )
        for run, config in zip(self.runs, configs):
            run.config = config  # what is not fixed may be another
        # Defaults are left out, so that a study and grok.py read each other's folders.
        runs = [dict(sorted(asdict(c).items() - asdict(type(c)()).items())) for c in configs]
        about = dict(
            runs=runs,
            commands=[*about.get("commands", []), shlex.join(sys.argv)],
            ranks=ranks()[1],
            grok=__version__,
            torch=torch.__version__,
        )
        self.write("config.json", json.dumps(about, indent=1).encode() + b"\n")
        self.text = text or b""
        self.checkpoint()

    def table(self):  # metrics.csv as it is, empty if there is none
        return b"".join(file.read_bytes() for file in self.path.glob("metrics.csv"))

    def write(self, name, data):  # on the disk, as a whole or not at all
        temporary = self.path / f"{name}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)

    def add(self, run, metrics):  # an evaluation, to its log and to metrics.csv
        run.log.append(metrics)
        if self.path:
            row = dict.fromkeys(self.leading.split()) | dict(**metrics, **run.config.columns())
            head, line = (",".join(map(str, part)).encode() + b"\n" for part in (row, row.values()))
            data = line if head in self.text[self.text.rfind(b"op,p,") :] else head + line
            self.text += data
            with open(self.path / "metrics.csv", "ab") as file:
                file.write(data)

    def due(self):  # whether a checkpoint now costs at most 1 % of the time
        return bool(self.path) and time.monotonic() - self.saved > 100 * self.cost

    def checkpoint(self, last=True):
        if self.path and (last or self.due()):
            start, data = time.monotonic(), io.BytesIO()
            if self.table() != self.text:  # rows that come again, or were lost
                self.write("metrics.csv", self.text)
            runs = [dict(vars(run), config=run.config.columns()) for run in self.runs]
            torch.save(dict(csv=self.text.decode(), runs=runs), data)
            self.write("checkpoint.pt", data.getvalue())
            self.cost, self.saved = time.monotonic() - start, time.monotonic()

    def say(self, text, end="\n"):
        if not self.quiet:
            say("\r\x1b[K" * self.live + text, end)

    def show(self, stack, columns):  # on a terminal in place; elsewhere at each power of 1.5
        step, steps, every = stack.step, stack.config.steps, stack.config.eval_every
        rate = step / max(run.seconds for run in stack.runs)
        train, val = (np.median(columns[name]) for name in ("train_acc", "val_acc"))
        text = f"update {step:>7,}  train {train:.3f}  val {val:.3f}  {rate:,.1f} updates/s"
        if self.live:
            text += f", at most {(steps - step) / rate / 60:,.1f} min left"
            self.say(text[: shutil.get_terminal_size().columns - 1], end="")
        elif step == steps or math.log(step, 1.5) // 1 > math.log(max(0.5, step - every), 1.5) // 1:
            self.say(text)

    def summary(self):  # a line for each run, with its curve over log-spaced updates
        wide = max(len(run.name) for run in self.runs)
        self.say(f"{'':{wide}}  train 99 %    val 99 %  best val   updates   seconds  validation")
        for run in self.runs:
            seen = (run.reached(name) or "never" for name in ("train_acc", "val_acc"))
            steps, values = zip((0, 0.0), *((row["step"], row["val_acc"]) for row in run.log))
            last = np.searchsorted(steps, run.step ** np.linspace(0, 1, 40) + 1e-6) - 1
            curve = "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * values[i]))] for i in last)
            self.say(
                f"{run.name:{wide}} {'{:>11} {:>11}'.format(*seen)} {run.best():9.4f} "
                f"{run.step:9,} {run.seconds:9,.1f}  {curve}{' diverged' * run.diverged}"
            )
        self.say(str(self.path or ""))


# --- 7. Checks, and the command line. -------------------------------------------------------------
def flag(name):
    return "--" + name.replace("_", "-")


def checked(f, given):
    """`given` as a value of the field `f`, in its type. Raises UsageError."""
    allowed, said = f.metadata["allowed"], f"{flag(f.name)} {str(given)[:60]}: must be"
    if f.type is str:
        refuse(allowed and str(given) not in allowed, f"{said} one of {', '.join(allowed or '')}")
        refuse("," in str(given) or not str(given).isprintable(), f"{said} without a comma or tab")
        return str(given)
    low, high = map(float, allowed[1:-1].split(","))
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = math.nan if isinstance(given, bool) else float(given)
        value = f.type(given if f.type is int and str(given).isdecimal() else number)
        if float(value) == number and (
            low < number < high
            or number == low
            and "[" in allowed
            or number == high
            and "]" in allowed
        ):
            return value
    refuse(True, f"{said} a {'whole ' * (f.type is int)}number in {allowed}")


def parser(config):
    """The command line, made from a Config; the result holds only flags that were given."""
    cli = argparse.ArgumentParser(
        description=sys.modules.get(config.__module__, sys.modules[__name__]).__doc__,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawTextHelpFormatter,
        epilog="[default]; a flag with several values makes a grid of runs",
        allow_abbrev=False,
    )
    for f in fields(config):
        fast = f"; fast: {FAST[f.name]}" if f.name in FAST else ""
        cli.add_argument(
            flag(f.name),
            nargs="+",
            metavar=f.name[0].upper(),
            help=f"{f.metadata['help']} [{f.default}{fast}]".replace("%", "%%"),
        )
    cli.add_argument("--recipe", choices=("paper", "fast"), help="defaults of the settings [paper]")
    cli.add_argument("--out", metavar="DIR", help="run folder [runs/DATE-TIME-PROCESS]")
    cli.add_argument("--resume", metavar="DIR", help="go on with a run folder, to the same metrics")
    cli.add_argument("--quiet", action="store_true", help="print nothing but errors")
    cli.add_argument("--list-ops", action="store_true", help="list the operations and exit")
    cli.add_argument("--version", action="version", version=f"grok.py {__version__}")
    return cli


def ranks():
    """(rank, number of processes): under torchrun these share the runs. Raises UsageError."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    refuse(
        not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world))
        or int(world) > 1
        and "MASTER_ADDR" not in os.environ,
        f"RANK={rank} WORLD_SIZE={world}: must be as torchrun sets them, with MASTER_ADDR",
    )
    return int(rank), int(world)


def asked_for(given, config, folder):
    """This process's share of the Configs that the flags ask for, new or in a folder."""
    (rank, world), free = ranks(), [f.name for f in fields(config) if not f.metadata["fixed"]]
    settings = {f.name: given[f.name] for f in fields(config) if f.name in given}
    if "resume" not in given:
        configs = config.grid(**(FAST if given.get("recipe") == "fast" else {}) | settings)
        refuse(
            "p" in settings and all(OPS[c.op].n for c in configs),
            f"--p {' '.join(settings.get('p', []))}: {configs[0].op} has no modulus",
        )
        refuse(
            world > 1 and ("out" not in given or len(configs) < world),
            f"torchrun: {world} processes need --out and as many runs or more",
        )
        return configs[rank::world]
    for name in sorted(given.keys() - {"resume", "quiet"}):
        refuse(
            name not in free or len(given[name]) > 1,
            f"{flag(name)}: --resume goes with --quiet"
            f" and with single values of {', '.join(map(flag, free))}",
        )
    runs, _, about = load(folder, config)
    refuse(about["ranks"] != world, f"{folder}: is of {about['ranks']} processes, not {world}")
    return [replace(run.config, **{name: v for name, (v,) in settings.items()}) for run in runs]


def command(given, config, method):
    """Does what the flags, a dict, say; returns the exit status."""
    (rank, world), now = ranks(), f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path = Path(given.get("resume", given.get("out") or now))
    folder = path / f"rank-{rank}" if world > 1 else path
    for held in path.glob("config.json" if world > 1 else "rank-*"):
        refuse(True, f"{path}: {held.name} there is of another number of torchrun's processes")
    configs, given["resume"] = asked_for(given, config, folder), str(path)  # for main's "go on"
    runs, expect = train(configs, folder, "quiet" in given, method), configs[0].expect
    missed = sum(run.best() < expect for run in runs)
    if world > 1 and expect:  # at the end: torchrun stops all when one fails
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=30))
        torch.distributed.all_reduce(total := torch.tensor(missed))
        missed = int(total)
        torch.distributed.destroy_process_group()
    if missed:
        print(f"grok.py: --expect {expect}: missed in {missed} runs; see {path}", file=sys.stderr)
    return min(missed, 1)


def main(argv=None, config=Config, method=Stack):
    """The command line; returns the exit status. A study gives its own Config and Stack."""

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    before = [(n, signal.signal(n, stop)) for n in (signal.SIGINT, signal.SIGTERM)]
    cli, given = parser(config), {}  # its errors in one line; its help by say()
    cli.error, cli.print_help = lambda text: refuse(True, text), lambda: say(cli.format_help(), "")
    try:
        given.update(vars(cli.parse_args(argv)))
        if "list_ops" not in given:
            return command(given, config, method)
        for name, op in OPS.items():
            n, N, *_ = Config(op=name, p=given.get("p", [97])[0]).sizes()
            say(f"{name:32} {op.formula:38} 0 ≤ x < {n}, {op.y_from} ≤ y < {n}: {N:,}")
        return 0
    except (UsageError, OSError) as error:
        what = f"--out {given.get('resume', given.get('out'))!r}: " * isinstance(error, OSError)
        print(f"grok.py: {what}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        for number, _ in before:  # torchrun sends one more; it changes nothing
            signal.signal(number, lambda *_: None)
        start = f"torchrun --nproc-per-node {ranks()[1]}" if ranks()[1] > 1 else "python"
        again = shlex.join([sys.argv[0], "--resume", given.get("resume", "DIR")])
        print(f"\ngrok.py: stopped; go on with: {start} {again}", file=sys.stderr)
        return 128 + (interrupt.args or [signal.SIGINT])[0]
    finally:
        say("", end="")  # to find out here whether somebody still reads
        for number, handler in before:
            signal.signal(number, handler)


if __name__ == "__main__":
    gc.freeze()  # or the end, a last collection through all of torch, takes a third of a second
    sys.exit(main())

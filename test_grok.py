"""Properties of grok.py, each held against something independent: brute force, torch.nn's own layers,
torch.optim.AdamW, a worked example. Run: python -m pytest -q"""
import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import matplotlib.image as image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grok
from grok import Config, UsageError

HERE = Path(__file__).parent
TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, steps=30, batch_size=16, eval_every=10,
            device="cpu", threads=1, quiet=True)  # a run of a tenth of a second
PLAIN = {  # the operations once more, in plain Python
    "x_plus_y": lambda x, y, p: (x + y) % p,
    "x_minus_y": lambda x, y, p: (x - y) % p,
    "x_mul_y": lambda x, y, p: (x * y) % p,
    "x_div_y": lambda x, y, p: next(z for z in range(p) if z * y % p == x),
    "x_div_y_if_y_odd_else_x_minus_y": lambda x, y, p: PLAIN["x_div_y" if y % 2 else "x_minus_y"](x, y, p),
    "x_pow_y": lambda x, y, p: math.prod([x] * y) % p,
    "x2_plus_y2": lambda x, y, p: (x * x + y * y) % p,
    "x2_plus_xy_plus_y2": lambda x, y, p: (x * x + x * y + y * y) % p,
    "x2_plus_xy_plus_y2_plus_x": lambda x, y, p: (x * x + x * y + y * y + x) % p,
    "x3_plus_xy": lambda x, y, p: (x * x * x + x * y) % p,
    "x3_plus_xy2_plus_y": lambda x, y, p: (x * x * x + x * y * y + y) % p,
}
PERMS = list(itertools.permutations(range(5)))


def settings(**changes):
    """The Config of single values of a one-run grid."""
    return grok.grid(grok.resolve(Config(**(TINY | changes))))[0].config


def train(**changes):
    return grok.train(Config(**(TINY | changes)))


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def flags(**changes):
    """TINY as a command line."""
    given = []
    for name, value in (TINY | changes).items():
        if value is True:
            given.append(grok.flag(name))
        elif value is not False and value is not None:
            given += grok.flag(name, value).split()
    return given


def cli(*arguments, **kwargs):
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run([sys.executable, HERE / "grok.py", *map(str, arguments)], env=env,
                          capture_output=True, text=True, **kwargs)


# --- tables ---------------------------------------------------------------------------------------

def test_the_paper_s_tables_have_their_sizes():
    sizes = {op: len(grok.equations(op)[0]) for op in grok.OPS}
    assert sizes.pop("x_div_y") == 9312
    assert [sizes.pop(op) for op in ("s5_xy", "s5_xyxinv", "s5_xyx")] == [14400] * 3
    assert len(sizes) == 10 and set(sizes.values()) == {9409}


@pytest.mark.parametrize("op", PLAIN)
def test_modular_tables_equal_plain_python(op):
    for p in (2, 3, 5, 13, 97) + (() if grok.OPS[op].prime else (4, 12)):
        start = 1 if op == "x_div_y" else 0
        expected = [(x, y, PLAIN[op](x, y, p)) for x in range(p) for y in range(start, p)]
        assert sorted(zip(*(a.tolist() for a in grok.equations(op, p)))) == expected
        assert all(a.dtype == np.int64 for a in grok.equations(op, p))


@pytest.mark.parametrize("op", ["x_div_y", "x_div_y_if_y_odd_else_x_minus_y"])
def test_division_multiplied_back_gives_x(op):
    x, y, z = grok.equations(op, 97)
    odd = y % 2 == 1 if op != "x_div_y" else y > 0
    assert odd.any() and np.array_equal((z * y % 97)[odd], x[odd])


def test_s5_tables_compose_tuples():
    after = lambda x, y: tuple(y[i] for i in x)  # x first, then y
    inverse = lambda x: tuple(x.index(i) for i in range(5))
    number = {perm: i for i, perm in enumerate(PERMS)}
    for op, plain in {"s5_xy": after, "s5_xyxinv": lambda x, y: after(after(x, y), inverse(x)),
                      "s5_xyx": lambda x, y: after(after(x, y), x)}.items():
        expected = [(number[x], number[y], number[plain(x, y)]) for x in PERMS for y in PERMS]
        assert sorted(zip(*(a.tolist() for a in grok.equations(op)))) == sorted(expected)


@pytest.mark.parametrize("op, x, y, z", [
    ("x_div_y", 1, 2, 49), ("x_div_y", 5, 3, 34), ("x_plus_y", 90, 10, 3), ("x_minus_y", 3, 10, 90),
    ("x_pow_y", 2, 10, 54), ("x_pow_y", 0, 0, 1), ("x_div_y_if_y_odd_else_x_minus_y", 5, 4, 1),
    ("x3_plus_xy2_plus_y", 2, 3, 29), ("x2_plus_xy_plus_y2_plus_x", 9, 10, 86),
    ("s5_xy", 24, 6, 48),  # (1 0 2 3 4) then (0 2 1 3 4) sends 0, 1, 2 to 2, 0, 1
])
def test_rows_worked_by_hand(op, x, y, z):
    assert (x, y, z) in set(zip(*(a.tolist() for a in grok.equations(op))))


@pytest.mark.parametrize("op", ["x_plus_y", "x_minus_y", "s5_xy"])
def test_latin_squares(op):
    x, y, z = grok.equations(op)
    n = x.max() + 1
    square = np.empty((n, n), int)
    square[x, y] = z
    for lines in square, square.T:
        assert (np.sort(lines) == np.arange(n)).all()


def test_list_ops_names_formula_domain_and_size(capsys):
    assert grok.main(["--list-ops"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(grok.OPS)
    assert all(line.endswith("equations") for line in lines) and "9,312" in lines[3]


def test_a_user_s_operation_works_everywhere(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(grok.OPS, "mine", ("x + 2y mod p", lambda x, y, p: (x + 2 * y) % p))
    assert grok.equations("mine", 5)[2].tolist() == [(x + 2 * y) % 5 for x in range(5) for y in range(5)]
    assert train(op="mine")[-1]["op"] == "mine"
    assert grok.main(flags(op="mine", out=tmp_path / "run")) == 0
    grok.main(["--list-ops"])
    assert "x + 2y mod p" in capsys.readouterr().out
    monkeypatch.setitem(grok.OPS, "wrong", ("x + y", lambda x, y, p: x + y))
    with pytest.raises(UsageError, match=r"--op wrong: .*\[0, 10\]"):
        train(op="wrong")


# --- split ----------------------------------------------------------------------------------------

def test_split_has_its_size_and_follows_the_seed():
    for op, frac in ("x_div_y", 0.3), ("x_plus_y", 0.5), ("s5_xy", 0.01):
        N = len(grok.equations(op)[0])
        labels, train_rows = grok.split(settings(op=op, p=97, frac=frac))
        assert len(train_rows) == len(set(train_rows.tolist())) == round(frac * N)
        assert np.array_equal(labels, grok.equations(op)[2])
    rows = lambda seed: grok.split(settings(seed=seed))[1].tolist()
    assert rows(3) == rows(3) != rows(4)


def test_a_run_s_split_and_weights_do_not_depend_on_its_stack():
    runs = grok.grid(grok.resolve(Config(**(TINY | dict(seed=[0, 5], frac=[0.4, 0.5], op=["x_plus_y", "x_mul_y"])))))
    model, s = grok.build(runs, "cpu")
    for i, run in enumerate(runs):
        alone, t = grok.build([run], "cpu")
        assert torch.equal(model.W[i], alone.W[0])
        assert all(torch.equal(s[name][i], t[name][0]) for name in ("x", "y", "labels", "train"))
    x, y, z = grok.equations("x_mul_y", 11)
    assert np.array_equal(s["labels"][-1].numpy(), z) and np.array_equal(s["x"][-1].numpy(), x)


def test_outliers_change_training_labels_only():
    z = grok.equations("x_plus_y", 97)[2]
    labels, train_rows = grok.split(settings(p=97, outliers=1000))
    changed = np.flatnonzero(labels != z)
    assert set(changed) <= set(train_rows)
    assert 960 <= len(changed) <= 1000  # a random answer is right in one case of 97
    assert np.array_equal(grok.split(settings(p=97))[0], z)


def test_batches_are_full_and_cut_an_endless_stream_of_epochs():
    rows = np.arange(100, 110)
    stream = grok.batches(0, rows, 4, 0, 25).ravel()
    epochs = stream.reshape(10, 10)
    assert (np.sort(epochs) == rows).all() and len({tuple(e) for e in epochs}) > 5
    parts = [grok.batches(0, rows, 4, a, b) for a, b in ((0, 1), (1, 8), (8, 25))]
    assert np.array_equal(np.concatenate(parts).ravel(), stream)
    assert not np.array_equal(grok.batches(1, rows, 4, 0, 25).ravel(), stream)


@pytest.mark.parametrize("batch_size, frac, expected", [(512, 0.5, 30), (16, 0.5, 16), (0, 0.5, 60), (512, 0.11, 7)])
def test_batch_size_is_at_most_half_the_training_set_rounded_up(batch_size, frac, expected):
    run, = grok.grid(grok.resolve(Config(**(TINY | dict(batch_size=batch_size, frac=frac)))))  # N = 121
    assert run.shape()[2] == expected


# --- model ----------------------------------------------------------------------------------------

class Block(nn.Module):
    """A post-norm block without linear biases, as torch.nn spells it."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, h):
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1])
        h = self.norm1(h + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0])
        return self.norm2(h + self.down(F.relu(self.up(h))))


class Reference(nn.Module):
    """One unstacked transformer that runs every position of every equation through every layer."""

    def __init__(self, n, layers, width, heads):
        super().__init__()
        self.n, self.width = n, width
        self.embed = nn.Embedding(n + 2, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, n + 2, bias=False)

    def hidden(self, x, y):
        tokens = torch.stack([x, torch.full_like(x, self.n), y, torch.full_like(x, self.n + 1)], 1)
        wave = [[(math.cos if i % 2 else math.sin)(t / 10000 ** (i // 2 * 2 / self.width))
                 for i in range(self.width)] for t in range(4)]
        h = self.embed(tokens) + torch.tensor(wave)
        for block in self.blocks:
            h = block(h)
        return h

    def forward(self, x, y):
        return self.head(self.hidden(x, y))[:, -1]

    def parts(self):
        """(name, place) in grok.Transformer.weights() of every parameter, or of its gradient."""
        grad = lambda p: p.data if p.grad is None else p.grad
        parts = {("embed", ...): grad(self.embed.weight), ("head", ...): grad(self.head.weight).T}
        for i, b in enumerate(self.blocks):
            q, k, v = grad(b.attention.in_proj_weight).split(self.width)
            parts |= {(f"{i}.q", ...): q.T, (f"{i}.k", ...): k.T, (f"{i}.v", ...): v.T,
                      (f"{i}.out", ...): grad(b.attention.out_proj.weight).T,
                      (f"{i}.up", ...): grad(b.up.weight).T, (f"{i}.down", ...): grad(b.down.weight).T}
            for name, norm in ("norm1", b.norm1), ("norm2", b.norm2):
                parts |= {(f"{i}.{name}", 0): grad(norm.weight), (f"{i}.{name}", 1): grad(norm.bias)}
        return parts


def perturbed(n, runs, layers, width=32, heads=4):
    """A stack whose runs all differ, LayerNorm's weights too."""
    model = grok.Transformer(n, runs, layers, width, heads)
    for i in range(runs):
        noise = torch.randn(model.W.shape[1], generator=torch.Generator().manual_seed(i))
        model.W.data[i] = model.initial(i) + 0.05 * noise
    return model


def draw(n, runs, size):
    generator = torch.Generator().manual_seed(7)
    return (torch.randint(n, (runs, size), generator=generator) for _ in range(3))


@pytest.mark.parametrize("n, layers, size", [(97, 2, 512), (120, 2, 512), (97, 1, 512), (23, 3, 100), (97, 2, 40)])
def test_logits_and_gradients_equal_torch_nn(n, layers, size):
    model = perturbed(n, 3, layers)
    x, y, z = draw(n, 3, size)
    logits = model(x, y)
    grok.losses(logits, z).mean(1).sum().backward()
    gradients = model.weights(model.W.grad)
    for i in range(3):
        reference = Reference(n, layers, 32, 4)
        for (name, place), part in reference.parts().items():
            part.copy_(model.weights()[name][i][place].detach())
        expected = reference(x[i], y[i])
        torch.testing.assert_close(logits[i], expected, atol=1e-5, rtol=0)
        F.cross_entropy(expected, z[i]).backward()
        assert {name for name, _ in reference.parts()} == gradients.keys()
        for (name, place), part in reference.parts().items():
            torch.testing.assert_close(gradients[name][i][place], part, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [97, 120])
def test_the_shared_prefix_equals_one_per_equation(n):
    model = perturbed(n, 2, 2, 128)
    x, y, z = draw(n, 2, 512)
    results = []
    for dropout in None, torch.zeros(2, 1):  # with dropout on, even at rate 0, nothing is shared
        logits = model(x, y, dropout=dropout)
        results.append((logits, *torch.autograd.grad(grok.losses(logits, z).mean(1).sum(), model.W)))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_reference_is_causal_where_y_could_be_seen():
    reference, x = Reference(11, 2, 16, 2), torch.arange(11)
    one, other = reference.hidden(x, x), reference.hidden(x, (x + 1) % 11)
    assert torch.equal(one[:, :2], other[:, :2])
    assert ((one - other)[:, 2:].abs().amax(2) > 1e-3).all()


@pytest.mark.parametrize("queries", [4, 2, 1])
def test_attention_never_looks_ahead(queries):
    q, k, v = torch.randn(2, 5, queries, 16), torch.randn(2, 5, 4, 16), torch.randn(2, 5, 4, 16)
    parts = lambda h: [h] if queries == 4 else [h[:, :, :2], h[:, :, 2:]]
    before = grok.attention(q, parts(k), parts(v), 2)
    for t in range(4):
        later = k.clone(), v.clone()
        for tensor in later:
            tensor[:, :, t] += 1
        moved = (grok.attention(q, *map(parts, later), 2) - before).abs().amax((0, 1, 3)) > 1e-4
        assert moved.tolist() == [position >= t for position in range(4 - queries, 4)]


def test_two_blocks_hold_394240_parameters():
    shapes = grok.Transformer(97).shapes
    assert sum(math.prod(s) for name, s in shapes.items() if name[0] in "01") == 394_240


def test_initial_weights_are_pytorch_s_times_the_scales():
    model = grok.Transformer(97, 3)
    rows = [model.initial(0), model.initial(0, 2.0), model.initial(0, 2.0, 0.25)]
    model.W.data = torch.stack(rows)
    w = model.weights()
    assert abs(w["embed"][0].std() - 1) < 0.02
    for name, part in w.items():
        one, two, three = part
        if "norm" in name:
            assert torch.equal(one, torch.stack([torch.ones(128), torch.zeros(128)])) and torch.equal(one, two)
        elif name != "embed":
            bound = nn.Linear(*one.shape).in_features ** -0.5
            assert 0.98 * bound < one.abs().max() <= bound and abs(one.std() * 3**0.5 / bound - 1) < 0.03
        if "norm" not in name:
            torch.testing.assert_close(two, 2 * one)
            torch.testing.assert_close(three, two * (0.25 if name == "embed" else 1))


def test_a_run_in_a_stack_has_the_losses_it_has_alone():
    sweep = dict(p=31, width=32, batch_size=128, steps=20, eval_every=1, op=["x_plus_y", "x_minus_y"], seed=[0, 1],
                 frac=[0.4, 0.5], lr=[1e-3, 3e-3], weight_decay=[0.0, 1.0], layers=2)
    together, apart = train(**sweep, stack=64), train(**sweep, stack=1)
    key = lambda row: [row[name] for name in grok.STARRED] + [row["step"]]
    together, apart = sorted(together, key=key), sorted(apart, key=key)
    assert len(together) == len(apart) == 32 * 20
    for one, other in zip(together, apart):
        assert key(one) == key(other)
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-3)
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-3)
    losses = {(r["op"], r["seed"], r["frac"], r["lr"], r["weight_decay"]): r["train_loss"] for r in apart if r["step"] == 20}
    assert len(set(losses.values())) == 32  # every setting had an effect of its own


def test_evaluation_equals_the_mean_over_each_set_one_by_one():
    runs = grok.grid(grok.resolve(Config(**(TINY | dict(p=47, seed=[0, 1], frac=0.3, outliers=50)))))
    model, s = grok.build(runs, "cpu")
    for i, metrics in enumerate(grok.evaluate(model, s)):
        x, y, _ = grok.equations("x_plus_y", 47)
        labels, train_rows = grok.split(runs[i].config)
        alone = grok.Transformer(47, 1, 1, 16, 2)
        alone.W.data[0] = model.W.data[i]
        logits = alone(torch.from_numpy(x)[None], torch.from_numpy(y)[None])[0].double()
        held = np.setdiff1d(np.arange(len(x)), train_rows)
        for name, rows in ("train", train_rows), ("val", held):
            loss = F.cross_entropy(logits[rows], torch.from_numpy(labels[rows]))
            assert metrics[f"{name}_loss"] == pytest.approx(loss.item(), abs=1e-4)
            hits = (logits[rows].argmax(1).numpy() == labels[rows]).mean()
            assert metrics[f"{name}_acc"] == pytest.approx(hits, abs=1e-6)
        assert metrics["weight_norm"] == pytest.approx(alone.W.norm().item(), rel=1e-5)


# --- optimiser ------------------------------------------------------------------------------------

def test_adamw_equals_torch_optim_for_every_row():
    generator = torch.Generator().manual_seed(0)
    lrs, decays = [1e-3, 3e-2, 1e-2], [1.0, 0.0, 0.3]
    W = torch.randn(3, 50, generator=generator)
    references = [nn.Parameter(row.clone()) for row in W]
    optimizers = [torch.optim.AdamW([p], lr=lr, weight_decay=wd, betas=(0.9, 0.98), eps=1e-8)
                  for p, lr, wd in zip(references, lrs, decays)]
    m, v = torch.zeros_like(W), torch.zeros_like(W)
    column = lambda values: torch.tensor(values)[:, None]
    for t in range(1, 21):
        grad = torch.randn(3, 50, generator=generator) * 10.0 ** torch.randint(-6, 3, (3, 50), generator=generator)
        grok.adamw(W, grad, m, v, t, column(lrs), column(decays))
        for p, g, optimizer in zip(references, grad, optimizers):
            p.grad = g.clone()
            optimizer.step()
        torch.testing.assert_close(W, torch.stack([p.data for p in references]), atol=2e-6, rtol=1e-5)


def test_decay_to_init_rests_at_the_initial_weights():
    anchor, zero = torch.randn(2, 9), torch.zeros(2, 9)
    lr, decay = torch.tensor([[0.1], [0.2]]), torch.tensor([[1.0], [2.0]])
    W = anchor.clone()
    grok.adamw(W, zero, zero.clone(), zero.clone(), 1, lr, decay, anchor=anchor)
    assert torch.equal(W, anchor)
    W = anchor + 1
    grok.adamw(W, zero, zero.clone(), zero.clone(), 1, lr, decay, anchor=anchor)
    torch.testing.assert_close(W - anchor, torch.tensor([[0.9], [0.6]]).expand(2, 9))


def test_warm_up_is_linear_and_starts_at_a_tenth(monkeypatch):
    seen, adamw = [], grok.adamw
    monkeypatch.setattr(grok, "adamw", lambda *a, **k: (seen.append(a[5].flatten().tolist()), adamw(*a, **k)))
    train(steps=13, lr=[0.01, 0.02], stack=2)
    assert np.allclose(seen, [[lr * min(1, t / 10) for lr in (0.01, 0.02)] for t in range(1, 14)])
    seen.clear()
    train(steps=2, warmup=0, lr=0.01)
    assert np.allclose(seen, 0.01)


def test_weight_noise_has_the_standard_deviation_asked_for(monkeypatch):
    seen, forward = [], grok.Transformer.forward
    def spy(self, x, y, W=None, *rest):
        if W is not None:
            seen.append((W - self.W).detach())
        return forward(self, x, y, W, *rest)
    monkeypatch.setattr(grok.Transformer, "forward", spy)
    train(weight_noise=[0.01, 0.2, 0.0], stack=3, steps=5)
    for i, sigma in enumerate((0.01, 0.2, 0.0)):
        noise = torch.stack([difference[i] for difference in seen])
        assert noise.std().item() == pytest.approx(sigma, rel=0.03)
        assert abs(noise.mean().item()) <= 0.03 * sigma
    assert not torch.equal(seen[0], seen[1])


def test_update_noise_has_the_standard_deviation_asked_for(tmp_path):
    for sigma in 0, 2:
        train(steps=1, lr=0.01, update_noise=sigma, out=tmp_path / str(sigma))
    quiet, noisy = (grok.load(tmp_path / str(sigma))[1].W.detach() for sigma in (0, 2))
    assert (noisy - quiet).std().item() == pytest.approx(0.001 * 2, rel=0.05)  # lr_1 = lr / 10


def test_dropout_drops_the_share_asked_for(monkeypatch):
    kept, rand = [], torch.rand
    def spy(*args, **kwargs):
        kept.append(rand(*args, **kwargs))
        return kept[-1]
    monkeypatch.setattr(torch, "rand", spy)
    model = perturbed(97, 2, 1)
    x, y, _ = draw(97, 2, 256)
    plain = model(x, y)
    assert not kept
    model(x, y, dropout=torch.tensor([[0.5], [0.1]]))
    assert kept[0].shape == (2, 256, 1, 32)  # one layer: only the branch at "=" is computed
    sure = model(x, y, dropout=torch.tensor([[0.0], [1 - 1e-7]]))
    torch.testing.assert_close(sure[0], plain[0], atol=1e-5, rtol=0)
    averaged = torch.stack([model(x, y, dropout=torch.full((2, 1), 0.02)) for _ in range(200)]).mean(0)
    assert (averaged - plain).abs().mean() < 0.02 < (sure[1] - plain[1]).abs().mean()


def test_every_switch_changes_the_trajectory_and_is_off_by_default(monkeypatch):
    baseline = timeless(train())
    switches = dict(dropout=0.1, weight_noise=0.01, update_noise=1.0, weight_decay=0.5, lr=2e-3, warmup=0,
                    init_scale=2.0, embed_init_scale=2.0, decay_to="init", betas=(0.8, 0.98), eps=1e-3,
                    batch_size=0, outliers=5, seed=1, frac=0.6)
    for name, value in switches.items():
        assert [r["val_loss"] for r in train(**{name: value})] != [r["val_loss"] for r in baseline], name
    monkeypatch.setattr(torch, "randn", None)  # off, no noise is drawn
    monkeypatch.setattr(torch, "rand", None)
    assert timeless(train(dropout=0, weight_noise=0, update_noise=0)) == baseline


# --- loop and records -----------------------------------------------------------------------------

def test_the_same_command_twice_gives_the_same_metrics(tmp_path):
    noisy = dict(op=["x_plus_y", "x_mul_y"], seed=[0, 1], dropout=0.1, weight_noise=0.01, update_noise=0.1, stack=2)
    for name in "ab":
        assert cli(*flags(**noisy, out=tmp_path / name)).returncode == 0
    a, b = (timeless(grok.read_rows((tmp_path / name / "metrics.csv").read_text())) for name in "ab")
    assert a == b and len(a) == 4 * 6


def test_metrics_csv_has_the_contract_s_columns_and_rows(tmp_path):
    rows = train(steps=137, eval_every=40, out=tmp_path / "run", until=0, op="s5_xy")
    contract = ("op,p,frac,seed,lr,weight_decay,decay_to,dropout,weight_noise,update_noise,outliers,step,train_loss,"
                "train_acc,val_loss,val_acc,weight_norm,seconds")
    with open(tmp_path / "run" / "metrics.csv") as file:
        written = list(csv.reader(file))
    assert ",".join(written[0]).startswith(contract)
    assert all(len(row) == len(written[0]) for row in written)
    assert [row["step"] for row in rows] == [1, 2, 5, 10, 20, 40, 50, 80, 100, 120, 137]
    assert [list(map(str, row.values())) for row in rows] == written[1:]
    assert {row["p"] for row in rows} == {120}
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(rows, rows[1:]))


def test_config_json_holds_every_resolved_setting(tmp_path):
    train(out=tmp_path / "run", recipe="fast", layers=2, lr=[1e-3, 2e-3])
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(about["config"]) == {f.name for f in fields(Config)}
    assert about["config"]["layers"] == 2 and about["config"]["lr"] == [1e-3, 2e-3]
    assert about["config"]["embed_init_scale"] == [grok.RECIPES["fast"].get("embed_init_scale", 1.0)]
    assert about["torch"] == torch.__version__ and about["device"] == "cpu" and len(about["grok_sha256"]) == 64


def test_recipes_give_values_and_explicit_flags_win():
    paper, fast = grok.resolve(Config(recipe="paper")), grok.resolve(Config(recipe="fast"))
    assert (paper.layers, paper.lr, paper.betas, paper.steps) == (2, [1e-3], [0.9, 0.98], 100_000)
    for name, value in grok.RECIPES["fast"].items():
        assert getattr(fast, name) in (value, [value])
    assert grok.resolve(Config(recipe="fast", lr=5e-4)).lr == [5e-4]
    assert grok.resolve(Config()) == paper


def test_a_loss_that_is_not_finite_ends_its_run_alone(capsys):
    sweep = dict(lr=[1e30, 1e-3], steps=40, stack=2)
    rows = train(**sweep)
    grok.train(Config(**(TINY | sweep | dict(quiet=False))))
    said = capsys.readouterr().out
    update = int(re.search(r"lr 1e\+30.*not finite at update (\d+); this run ends here", said)[1])
    assert update <= 2  # the first update ruins the weights, the second has no finite loss
    assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    healthy = [row for row in rows if row["lr"] == 1e-3]
    assert [row["step"] for row in healthy] == [1, 2, 5, 10, 20, 30, 40]
    for one, other in zip(healthy, train(lr=1e-3, steps=40)):
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-3)
    assert all(row["step"] < update for row in rows if row["lr"] == 1e30)


def test_runs_leave_the_stack_at_until_and_the_others_go_on_unchanged():
    sweep = dict(seed=[0, 1, 2, 3], stack=4, steps=60, eval_every=5, weight_decay=0.0)
    full = train(**sweep, until=0)
    middle = sorted(row["val_acc"] for row in full if row["step"] == 30)
    goal = middle[2] if middle[2] > 0 else 1 / 121
    short = train(**sweep, until=goal)
    ends = {}
    for row in short:
        ends[row["seed"]] = row["step"]
    for seed in range(4):
        curve = [(row["step"], row["val_acc"]) for row in full if row["seed"] == seed]
        assert ends[seed] == next((step for step, acc in curve if acc >= goal), 60)
    assert len(set(ends.values())) > 1  # some left before others
    expected = {(row["seed"], row["step"]): row["train_loss"] for row in full}
    for row in short:
        assert row["train_loss"] == pytest.approx(expected[row["seed"], row["step"]], abs=1e-3)


def test_a_compiled_stack_shrinks_by_halves_only(monkeypatch):
    sizes = []
    def compiled(model):
        return lambda x, *rest: (sizes.append(len(x)), model(x, *rest))[1]
    monkeypatch.setattr(torch, "compile", compiled)
    sweep = dict(seed=list(range(8)), steps=60, eval_every=5, weight_decay=0.0, stack=8)
    goal = sorted(row["val_acc"] for row in train(**sweep, until=0) if row["step"] == 30)[3]
    rows = train(**sweep, until=goal, compile=True)
    assert set(sizes) <= {8, 4, 3, 2, 1} and all(b == a or b <= a // 2 for a, b in zip(sizes, sizes[1:]))
    assert timeless(rows) == timeless(train(**sweep, until=goal))


def test_a_grid_is_the_product_of_its_fields():
    rows = train(op=["x_plus_y", "s5_xy"], seed=[3, 1], frac=[0.2, 0.5], steps=2, stack=3)
    runs = {(row["op"], row["seed"], row["frac"]) for row in rows}
    assert runs == set(itertools.product(["x_plus_y", "s5_xy"], [3, 1], [0.2, 0.5]))
    assert len(rows) == 8 * 2


def test_a_variant_is_the_run_that_its_settings_make():
    texts = ["", "weight_decay=0,batch_size=0", "decay_to=init,lr=0.003", "op=x_mul_y,frac=0.3,dropout=0.5"]
    rows = train(variant=texts, seed=[0, 1], stack=1)
    apart = [row for changes in (dict(), dict(weight_decay=0, batch_size=0), dict(decay_to="init", lr=0.003),
                                 dict(op="x_mul_y", frac=0.3, dropout=0.5)) for row in train(**changes, seed=[0, 1], stack=1)]
    key = lambda row: [row[name] for name in grok.STARRED] + [row["step"]]
    assert sorted(timeless(rows), key=key) == sorted(timeless(apart), key=key)


def test_decays_to_origin_and_to_init_share_a_stack():
    change = dict(weight_decay=20.0, lr=0.01, steps=20, eval_every=1, decay_to=["origin", "init"])
    together, apart = train(**change, stack=2), train(**change, stack=1)
    for row in together:
        alone, = (r for r in apart if (r["decay_to"], r["step"]) == (row["decay_to"], row["step"]))
        assert row["weight_norm"] == pytest.approx(alone["weight_norm"], rel=1e-3)
    origin, init = (next(r["weight_norm"] for r in together if r["decay_to"] == to and r["step"] == 20)
                    for to in ("origin", "init"))
    assert origin < 0.5 * init  # so the two did differ


def test_stacks_hold_one_shape_and_no_more_than_asked():
    runs = grok.grid(grok.resolve(Config(op=["x_plus_y", "x_mul_y", "s5_xy"], seed=list(range(5)))))
    groups = grok.stacks(runs, 4)
    assert sorted(map(len, groups)) == [1, 2, 4, 4, 4]
    assert all(len({run.shape() for run in group}) == 1 for group in groups)
    assert sorted(id(run) for group in groups for run in group) == sorted(map(id, runs))


def test_quiet_prints_nothing_and_a_pipe_gets_no_flood(capsys):
    train()
    assert capsys.readouterr() == ("", "")
    grok.train(Config(**(TINY | dict(quiet=False, steps=3000, until=0))))
    lines = capsys.readouterr().out.splitlines()
    assert 10 < len(lines) < 40 and "\r" not in "".join(lines)
    assert lines[-1].startswith("update   3,000")


def test_the_summary_tells_the_updates_and_draws_the_jump(tmp_path, capsys):
    assert grok.main(flags(**EASY, quiet=False, out=tmp_path / "run")) == 0
    said = capsys.readouterr().out
    rows = grok.read_rows((tmp_path / "run" / "metrics.csv").read_text())
    first = [next(row["step"] for row in rows if row[name] >= 0.99) for name in ("train_acc", "val_acc")]
    assert "99 % of training at update {:,}, 99 % of validation at update {:,}".format(*first) in said
    curve = re.search(r"val   (\S+)", said)[1]
    assert curve[0] == "▁" and curve[-1] in "▇█" and f"{max(r['val_acc'] for r in rows):.4f}" in said


def test_the_summary_of_a_big_grid_has_medians_over_its_seeds():
    folder = grok.Folder(None, grok.resolve(Config(**TINY | dict(lr=[1e-3, 2e-3, 3e-3], seed=[0, 1, 2]))))
    for run in folder.runs:
        lr, seed = run.config.lr, run.config.seed
        run.step, run.seconds, run.best = 100 * (seed + 1), 2.0 * (seed + 1), 0.1 * (seed + 1)
        run.train_99 = 10 * (seed + 1)
        run.val_99 = 70 + seed if lr == 2e-3 and seed else None
    said = list(grok.summary(folder))
    assert said[::3] == [f"x_plus_y, lr {lr}: medians over seeds, n = 3" for lr in (0.001, 0.002, 0.003)]
    assert said[1::3] == [f"  99 % of training at update 20 (3 of 3 runs), 99 % of validation {when}, seen every 10 updates"
                          for when in ("never (0 of 3 runs)", "at update 71 (2 of 3 runs)", "never (0 of 3 runs)")]
    assert set(said[2::3]) == {"  best validation accuracy 0.2000; 200 updates in 4.0 s of training, 50.0 updates/s"}


def test_sparkline_follows_log_spaced_updates():
    assert grok.sparkline([1, 10, 100], [0, 0.5, 1], width=5) == "▁▁▅▅█"


# --- the gate -------------------------------------------------------------------------------------

EASY = dict(op="x_plus_y", p=31, frac=0.7, recipe="fast", width=64, heads=4, lr=5e-3, steps=3000, batch_size=256,
            eval_every=20)


def test_a_small_run_generalises_and_passes_the_gate(tmp_path):
    done = cli(*flags(**EASY, expect=0.99, out=tmp_path / "run"))
    assert (done.returncode, done.stderr) == (0, "")
    rows = grok.read_rows((tmp_path / "run" / "metrics.csv").read_text())
    assert rows[-1]["val_acc"] >= 0.99 and rows[0]["val_acc"] < 0.2


def test_a_run_that_cannot_generalise_fails_the_gate(tmp_path):
    done = cli(*flags(expect=0.99, out=tmp_path / "run"))
    said = f"grok.py: --expect 0.99: missed in 1 run; see {tmp_path / 'run'}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_agrees_with_the_cpu_and_generalises_too():
    cpu, gpu = (train(**EASY | dict(device=device)) for device in ("cpu", "cuda"))
    for column in "train_loss", "val_loss", "weight_norm":
        assert gpu[0][column] == pytest.approx(cpu[0][column], abs=1e-4)
    assert cpu[-1]["val_acc"] >= 0.99 and gpu[-1]["val_acc"] >= 0.99


def test_expect_raises_the_goal_of_until(tmp_path):
    rows = train(**EASY, until=0.3, expect=0.5)
    assert rows[-1]["val_acc"] >= 0.5 > rows[-2]["val_acc"]


# --- checkpoints and resume -----------------------------------------------------------------------

# Every source of randomness on, and two stacks of six runs that leave at different updates.
NOISY = dict(seed=[0, 1, 2], frac=[0.3, 0.6], dropout=[0.0, 0.2], weight_noise=0.01, update_noise=0.1, stack=6,
             decay_to="init", lr=0.03, until=0.14, steps=60, eval_every=5, batch_size=0)


class StopAfter:
    """Stands in for the list of signals: true from the `updates`-th time it is asked."""

    def __init__(self, updates):
        self.left = updates

    def __bool__(self):
        self.left -= 1
        return bool(self.left < 0)


def advance(folder, updates):
    """Trains a folder for about so many updates, as a signal would cut it; says whether it ended."""
    with folder:
        try:
            grok.train_all(folder, grok.Console(quiet=True), StopAfter(updates))
        except grok.Interrupted:
            return False
    return True


def table(path):
    return timeless(grok.read_rows((path / "metrics.csv").read_text()))


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_at_random_updates_it_resumes_to_the_same_metrics(tmp_path, seed):
    config = grok.resolve(Config(**(TINY | NOISY)))
    assert advance(grok.Folder(tmp_path / "whole", config), 10**9)
    random, parts = np.random.default_rng(seed), 1
    done = advance(grok.Folder(tmp_path / "cut", config), random.integers(40))
    while not done:
        done, parts = advance(grok.read_folder(tmp_path / "cut"), random.integers(1, 40)), parts + 1
    assert parts > 3
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    ends = [row["step"] for row in table(tmp_path / "cut") if row["val_acc"] >= 0.14]
    assert len(set(ends)) > 2  # runs left their stack at several updates
    whole, cut = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["runs"] for name in ("whole", "cut"))
    for one, other in zip(whole, cut):
        assert all(torch.equal(one[name], other[name]) for name in "Wmv")
        assert {k: one[k] for k in ("step", "best", "train_99", "val_99")} == {
            k: other[k] for k in ("step", "best", "train_99", "val_99")}


def test_killed_hard_at_random_moments_it_resumes_to_the_same_metrics(tmp_path):
    given = NOISY | dict(steps=150, until=0, checkpoint_every=7, seed=[0, 1])
    train(**given, out=tmp_path / "whole")
    random, command, cuts = np.random.default_rng(0), flags(**given, out=tmp_path / "cut"), []
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, HERE / "grok.py", *command], stderr=subprocess.PIPE)
        began = time.monotonic()
        if attempt < 4:  # from the first file on, for up to two seconds
            while not (tmp_path / "cut" / "metrics.csv").exists() and time.monotonic() < began + 60:
                time.sleep(0.01)
            size = (tmp_path / "cut" / "metrics.csv").stat().st_size
            while (tmp_path / "cut" / "metrics.csv").stat().st_size == size and process.poll() is None and attempt:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.5))
            process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        cuts.append(process.returncode)
        if process.returncode == 0:
            break
        command = ["--resume", tmp_path / "cut", "--quiet"]
    assert cuts[-1] == 0 and len(cuts) > 2
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_with_a_checkpoint_and_says_how_to_go_on(tmp_path, name, status):
    given = dict(steps=10**6, until=0, eval_every=100, quiet=False, out=tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-u", HERE / "grok.py", *flags(**given)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("update     100"):
            process.send_signal(getattr(signal, name))
            break
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, "")
    assert rest.splitlines()[-1].endswith(f"python grok.py --resume {tmp_path / 'run'}")
    steps = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["runs"][0]["step"]
    assert steps >= 100
    done = cli("--resume", tmp_path / "run", "--steps", steps + 7, "--quiet")
    assert done.returncode == 0 and table(tmp_path / "run")[-1]["step"] == steps + 7
    train(**given | dict(steps=steps + 7, quiet=True, out=tmp_path / "whole"))
    assert table(tmp_path / "whole") == table(tmp_path / "run")


def test_a_folder_killed_before_its_first_checkpoint_resumes_from_update_0(tmp_path):
    rows = train(out=tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    with open(tmp_path / "run" / "metrics.csv", "a") as file:
        file.write("x_plus_y,11,0.5,0,0.0")  # a row cut short
    assert cli("--resume", tmp_path / "run").returncode == 0
    assert table(tmp_path / "run") == timeless(rows)


def test_rows_after_the_checkpoint_come_again_and_none_stands_twice(tmp_path):
    rows = train(steps=40, out=tmp_path / "run")
    path = tmp_path / "run" / "metrics.csv"
    with open(path, "ab") as file:
        file.write(path.read_bytes().splitlines(True)[-1] + b"x_plus_y,11")
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "60", "--quiet"]) == 0
    assert table(tmp_path / "run") == timeless(train(steps=60)) and rows
    assert len({row["step"] for row in table(tmp_path / "run")}) == len(table(tmp_path / "run"))


def test_a_finished_run_says_so_and_goes_on_for_a_higher_goal(tmp_path, capsys):
    given = dict(steps=60, eval_every=5, out=tmp_path / "run", until=0.02)
    train(**given)
    resume = ["--resume", str(tmp_path / "run")]
    assert grok.main([*resume, "--quiet"]) == 0 and capsys.readouterr().out == ""
    before = table(tmp_path / "run")
    json_path = tmp_path / "run" / "config.json"
    json_path.write_text(json_path.read_text().replace('"quiet": true', '"quiet": false'))
    assert grok.main(resume) == 0
    assert "is finished already" in capsys.readouterr().out and table(tmp_path / "run") == before
    assert before[-1]["step"] < 60
    assert grok.main([*resume, "--until", "0"]) == 0
    assert table(tmp_path / "run") == timeless(train(**given | dict(until=0, out=None)))
    assert json.loads(json_path.read_text())["config"]["until"] == 0


def test_only_some_settings_may_change_on_resume(tmp_path, capsys):
    train(out=tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    for name, value in dict(lr="0.5", op="x_mul_y", seed="0 1", stack="2", out="elsewhere", betas="0.8 0.98").items():
        assert grok.main(["--resume", str(tmp_path / "run"), grok.flag(name), *value.split()]) == 2
        error = capsys.readouterr().err
        assert f"{grok.flag(name)} {value}: cannot change on --resume (it is " in error and error.count("\n") == 1
    assert grok.main(["--resume", str(tmp_path / "run"), "--lr", "0.001", "--threads", "2", "--quiet"]) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == set(before)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before["metrics.csv"]


def test_another_torch_or_grok_is_said_in_a_line_and_goes_on(tmp_path, capsys):
    train(out=tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    about = json.loads(path.read_text())
    about["config"]["quiet"] = False
    path.write_text(json.dumps(about | dict(torch="1.0", grok_sha256="0")))
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "35"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "another torch (1.0)" in notes[1]
    assert table(tmp_path / "run")[-1]["step"] == 35


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))
    return apply


def foreign(folder):
    torch.save({"state_dict": {"w": torch.zeros(3)}}, folder / "checkpoint.pt")


def from_another_command(folder):
    train(lr=0.5, out=folder / "other")
    (folder / "other" / "checkpoint.pt").rename(folder / "checkpoint.pt")


@pytest.mark.parametrize("harm, message", [
    (damage("checkpoint.pt", lambda b: b[:len(b) // 2]), "checkpoint.pt: is damaged or not a checkpoint of grok.py"),
    (damage("checkpoint.pt", lambda b: b""), "checkpoint.pt: is damaged or not a checkpoint of grok.py"),
    (damage("checkpoint.pt", lambda b: b"\x80\x04garbage"), "checkpoint.pt: is damaged or not a checkpoint of grok.py"),
    (foreign, "checkpoint.pt: is damaged or not a checkpoint of grok.py"),
    (from_another_command, "checkpoint.pt: is the checkpoint of another command"),
    (damage("metrics.csv", lambda b: b[:-30]), "metrics.csv: was edited or cut short after the checkpoint"),
    (damage("metrics.csv", lambda b: b.replace(b"x_plus_y", b"x_mul_yy")), "metrics.csv: was edited or cut short"),
    (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv: was edited or cut short after the checkpoint"),
    (damage("config.json", lambda b: b.replace(b'"format": 3', b'"format": 99')), "config.json: has format 99"),
    (damage("config.json", lambda b: b[:40]), "config.json: is damaged"),
    (damage("config.json", lambda b: b"[1]"), "config.json: is damaged"),
    (damage("config.json", lambda b: b"\xff\xfe"), "config.json: is damaged"),
    (damage("config.json", lambda b: b.replace(b'"lr"', b'"rate"')), "config.json: is damaged"),
    (damage("config.json", lambda b: b.replace(b'"share": [', b'"share": ["a", ')), "config.json: is damaged"),
    (damage("config.json", lambda b: b.replace(b'"commands"', b'"orders"')), "config.json: is damaged"),
    (damage("config.json", lambda b: b.replace(b'"p": 11', b'"p": 1')), "config.json: --p 1: must be"),
    (lambda folder: (folder / "config.json").unlink(), "is not a run folder: config.json: No such file"),
])
def test_a_damaged_folder_gets_one_line_and_is_left_alone(tmp_path, capsys, harm, message):
    train(out=tmp_path / "run")
    harm(tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "40"]) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and out == ""
    assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before


def test_a_failing_write_leaves_the_previous_checkpoint(tmp_path, capsys, monkeypatch):
    train(out=tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    replace_file = os.replace
    def fail(source, target):
        if str(target).endswith("checkpoint.pt"):
            raise OSError(28, "No space left on device")
        replace_file(source, target)
    monkeypatch.setattr(os, "replace", fail)
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "40"]) == 2
    error = capsys.readouterr().err
    assert "checkpoint.pt: cannot be written: No space left on device" in error and error.count("\n") == 1
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp"))
    monkeypatch.setattr(os, "replace", replace_file)
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "40", "--quiet"]) == 0
    assert table(tmp_path / "run") == timeless(train(steps=40))


@pytest.mark.parametrize("limit, name", [(10_000, "checkpoint.pt"), (2_500, "metrics.csv")])
def test_a_full_disk_gets_one_line_and_the_run_resumes(tmp_path, limit, name):
    resource = pytest.importorskip("resource")
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = cli(*flags(steps=100, until=0, eval_every=5, out=tmp_path / "run"), preexec_fn=full)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{name}: cannot be written: " in done.stderr and "--resume" in done.stderr
    assert cli("--resume", tmp_path / "run").returncode == 0
    assert table(tmp_path / "run") == timeless(train(steps=100, until=0, eval_every=5))


def test_two_processes_cannot_share_a_folder(tmp_path):
    train(out=tmp_path / "run")
    with grok.read_folder(tmp_path / "run"):
        done = cli("--resume", tmp_path / "run", "--steps", 40)
        assert done.returncode == 2 and "another process is training in this folder" in done.stderr
    assert cli("--resume", tmp_path / "run", "--steps", 40, "--quiet").returncode == 0


def test_load_gives_the_trained_model_back(tmp_path):
    rows = train(out=tmp_path / "run", seed=[0, 1], layers=2, outliers=3)
    for i, last in enumerate(rows[-2:]):  # the two were trained together
        config, model = grok.load(tmp_path / "run", i)
        assert config.seed == i == last["seed"]
        x, y, _ = (torch.from_numpy(a)[None] for a in grok.equations(config.op, config.p))
        labels, train_rows = grok.split(config)
        held = np.setdiff1d(np.arange(121), train_rows)
        hits = model(x, y)[0].argmax(1).numpy() == labels
        assert hits[held].mean() == pytest.approx(last["val_acc"], abs=1e-6)
        assert hits[train_rows].mean() == pytest.approx(last["train_acc"], abs=1e-6)
        assert model.weights()["embed"].shape == (1, 13, 16)
    with pytest.raises(UsageError, match="run 2; it has 2 runs"):
        grok.load(tmp_path / "run", 2)
    (tmp_path / "run" / "checkpoint.pt").unlink()
    with pytest.raises(UsageError, match="no weights of run 0; it has 2 runs"):
        grok.load(tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_folder_of_a_gpu_is_read_without_one(tmp_path, capsys):
    train(out=tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
    assert grok.load(tmp_path)[0].device == "cuda" and len(list(grok.trained([tmp_path]))) == 1
    assert grok.main(["--resume", str(tmp_path), "--steps", "40"]) == 2
    assert "--device cuda: there is none here" in capsys.readouterr().err
    assert grok.main(["--resume", str(tmp_path), "--steps", "40", "--device", "cpu"]) == 0


def test_without_a_folder_no_checkpoint_is_due(tmp_path):
    for every, step in (None, 7), (10, 20):
        config = grok.resolve(Config(**TINY | dict(checkpoint_every=every)))
        for out in None, tmp_path / str(every):
            with grok.Folder(out, config) as folder:
                folder.saved = -math.inf                                      # the last one long ago
                assert folder.checkpoint_due(step) == bool(out)


def test_a_terminal_is_told_the_time_that_is_left(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((200, 50)))
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run, = grok.grid(grok.resolve(Config(**TINY)))
    console = grok.Console()
    console.begin([run], torch.device("cpu"), 1)
    now[0] = 10.0
    for steps, left in (400, "at most 0:00:30 left"), (10**18, "left"):       # 100 updates in 10 s
        console.progress(100, steps, [dict(train_acc=0.5, val_acc=0.25)])
        shown = capsys.readouterr().out
        assert shown.endswith(left) and "train 0.500  val 0.250  10.0 updates/s" in shown


# --- torchrun -------------------------------------------------------------------------------------

def torchrun(*arguments):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           HERE / "grok.py", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_torchrun_shares_the_grid_out_and_resumes(tmp_path):
    sweep = dict(seed=[0, 1, 2], dropout=0.1, stack=1)
    done = torchrun(*flags(**sweep, out=tmp_path / "both"))
    assert done.returncode == 0, done.stderr
    key = lambda row: (row["seed"], row["step"])
    merged = sorted(table(tmp_path / "both" / "rank-0") + table(tmp_path / "both" / "rank-1"), key=key)
    assert merged == sorted(timeless(train(**sweep)), key=key)
    assert {row["seed"] for row in table(tmp_path / "both" / "rank-1")} == {1}
    longer = sorted(timeless(train(**sweep, steps=40)), key=key)
    assert cli("--resume", tmp_path / "both", "--steps", 35).returncode == 0  # one process takes both parts
    assert torchrun("--resume", tmp_path / "both", "--steps", 40, "--expect", 0.9).returncode != 0
    merged = sorted(table(tmp_path / "both" / "rank-0") + table(tmp_path / "both" / "rank-1"), key=key)
    assert [row for row in merged if row["step"] != 35] == longer  # 35 was the last update for a while


def test_a_folder_holds_one_process_or_several(tmp_path, monkeypatch, capsys):
    train(out=tmp_path / "one")
    train(out=tmp_path / "two" / "rank-0")
    assert grok.main(flags(out=tmp_path / "two")) == 2
    assert "two: already holds a run (rank-0); name another" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert grok.main(flags(out=tmp_path / "one")) == 2
    assert "one: already holds a run (config.json); name another" in capsys.readouterr().err
    assert not list((tmp_path / "one").glob("rank-*")) and not (tmp_path / "two" / "config.json").exists()


def test_torchrun_needs_out(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert grok.main(flags()) == 2 and "--out: is needed under torchrun" in capsys.readouterr().err


# --- figures --------------------------------------------------------------------------------------

USUAL = dict(op="x_div_y", p=97, frac=0.5, seed=0, lr=0.001, weight_decay=1.0, decay_to="origin", dropout=0.0,
             weight_noise=0.0, update_noise=0.0, outliers=0, batch_size=512, init_scale=1.0, embed_init_scale=1.0,
             position_scale=1.0, layers=2, width=128, heads=4, betas="0.9 0.98", eps=1e-8, warmup=10)


def made(folder, *runs):
    """A folder with a metrics.csv of made runs: (settings, {step: (train_acc, val_acc)})."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, grok.COLUMNS, lineterminator="\n")
        writer.writeheader()
        for settings, curve in runs:
            for step, (train_acc, val_acc) in curve.items():
                writer.writerow(USUAL | settings | dict(step=step, train_acc=train_acc, val_acc=val_acc, weight_norm=9.0,
                                                        train_loss=2 - train_acc, val_loss=3 - val_acc, seconds=1.0))
    return folder


def drawn(axes):
    """What a matplotlib axes shows as lines and markers: a list of lists of (x, y)."""
    return [[tuple(map(float, point)) for point in line.get_xydata()] for line in axes.lines if len(line.get_xydata())]


def test_curves_are_medians_and_ranges_over_seeds(tmp_path):
    made(tmp_path, (dict(seed=0), {1: (0.0, 0.1), 10: (0.5, 0.2), 100: (1.0, 0.6)}),
         (dict(seed=1), {1: (0.1, 0.0), 10: (1.0, 1.0)}),  # ended early: keeps its last value
         (dict(seed=2), {1: (0.2, 0.05), 10: (0.6, 0.1), 100: (0.9, 0.2)}))
    figure = grok.curves(grok.read_runs([tmp_path]))
    accuracy, loss = figure.axes
    train_acc, val_acc = drawn(accuracy)
    assert train_acc == [(1, 0.1), (10, 0.6), (100, 1.0)] and val_acc == [(1, 0.05), (10, 0.2), (100, 0.6)]
    assert np.allclose([y for _, y in drawn(loss)[1]], [2.95, 2.8, 2.4])
    band = {tuple(point) for point in accuracy.collections[1].get_paths()[0].vertices}
    assert {(1, 0.0), (1, 0.1), (10, 0.1), (10, 1.0), (100, 0.2), (100, 1.0)} <= band
    assert accuracy.get_xscale() == "log" and (accuracy.get_xlabel(), loss.get_ylabel()) == ("updates", "loss (nats)")
    assert "x_div_y, frac 0.5" in figure.get_suptitle() and "n = 3" in figure.get_suptitle()


def test_growth_is_per_one_per_cent_of_the_table():
    fracs = [0.25, 0.26, 0.3, 0.5]
    assert np.allclose(grok.growth(fracs, [1e6 * 1.45 ** (-100 * frac) for frac in fracs]), 0.45)
    assert np.allclose(grok.growth([0.2, 0.3], [1024, 1]), 1.0)  # doubled ten times in ten steps


def test_updates_against_the_fraction_with_runs_that_never_arrived(tmp_path):
    runs = [(dict(frac=frac, seed=seed), {1: (0.0, 0.0), 50: (0.99, 0.3), updates + 20 * seed: (1.0, 0.995)})
            for frac, updates in ((0.3, 3200), (0.31, 1600), (0.35, 100)) for seed in range(3)]
    runs[0] = (dict(frac=0.3, seed=0), {1: (0.0, 0.0), 50: (0.99, 0.2), 9000: (1.0, 0.9)})
    runs += [(dict(frac=0.2, seed=seed), {1: (0.0, 0.0), 70: (1.0, 0.1), 9000: (1.0, 0.05 * seed)}) for seed in range(3)]
    runs += [(dict(frac=0.1), {1: (0.0, 0.0), 8000: (0.9, 0.1)})]            # not even training
    made(tmp_path / "rank-0", *runs[::2])
    made(tmp_path / "rank-1", *runs[1::2])
    made(tmp_path / "again", (dict(frac=0.3, seed=1), {1: (0.0, 0.0), 50: (0.5, 0.1)}))  # the longer one counts
    updates, best = grok.sweep(grok.read_runs([tmp_path, tmp_path / "rank-1"]), "frac").axes
    lines = drawn(updates)
    assert [(0.2, 70), (0.3, 50), (0.31, 50), (0.35, 50)] in lines            # 99 % of training
    assert [(0.3, 3240), (0.31, 1620), (0.35, 120)] in lines                  # medians; none of three at 0.2
    assert [(0.2, 70)] * 3 + [(0.3, 50)] * 3 + [(0.31, 50)] * 3 + [(0.35, 50)] * 3 in map(sorted, lines)  # every run
    crosses = {line.get_marker(): sorted(map(tuple, line.get_xydata().tolist())) for line in updates.lines}
    assert crosses["x"] == [(0.1, 8000)] + [(0.2, 9000)] * 3 + [(0.3, 9000)] and crosses["+"] == [(0.1, 8000)]
    ranges = [segment.tolist() for bars in updates.collections for segment in bars.get_segments()]
    assert [[0.31, 1600], [0.31, 1640]] in ranges and [[0.3, 3220], [0.3, 3240]] in ranges
    assert [(0.1, 0.1), (0.2, 0.1), (0.3, 0.995), (0.31, 0.995), (0.35, 0.995)] in drawn(best)
    assert [text.get_text() for text in updates.texts] == ["+100%", "+92%"]  # 3240/1620 in 1 %, (1620/120)^(1/4) - 1
    assert updates.get_yscale() == "log"


def test_best_accuracy_by_intervention_and_by_operation(tmp_path):
    made(tmp_path, *((dict(frac=frac, weight_decay=decay, dropout=dropout), {1: (0, 0), 100: (1, high), 200: (1, 0.2)})
                     for frac in (0.3, 0.5) for decay, dropout, high in
                     ((0.0, 0.0, 0.3), (0.0, 0.1, 0.4), (1.0, 0.0, 0.5 + frac))))
    names = [name for name, _ in grok.figures([tmp_path])]
    assert names == ["curves-x_div_y", "sweep-frac"]
    figure = dict(grok.figures([tmp_path]))["sweep-frac"]
    assert "baseline: weight_decay 0, dropout 0" in figure.get_suptitle()
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["baseline (2)", "dropout 0.1 (2)", "weight_decay 1 (2)"]
    for line in [(0.3, 0.3), (0.5, 0.3)], [(0.3, 0.4), (0.5, 0.4)], [(0.3, 0.8), (0.5, 1.0)]:
        assert line in drawn(figure.axes[1])


def test_groups_are_compared_where_nothing_numeric_was_swept(tmp_path):
    made(tmp_path, *((dict(op=op, p=p, seed=seed), {1: (0, 0), 100: (1, 1 - seed * share)}) for op, p, share in
                     (("x_plus_y", 97, 0), ("x_plus_y", 31, 0.1), ("s5_xy", 120, 0.2)) for seed in (0, 1, 2)))
    figures = dict(grok.figures([tmp_path]))
    assert list(figures) == ["curves-x_plus_y", "curves-x_plus_y mod 31", "curves-s5_xy", "compare"]
    updates, best = figures["compare"].axes
    names = [tick.get_text() for tick in updates.get_yticklabels()]
    assert names == ["s5_xy (3)", "x_plus_y (3)", "x_plus_y mod 31 (3)"]
    assert [(0.8, 0), (1, 1), (0.9, 2)] in drawn(best) and [(100, 1)] in drawn(updates)
    assert [(100, 0)] * 2 + [(100, 2)] * 2 in map(sorted, drawn(updates))  # of p 31 and S5 one seed of three arrived
    assert "frac 0.5, else the paper's settings" in figures["compare"].get_suptitle()


def test_groups_stand_in_the_order_of_their_values_whatever_that_of_the_files(tmp_path):
    for name, lr in ("a", 3e-3), ("b", 1e-3), ("c", 2e-3):
        made(tmp_path / name, (dict(lr=lr), {1: (0, 0)}))
    assert list(grok.grouped(grok.read_runs([tmp_path]))[1]) == ["lr 0.001 (1)", "lr 0.002 (1)", "lr 0.003 (1)"]
    made(tmp_path / "d", *((dict(lr=2e-3, dropout=0.1 * (seed > 1), seed=seed), {1: (0, 0)}) for seed in (1, 2)))
    labels = list(grok.grouped(grok.read_runs([tmp_path]))[1])
    assert labels == ["baseline (2)", "lr 0.001 (1)", "dropout 0.1 (1)", "lr 0.003 (1)"]


def test_many_groups_look_different(tmp_path):
    made(tmp_path, *((dict(lr=lr / 1000), {1: (0, 0), 10: (0.5, lr / 20)}) for lr in range(1, 17)))
    figure = grok.curves(grok.read_runs([tmp_path]))
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines if line.get_linestyle() == "-"}
    assert len(looks) == 16 == len(figure.legends[0].texts)


def test_every_setting_that_shapes_a_run_is_a_column(tmp_path):
    elsewhere = {"recipe", "variant", "steps", "until", "expect", "out", "eval_every", "checkpoint_every", "quiet", "device",
                 "threads", "stack", "compile"}
    assert {f.name for f in fields(Config)} - elsewhere <= set(grok.COLUMNS)
    made(tmp_path, *((dict(warmup=warmup), {1: (0, 0)}) for warmup in (10, 50)),
         *((setting, {1: (0, 0)}) for setting in (dict(eps=1e-7), dict(betas="0.9 0.95"))))
    assert len(grok.read_runs([tmp_path])) == 4                               # none is another's repetition


def test_merged_tables_are_read_like_their_folders(tmp_path):
    parts = [made(tmp_path / name, (dict(seed=seed), {1: (0, 0), 100: (1, 1)})) / "metrics.csv"
             for seed, name in enumerate(("a", "b"))]
    a, b = (part.read_text() for part in parts)
    for name, text in ("merged", a + b), ("headless", a.partition("\n")[2] + b.partition("\n")[2]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
        assert grok.read_runs([tmp_path / name]) == grok.read_runs([part.parent for part in parts])


def test_final_accuracies_against_outliers(tmp_path):
    made(tmp_path, *((dict(outliers=k), {10: (0.5, 0.97), 100: (1.0, 1 - k / 1000)}) for k in (0, 100, 300)))
    _, last = dict(grok.figures([tmp_path]))["sweep-outliers"].axes
    assert [(0, 1), (100, 0.9), (300, 0.7)] in drawn(last) and [(0, 1), (100, 1), (300, 1)] in drawn(last)
    assert last.get_ylabel() == "last accuracy"


def test_the_nearest_strands_of_a_circle_and_the_strands_of_8():
    angle = 2 * np.pi * 5 * np.arange(97) / 97                                # 5 · 39 = 1 mod 97 = 5 · -58
    (_, eights), (text, nearest) = grok.families(np.stack([np.cos(angle), np.sin(angle)], 1), "x_plus_y")
    assert text == "z to z + 39, the nearest" and [strand.tolist() for strand in nearest] == [[39 * i % 97 for i in range(98)]]
    assert [strand.tolist() for strand in eights] == [[8 * i % 97 for i in range(98)]]
    assert grok.families(np.stack([np.cos(angle), np.sin(angle)], 1), "x_mul_y") == [("", [])]
    (_, eights), _ = grok.families(np.stack([np.cos(angle), np.sin(angle)], 1)[:12], "x_minus_y")
    assert sorted(map(sorted, map(set, map(np.ndarray.tolist, eights)))) == [[i, i + 4, i + 8] for i in range(4)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_cosets_that_are_clusters_are_found(side):
    then = lambda x, y: tuple(y[i] for i in x)                                # x first
    group, g = {tuple(range(5))}, (1, 0, 4, 2, 3)
    inverse = tuple(g.index(i) for i in range(5))
    while len(group) != len(group := group | {then(x, y) for x in group | {(3, 4, 2, 0, 1), (0, 2, 1, 4, 3)}
                                              for y in group | {(3, 4, 2, 0, 1)}}):
        pass
    assert len(group) == 10
    group = {then(then(inverse, h), g) for h in group}                        # a conjugate
    cosets = {frozenset(PERMS.index(then(x, h) if side == "left" else then(h, x)) for h in group) for x in PERMS}
    assert len(cosets) == 12
    rows, random = np.empty((120, 16)), np.random.default_rng(0)
    for coset in cosets:
        rows[list(coset)] = random.normal(size=16) + 0.01 * random.normal(size=(10, 16))
    for text, found in grok.families(rows, "s5_xyx"):
        assert {frozenset(map(int, coset)) for coset in found} == cosets
        assert "cosets of D5" in text and ": 100% of the variance between them, 9% by chance" in text
    within, chance, _ = grok.cosets(random.normal(size=(120, 128)), [[3, 4, 2, 0, 1], [0, 2, 1, 4, 3]])
    assert chance - 0.03 < within < chance == pytest.approx(108 / 119)       # no clusters; the best of twelve tries
    sizes = {name: len(grok.cosets(rows, generators)[2]) for name, generators in grok.SUBGROUPS.items()}
    assert sizes == dict(D5=12, A4=10, S4=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of six small runs that generalised."""
    folder = tmp_path_factory.mktemp("trained")
    train(**EASY | dict(seed=[0, 1, 2], frac=[0.7, 0.8]), out=folder)
    return folder


def test_pictures_lie_beside_the_csv_or_where_asked(trained, tmp_path, capsys):
    run, elsewhere = tmp_path / "run", tmp_path / "deep" / "pictures"
    shutil.copytree(trained, run)
    for extra, folder in ([], run), (["--out", str(elsewhere), "--sharpness"], elsewhere):
        assert grok.main(["--plot", str(run), *extra]) == 0
        names = ["curves-x_plus_y-mod-31", "sweep-frac", "map-x_plus_y-mod-31"]
        names += [f"sharpness-x_plus_y-mod-31-{frac}" for frac in (0.7, 0.8)] if folder == elsewhere else []
        assert capsys.readouterr().out.split() == [str(folder / f"{name}.png") for name in names]
        for name in names:
            data = (folder / f"{name}.png").read_bytes()
            height, width, _ = image.imread(folder / f"{name}.png").shape
            assert data.startswith(b"\x89PNG") and width > 2 * height > 400 and len(data) < 400_000
        assert sorted(folder.glob("*.png")) == sorted(folder / f"{name}.png" for name in names)
    assert {file.name for file in run.iterdir() if file.suffix != ".png"} == {"config.json", "metrics.csv", "checkpoint.pt"}
    assert grok.main(["--plot", str(run), "--out", str(elsewhere), "--quiet"]) == 0 and capsys.readouterr().out == ""


def test_figure_7_counts_a_run_once_and_leaves_out_what_diverged(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    train(op="x_plus_y", lr=[1e30, 1e-3], seed=[0, 1, 2], steps=40, out=tmp_path / "diverged")
    found = dict(grok.figures([trained, tmp_path], sharp=True))
    titles = {name: figure.get_suptitle() for name, figure in found.items() if name.startswith("sharpness")}
    assert list(titles) == [f"sharpness-x_plus_y mod {run}" for run in ("31-0.7", "31-0.8", "11-0.5")]
    assert all("n = 3" in title and "nan" not in title for title in titles.values())


def test_a_run_that_generalised_and_then_diverged_has_no_map(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    for run in saved["runs"]:
        run["W"], run["diverged"] = run["W"] * math.nan, run["step"]
    torch.save(saved, folder / "checkpoint.pt")
    assert [name for name, _ in grok.figures([folder])] == ["curves-x_plus_y mod 31", "sweep-frac"]


def test_the_map_joins_the_points_it_shows(tmp_path):
    train(**EASY | dict(p=23, steps=5), out=tmp_path)
    run, = grok.trained([tmp_path])
    for axes in grok.output_map(run).axes:
        points = axes.lines[0].get_xydata()
        step = int(re.search(r"z \+ (\d+)", axes.get_title())[1])
        assert np.allclose(drawn(axes)[1], points[[step * i % 23 for i in range(24)]])
        assert [text.get_text() for text in axes.texts] == [str(z) for z in range(23)]


def test_sharpness_of_a_quadratic_is_that_of_a_corner_of_the_box():
    random = np.random.default_rng(0)
    w, curvature = (torch.from_numpy(random.normal(size=8) * 3) for _ in range(2))
    box = 0.05 * (w.abs() + 1)
    f = lambda v: 0.7 + (curvature.square() * (v - w).square()).sum()           # w is its minimum
    highest = (curvature * box).square().sum().item()
    assert grok.sharpness(f, w, epsilon=0.05) == pytest.approx(100 * highest / 1.7, rel=1e-9)
    f = lambda v: 2 + (curvature * (v - w)).sum() - 0.1 * (v - w).square().sum()  # its maximum is not in the box
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)), dtype=torch.float64)
    highest = max(f(w + corner * box).item() for corner in corners)
    assert grok.sharpness(f, w, epsilon=0.05) == pytest.approx(100 * (highest - 2) / 3, rel=1e-9)
    f = lambda v: 2 - (v - w - box / 3).square().sum()                           # its maximum is inside, a third out
    assert grok.sharpness(f, w, epsilon=0.05) == pytest.approx(100 * (2 - f(w).item()) / (1 + f(w).item()), rel=0.02)
    assert grok.sharpness(lambda v: (v * 0).sum(), w) == 0


def test_sharpness_of_a_run_is_that_of_its_training_loss(tmp_path):
    rows = train(out=tmp_path, outliers=5)
    run, = grok.trained([tmp_path])
    tiny, wide = (grok.run_sharpness(run, epsilon=epsilon) for epsilon in (1e-9, 1e-2))
    assert 0 <= tiny < 1e-3 < wide
    reference = []
    whole = grok.sharpness
    try:
        grok.sharpness = lambda loss, w, epsilon: reference.append(loss(w).item())
        grok.run_sharpness(run)
    finally:
        grok.sharpness = whole
    assert reference[0] == pytest.approx(rows[-1]["train_loss"], abs=1e-5)


def test_the_rank_correlation_knows_order_alone():
    points = [(1.0, 0.9), (10.0, 0.5), (1e4, 0.4), (1e5, 0.1)]
    settings = [USUAL | dict(lr=lr) for lr in (0.1, 0.1, 0.2, 0.2)]
    figure = grok.correlation(list(zip(settings, points)))
    assert drawn(figure.axes[0]) == [points[:2], points[2:]] and "ρ = -1.000" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].texts] == ["lr 0.1 (2)", "lr 0.2 (2)"]
    points = [(1, 1), (2, 3), (3, 2), (4, 4)]                                     # 1 - 6 · 2 / (4³ - 4) = 0.8
    assert "ρ = 0.800" in grok.correlation(list(zip(settings, points))).get_suptitle()


@pytest.mark.parametrize("module, package", [("matplotlib", "matplotlib"), ("sklearn", "scikit-learn"),
                                             ("scipy", "scikit-learn")])
def test_without_a_library_one_line_names_the_install(module, package, trained, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    if module == "scipy":  # what is drawn before, without it
        monkeypatch.setattr(grok, "output_map", lambda run: grok.canvas("")[0])
    assert grok.main(["--plot", str(trained), "--out", str(tmp_path), "--sharpness"]) == 2
    said = f"grok.py: --plot: needs {package}, which is not installed: pip install {package}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(grok.COLUMNS) + "\nx_div_y,97,0.5,0\n",
                                  ",".join(grok.COLUMNS) + "\n" + ",".join(["x"] * len(grok.COLUMNS)) + "\n", "\xff\n,"])
def test_a_damaged_csv_gets_one_line(text, tmp_path, capsys):
    (tmp_path / "metrics.csv").write_bytes(text.encode("latin-1"))
    assert grok.main(["--plot", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("grok.py: ") and str(tmp_path) in err and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


# --- mistakes -------------------------------------------------------------------------------------

@pytest.mark.parametrize("line, message", [
    ("--p 96", "--p 96: x_div_y needs a prime modulus (nearest: 89, 97)"),
    ("--p 1", "--p 1: must be a whole number in [2, 4096]"),
    ("--p 9.5", "--p 9.5: must be a whole number"),
    ("--p seven", "--p seven: must be a whole number"),
    ("--op x_dvi_y", "did you mean x_div_y?"),
    ("--op", "--op: expected at least one argument"),
    ("--frac 0", "--frac 0: must be a number in (0, 1)"),
    ("--frac 1", "--frac 1: must be a number in (0, 1)"),
    ("--frac nan", "--frac nan: must be a number in (0, 1)"),
    ("--frac 1e-9", "--frac 1e-09: gives 0 of the 9312 equations of x_div_y to training"),
    ("--frac 0.99999", "gives 9312 of the 9312 equations"),
    ("--frac 0.5 0.3 0.50", "--frac 0.5 0.3 0.50: a value is given twice"),
    ("--seed -1", "--seed -1: must be a whole number in [0, inf)"),
    ("--seed 1 1", "--seed 1 1: a value is given twice"),
    ("--seed 0,1,2", "--seed 0,1,2: must be a whole number in [0, inf); separate several values by spaces"),
    ("--outliers 5000", "--outliers 5000: x_div_y at --frac 0.5 has only 4656 training equations"),
    ("--layers 0", "--layers 0: must be a whole number in [1, 1024]"),
    ("--heads 5", "--heads 5: must divide --width 128"),
    ("--width 0", "--width 0: must be"),
    ("--dropout 1", "--dropout 1: must be a number in [0, 1)"),
    ("--init-scale 0", "--init-scale 0: must be a number in (0, inf)"),
    ("--lr inf", "--lr inf: must be a number in (0, inf)"),
    ("--lr=-1e-3", "--lr -1e-3: must be a number in (0, inf)"),
    ("--betas 0.9 1", "--betas 1: must be a number in [0, 1)"),
    ("--betas 0.9", "--betas: expected 2 arguments"),
    ("--weight-decay -1", "--weight-decay -1: must be a number in [0, inf)"),
    ("--eps nan", "--eps nan: must be"),
    ("--decay-to zero", "--decay-to zero: must be one of origin, init"),
    ("--steps 0", "--steps 0: must be a whole number in [1, inf)"),
    ("--batch-size -1", "--batch-size -1: must be"),
    ("--until 1.1", "--until 1.1: must be a number in [0, 1]"),
    ("--expect 2", "--expect 2: must be a number in [0, 1]"),
    ("--recipe slow", "--recipe slow: must be one of paper, fast"),
    ("--device tpu", "--device tpu: must be one of auto, cpu, cuda, mps"),
    ("--threads 0", "--threads 0: must be"),
    ("--stack 0", "--stack 0: must be"),
    ("--eval-every 0", "--eval-every 0: must be"),
    ("--checkpoint-every 0", "--checkpoint-every 0: must be"),
    ("--step 5", "unrecognized arguments: --step 5 (did you mean --steps?)"), ("--foo 5", "--foo 5 (see --help)"),
    ("--resum x", "did you mean --resume?"),
    ("--out FILE", "FILE: cannot be a run folder: File exists"),
    ("--out FILE/run", "FILE/run: cannot be a run folder: Not a directory"),
    ("--variant lr", "--variant lr: lr needs a value: lr=VALUE"),
    ("--variant lr=x", "--variant lr=x: --lr x: must be a number in (0, inf)"),
    ("--variant layers=1", "--variant layers=1: layers must be one of op, frac, seed"),
    ("--variant lr=1,weight-decay=2,lr=3", "--variant lr=1,weight-decay=2,lr=3: names lr twice"),
    ("--variant frac=1e-9", "--frac 1e-09: gives 0 of the 9312 equations"),
    ("--variant lr=1e-3 weight_decay=1", "--variant 'lr=1e-3' 'weight_decay=1': give the same run twice"),
    ("--lr 1e-3 2e-3 --variant lr=3e-3", "--variant 'lr=3e-3' 'lr=3e-3': give the same run twice"),
    ("--plot nowhere", "--plot nowhere: is not a folder"),
    ("--plot FILE", "--plot FILE: is not a folder"),
    ("--plot .", "--plot .: no metrics.csv there or below has a run in it"),
    ("--plot . --steps 5", "--steps 5: has no use beside --plot"),
    ("--plot", "--plot: expected at least one argument"),
    ("--sharpness", "--sharpness: goes with --plot DIR"),
    ("--resume nowhere", "nowhere: is not a run folder: config.json: No such file or directory"),
])
def test_a_mistake_gets_one_line_and_status_2(line, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    assert grok.main(line.split()) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and out == ""
    assert os.listdir() == ["FILE"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_is_refused_where_there_is_none(capsys):
    assert grok.main(["--device", "cuda"]) == 2
    assert "--device cuda: there is none here" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused(tmp_path, capsys):
    train(out=tmp_path / "run")
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert grok.main(flags(out=tmp_path / "run")) == 2
    assert "already holds a run (config.json); name another folder, or go on with --resume" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_default_folders_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [grok.main(flags(steps=1)) for _ in range(3)] == [0, 0, 0]
    assert len(list(Path("runs").iterdir())) == 3
    assert all((folder / "metrics.csv").exists() for folder in Path("runs").iterdir())


def test_a_bug_still_shows_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(grok, "evaluate", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grok.main(flags(out=tmp_path / "run"))


def test_the_library_raises_the_same_texts_as_value_errors():
    for changes, message in ((dict(p=96, op="x_div_y"), "--p 96: x_div_y needs a prime"), (dict(lr=[]), "needs a value"),
                             (dict(frac=float("nan")), "--frac nan"), (dict(steps=True), "--steps True"),
                             (dict(quiet=1), "--quiet 1: must be a bool"), (dict(betas=0.9), "--betas 0.9: takes 2"),
                             (dict(seed="one"), "--seed one"), (dict(op=3), "--op 3: must be one of"),
                             (dict(out=7), "--out 7: must be a str"), (dict(p=[97, 3]), "--p 97 3: must be")):
        with pytest.raises(ValueError, match=re.escape(message)):
            train(**changes)


ODD = st.one_of(st.none(), st.booleans(), st.integers(-2, 10**30), st.floats(), st.text(max_size=4), st.binary(max_size=3),
                st.sampled_from(["0.5", "1e3", "nan", "cpu", "x_mul_y", "init", 1e308, 5e-324, np.float32(0.5), np.int64(3)]))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.dictionaries(st.sampled_from([f.name for f in fields(Config)]), ODD | st.lists(ODD, max_size=3)))
def test_any_value_resolves_or_is_refused_in_one_line(changes):
    try:
        config = grok.resolve(Config(**changes))
    except UsageError as error:
        assert re.search(r"--[a-z]", str(error))
    else:
        assert grok.resolve(config) == config  # settled, and JSON can hold it
        assert grok.resolve(Config(**json.loads(json.dumps(vars(config))))) == config


def test_training_leaves_the_process_as_it_was(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(5)
        np.random.seed(5)
        before = (torch.get_rng_state(), np.random.get_state()[1], signal.getsignal(signal.SIGINT),
                  signal.getsignal(signal.SIGTERM), torch.get_num_threads(), os.getcwd(), dict(os.environ))
        rows = train(threads=1 + torch.get_num_threads(), dropout=0.1, weight_noise=0.1, out=tmp_path / "run")
        assert grok.main(flags(out=tmp_path / "main")) == 0
        after = (torch.get_rng_state(), np.random.get_state()[1], signal.getsignal(signal.SIGINT),
                 signal.getsignal(signal.SIGTERM), torch.get_num_threads(), os.getcwd(), dict(os.environ))
        for one, other in zip(before, after):
            assert np.array_equal(one, other) if hasattr(one, "shape") else one == other
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert timeless(rows) == timeless(train(dropout=0.1, weight_noise=0.1))


# --- the files around it --------------------------------------------------------------------------

def test_help_names_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit:
        grok.main(["--help"])
    assert exit.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    paper = grok.resolve(Config())
    for f in fields(Config):
        entry = re.search(rf"{grok.flag(f.name)} [^\[]*(\[[\w|]+ \.\.\.\][^\[]*)?\[([^\]]*)\]", text.split("data:")[1])
        default = getattr(paper, f.name)
        default = default if isinstance(default, list) else [default]
        assert entry and entry[2].split(";")[0] == " ".join(map(str, default)), f.name


def test_requirements_and_script_metadata_agree():
    pins = (HERE / "requirements.txt").read_text().split()
    metadata = re.search(r"# dependencies = (\[.*\])", (HERE / "grok.py").read_text())[1]
    assert json.loads(metadata) == pins and all("==" in pin for pin in pins)


def test_importing_grok_has_no_side_effects_and_is_light():
    code = ("import sys, torch, os; before = set(os.listdir()); import grok; "
            "assert not {'matplotlib', 'sklearn'} & set(sys.modules); assert set(os.listdir()) == before")
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


README = (HERE / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_readme_s_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grok, "OPS", dict(grok.OPS))
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("line", re.findall(r"(?:^|&& |[`']|nproc-per-node 2 )\S*(?:python |run )?grok\.py (-(?!-help)[^`'#\n]*)", README, re.M))
def test_the_readme_s_commands_are_understood(line):
    given = vars(grok.parser().parse_args(line.replace("$SLURM_ARRAY_TASK_ID", "7").split()))
    for name in ("resume", "list_ops", "plot", "sharpness"):
        given.pop(name, None)
    grok.resolve(Config(**given))


def test_the_readme_names_every_flag_operation_and_column():
    for name in [grok.flag(f.name) for f in fields(Config)] + list(grok.OPS) + grok.COLUMNS:
        assert re.search(rf"\b{name.strip('-')}\b", README), name
    stars = set(re.findall(r"`--([a-z-]+)[^`]*`\*", README))
    assert stars == {name.replace("_", "-") for name in [*grok.STARRED, "variant"]}

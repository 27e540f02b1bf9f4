"""Properties of grok.py, each held against something independent: brute force, torch.nn's own layers,
torch.optim.AdamW, a worked example. Run: python -m pytest -q"""
import csv
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

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
            q, kv = grad(b.attention.in_proj_weight).split([self.width, 2 * self.width])
            parts |= {(f"{i}.q", ...): q.T, (f"{i}.kv", ...): kv.T,
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


def test_attention_never_looks_ahead():
    q, kv = torch.randn(2, 5, 4, 16), torch.randn(2, 5, 4, 32)
    for t in range(4):
        changed = kv.clone()
        changed[:, :, t] += 1
        moved = (grok.attention(q, kv, 2) - grok.attention(q, changed, 2)).abs().amax((0, 1, 3)) > 1e-4
        assert moved.tolist() == [False] * t + [True] * (4 - t)


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
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_expect_raises_the_goal_of_until(tmp_path):
    rows = train(**EASY, until=0.3, expect=0.5)
    assert rows[-1]["val_acc"] >= 0.5 > rows[-2]["val_acc"]

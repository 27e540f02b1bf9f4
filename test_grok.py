"""Properties of grok.py, each held against something independent: brute force, torch.nn's own layers,
torch.optim.AdamW, a worked example. Run: python -m pytest -q"""
import contextlib, csv, itertools, json, math, os, pty, re, shutil, signal, subprocess, sys, time
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path

import grok  # before torch, as its users do
from grok import Config, UsageError
import hypothesis, pytest, torch
import hypothesis.strategies as st
import numpy as np
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, steps=30, batch_size=16, eval_every=10, device="cpu", threads=1)  # a run of a tenth of a second
PLAIN = {  # the operations once more, in plain Python
    "x_plus_y": lambda x, y, p: (x + y) % p, "x_minus_y": lambda x, y, p: (x - y) % p, "x_mul_y": lambda x, y, p: (x * y) % p,
    "x_div_y": lambda x, y, p: next(z for z in range(p) if z * y % p == x),
    "x_div_y_if_y_odd_else_x_minus_y": lambda x, y, p: PLAIN["x_div_y" if y % 2 else "x_minus_y"](x, y, p),
    "x_pow_y": lambda x, y, p: math.prod([x] * y) % p, "x2_plus_y2": lambda x, y, p: (x * x + y * y) % p,
    "x2_plus_xy_plus_y2": lambda x, y, p: (x * x + x * y + y * y) % p,
    "x2_plus_xy_plus_y2_plus_x": lambda x, y, p: (x * x + x * y + y * y + x) % p, "x3_plus_xy": lambda x, y, p: (x * x * x + x * y) % p,
    "x3_plus_xy2_plus_y": lambda x, y, p: (x * x * x + x * y * y + y) % p,}
PERMS = list(itertools.permutations(range(5)))

def settings(**changes):
    return Config(**TINY | changes)

def train(**changes):
    """The runs of a small grid; `out`, `quiet` and `method` are those of grok.train."""
    options = dict(quiet=True) | {name: changes.pop(name) for name in ("out", "quiet", "method") if name in changes}
    return grok.train(Config.grid(**TINY | changes), **options)

def rows(runs):
    """What runs have measured, without the time, each with its settings."""
    return [run.config.columns() | {k: v for k, v in row.items() if k != "seconds"} for run in runs for row in run.log]

def flags(**changes):
    """TINY as a command line."""
    given = [] if changes.pop("quiet", True) is False else ["--quiet"]
    for name, value in (TINY | changes).items(): given += [grok.flag(name), *map(str, value if isinstance(value, list) else [value])]
    return given

def cli(*arguments, **kwargs):
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | kwargs.pop("env", {})
    return subprocess.run([sys.executable, HERE / "grok.py", *map(str, arguments)], env=env, capture_output=True, text=True, **kwargs)

def table(path):
    """The rows of a metrics.csv as text, without the time."""
    with open(path / "metrics.csv") as file: return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]

def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

# --- tables ---------------------------------------------------------------------------------------
def test_the_paper_s_tables_have_their_sizes():
    sizes = {op: len(grok.equations(op)[0]) for op in grok.OPS}
    assert sizes.pop("x_div_y") == 9312 and [sizes.pop(op) for op in ("s5_xy", "s5_xyxinv", "s5_xyx")] == [14400] * 3
    assert len(sizes) == 10 and set(sizes.values()) == {9409}

@pytest.mark.parametrize("op", PLAIN)
def test_modular_tables_equal_plain_python(op):
    for p in (2, 3, 5, 13, 97) + (() if grok.OPS[op].prime else (4, 12)):
        start = 1 if op == "x_div_y" else 0
        expected = [(x, y, PLAIN[op](x, y, p)) for x in range(p) for y in range(start, p)]
        assert sorted(zip(*(a.tolist() for a in grok.equations(op, p)))) == expected and all(a.dtype == np.int64 for a in grok.equations(op, p))

def test_s5_tables_compose_tuples():
    after = lambda x, y: tuple(y[i] for i in x)  # x first, then y
    inverse = lambda x: tuple(x.index(i) for i in range(5))
    number = {perm: i for i, perm in enumerate(PERMS)}
    for op, plain in {"s5_xy": after, "s5_xyxinv": lambda x, y: after(after(x, y), inverse(x)),
                      "s5_xyx": lambda x, y: after(after(x, y), x)}.items():
        expected = [(number[x], number[y], number[plain(x, y)]) for x in PERMS for y in PERMS]
        assert sorted(zip(*(a.tolist() for a in grok.equations(op)))) == sorted(expected)

@pytest.mark.parametrize("op, x, y, z", [("x_div_y", 1, 2, 49), ("x_div_y", 5, 3, 34), ("x_plus_y", 90, 10, 3), ("x_minus_y", 3, 10, 90),
    ("x_pow_y", 2, 10, 54), ("x_pow_y", 0, 0, 1), ("x_div_y_if_y_odd_else_x_minus_y", 5, 4, 1),
    ("x3_plus_xy2_plus_y", 2, 3, 29), ("x2_plus_xy_plus_y2_plus_x", 9, 10, 86),
    ("s5_xy", 24, 6, 48),  # (1 0 2 3 4) then (0 2 1 3 4) sends 0, 1, 2 to 2, 0, 1
])
def test_rows_worked_by_hand(op, x, y, z):
    assert (x, y, z) in set(zip(*(a.tolist() for a in grok.equations(op))))

def test_list_ops_names_formula_domain_and_size(capsys):
    assert grok.main(["--list-ops", "--p", "13"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(grok.OPS)
    assert "x / y mod p" in lines[3] and "0 ≤ x < 13, 1 ≤ y < 13" in lines[3] and "156" in lines[3] and "14,400" in lines[-1]

def test_a_user_s_operation_works_everywhere(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(grok.OPS, "mine", grok.Op("x + 2y mod p", lambda x, y, p: (x + 2 * y) % p))
    assert grok.equations("mine", 5)[2].tolist() == [(x + 2 * y) % 5 for x in range(5) for y in range(5)]
    assert grok.main(flags(op="mine", out=tmp_path / "run")) == 0
    grok.main(["--list-ops"])
    assert "x + 2y mod p" in capsys.readouterr().out
    monkeypatch.setitem(grok.OPS, "wrong", grok.Op("x + y", lambda x, y, p: x + y))
    with pytest.raises(UsageError, match=r"--op wrong: .*\[0, 10\]"): train(op="wrong")

@pytest.mark.parametrize("op, p", [("x_div_y", 96), ("x_div_y", 1), ("x_plus_y", 0), ("x_plus_y", -5), ("x_plus_y", "abc"),
                                   ("x_plus_y", 10**30), ("x_plus_y", None), ("x_times_y", 97), (["x_plus_y"], 97)])
def test_a_table_that_does_not_exist_is_refused(op, p):
    with pytest.raises(UsageError, match="--(op|p) "): grok.equations(op, p)

# --- runs and their data --------------------------------------------------------------------------
def test_a_config_is_frozen_and_its_values_are_in_their_types():
    with pytest.raises(AttributeError): Config().lr = 1.0
    made = Config(p="13", lr="1e-2", seed=np.int64(3), steps=1e6, frac=np.float32(0.5))
    values = made.p, made.lr, made.seed, made.steps, made.frac
    assert values == (13, 0.01, 3, 1_000_000, 0.5) and [type(v) for v in values] == [int, float, int, int, float]
    for wrong in dict(lr=[]), dict(frac=math.nan), dict(steps=True), dict(op=3), dict(lr=np.ones(3)), dict(p=[97, 3]):
        with pytest.raises(ValueError, match=f"--{list(wrong)[0]} "): Config(**wrong)

ODD = st.one_of(st.none(), st.booleans(), st.integers(-2, 10**30), st.floats(), st.text(max_size=4), st.binary(max_size=3),
                st.lists(st.lists(st.integers(), max_size=2), max_size=2), st.dictionaries(st.text(max_size=1), st.none()),
                st.sampled_from(["0.5", "1e3", "nan", "cpu", "x_mul_y", "init", 1e308, 5e-324, np.float32(0.5), np.int64(3),
                                 np.ones(2), np.ones((2, 2)), torch.ones(2), torch.tensor(0.5), 10**400, "a\nb", print]))

@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.dictionaries(st.sampled_from([f.name for f in fields(Config)]), ODD, max_size=4))
def test_any_value_makes_a_config_or_is_refused_in_one_line(changes):
    try:
        config = Config(**changes)
    except UsageError as error:
        assert re.match(r"--[a-z]", str(error)) and "\n" not in str(error)
    else:
        assert Config(**json.loads(json.dumps(vars(config)))) == config  # settled, and JSON can hold it

def test_a_grid_is_the_product_of_its_settings():
    grid = Config.grid(op=["x_plus_y", "s5_xy"], seed=range(2), frac=np.array([0.2, 0.5]), lr=0.01)
    assert [(c.op, c.seed, c.frac, c.lr) for c in grid] == list(itertools.product(["x_plus_y", "s5_xy"], [0, 1], [0.2, 0.5], [0.01]))
    assert Config.grid() == [Config()]

def test_no_run_comes_twice():
    for twice in ([settings(), settings()], [settings(), settings(steps=60)], [settings(op="s5_xy", p=p) for p in (97, 31)]):
        with pytest.raises(UsageError, match="given twice"): grok.train(twice, quiet=True)
    with pytest.raises(UsageError, match="no runs"): grok.train([], quiet=True)

def test_the_defaults_are_the_paper_s_and_the_fast_recipe_differs_from_them(capsys):
    c = Config()
    assert (c.op, c.p, c.layers, c.width, c.heads, c.lr, c.weight_decay, c.beta1, c.beta2, c.eps, c.warmup, c.batch_size,
            c.batch_frac, c.steps) == ("x_div_y", 97, 2, 128, 4, 1e-3, 1.0, 0.9, 0.98, 1e-8, 10, 512, 0.5, 100_000)
    assert not any((c.dropout, c.weight_noise, c.update_noise, c.grad_clip, c.outliers)) and c.decay_to == "origin"
    fast = Config(**grok.FAST)
    assert fast.layers == 1 and replace(fast, **{name: getattr(c, name) for name in grok.FAST}) == c

def test_split_has_its_size_and_follows_the_seed():
    for op, frac in ("x_div_y", 0.3), ("x_plus_y", 0.5), ("s5_xy", 0.01):
        x, y, labels, mask = grok.split(settings(op=op, p=97, frac=frac))
        assert mask.sum() == round(frac * len(x)) and all(np.array_equal(a, b) for a, b in zip((x, y, labels), grok.equations(op)))
    chosen = lambda seed: grok.split(settings(seed=seed))[3].tolist()
    assert chosen(3) == chosen(3) != chosen(4)

def test_a_run_s_split_and_weights_do_not_depend_on_its_stack():
    configs = Config.grid(**TINY | dict(seed=[0, 5], frac=[0.4, 0.5], op=["x_plus_y", "x_mul_y"]))
    stack = grok.Stack([grok.Run(c, "") for c in configs])
    for i, config in enumerate(configs):
        alone = grok.Stack([grok.Run(config, "")])
        assert all(torch.equal(getattr(stack, name)[i], getattr(alone, name)[0]) for name in ("x", "y", "labels", "train", "W", "lr"))
    x, y, z = grok.equations("x_mul_y", 11)
    assert np.array_equal(stack.labels[-1].numpy(), z) and np.array_equal(stack.x[-1].numpy(), x)

def test_outliers_change_training_labels_only():
    z = grok.equations("x_plus_y", 97)[2]
    *_, labels, mask = grok.split(settings(p=97, outliers=1000))
    changed = np.flatnonzero(labels != z)
    assert mask[changed].all() and 960 <= len(changed) <= 1000  # a random answer is right in one case of 97

def test_batches_are_full_and_cut_an_endless_stream_of_epochs():
    rows = np.arange(100, 110)
    stream = grok.batches(0, rows, 4, 0, 25).ravel()
    epochs = stream.reshape(10, 10)
    assert (np.sort(epochs) == rows).all() and len({tuple(e) for e in epochs}) > 5
    parts = [grok.batches(0, rows, 4, a, b) for a, b in ((0, 1), (1, 8), (8, 25))]
    assert np.array_equal(np.concatenate(parts).ravel(), stream) and not np.array_equal(grok.batches(1, rows, 4, 0, 25).ravel(), stream)

@pytest.mark.parametrize("size, part, frac, expected", [(512, 0.5, 0.5, 30), (16, 0.5, 0.5, 16), (0, 0.5, 0.5, 60), (512, 0.5, 0.11, 7), (512, 0.2, 0.5, 12)])
def test_a_batch_is_at_most_a_part_of_the_training_set_rounded_up(size, part, frac, expected):
    assert settings(batch_size=size, batch_frac=part, frac=frac).sizes() == (11, 121, round(frac * 121), expected)

# --- model ----------------------------------------------------------------------------------------
class Reference(nn.Module):
    """One unstacked transformer that runs every position of every equation through every layer."""
    def __init__(self, n, layers, width, heads):
        super().__init__()
        self.n, self.width = n, width
        self.embed = nn.Embedding(n + 2, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(width, n + 2, bias=False)
        for b in self.blocks: nn.init.zeros_(b.linear1.bias), nn.init.zeros_(b.linear2.bias)  # its others are 0 already
    def hidden(self, x, y):
        tokens = torch.stack([x, torch.full_like(x, self.n), y, torch.full_like(x, self.n + 1)], 1)
        wave = [[(math.cos if i % 2 else math.sin)(t / 10000 ** (i // 2 * 2 / self.width)) for i in range(self.width)] for t in range(4)]
        h = self.embed(tokens) + torch.tensor(wave)
        for block in self.blocks: h = block(h, nn.Transformer.generate_square_subsequent_mask(4))
        return h
    def forward(self, x, y):
        return self.head(self.hidden(x, y))[:, -1]
    def parts(self):
        """(name, place) in grok.Transformer.weights() of every parameter, or of its gradient."""
        grad = lambda p: p.data if p.grad is None else p.grad
        parts = {("embed", ...): grad(self.embed.weight), ("head", ...): grad(self.head.weight).T}
        for i, b in enumerate(self.blocks):
            q, k, v = grad(b.self_attn.in_proj_weight).split(self.width)
            parts |= {(f"{i}.q", ...): q.T, (f"{i}.k", ...): k.T, (f"{i}.v", ...): v.T,
                      (f"{i}.out", ...): grad(b.self_attn.out_proj.weight).T,
                      (f"{i}.up", ...): grad(b.linear1.weight).T, (f"{i}.down", ...): grad(b.linear2.weight).T}
            for name, norm in ("norm1", b.norm1), ("norm2", b.norm2):
                parts |= {(f"{i}.{name}", 0): grad(norm.weight), (f"{i}.{name}", 1): grad(norm.bias)}
        return parts

def perturbed(n, runs, layers, width=32, heads=4):
    """A model and a stack of weights whose runs all differ, LayerNorm's weights too."""
    model = grok.Transformer(n, layers, width, heads)
    noise = [torch.randn(sum(model.sizes), generator=torch.Generator().manual_seed(i)) for i in range(runs)]
    return model, torch.stack([model.initial(i) + 0.05 * noise[i] for i in range(runs)]).requires_grad_()

def draw(n, runs, size):
    return torch.randint(n, (3, runs, size), generator=torch.Generator().manual_seed(7))

@pytest.mark.parametrize("n, layers, size", [(97, 2, 512), (120, 2, 512), (97, 1, 512), (23, 3, 100), (97, 2, 40)])
def test_logits_and_gradients_equal_torch_nn(n, layers, size):
    model, W = perturbed(n, 3, layers)
    x, y, z = draw(n, 3, size)
    logits = model(W, x, y)
    grok.cross_entropy(logits, z).mean(1).sum().backward()
    gradients = model.weights(W.grad)
    for i in range(3):
        reference = Reference(n, layers, 32, 4)
        for (name, place), part in reference.parts().items(): part.copy_(model.weights(W)[name][i][place].detach())
        expected = reference(x[i], y[i])
        torch.testing.assert_close(logits[i], expected, atol=1e-5, rtol=0)
        F.cross_entropy(expected, z[i]).backward()
        assert {name for name, _ in reference.parts()} == gradients.keys()
        for (name, place), part in reference.parts().items(): torch.testing.assert_close(gradients[name][i][place], part, atol=1e-5, rtol=0)

@pytest.mark.parametrize("n", [97, 120])
def test_the_shared_prefix_equals_one_per_equation(n):
    model, W = perturbed(n, 2, 2, 128)
    x, y, z = draw(n, 2, 512)
    results = []
    for drop in None, lambda h: h:  # with dropout on nothing is shared
        logits = model(W, x, y, drop)
        results.append((logits, *torch.autograd.grad(grok.cross_entropy(logits, z).mean(1).sum(), W)))
    for one, other in zip(*results): torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

def test_the_reference_is_causal_where_y_could_be_seen():
    reference, x = Reference(11, 2, 16, 2), torch.arange(11)
    one, other = reference.hidden(x, x), reference.hidden(x, (x + 1) % 11)
    assert torch.equal(one[:, :2], other[:, :2]) and ((one - other)[:, 2:].abs().amax(2) > 1e-3).all()

@pytest.mark.parametrize("queries", [4, 2, 1])
def test_attention_never_looks_ahead(queries):
    q, k, v = torch.randn(2, 5, queries, 16), torch.randn(2, 5, 4, 16), torch.randn(2, 5, 4, 16)
    parts = lambda h: [h] if queries == 4 else [h[:, :, :2], h[:, :, 2:]]
    before = grok.attention(q, parts(k), parts(v), 2)
    for t in range(4):
        later = k.clone(), v.clone()
        for tensor in later: tensor[:, :, t] += 1
        moved = (grok.attention(q, *map(parts, later), 2) - before).abs().amax((0, 1, 3)) > 1e-4
        assert moved.tolist() == [position >= t for position in range(4 - queries, 4)]

def test_initial_weights_are_pytorch_s_times_the_scales():
    model = grok.Transformer(97, 3)
    assert sum(size for name, size in zip(model.shapes, model.sizes) if name[0] in "01") == 394_240  # the paper's two blocks
    w = model.weights(torch.stack([model.initial(0), model.initial(0, 2.0), model.initial(0, 2.0, 0.25)]))
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

key = lambda row: [row[name] for name in ("op", "seed", "frac", "lr", "weight_decay", "dropout", "step")]

def test_a_run_in_a_stack_has_the_losses_it_has_alone():
    sweep = dict(p=31, width=32, batch_size=128, steps=10, eval_every=1, op=["x_plus_y", "x_minus_y"], seed=[0, 1],
                 frac=[0.4, 0.5], lr=[1e-3, 3e-3], weight_decay=[0.0, 1.0], layers=2)
    together, apart = (sorted(rows(train(**sweep, stack=stack)), key=key) for stack in (64, 1))
    assert len(together) == len(apart) == 32 * 10
    for one, other in zip(together, apart):
        assert key(one) == key(other)
        for name in "train_loss", "val_loss": assert one[name] == pytest.approx(other[name], abs=1e-3)
    assert len({row["train_loss"] for row in apart if row["step"] == 10}) == 32  # every setting had its effect

def test_evaluation_equals_the_mean_over_each_set_one_by_one():
    stack = grok.Stack([grok.Run(settings(p=47, seed=seed, frac=0.3, outliers=50), "") for seed in (0, 1)])
    measured = stack.measure()
    assert list(measured) == ["train_loss", "train_acc", "val_loss", "val_acc", "weight_norm"]
    for i, run in enumerate(stack.runs):
        x, y, labels, mask = grok.split(run.config)
        alone = run.config.model()(stack.W[i:i + 1], torch.from_numpy(x)[None], torch.from_numpy(y)[None])[0].double()
        for name, held in ("train", mask), ("val", ~mask):
            loss = F.cross_entropy(alone[held], torch.from_numpy(labels[held]))
            assert measured[f"{name}_loss"][i].item() == pytest.approx(loss.item(), abs=1e-4)
            assert measured[f"{name}_acc"][i].item() == pytest.approx((alone[held].argmax(1).numpy() == labels[held]).mean(), abs=1e-6)
        assert measured["weight_norm"][i].item() == pytest.approx(stack.W[i].norm().item(), rel=1e-5)

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

def stacked(*configs):
    return grok.Stack([grok.Run(config, "") for config in configs])

def moved(configs, grad):
    """How the weights (R, P) move in the first update, by a gradient grad(W)."""
    stack = stacked(*configs)
    stack.gradient = lambda rows: grad(stack.W)
    before = stack.W.clone()
    stack.advance(1)
    return stack.W - before

def test_decay_pulls_to_the_origin_the_initial_weights_or_layernorm_s_identity():
    targets, shares = ("origin", "init", "identity") * 2, [1.0] * 3 + [0.2] * 3   # lr · weight_decay: the share of the way
    stack = stacked(*(settings(decay_to=to, lr=share / 2, weight_decay=2, warmup=0) for to, share in zip(targets, shares)))
    first, stack.W, stack.gradient = stack.W, stack.W + 1, lambda rows: torch.zeros_like(stack.W)
    stack.advance(1)
    for W, start, to, share in zip(stack.W, first, targets, shares):
        identity = [[1.0] * size + [0.0] * size if "norm" in name else [0.0] * size * n for name, (n, size) in stack.model.shapes.items()]
        goals = dict(origin=0 * W, init=start, identity=torch.tensor(sum(identity, [])))
        torch.testing.assert_close(W, (start + 1).lerp(goals[to], share))

def test_warm_up_is_linear_and_starts_at_a_tenth():
    configs = [settings(lr=lr, weight_decay=0, beta1=0, beta2=0, eps=0) for lr in (0.01, 0.02)]
    stack = stacked(*configs)
    stack.gradient = lambda rows: torch.ones_like(stack.W)  # without decay and moments, AdamW moves by lr
    for t in range(1, 14):
        before = stack.W.clone()
        stack.advance(t)
        for row, lr in zip(before - stack.W, (0.01, 0.02)): assert row.mean().item() == pytest.approx(lr * min(1, t / 10), rel=1e-3)
    assert moved([settings(lr=0.01, warmup=0, weight_decay=0)], torch.ones_like).mean().item() == pytest.approx(-0.01, rel=1e-3)

def test_clipping_equals_torch_s_for_each_run():
    limits = 0.0, 0.5, 3.0, 1e9
    stack = stacked(*(settings(grad_clip=limit, seed=seed) for seed, limit in enumerate(limits)))
    grad = torch.randn(stack.W.shape, generator=torch.Generator().manual_seed(0))
    stack.gradient = lambda rows: grad.clone()
    stack.advance(1)
    for row, expected, limit in zip(stack.m, grad, limits):
        parameter = nn.Parameter(torch.zeros_like(expected))
        parameter.grad = expected.clone()
        if limit: nn.utils.clip_grad_norm_([parameter], limit)
        torch.testing.assert_close(row, 0.1 * parameter.grad)  # m after the first update is (1 - beta1) g
    assert stack.m[1].norm().item() == pytest.approx(0.05, rel=1e-4)

def test_weight_noise_has_the_standard_deviation_asked_for():
    stack, seen = stacked(*(settings(weight_noise=sigma) for sigma in (0.01, 0.2, 0.0))), []
    model = stack.model
    stack.model = lambda W, *rest: seen.append((W - stack.W).detach()) or model(W, *rest)
    stack.advance(5)
    for i, sigma in enumerate((0.01, 0.2, 0.0)):
        noise = torch.stack([difference[i] for difference in seen])
        assert noise.std().item() == pytest.approx(sigma, rel=0.03) and abs(noise.mean().item()) <= 0.03 * sigma
    assert not torch.equal(seen[0], seen[1])

def test_update_noise_has_the_standard_deviation_asked_for():
    still, noisy = moved([settings(lr=0.01, update_noise=sigma) for sigma in (0, 2)], torch.zeros_like)
    assert (noisy - still).std().item() == pytest.approx(0.001 * 2, rel=0.05)  # lr_1 = lr / 10

def test_dropout_drops_the_share_asked_for():
    stack, h = stacked(*(settings(dropout=rate, seed=1) for rate in (0.0, 0.1, 0.5))), torch.ones(3, 64, 2, 128)
    stack.step, stack.generators = 1, {}
    dropped = stack.drop(h)
    assert torch.equal(dropped[0], h[0])
    for row, rate in zip(dropped[1:], (0.1, 0.5)):
        assert (row == 0).float().mean().item() == pytest.approx(rate, rel=0.05) and row[row > 0].unique().item() == pytest.approx(1 / (1 - rate))
    assert not torch.equal(stack.drop(h)[1], dropped[1])  # another layer draws another mask

NOISES = [dict(dropout=0.2), dict(weight_noise=0.02), dict(update_noise=0.5), dict(dropout=0.1, weight_noise=0.01, update_noise=0.1)]

@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_the_same_alone_and_in_any_company(noise):
    one, other = settings(**noise, seed=3, lr=0.03), settings(**noise, seed=4, lr=0.03)
    company = [settings(seed=3, lr=0.03), one, settings(dropout=0.4, weight_noise=0.1, update_noise=1, seed=3, lr=0.03), other]
    alone, together, turned = stacked(one), stacked(*company), stacked(*company[::-1])
    for stack in alone, together, turned: stack.advance(10)
    torch.testing.assert_close(together.W[1], alone.W[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(turned.W[2], alone.W[0], atol=1e-3, rtol=1e-3)
    for one, other in itertools.combinations(together.W, 2): assert (one - other).abs().max() > 0.01  # all four differ

def test_every_switch_changes_the_trajectory_and_is_off_by_default(monkeypatch):
    baseline = rows(train())
    switches = dict(dropout=0.1, weight_noise=0.01, update_noise=1.0, weight_decay=0.5, lr=2e-3, warmup=0, init_scale=2.0,
                    embed_init_scale=2.0, position_scale=2.0, decay_to="init", beta1=0.8, beta2=0.9, eps=1e-3, batch_size=0,
                    outliers=5, seed=1, frac=0.6, grad_clip=0.01, batch_frac=0.2)
    assert set(switches) | {"op", "p", "layers", "width", "heads", "eval_every"} == set(settings().columns())
    for name, value in switches.items(): assert [r["val_loss"] for r in rows(train(**{name: value}))] != [r["val_loss"] for r in baseline], name
    monkeypatch.setattr(torch, "Generator", None)  # off, no noise is drawn
    assert rows(train(dropout=0, weight_noise=0, update_noise=0, grad_clip=0)) == baseline

# --- training and records -------------------------------------------------------------------------
def test_the_same_command_twice_gives_the_same_metrics(tmp_path):
    noisy = dict(op=["x_plus_y", "x_mul_y"], seed=[0, 1], dropout=0.1, weight_noise=0.01, update_noise=0.1, stack=2)
    for name in "ab": assert cli(*flags(**noisy, out=tmp_path / name)).returncode == 0
    assert table(tmp_path / "a") == table(tmp_path / "b") and len(table(tmp_path / "a")) == 4 * 6

def test_metrics_csv_has_the_contract_s_columns_and_rows(tmp_path):
    run, = train(steps=137, eval_every=40, out=tmp_path / "run", until=0, op="s5_xy")
    contract = ("op,p,frac,seed,lr,weight_decay,decay_to,dropout,weight_noise,update_noise,outliers,step,train_loss,"
                "train_acc,val_loss,val_acc,weight_norm,seconds,")
    with open(tmp_path / "run" / "metrics.csv") as file: header, *written = csv.reader(file)
    assert ",".join(header).startswith(contract)
    assert set(header[header.index("seconds") + 1:]) == set(run.config.columns()) - set(contract.split(","))
    assert [row["step"] for row in run.log] == [1, 2, 5, 10, 20, 40, 50, 80, 100, 120, 137]
    for row, values in zip(run.log, written, strict=True):
        assert dict(zip(header, values)) == {k: str(v) for k, v in (run.config.columns() | row).items()}
    assert run.config.columns()["p"] == 120
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(run.log, run.log[1:]))

def test_rows_are_on_the_disk_as_soon_as_they_are_measured(tmp_path, monkeypatch):
    seen, measure = [], grok.Stack.measure
    def spy(self):
        seen.append(len(table(tmp_path / "run")) if (tmp_path / "run" / "metrics.csv").exists() else 0)
        return measure(self)
    monkeypatch.setattr(grok.Stack, "measure", spy)
    train(out=tmp_path / "run", seed=[0, 1])
    assert seen == [2 * i for i in range(6)]

def test_a_loss_that_is_not_finite_ends_its_run_alone(capsys):
    sweep = dict(lr=[1e30, 1e-3], steps=40, stack=2, weight_noise=0.01)
    ill, healthy = train(**sweep, quiet=False)
    assert re.search(r"lr 1e\+30: diverged by update [12]; this run ends here\n(.*\n)*.*lr 1e\+30 .* diverged\n.*[▁█]\n", capsys.readouterr().out)
    assert ill.diverged and not healthy.diverged and len(ill.log) <= 1
    assert all(math.isfinite(v) for run in (ill, healthy) for row in run.log for v in row.values())
    assert [row["step"] for row in healthy.log] == [1, 2, 5, 10, 20, 30, 40]
    for one, other in zip(healthy.log, train(**sweep | dict(lr=1e-3))[0].log): assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-3)

def test_runs_leave_the_stack_at_until_and_the_others_go_on_unchanged():
    sweep = dict(seed=[0, 1, 2, 3], stack=4, steps=60, eval_every=5, weight_decay=0.0)
    full = train(**sweep, until=0)
    goal = sorted(row["val_acc"] for run in full for row in run.log if row["step"] == 30)[2] or 1 / 121
    for short, whole in zip(train(**sweep, until=goal), full):
        assert short.step == next((row["step"] for row in whole.log if row["val_acc"] >= goal), 60)
        for one, other in zip(short.log, whole.log): assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-3)
    assert len({run.step for run in train(**sweep, until=goal)}) > 1  # some left before others

def test_stacks_hold_one_shape_and_no_more_than_asked():
    runs = [grok.Run(c, "") for c in Config.grid(op=["x_plus_y", "x_mul_y", "s5_xy"], seed=range(5), stack=4)]
    groups = list(grok.stacks(runs, torch.device("cpu")))
    assert sorted(map(len, groups)) == [1, 2, 4, 4, 4]
    assert all(len({(c.sizes(), c.steps) for c in (run.config for run in group)}) == 1 for group in groups) and sorted(id(run) for group in groups for run in group) == sorted(map(id, runs))
    for name, value in dict(layers=3, beta1=0.5, eval_every=7, frac=0.3, decay_to="init").items():
        two = [grok.Run(settings(), ""), grok.Run(settings(**{name: value}), "")]
        assert len(list(grok.stacks(two, torch.device("cpu")))) == (1 if name in ("frac", "decay_to") else 2), name

def test_quiet_prints_nothing_and_a_pipe_gets_no_flood(capsys):
    train()
    assert capsys.readouterr() == ("", "")
    train(quiet=False, steps=1000, until=0)
    lines = capsys.readouterr().out.splitlines()
    assert 12 < len(lines) < 35 and "\r" not in "".join(lines) and any(line.startswith("update   1,000") for line in lines)

def test_the_summary_tells_the_updates_and_draws_the_jump(tmp_path, capsys):
    assert grok.main(flags(**EASY, quiet=False, out=tmp_path / "run")) == 0
    *_, line, folder = capsys.readouterr().out.splitlines()
    run, = grok.read(tmp_path / "run")
    first = [next(row["step"] for row in run.log if row[name] >= 0.99) for name in ("train_acc", "val_acc")]
    assert line.split()[3:6] == [*map(str, first), f"{max(row['val_acc'] for row in run.log):.4f}"]
    assert folder == str(tmp_path / "run") and re.fullmatch("▁{10,}[▁▂▃▄▅▆▇█]*[▇█]", line.split()[-1])

def test_a_summary_draws_what_was_known_at_log_spaced_updates(tmp_path, capsys):
    made = [grok.Run(settings(), "late", step=100, log=[dict(step=s, train_acc=0, val_acc=a) for s, a in ((10, 0.5), (100, 1))]),
            grok.Run(settings(), "none", step=0)]
    grok.Records(None, made, False, None).summary()
    late, none = (line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:3])
    assert late == "▁" * 20 + "▅" * 19 + "█" and none == "▁" * 40  # nothing is known before update 10

def test_a_terminal_sees_one_line_that_tells_the_time_left(tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, HERE / "grok.py", *flags(quiet=False, steps=20000, until=0)], stdout=theirs,
                               cwd=tmp_path, env=os.environ | dict(COLUMNS="90"))
    os.close(theirs)
    seen = b""
    while b" min left" not in seen: seen += os.read(ours, 4096)
    process.kill()
    assert process.wait() and re.search(rb"\r\x1b\[Kupdate +\d+  train 0\.\d+  val 0\.\d+ .*at most [\d.]+ min left", seen)

# --- the gate -------------------------------------------------------------------------------------
EASY = dict(op="x_plus_y", p=31, frac=0.7, width=64, heads=4, layers=1, init_scale=3.0, embed_init_scale=0.1,
            position_scale=0.1, warmup=50, lr=5e-3, steps=3000, batch_size=256, eval_every=20)

def test_a_small_run_generalises_and_passes_the_gate(tmp_path):
    done = cli(*flags(**EASY, expect=0.99, out=tmp_path / "run"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    last, = (run.log[-1] for run in grok.read(tmp_path / "run"))
    assert train(**EASY, until=0.3, expect=0.5)[0].log[-1]["val_acc"] >= 0.5  # expect raises the goal of until
    assert last["val_acc"] >= 0.99 and float(table(tmp_path / "run")[0]["val_acc"]) < 0.2

def test_a_run_that_cannot_generalise_fails_the_gate(tmp_path):
    done = cli(*flags(expect=0.99, out=tmp_path / "run"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "--expect 0.99: missed in 1 run" in done.stderr and str(tmp_path / "run") in done.stderr

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_agrees_with_the_cpu_and_generalises_too():
    cpu, gpu = (train(**EASY | dict(device=device))[0] for device in ("cpu", "cuda"))
    for column in "train_loss", "val_loss", "weight_norm": assert gpu.log[0][column] == pytest.approx(cpu.log[0][column], abs=1e-4)
    assert cpu.best() >= 0.99 and gpu.best() >= 0.99

# --- checkpoints and resume -----------------------------------------------------------------------
# Every source of randomness on, in two shapes and two stacks each, whose runs leave at different updates.
NOISY = dict(op=["x_plus_y", "x_minus_y"], seed=[0, 1], frac=[0.3, 0.6], dropout=[0.0, 0.2], weight_noise=[0.01], update_noise=0.1,
             stack=3, decay_to="init", lr=0.03, until=0.14, steps=60, eval_every=5, batch_size=0)

def advance(folder, updates, configs=None):
    """Trains a folder for so many updates, with a checkpoint at each chance, and cuts it there."""
    left, update = [updates], grok.Stack.update
    def cut(self, batch):
        if not left[0]: raise KeyboardInterrupt
        left[0] -= 1
        update(self, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grok.Stack, "update", cut)
        patch.setattr(grok.Records, "due", lambda self: True)
        try:
            grok.train(configs or [run.config for run in grok.read(folder)], out=folder, quiet=True)
        except KeyboardInterrupt: return False
    return True

@pytest.mark.parametrize("seed", range(3))
def test_interrupted_at_random_updates_it_resumes_to_the_same_bytes(tmp_path, seed):
    configs = Config.grid(**TINY | NOISY) + [settings(lr=1e30, frac=0.3, dropout=0.2, stack=3, steps=60, eval_every=5, batch_size=0)]
    whole = grok.train(configs, out=tmp_path / "whole", quiet=True)
    random, parts, done = np.random.default_rng(seed), 0, False
    while not done:
        done, parts = advance(tmp_path / "cut", random.integers(10, 60), None if parts else configs), parts + 1
    assert parts > 4 and whole[-1].diverged and table(tmp_path / "cut") == table(tmp_path / "whole")
    assert len({run.step for run in whole}) > 3  # runs left their stacks at several updates
    for one, other in zip(whole, grok.read(tmp_path / "cut")):
        assert all(torch.equal(one.state[name], other.state[name]) or one.diverged for name in grok.Stack.state)
        assert (one.config, one.step, one.diverged, one.best()) == (other.config, other.step, other.diverged, other.best())

def test_killed_hard_at_random_moments_it_resumes_to_the_same_bytes(tmp_path):
    given = NOISY | dict(steps=150, until=0, seed=0)
    train(**given, out=tmp_path / "whole")
    random, command, cuts, rows_ = np.random.default_rng(0), flags(**given, out=tmp_path / "cut"), [], tmp_path / "cut" / "metrics.csv"
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, HERE / "grok.py", *command], stderr=subprocess.PIPE)
        before, began = rows_.stat().st_size if rows_.exists() else -1, time.monotonic()
        if attempt < 4:  # at the first change or up to half a second later
            while process.poll() is None and time.monotonic() < began + 60 and (rows_.stat().st_size if rows_.exists() else -1) == before: time.sleep(0.01)
            time.sleep(random.uniform(0, 0.5) if attempt else 0)
            process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        cuts.append(process.returncode)
        command = ["--resume", tmp_path / "cut", "--quiet"]
        if process.returncode == 0: break
    assert cuts[-1] == 0 and len(cuts) > 2 and table(tmp_path / "cut") == table(tmp_path / "whole")

@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_with_a_line_that_says_how_to_go_on(tmp_path, name, status):
    given = dict(steps=1500, until=0, eval_every=100, quiet=False, out=tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-u", HERE / "grok.py", *flags(**given)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("update     100"):
            process.send_signal(getattr(signal, name))
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and errors.strip().endswith(f"grok.py --resume {tmp_path / 'run'}") and "Traceback" not in errors
    assert cli("--resume", tmp_path / "run", "--quiet").returncode == 0
    train(**given | dict(quiet=True, out=tmp_path / "whole"))
    assert table(tmp_path / "whole") == table(tmp_path / "run")

def test_a_second_signal_changes_nothing(monkeypatch, capsys):
    join = grok.shlex.join
    monkeypatch.setattr(grok, "train", lambda *a: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(grok.shlex, "join", lambda words: signal.raise_signal(signal.SIGTERM) or join(words))
    assert grok.main(flags()) == 130 and "go on with" in capsys.readouterr().err

def test_ctrl_c_during_the_imports_shows_no_traceback():
    for delay in 0.1, 0.3, 0.6:
        process = subprocess.Popen([sys.executable, HERE / "grok.py", *flags(steps=10**6, until=0, out="/dev/null/x")], stderr=subprocess.PIPE)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
        assert b"grok.py" not in errors or b"Traceback" not in errors
        assert process.returncode in (130, 2, -signal.SIGINT)  # the last: before Python has read a line

def test_a_folder_with_the_same_runs_is_gone_on_with(tmp_path, capsys):
    given = dict(steps=60, eval_every=5, until=0.02)
    command = flags(**given, quiet=False, out=tmp_path / "run")
    assert grok.main(command) == 0
    before = table(tmp_path / "run")
    assert before[-1]["step"] != "60" and "finished" not in capsys.readouterr().out
    assert grok.main(command) == 0 and "is finished already" in capsys.readouterr().out
    assert grok.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0 and capsys.readouterr() == ("", "")
    assert table(tmp_path / "run") == before
    assert grok.main(["--resume", str(tmp_path / "run"), "--until", "0", "--quiet"]) == 0
    train(**given | dict(until=0), out=tmp_path / "whole")
    assert table(tmp_path / "run") == table(tmp_path / "whole")
    assert grok.read(tmp_path / "run")[0].config.until == 0

def test_a_folder_with_other_runs_is_refused(tmp_path, capsys):
    train(out=tmp_path / "run")
    before = files(tmp_path)
    for changes in dict(lr=0.5), dict(seed=[0, 1]), dict(eval_every=7), dict(op="x_mul_y"):
        assert grok.main(flags(**changes, out=tmp_path / "run")) == 2
        error = capsys.readouterr().err
        assert f"--out {tmp_path / 'run'}: holds other runs; name another folder" in error and error.count("\n") == 1
    assert files(tmp_path) == before

def test_only_some_settings_may_change_on_resume(tmp_path, capsys):
    train(out=tmp_path / "run")
    before = files(tmp_path)
    for given in ("--lr 0.5", "--op x_mul_y", "--seed 0 1", "--out elsewhere", "--beta1 0.8", "--recipe fast", "--steps 50 60"):
        assert grok.main(["--resume", str(tmp_path / "run"), *given.split()]) == 2
        error = capsys.readouterr().err
        assert given.split()[0] in error and "--until" in error and error.count("\n") == 1
    assert files(tmp_path) == before
    assert grok.main(["--resume", str(tmp_path / "run"), *"--steps 40 --threads 2 --stack 2 --device cpu --quiet".split()]) == 0
    assert table(tmp_path / "run")[-1]["step"] == "40"

def damage(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))

def saved(change):
    """Damage to what a checkpoint of the right format holds."""
    def apply(folder):
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, folder / "checkpoint.pt")
    return apply

def other(folder):
    train(seed=[0, 1], out=folder.parent / "other")
    shutil.copy(folder.parent / "other" / "checkpoint.pt", folder / "checkpoint.pt")

@pytest.mark.parametrize("harm", [damage("checkpoint.pt", lambda b: b[:len(b) // 2]), damage("checkpoint.pt", lambda b: b""),
    damage("checkpoint.pt", lambda b: b"\x80\x04garbage"), lambda folder: torch.save({"state_dict": {"w": torch.zeros(3)}}, folder / "checkpoint.pt"), other,
    lambda folder: (folder / "checkpoint.pt").unlink(), *(saved(lambda c, k=k, v=v: c["runs"][0].update({k: v})) for k, v in dict(
        step="30", seconds=None, diverged=0, log={}, state=None).items()),
    saved(lambda c: c["runs"][0].update(step=-1)), saved(lambda c: c["runs"][0].update(state={})),
    saved(lambda c: c["runs"][0]["log"][0].update(val_acc="x")), saved(lambda c: c["runs"][0]["log"][0].pop("step")),
    saved(lambda c: c["runs"][0]["state"].update(W=torch.zeros(5))), saved(lambda c: c["runs"][0]["state"].pop("m")),
    saved(lambda c: c["runs"][0]["state"].update(v=c["runs"][0]["state"]["v"].double())), saved(lambda c: c.update(csv=3)),
    damage("metrics.csv", lambda b: b.replace(b"x_plus_y", b"x_mul_yy")),
    damage("config.json", lambda b: b[:40]), damage("config.json", lambda b: b"[1]"), damage("config.json", lambda b: b"\xff\xfe"),
    damage("config.json", lambda b: b.replace(b'"layers"', b'"levels"')), damage("config.json", lambda b: b.replace(b'"p": 11', b'"p": 1')),
    damage("config.json", lambda b: b.replace(b'"ranks": 1', b'"ranks": "one"')), damage("config.json", lambda b: b.replace(b'"batch_size": 16', b'"batch_size": 17')),
    damage("config.json", lambda b: b.replace(b'"ranks": 1', b'"ranks": 2')),
    damage("config.json", lambda b: b.replace(b'"commands"', b'"orders"')), damage("config.json", lambda b: b'{"runs": 3}'),
    lambda folder: (folder / "config.json").unlink(),])
def test_a_damaged_folder_gets_one_line_and_is_left_alone(tmp_path, capsys, harm):
    train(out=tmp_path / "run")
    harm(tmp_path / "run")
    before = files(tmp_path / "run")
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "40"]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("grok.py: ") and str(tmp_path / "run") in error and error.count("\n") == 1 and out == ""
    assert files(tmp_path / "run") == before

def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    run, = train(out=tmp_path / "run")
    path, random, refused = tmp_path / "run" / "checkpoint.pt", np.random.default_rng(0), 0
    data = path.read_bytes()
    for place in random.integers(0, len(data), 100):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << random.integers(8)]) + data[place + 1:])
        try:
            again, = grok.read(tmp_path / "run")
        except UsageError: refused += 1
        else: assert again.log == run.log and all(torch.equal(again.state[name], run.state[name]) for name in run.state)
    assert refused > 50

@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_text("mine\n"), lambda path: os.truncate(path, 40)])
def test_metrics_csv_lost_or_cut_during_a_run_is_whole_again(tmp_path, monkeypatch, harm):
    train(out=tmp_path / "whole")
    measure, left = grok.Stack.measure, [3]
    def spy(self):
        left[0] -= 1
        if not left[0]: harm(tmp_path / "run" / "metrics.csv")
        return measure(self)
    monkeypatch.setattr(grok.Stack, "measure", spy)
    train(out=tmp_path / "run")
    assert left[0] < 0 and table(tmp_path / "run") == table(tmp_path / "whole")

@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 300)])
def test_metrics_csv_lost_or_cut_after_a_run_is_put_back(tmp_path, harm):
    train(out=tmp_path / "run")
    before = table(tmp_path / "run")
    harm(tmp_path / "run" / "metrics.csv")
    assert grok.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0 and table(tmp_path / "run") == before

def test_a_failing_write_leaves_the_previous_checkpoint(tmp_path, capsys, monkeypatch):
    train(out=tmp_path / "run")
    sync, calls = os.fsync, []
    def fail(file):
        if len(calls) > 1: raise OSError(28, "No space left on device")  # config.json and the first checkpoint are written
        calls.append(sync(file))
    monkeypatch.setattr(os, "fsync", fail)
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "40", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and str(tmp_path / "run") in error and error.count("\n") == 1
    assert not list((tmp_path / "run").glob("*.tmp")) and grok.read(tmp_path / "run")[0].step == 30
    monkeypatch.setattr(os, "fsync", sync)
    assert grok.main(["--resume", str(tmp_path / "run"), "--steps", "40", "--quiet"]) == 0
    train(steps=40, out=tmp_path / "whole")
    assert table(tmp_path / "run") == table(tmp_path / "whole")

@pytest.mark.parametrize("limit", [10_000, 2_500])  # checkpoint.pt is the larger
def test_a_full_disk_gets_one_line_and_the_run_resumes(tmp_path, limit):
    resource = pytest.importorskip("resource")
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    given = dict(steps=100, until=0, eval_every=5)
    done = cli(*flags(**given, out=tmp_path / "run"), preexec_fn=full)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path / "run") in done.stderr, done.stderr
    assert cli("--resume", tmp_path / "run", "--quiet").returncode == 0
    train(**given, out=tmp_path / "whole")
    assert table(tmp_path / "run") == table(tmp_path / "whole")

def test_two_processes_cannot_share_a_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    train(out=tmp_path / "run")
    held = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    done = cli("--resume", tmp_path / "run", "--steps", 50)
    assert done.returncode == 2 and "another process is training in this folder" in done.stderr
    os.close(held)
    assert cli("--resume", tmp_path / "run", "--steps", 50, "--quiet").returncode == 0

def test_read_gives_the_trained_weights_back(tmp_path):
    train(out=tmp_path / "run", seed=[0, 1], layers=2, outliers=3)
    for i, run in enumerate(grok.read(tmp_path / "run")):  # the two were trained together
        x, y, labels, mask = grok.split(run.config)
        hits = run.config.model()(run.state["W"][None], torch.from_numpy(x)[None], torch.from_numpy(y)[None])[0].argmax(1).numpy() == labels
        assert run.config.seed == i and hits[~mask].mean() == pytest.approx(run.log[-1]["val_acc"], abs=1e-6)
        assert hits[mask].mean() == pytest.approx(run.log[-1]["train_acc"], abs=1e-6)
    with pytest.raises(UsageError, match="nowhere: is no run folder"): grok.read("nowhere")
    with pytest.raises(AttributeError, match="sede"): grok.read(tmp_path / "run", seed=9, sede=0)

@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_folder_of_a_gpu_is_read_without_one(tmp_path, capsys):
    train(out=tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
    assert grok.read(tmp_path)[0].config.device == "cuda"
    assert grok.main(["--resume", str(tmp_path), "--steps", "40"]) == 2
    assert "--device cuda: there is none here" in capsys.readouterr().err
    assert grok.main(["--resume", str(tmp_path), "--steps", "40", "--device", "cpu", "--quiet"]) == 0

# --- a method of one's own ------------------------------------------------------------------------
@dataclass(frozen=True)
class Inertia(Config):
    pull: float = grok.setting(0.5, "factor on the mean of all gradients; 0 is the control", "[0, inf)")

class Heavy(grok.Stack):
    """Adds the sum of all gradients; measures its norm; and counts in a state of its own shape and type."""
    state = *grok.Stack.state, "past", "count"
    def initial(self):
        self.count = torch.zeros(len(self.runs), 2, dtype=torch.int64)
        self.drawn = self.random("weight_noise", torch.Tensor.normal_, torch.zeros(len(self.runs), 1))
        return super().initial()
    def gradient(self, rows):
        grad = super().gradient(rows)
        self.past += grad
        self.count += 1
        return grad + self.pull * self.past
    def measure(self):
        return super().measure() | dict(past=self.past.norm(dim=1), seen=self.count[:, 1], undefined=self.pull[:, 0] / 0,
                                        drawn=self.drawn[:, 0])

HEAVY = dict(pull=[0.0, 0.5], seed=[0, 1, 2], steps=60, until=0.1, eval_every=5, batch_size=0, lr=0.02, weight_noise=0.01)

def test_a_study_s_setting_state_and_measure_are_columns_kept_and_resumed(tmp_path, monkeypatch, capsys):
    command = flags(**HEAVY)
    assert grok.main([*command, "--out", str(tmp_path / "whole")], Inertia, Heavy) == 0
    for parts in range(100):  # cut at each third evaluation
        with monkeypatch.context() as patch:
            left, measure = [3], Heavy.measure
            def cut(self):
                left[0] -= 1
                return measure(self) if left[0] >= 0 else 1 / 0
            patch.setattr(Heavy, "measure", cut)
            patch.setattr(grok.Records, "due", lambda self: True)
            try:
                assert grok.main([*(["--resume", str(tmp_path / "cut")] if parts else [*command, "--out", str(tmp_path / "cut")])], Inertia, Heavy) == 0
                break
            except ZeroDivisionError: pass
    assert parts > 2 and table(tmp_path / "cut") == table(tmp_path / "whole")
    row = table(tmp_path / "cut")[-1]
    names = list(row)
    assert names[names.index("weight_norm") + 1:][:3] == ["past", "seen", "undefined"] and row["pull"] == "0.5"
    assert row["seen"] == str(float(row["step"]))
    runs = grok.read(tmp_path / "cut", Inertia)
    assert len({run.step for run in runs}) > 1 and all(run.state["count"].tolist() == 2 * [run.step] for run in runs)
    with pytest.raises(UsageError, match="pull"): grok.read(tmp_path / "cut")

def test_a_study_s_control_equals_plain_training_and_reads_its_folders(tmp_path):
    plain = train(out=tmp_path / "plain", seed=[0, 1])
    control = grok.train(Inertia.grid(**TINY, seed=[0, 1], pull=0.0), quiet=True, method=Heavy, out=tmp_path / "study")
    for one, other in zip(plain, control): assert [row["val_loss"] for row in one.log] == [row["val_loss"] for row in other.log]
    assert [run.config.pull for run in grok.read(tmp_path / "plain", Inertia)] == [0.5, 0.5]
    usual = grok.train(Inertia(**TINY), quiet=True, method=Heavy, out=tmp_path / "usual")
    again = grok.read(tmp_path / "usual")[0]                # its setting has its default: anybody reads it
    assert again.config == settings() and torch.equal(again.state["W"], usual[0].state["W"])

def test_a_study_s_text_may_change_the_model():
    model = lambda self: vars(made := Config.model(self)).update(activation=getattr(F, self.act)) or made
    Acting = make_dataclass("Acting", [("act", str, grok.setting("relu", "", ("relu", "gelu")))], bases=(Config,), frozen=True, namespace=dict(model=model))
    one, other = (grok.train(Acting(**TINY, act=act), quiet=True)[0] for act in ("relu", "gelu"))
    assert rows(grok.train(Acting.grid(**TINY, act=["relu", "gelu"]), quiet=True)) == rows([one, other]) and one.log[-1]["val_loss"] != other.log[-1]["val_loss"]

def test_a_tensor_that_has_no_row_for_each_run_is_refused():
    class Masked(grok.Stack):
        def initial(self):
            self.mask = torch.ones(7)
            return super().initial()
    with pytest.raises(UsageError, match="mask: a tensor"): grok.train(settings(steps=10**9, until=0), quiet=True, method=Masked)  # at once

@pytest.mark.parametrize("column", [dict(mean=torch.ones(1)), dict(grad_clip=torch.ones(2)), dict(seconds=torch.ones(2))])
def test_nothing_that_is_measured_is_lost_silently(column, tmp_path):
    class Measuring(grok.Stack):
        def measure(self): return super().measure() | column
    with pytest.raises((TypeError, ValueError)): train(seed=[0, 1], method=Measuring, out=tmp_path / "run")

@pytest.mark.parametrize("name", ["W", "labels", "step", "keep", "anchor", "hit"])
def test_a_setting_that_would_hide_what_a_stack_has_is_refused(name):
    Hiding = make_dataclass("Hiding", [(name, float, grok.setting(0.0, "", "[0, inf)"))], bases=(Config,), frozen=True)
    with pytest.raises(UsageError, match=f"--{name}: is the name of a Stack's attribute"): grok.train(Hiding(**TINY), quiet=True)

def test_what_a_study_trains_on_does_not_change_what_is_measured():
    class Doubled(grok.Stack):
        def losses(self, logits, labels):
            return 2 * super().losses(logits, labels)
    stack, plain = (kind([grok.Run(settings(), "")]) for kind in (Doubled, grok.Stack))
    assert {k: v.item() for k, v in stack.measure().items()} == {k: v.item() for k, v in plain.measure().items()}
    batch = torch.arange(16)[None]
    torch.testing.assert_close(stack.gradient(batch), 2 * plain.gradient(batch))

# --- torchrun -------------------------------------------------------------------------------------
def torchrun(*arguments):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           HERE / "grok.py", *map(str, arguments)], capture_output=True, text=True, timeout=120)

def test_torchrun_shares_the_runs_out_judges_them_together_and_resumes(tmp_path):
    sweep = dict(seed=[0, 1, 2], dropout=0.1, stack=1)
    done = torchrun(*flags(**sweep, out=tmp_path / "both", expect=0.001))
    assert done.returncode == 0, done.stderr
    train(**sweep, out=tmp_path / "alone")
    order = lambda rows: sorted(rows, key=lambda row: (row["seed"], int(row["step"])))
    merged = table(tmp_path / "both" / "rank-0") + table(tmp_path / "both" / "rank-1")
    assert order(merged) == order(table(tmp_path / "alone"))
    assert {row["seed"] for row in table(tmp_path / "both" / "rank-1")} == {"1"}
    done = torchrun("--resume", tmp_path / "both", "--steps", 40, "--expect", 0.9, "--quiet")
    assert done.returncode != 0 and "--expect 0.9: missed in 3 runs" in done.stderr
    assert {row["step"] for row in table(tmp_path / "both" / "rank-1")} >= {"30", "40"}
    shutil.rmtree(tmp_path / "both" / "rank-1")
    before = files(tmp_path / "both" / "rank-0")
    lost = cli("--resume", tmp_path / "both", "--steps", 50, env=dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="localhost"))
    assert lost.returncode == 2 and "rank-1: is no run folder" in lost.stderr
    done = cli("--resume", tmp_path / "both")
    assert done.returncode == 2 and "another number of torchrun's processes" in done.stderr and files(tmp_path / "both" / "rank-0").keys() == before.keys()

@pytest.mark.parametrize("env, extra, message", [
    (dict(RANK="1"), dict(), "RANK=1 WORLD_SIZE=1"), (dict(RANK="x"), dict(), "RANK=x"), (dict(WORLD_SIZE="-2"), dict(), "WORLD_SIZE=-2"),
    (dict(RANK="0", WORLD_SIZE="2"), dict(seed=[0, 1]), "--out"), (dict(RANK="1", WORLD_SIZE="2"), dict(out="run"), "2 processes"),
    (dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR=""), dict(out="run", seed=[0, 1], expect=0.9), "MASTER_ADDR")])
def test_a_share_that_makes_no_sense_is_refused(env, extra, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for name, value in env.items(): monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert grok.main(flags(**extra)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and os.listdir() == []

def test_a_folder_holds_one_process_or_several(tmp_path, monkeypatch, capsys):
    train(out=tmp_path / "one")
    train(out=tmp_path / "two" / "rank-0")
    assert grok.main(flags(out=tmp_path / "two")) == 2 and "two: rank-0 there" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert grok.main(flags(out=tmp_path / "one", seed=[0, 1])) == 2 and "one: config.json there" in capsys.readouterr().err
    assert not list((tmp_path / "one").glob("rank-*")) and not (tmp_path / "two" / "config.json").exists()

# --- mistakes -------------------------------------------------------------------------------------
@pytest.mark.parametrize("line, message", [
    ("--p 96", "--p 96: x_div_y needs a prime modulus"), ("--p 1", "--p 1: must be a whole number in [2, 4096]"),
    ("--p 9.5", "--p 9.5: must be a whole number"), ("--p seven", "--p seven: must be a whole number"),
    ("--op s5_xy --p 31", "--p 31: s5_xy has no modulus"), ("--op x_dvi_y", "--op x_dvi_y: must be one of x_plus_y, "),
    ("--op", "--op: expected at least one argument"), ("--frac 0", "--frac 0: must be a number in (0, 1)"),
    ("--frac nan", "--frac nan: must be a number in (0, 1)"), ("--frac 1e-9", "--frac 1e-09: must be some of 9312 equations, is 0"),
    ("--frac 0.99999", "--frac 0.99999: must be some of 9312 equations, is 9312"), ("--frac 0.5 0.3 0.50", "x_div_y, frac 0.5, seed 0: this run is given twice"),
    ("--seed -1", "--seed -1: must be a whole number in [0, inf)"), ("--seed 0,1,2", "--seed 0,1,2: must be a whole number in [0, inf)"),
    ("--outliers 5000", "--outliers 5000: only 4656 training answers"),
    ("--layers 0", "--layers 0: must be a whole number in [1, 1024]"), ("--heads 5", "--heads 5: must divide --width 128"),
    ("--dropout 1", "--dropout 1: must be a number in [0, 1)"), ("--init-scale 0", "--init-scale 0: must be a number in (0, inf)"),
    ("--lr inf", "--lr inf: must be a number in (0, inf)"), ("--lr=-1e-3", "--lr -1e-3: must be a number in (0, inf)"),
    ("--beta1 1", "--beta1 1: must be a number in [0, 1)"), ("--weight-decay -1", "--weight-decay -1: must be a number in [0, inf)"),
    ("--grad-clip -1", "--grad-clip -1: must be a number in [0, inf)"), ("--decay-to zero", "--decay-to zero: must be one of origin, init"),
    ("--steps 0", "--steps 0: must be a whole number in [1, inf)"), ("--until 1.1", "--until 1.1: must be a number in [0, 1]"),
    ("--expect 2", "--expect 2: must be a number in [0, 1]"), ("--recipe slow", "--recipe: invalid choice: 'slow'"),
    ("--device tpu", "--device tpu: must be one of auto, cpu, cuda, mps"), ("--threads -1", "--threads -1: must be"),
    ("--stack -1", "--stack -1: must be"), ("--eval-every 0", "--eval-every 0: must be"), ("--step 5", "unrecognized arguments: --step 5"),
    ("--seed \n", "--seed \\n: must be"), ("--foo\nbar 5", "--foo\\nbar"), ("--out FILE", "File exists"),
    ("--out FILE/run", "Not a directory"), ("--out " + 300 * "x", "File name too long"), ("--resume nowhere", "nowhere: is no run folder"),
    ("--resume " + 300 * "x", "File name too long"), ("--resume FILE", "FILE: is no run folder"), ("--list-ops --p 96", "--p 96: x_div_y needs a prime modulus")])
def test_a_mistake_gets_one_line_and_status_2(line, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    assert grok.main(line.split(" ")) == 2
    out, error = capsys.readouterr()
    assert message in error and error.startswith("grok.py: ") and error.count("\n") == 1 and (out == "" or "--list-ops" in line)
    assert os.listdir() == ["FILE"]

def test_a_modulus_beside_s5_and_others_is_theirs(tmp_path):
    assert grok.main(flags(op=["s5_xy", "x_plus_y"], p=13, steps=2, out=tmp_path / "run")) == 0
    assert {(row["op"], row["p"]) for row in table(tmp_path / "run")} == {("s5_xy", "120"), ("x_plus_y", "13")}

@pytest.mark.parametrize("shell", ["{} >&-", "{} >/dev/full", "{} | true"])
def test_where_nobody_reads_the_run_goes_on(tmp_path, shell):
    command = " ".join(["exec", sys.executable, str(HERE / "grok.py"), *flags(quiet=False, steps=200, out="run")])
    done = subprocess.run(["bash", "-c", "set -o pipefail; " + shell.format(f"({command})")], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and table(tmp_path / "run")[-1]["step"] == "200"
    for flag in ("--list-ops", "--help")[:1 if "true" not in shell else 2]:
        done = subprocess.run(["bash", "-c", shell.format(f"{sys.executable} {HERE / 'grok.py'} {flag}")], capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        assert done.stderr == ""

def test_a_library_s_summary_is_printed_where_its_letters_are_unknown():
    code, env = f"import grok, sys; grok.train(grok.Config(**{TINY})); assert sys.stdout.errors == 'strict'", os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "") and "x_plus_y, seed 0" in done.stdout.splitlines()[-2]

def test_training_leaves_the_process_as_it_was(tmp_path):
    state = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), signal.getsignal(signal.SIGINT),
                     signal.getsignal(signal.SIGTERM), torch.get_num_threads(), os.getcwd(), dict(os.environ))
    torch.set_default_dtype(torch.float64)
    try:
        before = state()
        one = rows(train(threads=1 + torch.get_num_threads(), dropout=0.1, weight_noise=0.1, out=tmp_path / "run"))
        assert grok.main(flags(out=tmp_path / "main", quiet=False)) == 0
        assert state() == before and torch.get_default_dtype() == torch.float64
    finally: torch.set_default_dtype(torch.float32)
    assert one == rows(train(dropout=0.1, weight_noise=0.1))

# --- the files around it --------------------------------------------------------------------------
def test_help_names_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as end: grok.main(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for f in fields(Config):
        entry = re.search(rf"{grok.flag(f.name)} [A-Z] \[[^\[]*\[([^\]]*)\]", text.partition("options:")[2])
        assert entry and entry[1].split(";")[0] == str(f.default), f.name
    assert end.value.code == 0

def test_requirements_and_script_metadata_agree():
    pins = (HERE / "requirements.txt").read_text().split()
    metadata = re.search(r"# dependencies = (\[.*\])", (HERE / "grok.py").read_text())[1]
    assert json.loads(metadata) == pins and all("==" in pin for pin in pins)

@pytest.mark.parametrize("option", ["-B", "-OO"])
def test_importing_grok_has_no_side_effects_and_is_light(option):
    code = ("import os, signal, sys; before = set(os.listdir()), dict(os.environ), signal.getsignal(2); import grok; "
            "assert not {'matplotlib', 'sklearn', 'scipy'} & set(sys.modules); grok.parser(grok.Config).format_help(); "
            "assert (set(os.listdir()), dict(os.environ), signal.getsignal(2)) == before")
    env = {k: v for k, v in os.environ.items()} | dict(PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([sys.executable, option, "-c", code], cwd=HERE, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

def test_waiting_threads_spin_shortly_unless_the_user_says_otherwise():
    code = "import os, sys; sys.addaudithook(lambda e, a: e == 'import' and a[0] == 'torch' and print(os.environ.get('GOMP_SPINCOUNT'))); import grok"
    spin = lambda **env: subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, env=os.environ | env).stdout
    assert spin().split()[0] == "2000" and spin(GOMP_SPINCOUNT="7").split()[0] == "7" and spin(OMP_WAIT_POLICY="PASSIVE").split()[0] == "None"

README = (HERE / "README.md").read_text()

@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_readme_s_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grok, "OPS", dict(grok.OPS))
    monkeypatch.setattr(sys, "argv", re.search(r"`python (mine\.py .*?)`", README)[1].split())
    with pytest.raises(SystemExit) if "grok.main(" in code else contextlib.nullcontext() as end: exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert end is None or end.value.code == 0 and {row["grokfast"] for row in table(next(Path("runs").iterdir()))} == {"0.0", "2.0"}

@pytest.mark.parametrize("line", re.findall(r"(?:^|&& |[`']|nproc-per-node 2 )\S*(?:python |run )?grok\.py (-(?!-help)[^`'#\n]*)", README, re.M))
def test_the_readme_s_commands_are_understood(line):
    given = vars(grok.parser(Config).parse_args(line.replace("$SLURM_ARRAY_TASK_ID", "7").split()))
    Config.grid(**{f.name: given[f.name] for f in fields(Config) if f.name in given})

def test_the_readme_names_every_flag_and_operation():
    for name in [grok.flag(f.name) for f in fields(Config)] + list(grok.OPS): assert re.search(rf"\b{name.strip('-')}\b", README), name

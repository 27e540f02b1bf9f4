"""Properties of the measures: each column against something independent, per run of a stack of
different runs. That they leave training alone is tested with the interventions.
Run: python -m pytest -q studies"""

import csv
import math

import experts
import exponentiation
import features
import grok2 as grok
import lead
import llm
import measures
import numpy as np
import progress2 as progress
import pytest
import spectra
import torch
import tracing
import transfer_entropy as te
import unified
from grok2 import Config
from test_interventions import TINY, stack_of

# --- progress.py ----------------------------------------------------------------------------------

BASE = dict(
    x_plus_y=None, x_minus_y=None, x_mul_y=8, x_div_y=8
)  # of the logarithms mod 11; the study's is the least, 2


def angles(op):
    """Positions of the elements mod 11 on their circle, -1 for 0 where that has none, and how many
    there are."""
    base = BASE[op]
    return (
        (
            np.array(
                [-1] + [next(t for t in range(10) if base**t % 11 == z) for z in range(1, 11)]
            ),
            10,
        )
        if base
        else (np.arange(11), 11)
    )


def losses(stack, run, keys):
    """(restricted, excluded) loss by least squares on 1, cos w(x ∘ y), sin w(x ∘ y), over the
    equations as rows."""
    config, (log, n) = stack.runs[run].config, angles(stack.runs[run].config.op)
    x, y, z = grok.equations(config.op, 11)
    labels, train = stack.labels[run].numpy(), stack.train[run].numpy()
    logits = (
        stack.model(stack.W[run : run + 1], *(torch.from_numpy(a)[None] for a in (x, y)))[0]
        .double()
        .numpy()
    )
    kept = (log[x] >= 0) & (log[y] >= 0)
    turn = log[x] + log[y] if config.op in ("x_plus_y", "x_mul_y") else log[x] - log[y]
    waves = np.stack([f(2 * np.pi * k * turn / n) for k in keys for f in (np.cos, np.sin)], 1)[kept]
    design = np.concatenate([np.ones((kept.sum(), 1)), waves], 1)
    coefficients = np.linalg.lstsq(design, logits[kept], rcond=None)[0]
    cross_entropy = lambda z, y: np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
    without = cross_entropy(logits[kept] - waves @ coefficients[1:], labels[kept])
    return cross_entropy(design @ coefficients, z[kept]).mean(), without[train[kept]].mean()


@pytest.mark.parametrize("op", BASE)
def test_restricted_and_excluded_loss_are_projections_on_waves_in_x_and_y(op):
    """Of the logits of random networks. The key frequencies are planted in the embedding, others in
    each run of the stack; the logarithms are to another base, which numbers the frequencies
    otherwise."""
    stack, planted = (
        stack_of(
            progress.Progress,
            progress.Config,
            op=op,
            keys=2,
            seed=[0, 1],
            outliers=5,
            init_scale=6.0,
            embed_init_scale=0.15,
        ),
        [(1, 3), (2, 4)],
    )
    log, n = angles(op)
    for i, keys in enumerate(planted):
        embed = stack.model.weights(stack.W)["embed"][i]
        for column, k in enumerate(keys):
            embed[:11, column] += torch.from_numpy(
                9 * (log >= 0) * np.cos(2 * np.pi * k * log / n + 1)
            ).float()
    measured = stack.measure()
    for i, keys in enumerate(planted):
        expected, others = losses(stack, i, keys), losses(stack, i, planted[1 - i])
        assert (measured["restricted_loss"][i], measured["excluded_loss"][i]) == pytest.approx(
            expected, rel=1e-5
        )
        assert all(abs(a - b) > 5e-4 for a, b in zip(expected, others))


def test_a_solution_of_one_frequency_is_all_or_nothing(monkeypatch):
    """logits 20 cos w(x + y - z), at w = 3 · 2π / 11; 3 is a key of run 0 and not of run 1."""

    def circle(model, W, x, y, drop=None):
        turn = (x + y)[:, :, None] - torch.arange(model.n + 2)
        return 20 * torch.cos(2 * math.pi * 3 * turn / 11) * (torch.arange(model.n + 2) < 11)

    monkeypatch.setattr(grok.Transformer, "__call__", circle)
    stack = stack_of(progress.Progress, progress.Config, keys=1, seed=[0, 1])
    for row, k in zip(stack.model.weights(stack.W)["embed"], (3, 4)):
        row[:11, 0] = 50 * torch.cos(2 * math.pi * k * torch.arange(11) / 11)
    measured = stack.measure()
    loss, nothing = (
        math.log(
            sum(math.exp(20 * math.cos(2 * math.pi * c / 11) - 20) for c in range(11))
            + 2 * math.exp(-20)
        ),
        math.log(13),
    )
    assert measured["restricted_loss"].tolist() == pytest.approx([loss, nothing], rel=1e-4)
    assert measured["excluded_loss"].tolist() == pytest.approx([nothing, loss], rel=1e-4)


def test_gini_and_med_of_known_embeddings():
    """A circle has one frequency of five, so 4/5, and chords 2 sin(w / 2); unit vectors have all
    alike, so 0, and chords √2. The third by sums over cos and sin, and over pairs. The tokens ∘ and
    = do not count."""
    stack, turn = (
        stack_of(progress.Progress, progress.Config, seed=[0, 1, 2]),
        2 * math.pi * 3 * torch.arange(11) / 11,
    )
    embed = stack.model.weights(stack.W)["embed"]
    embed[:2, :11], embed[:2, 11:] = 0.0, 100.0
    embed[0, :11, 0], embed[0, :11, 1], embed[1, :11, :11] = turn.cos(), turn.sin(), torch.eye(11)
    e, t = embed[2, :11].double().numpy(), np.arange(11)
    norms = [
        np.sqrt(sum(np.sum((f(2 * np.pi * k * t / 11) @ e) ** 2) for f in (np.cos, np.sin)))
        for k in range(1, 6)
    ]
    gini = sum(abs(a - b) for a in norms for b in norms) / (2 * 5 * sum(norms))
    med = np.mean([np.linalg.norm(e[i + 1] - e[i]) for i in range(10)])
    measured = stack.measure()
    assert gini > 0.02 and measured["embed_gini"].tolist() == pytest.approx(
        [0.8, 0, gini], abs=1e-5
    )
    assert measured["med"].tolist() == pytest.approx(
        [2 * math.sin(3 * math.pi / 11), 2**0.5, med], rel=1e-5
    )


def test_keys_of_a_finished_run_are_those_of_its_last_embedding(tmp_path):
    settings = dict(seed=[0, 1], lr=0.1, embed_init_scale=0.01)
    first = grok.train(Config.grid(**TINY | settings), out=tmp_path, quiet=True)
    stack, now = (
        stack_of(progress.Progress, progress.Config, **settings, keys=1, keys_of=folder)
        for folder in (str(tmp_path), "none")
    )
    keys = []
    for measured, weights in (
        (stack.measure(), [run.state["W"] for run in first]),
        (now.measure(), now.W),
    ):
        for i, W in enumerate(weights):
            embed = stack.model.weights(W[None])["embed"][0, :11].numpy()
            keys.append(
                max(
                    range(1, 6),
                    key=lambda k: np.linalg.norm(
                        np.exp(2j * np.pi * k * np.arange(11) / 11) @ embed
                    ),
                )
            )
            assert measured["restricted_loss"][i] == pytest.approx(
                losses(stack, i, keys[-1:])[0], rel=1e-4
            )
    assert keys[:2] != keys[2:]


def test_progress_refuses_what_does_not_turn_and_keys_of_another_run(tmp_path, capsys):
    folder = str(tmp_path / "first")
    grok.train(
        progress.Config(**TINY | dict(steps=1)), out=folder, quiet=True, method=progress.Progress
    )
    tiny = [
        "--p",
        "11",
        "--layers",
        "1",
        "--width",
        "16",
        "--heads",
        "2",
        "--batch-size",
        "16",
        "--eval-every",
        "10",
        "--steps",
        "2",
        "--quiet",
    ]
    for given, said in (
        (["--op", "x2_plus_y2"], "--op x2_plus_y2 --p 11: must be"),
        (["--op", "x_mul_y", "--p", "12"], "--op x_mul_y --p 12: must be"),
        (
            ["--op", "x_plus_y", "--seed", "3", "--keys-of", folder],
            f"--keys-of {folder}: must hold this run",
        ),
    ):
        assert (
            grok.main(
                [*tiny, *given, "--out", str(tmp_path / "out")], progress.Config, progress.Progress
            )
            == 2
        )
        out, err = capsys.readouterr()
        assert said in err and err.count("\n") == 1 and not out and not (tmp_path / "out").exists()
    assert (
        grok.main(
            [*tiny, "--op", "x_plus_y", "--keys-of", folder, "--out", str(tmp_path / "out")],
            progress.Config,
            progress.Progress,
        )
        == 0
    )
    assert (
        grok.main(
            [*tiny, "--op", "x_div_y", "--p", "3", "--out", str(tmp_path / "small")],
            progress.Config,
            progress.Progress,
        )
        == 0
    )


# --- tracing.py -----------------------------------------------------------------------------------


def test_dropout_of_validation_accuracy_is_binomial_when_a_unit_decides(monkeypatch):
    """A model that is right where its one unit is kept: mean 1 - rate, variance rate · (1 - rate) /
    B, each within 5 standard errors, and the unbiased variance of what its passes got right. It is
    asked just about 512 validation equations, the same in each pass and at each update; what is
    kept is scaled up."""
    seen = []

    def coin(model, W, x, y, drop=None):
        unit = torch.ones(*x.shape, 1, 1) if drop is None else drop(torch.ones(*x.shape, 1, 1))
        if drop is not None:
            seen.append((W[0, -1].item(), unit, (x * 31 + y)[0].tolist()))
        model.activation(unit)
        return torch.nn.functional.one_hot((x + y + (unit[:, :, 0, 0] == 0)) % 31, 33).float()

    monkeypatch.setattr(grok.Transformer, "__call__", coin)
    stack = stack_of(
        tracing.Tracing, tracing.Config, mc_dropout=[0.3, 0.6, 0.0], passes=300, p=31, frac=0.3
    )
    stack.W[:, -1] = torch.arange(3)
    measured, B = stack.measure(), 512
    for i, kept in enumerate([0.7, 0.4, 1.0]):
        variance, calls = kept * (1 - kept) / B, [call[1:] for call in seen if call[0] == i]
        assert (
            measured["dropout_acc"][i]
            == pytest.approx(kept, abs=5 * (variance / 300) ** 0.5 + 1e-6)
            and len(calls) == 300
        )
        assert measured["dropout_var"][i] == pytest.approx(variance, rel=5 * (2 / 299) ** 0.5)
        assert measured["dropout_var"][i] == pytest.approx(
            np.var([(unit > 0).double().mean() for unit, _ in calls], ddof=1), rel=1e-4
        )
        rows = calls[0][1]
        assert len(set(rows)) == B and set(rows) <= set((~stack.train[i]).nonzero()[:, 0].tolist())
        assert all(
            unit.unique().tolist() == pytest.approx([0, 1 / kept][kept == 1 :]) and other == rows
            for unit, other in calls
        )
    rows, stack.step = {call[0]: call[2] for call in seen}, 7
    seen.clear()
    stack.measure()
    assert {call[0]: call[2] for call in seen} == rows


def test_dropout_follows_from_seed_and_update_and_leaves_training_alone():
    together = stack_of(tracing.Tracing, tracing.Config, seed=[0, 1], dropout=0.2)
    plain = stack_of(grok.Stack, grok.Config, seed=[0, 1], dropout=0.2)
    names, seen = ("dropout_acc", "dropout_var"), []
    for target in 2, 4:
        for stack in together, plain:
            stack.advance(target)
        seen.append(together.measure())
        again = together.measure()
        assert all(torch.equal(seen[-1][name], again[name]) for name in names)
        alone = stack_of(tracing.Tracing, tracing.Config, seed=1)
        alone.W, alone.step = together.W[1:], target  # what else it did does not matter
        assert all(alone.measure()[name][0] == again[name][1] for name in names)
    assert torch.equal(together.W, plain.W)
    before, together.step = together.measure(), 5  # the same weights: the masks are others
    assert not torch.equal(before["dropout_var"], together.measure()["dropout_var"])


def test_without_dropout_it_is_validation_accuracy():
    stack = stack_of(tracing.Tracing, tracing.Config, mc_dropout=0.0, seed=[0, 1], layers=2)
    stack.advance(30)
    measured = stack.measure()
    assert (
        torch.allclose(measured["dropout_acc"], measured["val_acc"])
        and (measured["val_acc"] > 0).all()
        and not measured["dropout_var"].any()
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_inactive_units_are_those_that_no_equation_makes_active(layers):
    """By the model's own blocks, an equation at a time. A large shift before the units makes some
    of them constant."""
    stack = stack_of(tracing.Tracing, tracing.Config, seed=[0, 1], layers=layers)
    for name, w in stack.model.weights(stack.W).items():
        if "norm1" in name:
            w[:, 1] = 3 * torch.randn(2, 16, generator=torch.Generator().manual_seed(len(name)))
    measured = stack.measure()["inactive"].tolist()
    for i, W in enumerate(stack.W):
        hidden, model = {}, grok.Config(**TINY | dict(layers=layers)).model()
        block, model.activation = (
            model.block,
            lambda h: [hidden.setdefault(up, []).append(h.flatten(0, 2)), h.relu()][1],
        )

        def layered(h, q, k, v, weights, drop):  # by its matrix: not by the order of calls
            nonlocal up
            up = weights[2][0, 0, 0].item()
            return block(h, q, k, v, weights, drop)

        up, model.block = None, layered
        for x, y in zip(stack.x[i], stack.y[i]):
            model(W[None], x[None, None], y[None, None])
        never = [(torch.cat(h) <= 0).all(0).float().mean().item() for h in hidden.values()]
        assert (
            len(never) == layers
            and measured[i] == pytest.approx(np.mean(never))
            and 0.02 < measured[i] < 0.9
        )
    assert measured[0] != measured[1]


def test_embed_cosine_of_orthogonal_opposite_and_random_embeddings():
    stack = stack_of(tracing.Tracing, tracing.Config, seed=[0, 1, 2])
    embed = stack.model.weights(stack.W)["embed"]
    embed[0, :11], embed[0, :11, :11] = 0, 3 * torch.eye(11)
    embed[1, :11] = torch.linspace(-2, 3.1, 11)[:, None] * torch.randn(
        16, generator=torch.Generator().manual_seed(0)
    )
    e = embed[2, :11].double().numpy()
    pairs = [
        abs(e[i] @ e[j]) / np.linalg.norm(e[i]) / np.linalg.norm(e[j])
        for i in range(11)
        for j in range(i)
    ]
    assert stack.measure()["embed_cosine"].tolist() == pytest.approx(
        [0, 1, np.mean(pairs)], abs=1e-5
    )


# --- spectra.py -----------------------------------------------------------------------------------


def clauset(values):
    """(α, λ_min) by loops: for each λ_min the maximum-likelihood α, and the greatest distance of
    the two cumulative shares."""
    best = np.inf, 0, 0
    for low in sorted(values)[:-1]:
        tail = np.array(sorted(v for v in values if v >= low))
        alpha = 1 + len(tail) / np.log(tail / low).sum()
        distance = abs(np.arange(len(tail)) / len(tail) - (1 - (tail / low) ** (1 - alpha))).max()
        best = min(best, (distance, alpha, low))
    return best[1:]


def test_the_exponent_is_that_of_a_power_laws_tail_whatever_lies_below_it():
    """Quantiles of p(λ) ~ λ^-α from 1 on, over a bulk between 0.2 and 0.9, at two scales and in any
    order, with zeros of a low rank; and Clauset's estimator by loops on spectra that are none."""
    random, middle = np.random.default_rng(0), (np.arange(300) + 0.5) / 300
    spectra_of = [
        random.permutation(
            np.concatenate(
                [
                    scale * (1 - middle) ** (-1 / (alpha - 1)),
                    scale * random.uniform(0.2, 0.9, 90),
                    np.zeros(10),
                ]
            )
        )
        for alpha, scale in ((2.5, 1.0), (4.0, 1e-3))
    ]
    assert spectra.exponent(torch.from_numpy(np.stack(spectra_of))).tolist() == pytest.approx(
        [2.5, 4.0], rel=0.03
    )
    values = np.linalg.svd(random.standard_normal((3, 20, 50)), compute_uv=False) ** 2
    expected = [clauset(list(v)) for v in values]
    assert all(low > min(v) for v, (_, low) in zip(values, expected))  # a λ_min is chosen at all
    assert spectra.exponent(torch.from_numpy(values)).tolist() == pytest.approx(
        [alpha for alpha, _ in expected], rel=1e-9
    )
    assert torch.isfinite(
        spectra.exponent(torch.tensor([[0.0] * 5, [2.0] * 5], dtype=torch.float64))
    ).all()


def test_spectra_of_each_run_by_numpy():
    """Two runs with different training sets: α of each matrix; FACT with ∇_h ℓ = w (softmax -
    one-hot) of each equation, and h read off by heads that copy it; the entropy of the gradient of
    one batch, the training set."""
    stack = stack_of(spectra.Spectra, spectra.Config, frac=[0.5, 0.3], init_scale=2.0)
    stack.advance(3)
    measured, plain = stack.measure(), grok.Stack.measure(stack)
    assert list(measured)[:5] == list(plain) and all(
        torch.equal(measured[name], plain[name]) for name in plain
    )
    for i, W in enumerate(stack.W):
        rows, parts = stack.train[i].nonzero()[:, 0], stack.model.weights(W[None])
        matrices = {name: w[0].double().numpy() for name, w in parts.items() if "norm" not in name}
        assert {"alpha_" + name for name in matrices} == {
            name for name in measured if "alpha" in name
        } and len(matrices) == 8
        for name, w in matrices.items():
            values = np.linalg.svd(w, compute_uv=False) ** 2
            assert measured["alpha_" + name][i] == pytest.approx(
                clauset(list(values))[0], rel=1e-6
            ), name
        x, y, labels = (table[i][rows][None] for table in (stack.x, stack.y, stack.labels))
        h = []
        for copied in torch.eye(16)[:, :13], torch.eye(16)[:, 3:]:
            copy = W[None].clone()
            stack.model.weights(copy)["head"][0] = copied
            h.append(stack.model(copy, x, y)[0].double().numpy())
        h, w = np.concatenate([h[0][:, :3], h[1]], 1), matrices["head"]
        shares = np.exp(h @ w) / np.exp(h @ w).sum(1, keepdims=True)
        grads = (shares - np.eye(13)[labels[0]]) @ w.T  # ∇_h ℓ, an equation a row
        sides = w @ w.T, -sum(np.outer(g, v) for g, v in zip(grads, h)) / len(h)
        cosine = (sides[0] * sides[1]).sum() / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1])
        assert 0.01 < abs(cosine) < 0.99 and measured["fact"][i] == pytest.approx(cosine, abs=1e-4)
        alone = stack_of(spectra.Spectra, spectra.Config, frac=stack.runs[i].config.frac)
        alone.W = W[None].clone()
        g = abs(grok.Stack.gradient(alone, rows[None]).double().numpy())
        assert measured["gradient_entropy"][i] == pytest.approx(
            -(g[g > 0] * np.log(g[g > 0])).sum(), rel=1e-4
        )
    assert all(abs(column[0] - column[1]) > 1e-5 for column in measured.values())


def test_fact_is_1_where_the_gradient_cancels_decay_and_a_diverged_run_disturbs_none(monkeypatch):
    stack = stack_of(spectra.Spectra, spectra.Config, seed=[0, 1, 2])
    with monkeypatch.context() as patched:
        patched.setattr(
            stack, "whole_gradient", lambda: torch.tensor([[-1e-9], [3.0], [-1.0]]) * stack.W
        )
        assert stack.measure()["fact"].tolist() == pytest.approx([1, -1, 1])
    before = stack.measure()
    stack.W[1] = torch.nan
    after = stack.measure()
    assert all(torch.equal(before[name][[0, 2]], after[name][[0, 2]]) for name in before)
    assert after["train_loss"][1].isnan() and all(
        torch.isfinite(after[name][1]) for name in list(after)[5:]
    )


def test_coupled_l2_is_torchs_adam_and_its_control_adamw(monkeypatch):
    settings = [
        dict(),
        dict(coupled_l2=1),
        dict(coupled_l2=1, decay_to="init"),
        dict(coupled_l2=1, weight_decay=0.0),
    ]
    stack = spectra.Spectra(
        [
            grok.Run(spectra.Config(**TINY | dict(weight_decay=0.3, warmup=0) | more), "")
            for more in settings
        ]
    )
    given = torch.randn(4, *stack.W.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(grok.Stack, "gradient", lambda self, rows: given[self.step - 1])
    start, adam, adamw = stack.W.clone(), torch.optim.Adam, torch.optim.AdamW
    stack.advance(4)
    for i, (optimiser, decay) in enumerate([(adamw, 0.3), (adam, 0.3), (adam, 0.3), (adam, 0.0)]):
        away = start[i] * (i == 2)  # decay to the initial weights is decay of what lies between
        W = torch.nn.Parameter(start[i] - away)
        optim = optimiser([W], lr=1e-3, betas=(0.9, 0.98), weight_decay=decay)
        for grad in given[:, i]:
            W.grad = grad
            optim.step()
        assert torch.allclose(stack.W[i], W.detach() + away, atol=2e-6), i


# --- llm.py ---------------------------------------------------------------------------------------


def test_each_equation_keeps_the_update_since_which_it_is_right_and_groups_are_correlated(
    monkeypatch,
):
    """Made answers over five evaluations of two runs, counted by loops: since, quantiles of each
    set, correlation of groups."""
    stack, random = (
        stack_of(llm.LocalGrokking, llm.Config, seed=[0, 1], frac=0.4, parts=3),
        np.random.default_rng(0),
    )
    right = random.random((5, 2, 121)) < np.array([0.2, 0.5, 0.7, 0.8, 0.95])[:, None, None]
    updates = [1, 2, 5, 10, 20]

    def made(function):  # logits that are right where `right` says so
        answer = torch.where(
            torch.from_numpy(right[updates.index(stack.step)]),
            stack.labels,
            (stack.labels + 1) % 11,
        )
        return function(torch.nn.functional.one_hot(answer, 13).float(), stack.labels)

    monkeypatch.setattr(stack, "over_table", made)
    for t, stack.step in enumerate(updates):
        columns = stack.measure()
        for run in range(2):
            since = []
            for equation in range(121):
                k = t + 1
                while k and right[k - 1, run, equation]:
                    k -= 1
                since.append(updates[k] if k <= t else 0)
            assert stack.since[run].tolist() == since
            when, train = (
                np.array([s or updates[t] for s in since], float),
                stack.train[run].numpy(),
            )
            for name, mask in ("memorised", train), ("generalised", ~train):
                expected = np.quantile(when[mask], [0.1, 0.5, 0.9])
                assert [columns[f"{name}_{q}"][run].item() for q in (10, 50, 90)] == pytest.approx(
                    expected
                )
                for k in range(3):
                    part = np.median(
                        when[mask & (np.tile(np.arange(11), 11) % 3 == k)]
                    )  # y counts fastest
                    assert columns[f"{name}_50_y{k}"][run] == pytest.approx(part)
            for name, group in ("x", stack.x), ("y", stack.y), ("z", stack.labels):
                group = group[run].numpy()
                means = [
                    [when[mask & (group == g)].mean() for g in range(11)]
                    for mask in (train, ~train)
                ]
                expected = np.corrcoef(means)[0, 1] if t else 0  # at first all updates are 1
                assert columns[f"local_{name}"][run] == pytest.approx(expected, abs=1e-9)
    assert all(
        abs(column[0] - column[1]) > 1e-9 for name, column in columns.items() if "local" in name
    )


def test_groups_that_learn_in_turn_are_correlated_and_a_group_of_one_kind_alone_is_left_out():
    """Equations learned by x alone, in both sets at once: 1 over the groups of x; negative over
    those of y, of which each set has the other's x. An x that has only training equations does not
    count."""
    stack = stack_of(llm.LocalGrokking, llm.Config, seed=[0, 1])
    stack.train[1] |= stack.x[1] == 4
    when = stack.x * 7 % 11 + 2  # the update, an order of the groups
    when[1][stack.x[1] == 4] = 1000  # never: would spoil it
    stack.over_table = lambda function: torch.stack(
        [torch.zeros(2, 121), (when <= stack.step).float()]
    )  # loss and hits
    for stack.step in range(1, 13):
        columns = stack.measure()
    assert columns["local_x"].tolist() == pytest.approx([1, 1]) and columns["local_y"].max() < -0.1
    assert stack.since[0].max() == 12 and not stack.since[1][stack.x[1] == 4].any()


def test_since_is_kept_in_a_folder_and_the_accuracy_agrees_with_it(tmp_path):
    """As the state's third kind of shape, (N,); a plain run's folder goes on, with no equation
    known yet."""
    settings = grok.Config.grid(**TINY | dict(lr=0.01, until=0.0), seed=[0, 1])
    grok.train(settings, out=tmp_path, quiet=True)
    settings = llm.Config.grid(**TINY | dict(lr=0.01, until=0.0, steps=60), seed=[0, 1])
    grok.train(settings, out=tmp_path, quiet=True, method=llm.LocalGrokking)
    for run in grok.read(tmp_path):
        since, train = run.state["since"], torch.from_numpy(grok.split(run.config)[3])
        assert since.shape == (121,) and set(since.tolist()) == {0, 40, 50, 60}
        for name, mask in ("train", train), ("val", ~train):
            assert (since[mask] > 0).float().mean().item() == pytest.approx(
                run.log[-1][f"{name}_acc"], abs=1e-6
            )


# --- experts.py -----------------------------------------------------------------------------------


def test_a_mixture_is_the_sum_of_its_best_experts_times_their_shares():
    model, random = (
        experts.Config(**TINY, experts=4, top_k=2).model(),
        torch.Generator().manual_seed(0),
    )
    h, down = (
        torch.randn(2, 3, 2, 4 + 64, generator=random),
        torch.randn(2, 64, 16, generator=random),
    )
    out = grok.linear(model.mixture(h), down)
    for run, m, t in np.ndindex(2, 3, 2):
        router, *hidden = h[run, m, t].split([4, 16, 16, 16, 16])
        shares = torch.nn.functional.softmax(router, 0).tolist()
        best = sorted(range(4), key=lambda e: -shares[e])[:2]
        assert torch.allclose(
            out[run, m, t],
            sum(shares[e] * hidden[e].relu() @ down[run, 16 * e : 16 * e + 16] for e in best),
            atol=1e-5,
        )


def levenshtein(a, b):
    return (
        max(len(a), len(b))
        if not a or not b
        else min(
            levenshtein(a[1:], b) + 1,
            levenshtein(a, b[1:]) + 1,
            levenshtein(a[1:], b[1:]) + (a[0] != b[0]),
        )
    )


def test_edit_distances_are_those_of_the_recursion():
    a, b = np.random.default_rng(0).integers(3, size=(2, 50, 5))
    assert experts.edit_distance(torch.from_numpy(a), torch.from_numpy(b)).tolist() == [
        levenshtein(*map(list, two)) for two in zip(a, b)
    ]


@pytest.mark.parametrize("layers, n_train, p", [(1, 22, 11), (3, 2, 11), (3, 22, 11), (2, 22, 29)])
def test_pathways_are_those_of_each_equation_alone(layers, n_train, p):
    """By the model's own blocks, an equation at a time. Where every answer is that of two
    equations, partners by answer are known. The last table is larger than a chunk of an
    evaluation."""
    stack = stack_of(
        experts.Routing,
        experts.Config,
        experts=4,
        top_k=2,
        layers=layers,
        seed=[0, 1, 2],
        p=p,
        frac=n_train / p**2,
        init_scale=2.0,
    )
    stack.labels[stack.train] = torch.arange(n_train).repeat(3) // 2
    measured = stack.measure()
    for i, W in enumerate(stack.W):
        model, paths, directions, shares = stack.config.model(), [], [], {}
        block, mixture = model.block, model.mixture

        def layered(h, q, k, v, weights, drop):  # what a matrix sees last is "="
            model.activation = lambda h: (
                shares.update({weights[2]: h[0, 0, -1, :4].softmax(0)}) or mixture(h)
            )
            return block(h, q, k, v, weights, drop)

        model.block = layered
        for x, y in zip(stack.x[i, stack.train[i]], stack.y[i, stack.train[i]]):
            shares.clear()
            model(W[None], x[None, None], y[None, None])
            best = [sorted(range(4), key=lambda e: -share[e])[:2] for share in shares.values()]
            assert len(best) == layers
            paths.append(sum(best, []))
            directions.append(
                [
                    sum(share[e] * up[0, :, e] for e in two)
                    for two, (up, share) in zip(best, shares.items())
                ]
            )
        pairs = list(zip(paths[::2], paths[1::2]))
        distance = np.mean([levenshtein(*pair) for pair in pairs])
        assert measured["route_distance_z"][i] == pytest.approx(distance)
        order = grok.rng(i, "noise", 0, 2).permutation(n_train)  # a cycle through all of them
        distance = np.mean(
            [levenshtein(paths[a], paths[b]) for a, b in zip(order, np.roll(order, 1))]
        )
        assert measured["route_distance"][i] == pytest.approx(distance)
        first = np.array(paths)[:, ::2]
        assert measured["route_load"][i] == pytest.approx(
            np.mean([np.bincount(column).max() / n_train for column in first.T])
        )
        cosines = [
            torch.cosine_similarity(*two, dim=0).item()
            for one in directions
            for two in zip(one, one[1:])
        ]
        assert measured["route_consistency"][i] == pytest.approx(np.mean(cosines or [0]), abs=1e-5)
    assert measured["route_distance_z"].any()


# --- transfer_entropy.py --------------------------------------------------------------------------


def test_transfer_entropy_of_a_noisy_copy_is_the_channels_capacity_in_its_own_direction_and_lag():
    """t follows a fair coin s after `lag` evaluations, with errors: ln 2 - H(errors) nats that way,
    0 the other way and at another lag. Of a copy without delay, or of what t's own past tells,
    nothing is transferred."""
    random = np.random.default_rng(0)
    s = random.integers(2, size=(4, 5000))
    for lag, errors in (1, 0.0), (1, 0.1), (3, 0.2):
        t = np.roll(s, lag, 1) ^ (random.random(s.shape) < errors)
        t[:, :lag] = 0
        capacity = math.log(2) + sum(q * math.log(q) for q in (errors, 1 - errors) if q)
        assert (
            te.transfer_entropy(s, t, lag) == pytest.approx(capacity, abs=0.01) and capacity > 0.19
        )
        assert te.transfer_entropy(t, s, lag) < 0.001 and te.transfer_entropy(s, t, lag + 1) < 0.001
    assert te.transfer_entropy(s, s) == pytest.approx(0, abs=1e-9)
    clock = np.arange(5000)[None].repeat(4, 0) % 3  # has its next value from its own past
    assert te.transfer_entropy((clock + 1) % 3, clock) == pytest.approx(0, abs=1e-9)


def test_the_control_has_what_curves_share_and_the_excess_what_a_run_has_of_its_own():
    """Three runs: a trend of all, whose past tells of a target that has none; and a coin of each
    run's own."""
    random = np.random.default_rng(1)
    trend = random.integers(2, size=(1, 4000)).repeat(3, 0)
    shared, own = (
        te.with_control(trend, np.roll(trend, 1, 1), 1),
        random.integers(2, size=(3, 4000)),
    )
    assert shared == pytest.approx([math.log(2)] * 2, abs=0.01)
    assert te.with_control(own, np.roll(own, 1, 1), 1) == pytest.approx([math.log(2), 0], abs=0.01)


def test_the_table_is_of_runs_that_differ_in_seed_alone(tmp_path, capsys):
    """Two groups in the folders of grok.py, with made curves: in one val follows train in updates
    210 to 400 alone, in the other train follows val."""
    random = np.random.default_rng(2)
    for lr in 0.001, 0.002:
        runs = [grok.Run(c, "") for c in grok.Config.grid(**TINY, lr=lr, seed=range(15))]
        records = grok.Records(tmp_path / str(lr), runs, True, grok.contextlib.ExitStack())
        for run in runs:
            coin, other = random.integers(2, size=(2, 61))
            follows = (
                np.where((np.arange(61) > 20) & (np.arange(61) <= 40), np.roll(coin, 1), other)
                if lr == 0.001
                else np.roll(coin, 1)
            )
            pair = (coin, follows) if lr == 0.001 else (follows, coin)
            for step in (
                1,
                2,
                5,
                *range(10, 610, 10),
            ):  # those before 10 are no multiple of eval_every
                train, val = (0.5 if step % 10 else float(curve[step // 10]) for curve in pair)
                records.add(run, dict(step=step, train_acc=train, val_acc=val, seconds=1.0))
    assert te.main([str(tmp_path), "--window", "20"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["group"], row["source"], row["target"], row["n"]) for row in rows] == [
        (f"lr {lr}", "train_acc", "val_acc", "15") for lr in (0.001, 0.002)
    ]
    there, back = (
        {
            name: float(row[name])
            for name in (
                "transfer",
                "control",
                "back",
                "back_control",
                "most_from",
                "most_to",
                "most_excess",
            )
        }
        for row in rows
    )
    assert (
        0.02 < there["transfer"] < 0.2
        and max(there["control"], there["back"], there["back_control"]) < 0.01
    )
    assert back["back"] == pytest.approx(math.log(2), abs=0.01) and back["back_control"] < 0.01
    assert (
        there["most_from"] == pytest.approx(210, abs=10)
        and there["most_to"] == there["most_from"] + 190
        and there["most_excess"] > 0.6
    )


@pytest.mark.parametrize("bins", [2, 4])
def test_bins_have_as_many_values_each_whatever_their_size_and_the_lag_is_that_asked_for(
    bins, tmp_path, capsys
):
    """Of very uneven values that come again after two evaluations, falling where they rose:
    ln(bins) nats at lag 2, none at lag 1."""
    random, runs = (
        np.random.default_rng(3),
        [grok.Run(c, "") for c in grok.Config.grid(**TINY, seed=range(20))],
    )
    records = grok.Records(tmp_path / "runs", runs, True, grok.contextlib.ExitStack())
    for run in runs:
        drawn = random.normal(size=62)
        for i in range(2, 62):
            records.add(
                run,
                dict(
                    step=10 * i,
                    train_acc=7 + math.exp(3 * drawn[i]),
                    val_acc=math.exp(-3 * drawn[i - 2]),
                    seconds=1.0,
                ),
            )
    for lag, nats in (1, 0), (2, math.log(bins)):
        assert te.main([str(tmp_path), "--bins", str(bins), "--lag", str(lag)]) == 0
        (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
        assert [float(row[name]) for name in ("transfer", "control", "back")] == pytest.approx(
            [nats, 0, 0], abs=0.1
        )


def test_what_cannot_be_computed_is_said_in_a_line(tmp_path, capsys):
    grok.train(grok.Config.grid(**TINY, seed=[0, 1]), out=tmp_path / "two", quiet=True)
    grok.train(grok.Config(**TINY), out=tmp_path / "one", quiet=True)
    (tmp_path / "none").mkdir()
    for given, said in (
        (["none"], "no metrics.csv"),
        (["one", "--window", "3"], "1 runs share 3"),
        (["two"], "--window"),
        (["two", "--window", "3", "--lag", "2"], "--lag"),
        (["two", "--window", "3", "--bins", "1"], "--bins"),
        (["two", "--window", "3", "--target", "gini"], "--target gini: must be columns"),
    ):
        assert te.main([str(tmp_path / given[0]), *given[1:]]) == 2
        out, err = capsys.readouterr()
        assert said in err and err.count("\n") == 1 and not out
    assert te.main([str(tmp_path / "two"), "--window", "3", "--source", "weight_norm"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("x_plus_y,weight_norm,val_acc,2,")


# --- features.py ----------------------------------------------------------------------------------


def test_strength_is_the_alignment_of_two_centred_kernels_and_the_readout_least_squares():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 50)
    Y, H = np.eye(4)[labels], random.normal(size=(50, 6)) + 3
    centre = np.eye(50) - 1 / 50
    K, L = (centre @ M @ M.T @ centre for M in (H, Y))
    strength = lambda *M: features.strength(*map(torch.from_numpy, M)).item()
    assert (
        strength(H, Y) == pytest.approx((K * L).sum() / np.linalg.norm(K) / np.linalg.norm(L))
        and 0 < strength(H, Y) < 0.5
    )
    assert strength(Y @ random.normal(size=(4, 4)), Y) > strength(H, Y) and strength(
        2 * Y + 1, Y
    ) == pytest.approx(1)
    others, scale = random.normal(size=(9, 6)), ((H - H.mean(0)) ** 2).mean()
    rows = np.r_[
        np.c_[H, np.ones(50)], np.c_[(1e-4 * scale * 50) ** 0.5 * np.eye(6), np.zeros(6)]
    ]  # ridge as more equations, not on the constant
    expected = (
        np.c_[others, np.ones(9)] @ np.linalg.lstsq(rows, np.r_[Y, np.zeros((6, 4))], rcond=None)[0]
    )
    assert np.allclose(
        features.readout(*map(torch.from_numpy, (H, Y, others))), expected, atol=1e-9
    )


def test_features_are_what_the_output_layer_reads_and_the_scale_is_in_the_loss_alone():
    stack = stack_of(features.Features, features.Config, output_scale=[1.0, 3.0], layers=2)
    head, logits = stack.model.weights(stack.W)["head"], stack.over_table(lambda z, y: z.mT).mT
    assert torch.allclose(stack.features() @ head, logits, atol=1e-5) and torch.equal(
        stack.over_table(lambda z, y: z.mT).mT, logits
    )
    losses = stack.losses(logits, stack.labels)
    for row, scale in enumerate((1, 3)):
        assert torch.allclose(
            losses[row],
            torch.nn.functional.cross_entropy(
                scale * logits[row], stack.labels[row], reduction="none"
            ),
            atol=1e-5,
        )
    columns = stack.measure()
    assert torch.equal(columns["val_loss"], grok.Stack.measure(stack)["val_loss"])
    hot, train = torch.nn.functional.one_hot(stack.labels, 13).float(), stack.train[..., None]
    stack.features = lambda: hot  # features that name the answer
    assert stack.measure()["quality"].tolist() == [1, 1] and torch.allclose(
        stack.measure()["strength"], torch.ones(2).double()
    )
    stack.features = lambda: torch.where(train, hot, hot.roll(1, 2))  # in training alone
    assert stack.measure()["quality"].tolist() == [0, 0] and torch.allclose(
        stack.measure()["strength"], torch.ones(2).double()
    )
    stack.features = lambda: torch.where(train, torch.tensor(torch.inf), torch.nan).expand(
        -1, -1, 16
    )
    assert all(stack.measure()[name].isfinite().all() for name in ("strength", "quality"))


# --- exponentiation.py ----------------------------------------------------------------------------


def test_reciprocal_training_sets_are_closed_under_exchange_and_of_the_size_asked_for():
    stack = stack_of(
        exponentiation.Exponentiation,
        exponentiation.Config,
        op="x_pow_y",
        reciprocal=[0, 1],
        frac=[0.3, 0.7],
        seed=[0, 1],
    )
    for run, x, y, train in zip(stack.runs, stack.x, stack.y, stack.train):
        pairs = set(zip(x[train].tolist(), y[train].tolist()))
        assert len(pairs) - run.config.sizes()[2] in (0, run.config.reciprocal)
        assert ({(b, a) for a, b in pairs} == pairs) == run.config.reciprocal and any(
            a == b for a, b in pairs
        )
    assert not torch.equal(stack.train[4], stack.train[5])  # each seed its own


@pytest.mark.parametrize("planted", ["gini_log", "gini_plain"])
def test_gini_sees_a_wave_in_its_own_order_alone(planted):
    """2 is a primitive root mod 11, the least. A wave of one frequency has a Gini coefficient of 1
    - 1/n among n = 5."""
    position = (
        {pow(2, i, 11): i for i in range(10)}
        if planted == "gini_log"
        else {z: z - 1 for z in range(1, 11)}
    )
    stack = stack_of(exponentiation.Exponentiation, exponentiation.Config)
    embed = stack.model.weights(stack.W)["embed"]
    embed[:] = 0
    for z in range(1, 11):
        embed[0, z, 3] = math.cos(2 * math.pi * 3 * position[z] / 10 + 1)
    columns = stack.measure()
    assert columns.pop(planted).item() == pytest.approx(0.8, abs=1e-3)
    assert all(
        columns[name].item() < 0.7 for name in {"gini_log", "gini_plain", "gini_random"} - {planted}
    )


def test_exponentiation_wants_all_pairs_mod_an_odd_prime(capsys):
    for arguments, said in (
        ["--op s5_xy", "odd prime"],
        ["--reciprocal 1", "all pairs"],
        ["--op x_pow_y --reciprocal 1 --outliers 1", "outliers"],
        ["--op x_pow_y --p 2", "odd prime"],
        ["--op x_pow_y --p 9", "odd prime"],
    ):
        assert (
            grok.main(arguments.split(), exponentiation.Config, exponentiation.Exponentiation) == 2
        )
        assert said in capsys.readouterr().err
    assert (
        grok.main(["--list-ops"], exponentiation.Config, exponentiation.Exponentiation) == 0
        and "s5_xyx" in capsys.readouterr().out
    )


# --- unified.py -----------------------------------------------------------------------------------


def test_the_four_courses_and_what_most_seeds_do():
    times = {
        (None, None): "neither",
        (100, None): "memorised",
        (100, 200): "grokked",
        (100, 199): "at once",
        (None, 50): "at once",
        (300, 100): "at once",
    }
    assert {pair: unified.course(*pair) for pair in times} == times
    group = [(unified.course(*pair), *pair) for pair in ((100, 900), (200, None), (300, 1000))]
    assert unified.said(group) == ("grokked", "200 / 1,000")
    assert unified.said([(unified.course(*pair), *pair) for pair in ((100, None), (100, 300))]) == (
        "memorised",
        "100 / never",
    )  # a tie


def test_the_map_of_a_folder(tmp_path, capsys):
    grok.train(
        Config.grid(**TINY | dict(steps=5), frac=[0.4, 0.6], seed=[0, 1])
        + [Config(**TINY | dict(width=8, steps=5))],
        out=tmp_path,
        quiet=True,
    )
    assert unified.main(tmp_path) == 0 and (tmp_path / "unified.png").stat().st_size > 5000
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["width", width, "fraction", frac, "neither", "never", "/", "never", "n", "=", n]
        for width, frac, n in (("8", "0.5", "1"), ("16", "0.4", "2"), ("16", "0.6", "2"))
    ]
    assert unified.main(tmp_path / "nowhere") == 2 and capsys.readouterr().err.count("\n") == 1
    grok.train(
        Config.grid(**TINY | dict(steps=5), lr=[1e-3, 2e-3]), out=tmp_path / "lr", quiet=True
    )
    assert unified.main(tmp_path / "lr") == 2 and "differ" in capsys.readouterr().err


def test_the_map_has_fractions_across_and_widths_up_each_in_the_colour_of_its_course(monkeypatch):
    import matplotlib.figure as mf

    seen = []
    monkeypatch.setattr(mf.Figure, "savefig", lambda self, *a, **k: seen.append(self))
    unified.draw(
        {
            (8, 0.2): [("memorised", 5, None)],
            (8, 0.6): [("grokked", 5, 50)],
            (32, 0.6): [("at once", 5, 6)],
        },
        None,
        "x",
    )
    axes = seen[0].axes[0]
    cells = {
        (bar.get_x() + 0.5, bar.get_y() + 0.5): mf.mpl.colors.to_hex(bar.get_facecolor())
        for bar in axes.patches
        if bar.get_width() == 1
    }
    colour = dict(zip(unified.COURSES, unified.COLOURS))
    assert (
        cells == {(0, 0): colour["memorised"], (1, 0): colour["grokked"], (1, 1): colour["at once"]}
        and len(set(colour.values())) == 4
    )
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.2", "0.6"] and [
        t.get_text() for t in axes.get_yticklabels()
    ] == ["8", "32"]


# --- measures.py, lead.py -------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["x_plus_y", "s5_xy"])
def test_all_measures_together_are_those_of_each_study_and_leave_training_alone(op):
    settings = dict(TINY, op=op, frac=0.05 if op == "s5_xy" else 0.5, steps=12, eval_every=5)
    alone = [(progress.Progress, progress.Config)] * (op != "s5_xy") + [
        (tracing.Tracing, tracing.Config),
        (spectra.Spectra, spectra.Config),
        (features.Features, features.Config),
        (llm.LocalGrokking, llm.Config),
        (grok.Stack, Config),
    ]
    (together,) = grok.train(measures.Config(**settings), method=measures.Measures, quiet=True)
    names = set()
    for method, config in alone:
        (run,) = grok.train(config(**settings), method=method, quiet=True)
        for row, other in zip(run.log, together.log, strict=True):
            assert all(value == other[name] for name, value in row.items() if name != "seconds")
        names |= run.log[-1].keys()
    assert names == together.log[-1].keys()


def test_the_cost_is_told_of_each_study():
    rows = list(measures.cost(measures.Config(**TINY), 2))
    assert [name for name, _ in rows] == [
        "Stack",
        "Progress",
        "Spectra",
        "Features",
        "LocalGrokking",
        "Tracing",
        "Measures",
    ] * 2
    assert all(seconds > 0 for _, seconds in rows)


def test_leads_and_roc_areas_by_hand_and_by_scikit_learn():
    from sklearn.metrics import roc_auc_score

    steps, random = np.arange(0, 100, 10.0), np.random.default_rng(0)
    train = np.array([0, 0.5, 0.99, 1, 1, 1, 1, 1, 1, 1])
    val = np.array(
        [0, 0, 0.01, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99, 1]
    )  # starts at update 20, is half way at 60, ends at 80
    early = np.array(
        [9, 9, 5, 4, 2.9, 2, 1.5, 1, 1, 7]
    )  # from 5 to 1, half way at 40; what follows does not count
    late = np.array([0, 3, 0, 0, 0, 0, 0, 0, 8, 0.0])
    runs = [
        (
            dict(seed=i),
            dict(
                step=steps,
                train_acc=train,
                val_acc=val if i < 4 else 0 * val,
                early=early,
                late=late,
                drawn=random.normal(size=10),
            ),
        )
        for i in range(9)
    ]
    runs.append(
        (dict(seed=9), dict(runs[0][1], train_acc=0.5 * train))
    )  # never memorises: left out
    runs.append(
        (dict(seed=10), dict(runs[0][1], val_acc=np.maximum(val, train)))
    )  # generalises at once: no lead
    rows = lead.rows_of(runs)
    of = {
        name: [row for row in rows if row["column"] == name]
        for name in ("val_acc", "early", "late", "drawn")
    }
    assert (
        all([row["seed"] for row in some] == [*range(9), 10] for some in of.values())
        and len(rows) == 40
    )
    assert [[row["lead"] for row in of[name]] for name in ("val_acc", "early", "late")] == [
        [n] * 4 + [""] * 6 for n in (0, 20, -20)
    ]
    drawn = of["drawn"]
    before = [row for row in drawn if row["seed"] != 10]  # it has generalised by then
    assert drawn[0]["auc"] == pytest.approx(
        roc_auc_score([row["generalises"] for row in before], [row["at_99"] for row in before])
    )
    # runs 4 to 8 do not generalise: all go as far in `early`, which is the same in all, none in
    # val_acc; drawn by a loop
    far = [
        sum(any((v - c["drawn"][2]) / way >= 0.5 for v in c["drawn"][2:]) for _, c in runs[4:9]) / 5
        for way in (c["drawn"][8] - c["drawn"][2] for _, c in runs[:4])
    ]
    assert [row["alarms"] for row in drawn] == [*far, *[""] * 6]
    assert [[row["alarms"] for row in of[name]] for name in ("early", "val_acc")] == [
        [n] * 4 + [""] * 6 for n in (1, 0)
    ]
    assert lead.halfway(np.full(3, 2.0)) is None and lead.halfway(np.array([0, np.nan])) is None
    assert of["late"][0]["auc"] == 0.5 and [row["at_99"] for row in drawn] == [
        runs[row["seed"]][1]["drawn"][2] for row in drawn
    ]


def test_the_picture_has_each_column_of_each_run_over_the_accuracies():
    steps, rise = np.arange(1.0, 6), np.array([0, 0, 0.5, 1, 1])
    runs = [
        ({}, dict(step=steps, train_acc=rise[::-1], val_acc=val, gini=gini * rise, seconds=steps))
        for val, gini in ((rise, 2), (0.5 * rise, 3))
    ]
    axes = lead.picture(runs, "made").axes
    panels = {a.get_title(): a for a in axes if a.get_title()}
    assert [*panels] == ["train_acc", "val_acc", "gini"]
    for name, a in panels.items():
        assert [line.get_ydata().tolist() for line in a.lines] == [
            columns[name].tolist() for _, columns in runs
        ]
        assert [line.get_color() for line in a.lines] == [
            "#0072B2",
            "#D55E00",
        ] and a.get_xscale() == "log"
        (under,) = (b for b in axes if b is not a and a.get_shared_x_axes().joined(a, b))
        assert [line.get_ydata().tolist() for line in under.lines] == [
            columns[c].tolist() for _, columns in runs for c in ("train_acc", "val_acc")
        ]
        assert under.get_zorder() < a.get_zorder()


def test_lead_writes_a_row_for_each_run_and_column_and_a_picture(tmp_path, capsys):
    for name, steps in ("some", 800), ("short", 8):
        configs = measures.Config.grid(
            **dict(TINY, lr=0.01, weight_decay=0.0, steps=steps, eval_every=steps // 2),
            seed=[0, 1, 2],
        )
        runs = grok.train(configs, out=tmp_path / name, method=measures.Measures, quiet=True)
        if name == "some":
            columns = [c for c in runs[0].log[0] if c not in ("step", "seconds", "train_acc")]
            memorised = [
                str(run.config.seed)
                for run in runs
                if any(row["train_acc"] >= 0.99 for row in run.log)
            ]
    assert lead.main([str(tmp_path / "some"), "--out", str(tmp_path / "to")]) == 0
    with open(tmp_path / "to" / "lead.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["folder"], row["column"], row["seed"]) for row in rows] == [
        ("some", c, seed) for c in columns for seed in memorised
    ]
    assert len(memorised) > 1 and "lr" not in rows[0]  # which is the same in all
    assert (tmp_path / "to" / "some.png").stat().st_size > 10_000
    for name in "short", "none":
        assert (
            lead.main([str(tmp_path / name), "--out", str(tmp_path / "no")]) == 2
            and name in capsys.readouterr().err
        )
    assert not (tmp_path / "no").exists()

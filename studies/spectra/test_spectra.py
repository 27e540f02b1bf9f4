"""Properties of the exponent, of FACT and of L2, by loops, by numpy and by torch's optimisers."""

import csv

import grok
import mean
import numpy as np
import pytest
import spectra
import torch
import torch.nn.functional as F
from spectra import Config, Spectra

TINY = dict(op="x_plus_y", p=11, batch_size=0, steps=3, until=0.0, threads=1)
GROK = TINY | dict(layers=1, width=16, heads=2)
MLP = TINY | dict(net="mlp", hidden=(12, 8))


def clauset(values):
    """α by loops: for each λ_min the maximum-likelihood α, and the greatest distance of the two
    cumulative shares."""
    best = np.inf, 0
    for low in sorted(values)[:-1]:
        tail = np.array(sorted(v for v in values if v >= low))
        alpha = 1 + len(tail) / np.log(tail / low).sum()
        fitted = 1 - (tail / low) ** (1 - alpha)
        shares = np.arange(len(tail)) / len(tail)
        distance = abs(shares - fitted).max()
        best = min(best, (distance, alpha))
    return best[1]


@pytest.mark.parametrize("alpha, scale", [(2.5, 1.0), (4.0, 1e-3)])
def test_the_exponent_is_that_of_a_power_laws_tail_whatever_lies_below_it(alpha, scale):
    random = np.random.default_rng(0)
    middle = (np.arange(300) + 0.5) / 300
    tail = (1 - middle) ** (-1 / (alpha - 1))  # quantiles of p(λ) ~ λ^-α from 1 on
    bulk = random.uniform(0.2, 0.9, 90)
    values = scale * random.permutation(np.concatenate([tail, bulk, np.zeros(10)]))
    assert spectra.exponent(torch.from_numpy(values)).item() == pytest.approx(alpha, rel=0.03)


def test_the_exponent_is_clausets_on_spectra_that_are_no_power_law():
    matrix = np.random.default_rng(0).standard_normal((20, 50))
    values = np.linalg.svd(matrix, compute_uv=False) ** 2
    measured = spectra.exponent(torch.from_numpy(values)).item()
    assert measured == pytest.approx(clauset(list(values)))


@pytest.mark.parametrize("spectrum", [[0.0] * 5, [2.0] * 5])
def test_the_exponent_of_a_flat_spectrum_is_finite(spectrum):
    assert torch.isfinite(spectra.exponent(torch.tensor(spectrum, dtype=torch.float64)))


@pytest.mark.parametrize("settings, count", [(GROK, 7), (MLP, 3)])
def test_each_matrix_has_an_exponent_and_nothing_else_has(settings, count):
    run = Spectra(Config(**settings))
    names = [name for name in run.measure(run.model) if name.startswith("alpha_")]
    assert len(names) == count


@pytest.mark.parametrize("settings", [GROK, MLP])
def test_the_exponent_of_a_matrix_is_that_of_its_squared_singular_values(settings):
    run = Spectra(Config(**settings))
    measured = run.measure(run.model)
    matrices = {name: w for name, w in run.model.named_parameters() if w.ndim == 2}
    for name, w in matrices.items():
        values = np.linalg.svd(w.detach().double().numpy(), compute_uv=False) ** 2
        alpha = measured[f"alpha_{name.removesuffix('.weight')}"].item()
        assert alpha == pytest.approx(clauset(list(values)), rel=1e-5)


def cosine(a, b):
    """Of two matrices."""
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_fact_of_the_head_by_each_equations_own_gradient(loss):
    """∇_h ℓ of each training equation, and the h that the head reads, by a hook."""
    run = Spectra(Config(**GROK, loss=loss))
    seen = []
    handle = run.model.head.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    logits = run.model(*(t[run.train_rows] for t in run.inputs))
    handle.remove()
    total = run.loss(logits, run.labels[run.train_rows])
    (slopes,) = torch.autograd.grad(total, seen[0])
    w = run.model.head.weight.detach()
    other_side = -torch.einsum("ni,nj->ij", slopes, seen[0])
    expected = cosine(w.T @ w, other_side)
    measured = run.measure(run.model)["fact_head"].item()
    assert 0.01 < abs(expected) < 0.99
    assert measured == pytest.approx(expected, abs=1e-4)


def test_fact_of_a_one_hot_layer_is_that_of_the_same_linear_layer():
    run = Spectra(Config(**MLP, loss="mse"))
    rows, layer = run.train_rows, run.model.first
    linear = torch.nn.Linear(22, 12, bias=False)
    linear.weight.data = layer.weight.detach().T.clone()
    codes = torch.cat([F.one_hot(t[rows], 11).float() for t in run.inputs], dim=1)
    h = linear(codes)
    for part in run.model.rest:
        h = part(h.relu())
    run.loss(h, run.labels[rows]).backward()
    w, g = linear.weight.detach(), linear.weight.grad
    expected = cosine(w.T @ w, -(w.T @ g))
    measured = run.measure(run.model)["fact_first"].item()
    assert measured == pytest.approx(expected, abs=1e-4)


def test_fact_is_1_where_the_gradient_cancels_the_decay(monkeypatch):
    run = Spectra(Config(**GROK))
    against = {name: -1e-3 * w.detach() for name, w in run.model.named_parameters()}
    monkeypatch.setattr(run, "whole_gradient", lambda model: against)
    measured = run.measure(run.model)
    facts = [value.item() for name, value in measured.items() if name.startswith("fact_")]
    assert facts == pytest.approx([1.0] * 7)


def test_the_whole_gradient_is_that_of_a_full_batch():
    run = Spectra(Config(**GROK))
    run.advance()
    other = Spectra(Config(**GROK))
    gradient = other.whole_gradient(other.model)
    for name, w in run.model.named_parameters():
        torch.testing.assert_close(gradient[name], w.grad, rtol=1e-4, atol=1e-7)


def test_l2_is_torch_adams():
    config = Config(**MLP, l2=0.1, weight_decay=0.0)
    ours = grok.train(config, quiet=True, method=Spectra)

    class WithAdam(Spectra):
        def build_optimizer(self):
            weights = self.model.parameters()
            return torch.optim.Adam(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)

        def on_after_backward(self):
            pass

    theirs = grok.train(config, quiet=True, method=WithAdam)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# --- mean.py --------------------------------------------------------------------------------------


def test_the_mean_over_one_update_is_of_the_weights_after_it():
    config = Config(**MLP, loss="mse", l2=0.1, weight_decay=0.0)
    row = mean.row_of(Spectra(config), 1)
    run = Spectra(config)
    before = run.measure(run.model)
    run.advance()
    after = run.measure(run.model)
    for layer in "first", "rest.0", "rest.1":
        assert row[f"now_{layer}"] == pytest.approx(before[f"fact_{layer}"].item())
        assert row[f"mean_{layer}"] == pytest.approx(after[f"fact_{layer}"].item())


def test_gradients_that_jump_to_and_fro_have_a_mean_that_does_not(monkeypatch):
    """One of both signs that cancels, beside one that cancels the decay."""
    run = Spectra(Config(**MLP))
    start = mean.weights_of(run)
    signs = iter([1, 1, -1, 1, -1])

    def jumping(model):
        sign = next(signs)
        return {name: sign * torch.ones_like(w) - 0.1 * w for name, w in start.items()}

    monkeypatch.setattr(run, "advance", lambda: None)
    monkeypatch.setattr(run, "whole_gradient", jumping)
    row = mean.row_of(run, 4)
    assert row["now_first"] < 0.9
    assert row["mean_first"] == pytest.approx(1)


def test_what_lies_near_zero():
    """Outputs of one unit are ±1 but for a share of 1/11 that is 0, another unit is off."""
    run = Spectra(Config(**MLP | dict(hidden=(2,))))
    weight = torch.zeros(22, 2)
    weight[:11, 0] = torch.tensor([0.0] + 5 * [1.0, -1.0])
    weight[:11, 1] = -1.0
    run.model.first.weight.data = weight
    x = run.inputs[0][run.train_rows]
    expected = (x == 0).float().mean().item()
    assert mean.near_zero(run) == pytest.approx(expected)


def test_a_row_for_each_run_of_a_folder(tmp_path):
    for seed in 0, 1:
        grok.train(Config(**MLP, seed=seed), tmp_path / str(seed), quiet=True, method=Spectra)
    assert mean.main([str(tmp_path), "--updates", "2", "--out", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "mean.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["step"]) for row in rows] == [("0", "3"), ("1", "3")]


def test_a_folder_without_such_runs_gets_one_line(tmp_path, capsys):
    assert mean.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_without_mlps_gets_one_line(tmp_path, capsys):
    grok.train(Config(**GROK), tmp_path, quiet=True, method=Spectra)
    assert mean.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no run with --net mlp" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_eigenvalue_has_no_exponent():
    assert spectra.exponent(torch.tensor([2.0])).isnan()


def test_two_decays_are_refused():
    with pytest.raises(grok.UsageError, match="--l2 0.1: goes with --weight-decay 0"):
        Config(l2=0.1)

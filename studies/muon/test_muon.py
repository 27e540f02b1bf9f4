"""Properties of Muon's steps, and of how AdamW and Muon share a model."""

import grok
import numpy as np
import pytest
import torch
from muon import Config, Muon, WithMuon, orthogonal

TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1)


def gradients(shapes, updates):
    """Made gradients, larger from update to update: [{name: tensor}]."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda shape, t: 10.0 ** (t - updates) * torch.randn(shape, generator=generator)  # noqa: E731
    return [{n: draw(shape, t) for n, shape in shapes.items()} for t in range(updates)]


SHAPES = pytest.mark.parametrize("shape", [(24, 16), (16, 24)])


def by_singular_vectors(shape):
    """U* orthogonal(G) V, (16, 16), of a random G = U S V*."""
    g = np.random.default_rng(0).normal(size=shape)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    return u.T @ orthogonal(torch.from_numpy(g)).numpy() @ vt.T


@SHAPES
def test_orthogonal_keeps_singular_vectors(shape):
    inner = by_singular_vectors(shape)
    np.testing.assert_allclose(inner, np.diag(np.diagonal(inner)), atol=1e-9)


@SHAPES
def test_orthogonal_makes_singular_values_nearly_1(shape):
    values = np.diagonal(by_singular_vectors(shape))
    assert values.min() > 0.65
    assert values.max() < 1.25


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is of torch 2.9")
@SHAPES
def test_muon_is_torch_muon_with_float32_for_bfloat16(shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = dict(lr=0.01, weight_decay=0.5)
    optimizers = [
        Muon([ours], **options),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options),
    ]
    for given in gradients(dict(w=shape), 6):
        for w, optimizer in zip((ours, theirs), optimizers, strict=True):
            w.grad = given["w"].clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - start).abs().max() > 0.01


class Given(WithMuon):
    """A run with made gradients."""

    def on_after_backward(self):
        shapes = {name: w.shape for name, w in self.model.named_parameters()}
        given = gradients(shapes, 4)[self.step - 1]
        for name, w in self.model.named_parameters():
            w.grad = given[name]


def adamw(weights, lr, decay):
    return torch.optim.AdamW(weights, lr, betas=(0.9, 0.98), weight_decay=decay)


def trained_by_hand(run, optimizer, decay_to):
    """Weights after four updates of Given: an optimiser, at the rate 0.02, on the matrices of the
    blocks, AdamW on the rest, both at their rates times min(1, t / 3)."""
    weights = {n: torch.nn.Parameter(w.detach().clone()) for n, w in run.model.named_parameters()}
    inner = [n for n in weights if n.startswith("blocks.") and "norm" not in n]
    rest = [n for n in weights if n not in inner]
    of_matrices = optimizer([weights[n] for n in inner], 0.02, 1.0)
    of_the_rest = adamw([weights[n] for n in rest], 1e-3, 1.0)
    shapes = {name: w.shape for name, w in weights.items()}
    for t, given in enumerate(gradients(shapes, 4), 1):
        warm = min(1, t / 3)
        of_matrices.param_groups[0]["lr"] = 0.02 * warm
        of_the_rest.param_groups[0]["lr"] = 1e-3 * warm
        for name, w in weights.items():
            w.grad = given[name]
        of_matrices.step()
        of_the_rest.step()
        if decay_to == "identity":
            for name in [n for n in rest if "norm" in n and n.endswith("weight")]:
                weights[name].data += 1e-3 * warm
    return weights


@pytest.mark.parametrize("matrices, optimizer", [("muon", Muon), ("adamw", adamw)])
@pytest.mark.parametrize("decay_to", ["origin", "identity"])
def test_the_matrices_of_the_blocks_have_a_rate_and_adamw_the_rest_with_one_warm_up(
    matrices, optimizer, decay_to
):
    settings = TINY | dict(muon_lr=0.02, warmup=3, decay_to=decay_to)
    run = Given(Config(**settings, matrices=matrices))
    expected = trained_by_hand(run, optimizer, decay_to)
    for _ in range(4):
        run.advance()
    for name, w in run.model.named_parameters():
        torch.testing.assert_close(w, expected[name], rtol=1e-4, atol=1e-5)


def test_with_muon_decay_to_the_start_is_refused():
    with pytest.raises(grok.UsageError, match="--decay-to init"):
        Config(**TINY, muon_lr=0.01, decay_to="init")


@pytest.mark.parametrize("settings", [dict(), dict(muon_lr=0.01, matrices="adamw")])
def test_without_muon_decay_to_the_start_is_not_refused(settings):
    Config(**TINY | settings, decay_to="init")


def test_what_would_have_no_effect_is_refused():
    with pytest.raises(grok.UsageError, match="--matrices: has no effect"):
        Config(**TINY, matrices="adamw")

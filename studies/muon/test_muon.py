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


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_orthogonal_keeps_singular_vectors_and_makes_their_values_nearly_1(shape):
    g = np.random.default_rng(0).normal(size=shape)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    inner = u.T @ orthogonal(torch.from_numpy(g)).numpy() @ vt.T
    values = np.diagonal(inner)
    np.testing.assert_allclose(inner, np.diag(values), atol=1e-9)
    assert 0.65 < values.min() < values.max() < 1.25


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is of torch 2.9")
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
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


def trained_by_hand(run, muon_lr, decay_to):
    """Weights after four updates of Given: Muon on the matrices of the blocks, AdamW on the rest,
    both at their rates times min(1, t / 3)."""
    weights = {n: torch.nn.Parameter(w.detach().clone()) for n, w in run.model.named_parameters()}
    inner = [n for n in weights if n.startswith("blocks.") and "norm" not in n]
    rest = [n for n in weights if n not in inner]
    muon = Muon([weights[n] for n in inner], muon_lr, 1.0)
    adamw = torch.optim.AdamW([weights[n] for n in rest], betas=(0.9, 0.98), weight_decay=1.0)
    shapes = {name: w.shape for name, w in weights.items()}
    for t, given in enumerate(gradients(shapes, 4), 1):
        warm = min(1, t / 3)
        adamw.param_groups[0]["lr"] = 1e-3 * warm
        muon.param_groups[0]["lr"] = muon_lr * warm
        for name, w in weights.items():
            w.grad = given[name]
        adamw.step()
        muon.step()
        if decay_to == "identity":
            for name in [n for n in rest if "norm" in n and n.endswith("weight")]:
                weights[name].data += 1e-3 * warm
    return weights


@pytest.mark.parametrize("decay_to", ["origin", "identity"])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest_with_one_warm_up(decay_to):
    run = Given(Config(**TINY, muon_lr=0.02, warmup=3, decay_to=decay_to))
    expected = trained_by_hand(run, 0.02, decay_to)
    for _ in range(4):
        run.advance()
    for name, w in run.model.named_parameters():
        torch.testing.assert_close(w, expected[name], rtol=1e-4, atol=1e-5)


def test_with_muon_decay_to_the_start_is_refused():
    with pytest.raises(grok.UsageError, match="--decay-to init"):
        Config(**TINY, muon_lr=0.01, decay_to="init")

"""Properties of EGD's transforms, of its network, and of plain descent with L2."""

import egd
import grok
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from egd import EGD, Config
from torch import nn

THEIRS = dict(op="x_plus_y", p=11, width=32, batch_size=16, net="theirs", threads=1)


def test_columns_have_norm_1_and_short_ones_grow_a_hundredfold():
    grad = torch.tensor([[3.0, 0.003, 0.0], [4.0, 0.004, 0.0]])
    expected = torch.tensor([[0.6, 0.3, 0.0], [0.8, 0.4, 0.0]])
    torch.testing.assert_close(egd.unit_columns(grad), expected)


@pytest.mark.parametrize("shape", [(22, 32), (32, 22)])
def test_svd_keeps_singular_vectors_and_makes_all_values_1(shape):
    grad = np.random.default_rng(0).normal(size=shape)
    u, _, vt = np.linalg.svd(grad, full_matrices=False)
    ours = egd.equal_singular_values(torch.from_numpy(grad)).numpy()
    np.testing.assert_allclose(u.T @ ours @ vt.T, np.eye(22), atol=1e-9)


def transformed(name, g):
    """The change of W₁'s gradient (inputs, units) by other means: a loop, a matrix root."""
    if name == "columns":
        return np.stack([c / max(0.01, np.sqrt(c @ c)) for c in g.T], axis=1)
    if name == "svd":  # U Vᵀ = (G Gᵀ)^(-1/2) G
        values, vectors = np.linalg.eigh(g @ g.T)
        return vectors / np.sqrt(values) @ vectors.T @ g
    return g


def updates_by_hand(run, name, lr, decay, updates):
    """Descent on cross-entropy of a one-hot network + ½ decay (‖W₁‖² + ‖W₂‖²), in float64."""
    model = run.model
    w1, b, w2 = (
        t.detach().double().requires_grad_()
        for t in (model.first.weight, model.first.bias, model.rest[0].weight)
    )
    x, y = (torch.eye(11, dtype=torch.float64)[t] for t in run.inputs)
    for step in range(1, updates + 1):
        run.step = step
        rows = run.batch()
        hidden = F.relu(torch.cat([x, y], dim=1)[rows] @ w1 + b)
        loss = F.cross_entropy(hidden @ w2.T, run.labels[rows])
        loss = loss + decay / 2 * (w1.square().sum() + w2.square().sum())
        g1, gb, g2 = torch.autograd.grad(loss, [w1, b, w2])
        g1 = torch.from_numpy(transformed(name, g1.numpy()))
        with torch.no_grad():
            for w, g in (w1, g1), (b, gb), (w2, g2):
                w -= lr * g
    run.step = 0
    return w1, b, w2


@pytest.mark.parametrize("name", ["sgd", "columns", "svd"])
def test_each_optimiser_against_descent_by_hand(name):
    decay = 0.1  # so large that L2 makes a difference
    config = Config(**THEIRS, optimizer=name, lr=0.05, weight_decay=decay, warmup=0)
    run, other = EGD(config), EGD(config)
    for model in run.model, other.model:
        nn.init.ones_(model.first.bias)  # at 0, decay of it would not show
    expected = updates_by_hand(other, name, 0.05, decay, 3)
    for _ in range(3):
        run.advance()
    model = run.model
    ours = model.first.weight, model.first.bias, model.rest[0].weight
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_their_network_has_a_bias_in_its_first_layer_alone():
    weights = EGD(Config(**THEIRS, optimizer="sgd")).model.named_parameters()
    shapes = {name: tuple(w.shape) for name, w in weights}
    assert shapes == {"first.weight": (22, 32), "first.bias": (32,), "rest.0.weight": (11, 32)}


def test_their_network_starts_as_in_their_code():
    """W₁ from N(0, 1 / p), W₂ from N(0, 2 / width), the bias at 0."""
    model = EGD(Config(**THEIRS | dict(p=97, width=512), optimizer="sgd")).model
    first, last = model.first.weight, model.rest[0].weight
    assert first.square().mean().item() == pytest.approx(1 / 97, rel=0.02)
    assert last.square().mean().item() == pytest.approx(2 / 512, rel=0.02)
    assert not model.first.bias.any()


def test_without_bias_the_other_weights_start_the_same():
    with_bias, without = (
        dict(EGD(Config(**THEIRS, optimizer="sgd", bias=bias)).model.named_parameters())
        for bias in (True, False)
    )
    del with_bias["first.bias"]
    torch.testing.assert_close(without, with_bias, rtol=0, atol=0)


def test_without_bias_is_with_a_bias_that_stays_at_0():
    class Held(EGD):
        def on_after_backward(self):
            super().on_after_backward()
            self.model.first.bias.grad.zero_()

    settings = THEIRS | dict(optimizer="columns", lr=0.5, weight_decay=1e-4, steps=5, until=0.0)
    held = grok.train(Config(**settings), quiet=True, method=Held).model
    without = grok.train(Config(**settings, bias=False), quiet=True, method=EGD).model
    torch.testing.assert_close(held.first.weight, without.first.weight)
    assert not held.first.bias.any()


@pytest.mark.parametrize(
    "settings, flag",
    [
        (dict(optimizer="sgd", layers=3), "--layers"),
        (dict(optimizer="sgd", heads=2), "--heads"),
        (dict(optimizer="sgd", dropout=0.1), "--dropout"),
        (dict(optimizer="sgd", init_scale=2.0), "--init-scale"),
        (dict(optimizer="sgd", embed_init_scale=2.0), "--embed-init-scale"),
        (dict(optimizer="sgd", position_scale=2.0), "--position-scale"),
        (dict(optimizer="sgd", beta1=0.5), "--beta1"),
        (dict(optimizer="sgd", beta2=0.5), "--beta2"),
        (dict(optimizer="sgd", eps=1e-6), "--eps"),
        (dict(optimizer="sgd", decay_to="init"), "--decay-to"),
        (dict(optimizer="sgd", net="grok", bias=False), "--bias"),
        (dict(optimizer="columns", net="grok"), "--optimizer columns"),
        (dict(optimizer="svd", net="grok"), "--optimizer svd"),
    ],
)
def test_what_would_have_no_effect_is_refused(settings, flag):
    with pytest.raises(grok.UsageError, match=flag):
        Config(**THEIRS | settings)


def test_svd_leaves_what_is_all_but_0_small():
    u, _, v = torch.linalg.svd(torch.randn(6, 4, generator=torch.manual_seed(0)))
    values = torch.tensor([3.0, 1.0, 0.1, 1e-9])
    equal = egd.equal_singular_values(u[:, :4] * values @ v)
    assert torch.linalg.svdvals(equal)[:3].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert torch.linalg.svdvals(equal)[3] < 0.5


def test_their_network_may_have_any_width():
    config = Config(op="x_plus_y", p=11, net="theirs", width=50, heads=1)
    assert EGD(config).model.first.weight.shape == (22, 50)

"""Properties of StableMax, of the measured collapse, of ⟂Grad and of the authors' network."""

import grok
import numpy as np
import pytest
import torch
from stability import Config, Stability
from torch import nn

TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1)
LOGITS = np.array([[0.5, -1, 30, -40, 3], [20, 0.1, -0.1, -3, 1]], np.float32)
LABELS = np.array([4, 0])


def loss_and_gradient(**settings):
    """Of LOGITS, the mean loss and twice its gradient: that of each row's own loss."""
    z = torch.tensor(LOGITS, requires_grad=True)
    loss = Stability(Config(**TINY, **settings)).loss(z, torch.from_numpy(LABELS))
    loss.backward()
    return loss.item(), 2 * z.grad.numpy()


def by_hand(s, slope):
    """The same of -log(s_label / Σ s), for shares s (B, V) and s'(z), in float64."""
    hit = np.arange(5) == LABELS[:, None]
    others = np.where(hit, 0, s).sum(1)
    loss = np.log1p(others / s[hit]).mean()
    gradient = slope / s.sum(1, keepdims=True)
    gradient[hit] = -(slope / s)[hit] * others / s.sum(1)  # without cancellation
    return loss, gradient


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stablemax_takes_shares_of_z_plus_1_and_below_0_of_1_by_1_minus_z(dtype):
    z = LOGITS.astype(float)
    far = 1 + abs(z)
    expected = by_hand(np.where(z < 0, 1 / far, far), np.where(z < 0, 1 / far**2, 1))
    loss, gradient = loss_and_gradient(loss="stablemax", loss_dtype=dtype)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5)


def test_the_gradient_of_softmax_in_float64_is_exact():
    terms = np.exp(LOGITS.astype(float))
    _, exact = by_hand(terms, terms)
    _, gradient = loss_and_gradient(loss_dtype="float64")
    np.testing.assert_allclose(gradient, exact, rtol=1e-5)


def test_where_softmax_in_float32_has_one_term_left_the_answer_has_no_gradient():
    """The second row leads by 19: 1 + 5 e⁻¹⁹ is 1 in float32. It is not exactly 0."""
    terms = np.exp(LOGITS.astype(float))
    _, exact = by_hand(terms, terms)
    _, gradient = loss_and_gradient(loss_dtype="float32")
    assert exact[1, 0] < 0
    assert gradient[1, 0] == 0


@pytest.mark.parametrize(
    "loss, dtype, least",
    [
        ("softmax", "float32", 19),  # 10 e⁻¹⁹ is 6e-8, half of float32's last digit of 1
        ("softmax", "float64", 39),
        ("stablemax", "float64", 1e9),
    ],
)
def test_collapse_is_the_share_of_training_equations_with_one_term_left(loss, dtype, least):
    run = Stability(Config(**TINY, loss=loss, loss_dtype=dtype))
    leads = torch.tensor([0.0, 5, 10, 14, 21, 22, 30, 33, 40, 80, 1000])  # by x
    first = torch.eye(11)[0]
    model = nn.Module()
    model.forward = lambda x, y: leads[x][:, None] * first
    trained = leads[run.inputs[0][run.train_rows]]
    expected = (trained >= least).float().mean().item()
    assert run.measure(model)["collapse"].item() == pytest.approx(expected)
    assert (expected > 0) == (loss == "softmax")


def gradients_before_and_after(net):
    """(weights, gradient, what becomes of it) for each tensor of a run, in float64."""
    run = Stability(Config(**TINY, orthograd=True) if net == "grok" else their_config())
    generator = torch.Generator().manual_seed(0)
    before = [torch.randn(w.shape, generator=generator) for w in run.model.parameters()]
    for w, g in zip(run.model.parameters(), before, strict=True):
        w.grad = g.clone()
    run.on_after_backward()
    after = [(w.detach(), w.grad) for w in run.model.parameters()]
    pairs = zip(after, before, strict=True)
    return [(w.double(), g.double(), new.double()) for (w, new), g in pairs]


def their_config():
    return Config(**TINY | dict(heads=4), net="theirs", orthograd=True)


@pytest.mark.parametrize("net", ["grok", "theirs"])
def test_orthograd_turns_each_tensor_by_itself_and_keeps_its_norm(net):
    """Against Gram and Schmidt: of the pair (w, g) made orthonormal, the second vector."""
    for w, g, new in gradients_before_and_after(net):
        if w.any():  # LayerNorm's shift starts at 0
            pair = torch.stack([w.flatten(), g.flatten()], dim=1)
            second = torch.linalg.qr(pair).Q[:, 1]
            second *= (second @ g.flatten()).sign() * g.norm()
        else:
            second = g.flatten()
        torch.testing.assert_close(new.flatten(), second, rtol=1e-4, atol=1e-5)


def test_orthograd_leaves_no_slope_along_the_weights_of_a_bias_free_relu_network():
    """Scaling a matrix of such a network scales its logits: the gradient in that direction, which
    is not 0 at first, is 0 afterwards."""
    run = Stability(their_config())
    rows = run.train_rows
    run.loss(run.model(*(t[rows] for t in run.inputs)), run.labels[rows]).backward()
    slopes = [(w * w.grad).sum().abs().item() for w in run.model.parameters()]
    assert min(slopes) > 1e-4
    run.on_after_backward()
    slopes = [(w * w.grad).sum().abs().item() for w in run.model.parameters()]
    assert max(slopes) < 1e-6


def test_their_network_is_one_hot_inputs_hidden_relus_and_no_bias():
    model = Stability(Config(**TINY | dict(layers=2, heads=4), net="theirs")).model
    first, *rest = model.parameters()
    layers = [nn.Linear(22, 16, False), nn.Linear(16, 16, False), nn.Linear(16, 11, False)]
    weights = [first.T, *rest]
    for layer, w in zip(layers, weights, strict=True):
        layer.weight = nn.Parameter(w.detach().clone())
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    x, y = torch.tensor([0, 3, 10]), torch.tensor([7, 3, 0])
    codes = torch.eye(11)
    torch.testing.assert_close(model(x, y), plain(torch.cat([codes[x], codes[y]], dim=1)))


@pytest.mark.parametrize(
    "unread",
    [
        dict(heads=2),
        dict(dropout=0.1),
        dict(init_scale=2.0),
        dict(embed_init_scale=2.0),
        dict(position_scale=2.0),
    ],
)
def test_what_would_have_no_effect_is_refused(unread):
    (name,) = unread
    with pytest.raises(grok.UsageError, match=grok.flag(name)):
        Config(**TINY | dict(heads=4) | unread, net="theirs")


def test_float64_is_refused_where_there_is_none():
    with pytest.raises(grok.UsageError, match="--loss-dtype float64"):
        Config(**TINY, device="mps", loss_dtype="float64")

"""Properties of the scaled and centred output, of the rates and of the authors' network."""

import grok
import pytest
import torch
import torch.nn.functional as F
from lazy_rich import Config, LazyRich

GROK = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1, warmup=1)
THEIRS = dict(op="x_plus_y", p=11, width=12, net="theirs", batch_size=0, threads=1, warmup=1)
DESCENT = dict(optimizer="sgd", loss="mse", weight_decay=0.0)


def weights_of(model):
    return [w.detach() for w in model.parameters()]


def test_their_network_squares_a_sum_of_two_rows():
    model = LazyRich(Config(**THEIRS)).model
    first, last = weights_of(model)
    x, y = torch.tensor([3, 10]), torch.tensor([7, 0])
    codes = F.one_hot(torch.stack([x, y + 11]), 22).sum(0).float()
    units = (codes @ first) ** 2
    torch.testing.assert_close(model(x, y), units @ last.T)


@pytest.mark.parametrize("settings", [GROK, THEIRS])
def test_centred_logits_are_0_at_first(settings):
    run = LazyRich(Config(**settings, output_scale=3.0, centre=True))
    assert run.model(*run.inputs).abs().max().item() < 1e-5


@pytest.mark.parametrize("settings", [GROK, THEIRS])
def test_centred_logits_are_alpha_times_what_has_changed(settings):
    run = LazyRich(Config(**settings, output_scale=3.0, centre=True))
    start = LazyRich(Config(**settings)).model
    for _ in range(3):
        run.advance()
    changed = run.model.net(*run.inputs) - start(*run.inputs)
    logits = run.model(*run.inputs)
    torch.testing.assert_close(logits, 3 * changed, rtol=1e-4, atol=1e-5)
    assert changed.abs().max().item() > 1e-3


def test_what_is_subtracted_is_no_weight():
    model = LazyRich(Config(**THEIRS, centre=True)).model
    plain = LazyRich(Config(**THEIRS)).model
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_centred_network_trains_with_dropout():
    model = LazyRich(Config(**GROK, centre=True, dropout=0.5)).model
    assert all(module.training for module in model.modules())


def test_what_is_subtracted_is_without_dropout():
    run = LazyRich(Config(**GROK, centre=True, dropout=0.5))
    assert run.model.eval()(*run.inputs).abs().max().item() < 1e-5


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_descent_is_that_of_the_scaled_error_by_autograd(decay):
    """All in float64, on one-hot codes: the mean over equations and answers of the squared error of
    α (f - f₀), at the rate lr / α². Decay is a share of the rate."""
    settings = THEIRS | DESCENT | dict(weight_decay=decay)
    run = LazyRich(Config(**settings, lr=2.0, output_scale=0.5, centre=True))
    rows = run.train_rows
    x, y = (t[rows] for t in run.inputs)
    codes = (F.one_hot(x, 22) + F.one_hot(y + 11, 22)).double()
    answers = F.one_hot(run.labels[rows], 11).double()
    first, last = (w.double().requires_grad_() for w in weights_of(run.model))
    start = ((codes @ first) ** 2 @ last.T).detach()
    for _ in range(4):
        run.advance()
        logits = 0.5 * ((codes @ first) ** 2 @ last.T - start)
        error = ((logits - answers) ** 2).sum() / (len(rows) * 11)
        slopes = torch.autograd.grad(error, (first, last))
        for w, slope in zip((first, last), slopes, strict=True):
            w.data -= 2.0 / 0.5**2 * (slope + decay * w.data)
    for ours, theirs in zip(weights_of(run.model), (first, last), strict=True):
        torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_the_first_step_of_descent_moves_the_logits_as_without_a_scale(scale):
    moved = []
    for alpha in (1.0, scale):
        settings = THEIRS | DESCENT | dict(lr=0.3, output_scale=alpha, centre=True)
        run = LazyRich(Config(**settings))
        run.advance()
        moved.append(run.model(*run.inputs))
    torch.testing.assert_close(*moved, rtol=0.01, atol=2e-6)  # of 5e-4 at most


def test_adams_rate_is_divided_by_the_scale():
    """Against torch.optim.AdamW on α f."""
    config = Config(**GROK, lr=0.01, weight_decay=0.5, output_scale=4.0)
    run, other = LazyRich(config), LazyRich(config).model
    options = dict(lr=0.0025, betas=(0.9, 0.98), weight_decay=0.5)
    adamw = torch.optim.AdamW(other.net.parameters(), **options)
    for _ in range(4):
        run.step += 1
        rows = run.batch()
        run.update(rows)
        x, y = (t[rows] for t in run.inputs)
        adamw.zero_grad()
        loss = F.cross_entropy(4 * other.net(x, y), run.labels[rows])
        loss.backward()
        adamw.step()
    for ours, theirs in zip(weights_of(run.model), weights_of(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_evaluation_stays_with_cross_entropy_of_the_scaled_logits():
    run = LazyRich(Config(**THEIRS, **DESCENT, output_scale=2.0))
    run.evaluate()
    f = LazyRich(Config(**THEIRS)).model(*run.inputs)
    rows = run.val_rows
    expected = F.cross_entropy(2 * f[rows], run.labels[rows]).item()
    assert run.log[-1]["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_run_that_is_loaded_has_the_same_f0(tmp_path):
    config = Config(**THEIRS, **DESCENT, lr=2.0, output_scale=2.0, centre=True, steps=5)
    run = grok.train(config, tmp_path, quiet=True, method=LazyRich)
    again = grok.load(tmp_path, Config, LazyRich)
    assert torch.equal(again.model(*run.inputs), run.model(*run.inputs))


def test_the_scale_of_their_first_weights():
    one = LazyRich(Config(**THEIRS)).model
    two = LazyRich(Config(**THEIRS, init_scale=2.0)).model
    pairs = zip(weights_of(one), weights_of(two), strict=True)
    assert all(torch.equal(2 * a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "unread",
    [
        dict(layers=1),
        dict(heads=2),
        dict(dropout=0.1),
        dict(embed_init_scale=2.0),
        dict(position_scale=2.0),
        DESCENT | dict(beta1=0.5),
        DESCENT | dict(beta2=0.5),
        DESCENT | dict(eps=1e-6),
        DESCENT | dict(decay_to="init"),
    ],
)
def test_what_is_not_read_is_refused(unread):
    with pytest.raises(grok.UsageError, match="has no effect"):
        Config(**THEIRS | unread)

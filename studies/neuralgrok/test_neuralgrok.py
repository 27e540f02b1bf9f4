"""Properties of the weighted gradient, of the amplifier's own step and of the outer equations."""

import copy

import grok
import pytest
import torch
import torch.nn.functional as F
from neuralgrok import Config, NeuralGrok

TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1)
LEARNED = TINY | dict(neuralgrok=0.5, amplifier=(3,), inner=2, outer=0.1)


def after_backward(**settings):
    """A run of which the first batch's gradients are there, and these, as they were."""
    run = NeuralGrok(Config(**settings))
    run.step = 1
    rows = run.batch()
    loss = F.cross_entropy(run.model(*(t[rows] for t in run.inputs)), run.labels[rows])
    loss.backward()
    return run, [w.grad.clone() for w in run.model.parameters()]


def test_without_an_amplifier_each_gradient_has_the_norm_c():
    run, before = after_backward(**TINY, neuralgrok=0.5, amplifier=())
    run.on_after_backward()
    for w, g in zip(run.model.parameters(), before, strict=True):
        torch.testing.assert_close(w.grad, 0.5 * g / g.norm())


def test_the_amplifier_weighs_entry_by_entry_and_the_softmax_is_over_the_tensor():
    run, before = after_backward(**LEARNED)
    run.on_after_backward()
    for w, g in zip(run.model.parameters(), before, strict=True):
        scores = torch.tensor([run.amplifier(entry.view(1)).item() for entry in g.flatten()])
        weighed = g * scores.softmax(0).view_as(g)
        torch.testing.assert_close(w.grad, 0.5 * weighed / weighed.norm(), rtol=1e-4, atol=1e-7)


def test_the_amplifier_goes_down_the_loss_of_the_step_ahead():
    """Its gradient against differences of the loss on the outer equations, in float64."""
    run, _ = after_backward(**LEARNED)
    run.model.double()
    run.amplifier.double()
    run.step = 2
    for w in run.model.parameters():
        w.grad = w.grad.double()

    def loss_ahead():
        ahead = copy.deepcopy(run.model)
        with torch.no_grad():
            for new, w in zip(ahead.parameters(), run.model.parameters(), strict=True):
                new -= 1e-3 * run.weighted(w.grad)
            logits = ahead(*(t[run.outer] for t in run.inputs))
            return F.cross_entropy(logits, run.labels[run.outer]).item()

    weight = run.amplifier[2].weight
    with torch.no_grad():
        weight[0, 1] += 1e-2
        high = loss_ahead()
        weight[0, 1] -= 2e-2
        low = loss_ahead()
        weight[0, 1] += 1e-2
    run.train_amplifier()
    assert weight.grad[0, 1].item() == pytest.approx((high - low) / 2e-2, rel=1e-2)


def test_the_amplifier_moves_in_every_inner_th_update_alone():
    run, before = after_backward(**LEARNED)
    first = copy.deepcopy(run.amplifier.state_dict())
    run.on_after_backward()  # of update 1
    assert torch.equal(run.amplifier[0].weight, first["0.weight"])
    run.step = 2
    for w, g in zip(run.model.parameters(), before, strict=True):
        w.grad = g
    run.on_after_backward()
    assert not torch.equal(run.amplifier[0].weight, first["0.weight"])


def test_the_outer_equations_are_a_share_of_the_training_set():
    run = NeuralGrok(Config(**LEARNED, frac=0.3))
    assert len(run.outer) == 4  # a tenth of 36


def test_no_batch_has_an_outer_equation():
    run = NeuralGrok(Config(**LEARNED))
    seen = set()
    for run.step in range(1, 9):  # two epochs
        seen |= set(run.batch().tolist())
    assert seen.isdisjoint(run.outer.tolist())


def test_the_control_is_trained_on_the_outer_equations_too():
    run, control = NeuralGrok(Config(**LEARNED)), NeuralGrok(Config(**TINY))
    both = torch.cat([run.outer, run.train_rows])
    assert sorted(both.tolist()) == sorted(control.train_rows.tolist())


def test_l2_is_torch_adams_after_clipping():
    given = dict(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-3, grad_clip=0.01, warmup=0)
    run = NeuralGrok(Config(**TINY, l2=0.1, weight_decay=0.0, **given))
    model = copy.deepcopy(run.model)
    weights = list(model.parameters())
    adam = torch.optim.Adam(weights, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    for _ in range(3):
        run.advance()
        rows = run.batch()  # those of this update
        logits = model(*(t[rows] for t in run.inputs))
        adam.zero_grad()
        F.cross_entropy(logits, run.labels[rows]).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.01)
        adam.step()
    for ours, theirs in zip(run.model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_two_decays_are_refused():
    with pytest.raises(grok.UsageError, match="--l2 0.1: goes with --weight-decay 0"):
        Config(**TINY, l2=0.1)


def test_outliers_are_refused_beside_the_amplifier_which_would_get_them():
    Config(**TINY, neuralgrok=1.0, amplifier=(), outliers=1)
    with pytest.raises(grok.UsageError, match="--outliers"):
        Config(**TINY, neuralgrok=1.0, outliers=1)


def test_an_amplifier_that_takes_all_equations_is_refused():
    config = Config(op="x_plus_y", p=11, width=8, heads=2, neuralgrok=1, outer=0.999)
    with pytest.raises(grok.UsageError, match="--outer 0.999"):
        NeuralGrok(config)

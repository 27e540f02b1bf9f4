"""Properties of Grokfast's filter, of L2 in the gradient and of the authors' task."""

import grok
import pytest
import torch
from grokfast import Config, Grokfast

TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1)


def gradients_seen(given, **settings):
    """What becomes of a gradient whose entries are all 1.0 · given[t], update by update."""
    run = Grokfast(Config(**TINY, **settings))
    seen = []
    for value in given:
        for w in run.model.parameters():
            w.grad = torch.full_like(w, value)
        run.on_after_backward()
        seen.append(run.model.head.weight.grad[0, 0].item())
    return run, seen


def test_the_slow_gradient_starts_as_the_first_one_and_is_added_lambda_times():
    """By hand: h is 1, then 0.9 + 0.2 = 1.1, then 0.99 - 0.1 = 0.89; the gradient is g + 2 h."""
    _, seen = gradients_seen([1.0, 2.0, -1.0], grokfast=2.0, grokfast_alpha=0.9)
    assert seen == pytest.approx([3.0, 4.2, 0.78])


def test_l2_is_added_after_the_filter():
    run, seen = gradients_seen([1.0, 1.0], grokfast=2.0, l2=0.5, weight_decay=0.0)
    weight = run.model.head.weight[0, 0].item()
    assert seen == pytest.approx([3 + 0.5 * weight] * 2)


def test_l2_is_that_of_torch_adam():
    config = Config(**TINY, l2=0.1, weight_decay=0.0, steps=5, until=0.0)
    ours = grok.train(config, quiet=True, method=Grokfast)
    adam = torch.optim.Adam

    class WithAdam(grok.Run):
        def build_optimizer(self):
            weights = self.model.parameters()
            return adam(weights, lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)

    theirs = grok.train(config, quiet=True, method=WithAdam)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_their_task_leaves_out_y_0():
    _, y, _ = grok.equations("x_mul_y_from_1", 97)
    assert len(y) == 97 * 96
    assert y.min() == 1


def test_their_network_has_the_authors_number_of_weights():
    model = Grokfast(Config(op="x_mul_y_from_1", net="theirs")).model
    count = sum(w.numel() for w in model.parameters())
    assert round(count / 1000) == 423


@pytest.mark.parametrize("unread", ["dropout", "init_scale", "embed_init_scale", "position_scale"])
def test_their_network_refuses_what_it_does_not_read(unread):
    with pytest.raises(grok.UsageError, match=grok.flag(unread)):
        Config(**TINY, net="theirs", **{unread: 0.1})


def test_two_decays_are_refused():
    with pytest.raises(grok.UsageError, match="--l2 0.1: goes with --weight-decay 0"):
        Config(**TINY, l2=0.1)


def test_the_control_keeps_no_average():
    run = Grokfast(Config(op="x_plus_y", p=11, width=8, heads=2, layers=1))
    run.advance()
    assert run.slow is None

"""Properties of the projection and of the second warm-up."""

import grok
import pytest
import torch
from nonstationary import Config, Nonstationary

TINY = dict(op="x_plus_y", p=11, width=16, heads=2, batch_size=16, steps=5, until=0.0, threads=1)


def rates(**settings):
    """The learning rate of each of six updates."""
    run = Nonstationary(Config(**TINY, **settings))
    seen = []
    for _ in range(6):
        seen.append(run.optimizer.param_groups[0]["lr"])
        run.advance()
    return seen


def test_the_rate_is_warmed_up_again_to_the_other_rate():
    """By hand: 1e-3 after two updates; from the third on in two steps to 0.05."""
    seen = rates(lr=1e-3, warmup=2, rewarm=3, rewarm_lr=0.05)
    assert seen == pytest.approx([0.0005, 0.001, 0.0255, 0.05, 0.05, 0.05])


def test_without_rewarm_the_rate_stays():
    assert rates(lr=1e-3, warmup=2) == pytest.approx([0.0005] + [0.001] * 5)


def test_rewarm_1_has_the_high_rate_from_the_start():
    seen = rates(lr=1e-3, warmup=2, rewarm=1, rewarm_lr=0.05)
    assert seen[1:] == pytest.approx([0.05] * 5)


@pytest.fixture(scope="module", params=["grok", "theirs"])
def projected(request):
    """Pairs (weight after training, before) of a projected run."""
    config = Config(**TINY, net=request.param, project=1, lr=0.01)
    first = Nonstationary(config).model
    last = grok.train(config, quiet=True, method=Nonstationary).model
    return list(zip(last.parameters(), first.parameters(), strict=True))


def test_matrices_keep_their_norms(projected):
    for new, old in projected:
        if new.ndim == 2:
            assert new.norm().item() == pytest.approx(old.norm().item(), rel=1e-6)


def test_all_weights_that_are_no_matrices_change_their_norms(projected):
    for new, old in projected:
        if new.ndim != 2:
            assert new.norm().item() != pytest.approx(old.norm().item(), rel=1e-6)


def test_all_weights_are_trained(projected):
    for new, old in projected:
        assert not torch.equal(new, old)


def test_a_projected_update_is_torch_adamw_then_a_rescaling():
    run, plain = Nonstationary(Config(**TINY, project=1)), grok.Run(grok.Config(**TINY))
    norms = [w.norm().item() for w in plain.model.parameters()]
    run.advance()
    plain.advance()
    pairs = zip(run.model.parameters(), plain.model.parameters(), norms, strict=True)
    for ours, w, norm in pairs:
        torch.testing.assert_close(ours, w * (norm / w.norm()) if w.ndim == 2 else w)


def test_what_would_have_no_effect_is_refused():
    Config(**TINY, rewarm=2, rewarm_lr=0.1)
    with pytest.raises(grok.UsageError, match="--rewarm-lr: has no effect"):
        Config(**TINY, rewarm_lr=0.1)

"""Properties of going on with less data, and of the norm of the logits."""

import grok
import pytest
import torch
from efficiency import Config, Efficiency

TINY = dict(op="x_plus_y", p=11, width=16, heads=2, batch_size=16, steps=5, until=0.0, threads=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of runs of both networks on half of the table."""
    folder = tmp_path_factory.mktemp("whole")
    for net in ("grok", "theirs"):
        grok.train(Config(**TINY, net=net), folder / net, quiet=True, method=Efficiency)
    return folder


@pytest.mark.parametrize("net", ["grok", "theirs"])
def test_it_starts_from_the_last_weights(net, whole):
    run = Efficiency(Config(**TINY, net=net, frac=0.3, go_on=str(whole)))
    last = grok.load(whole / net, Config, Efficiency).model
    for a, b in zip(run.model.parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_is_trained_on_part_of_what_was_trained_on(whole):
    run = Efficiency(Config(**TINY, frac=0.3, go_on=str(whole)))
    before = grok.load(whole / "grok", Config, Efficiency)
    assert set(run.train_rows.tolist()) < set(before.train_rows.tolist())


def test_the_part_is_the_fraction_of_the_table(whole):
    run = Efficiency(Config(**TINY, frac=0.3, go_on=str(whole)))
    assert len(run.train_rows) == 36  # of 121


def logit_norm(run):
    """By hand."""
    with torch.no_grad():
        logits = run.model(*run.inputs)[run.train_rows].double()
    return logits.square().sum(1).sqrt().mean().item()


def test_the_logit_norm_is_the_mean_over_the_training_set():
    run = Efficiency(Config(**TINY))
    measured = run.measure(run.model)["logit_norm"].item()
    assert measured == pytest.approx(logit_norm(run))


def test_the_logit_norm_per_weight_norm_is_divided_by_that_of_all_weights():
    run = Efficiency(Config(**TINY))
    squares = sum(w.double().square().sum().item() for w in run.model.parameters())
    measured = run.measure(run.model)["logit_norm_per_weight_norm"].item()
    assert measured == pytest.approx(logit_norm(run) / squares**0.5)


def test_more_data_than_before_is_refused(whole):
    with pytest.raises(grok.UsageError, match="--frac 0.6: must be at most 0.5"):
        Efficiency(Config(**TINY, frac=0.6, go_on=str(whole)))


@pytest.mark.parametrize(
    "given", [dict(seed=2), dict(width=32), dict(outliers=1), dict(position_scale=0.5)]
)
def test_a_folder_without_such_a_run_is_refused(given, whole):
    with pytest.raises(grok.UsageError, match="--go-on .*: must hold one run with .* holds 0"):
        Efficiency(Config(**TINY | given, go_on=str(whole)))


def test_permutations_go_on(tmp_path):
    permutations = TINY | dict(op="s5_xy", frac=0.01)
    run = grok.train(Config(**permutations), tmp_path, quiet=True, method=Efficiency)
    begun = Efficiency(Config(**permutations, go_on=str(tmp_path)))
    assert torch.equal(begun.model.head.weight, run.model.head.weight)

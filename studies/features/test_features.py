"""Properties of strength and quality, by numpy; and of the scale in the loss."""

import features
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features import Config, Features

TINY = dict(op="x_plus_y", p=11, width=16, heads=2, batch_size=16, steps=3, until=0.0, threads=1)


@pytest.fixture
def drawn():
    random = np.random.default_rng(0)
    return random.normal(size=(50, 6)) + 3, np.eye(4)[random.integers(0, 4, 50)]


def strength(H, Y):
    return features.strength(torch.from_numpy(H), torch.from_numpy(Y)).item()


def test_strength_is_the_alignment_of_two_centred_kernels(drawn):
    centre = np.eye(50) - 1 / 50
    K, L = (centre @ M @ M.T @ centre for M in drawn)
    norms = np.linalg.norm(K) * np.linalg.norm(L)
    expected = (K * L).sum() / norms
    assert 0 < expected < 0.5
    assert strength(*drawn) == pytest.approx(expected)


def test_strength_of_the_answers_themselves_is_1(drawn):
    _, Y = drawn
    assert strength(2 * Y + 1, Y) == pytest.approx(1)


def test_the_readout_is_least_squares_with_a_ridge_as_further_equations(drawn):
    H, Y = drawn
    others = np.random.default_rng(1).normal(size=(9, 6))
    scale = ((H - H.mean(0)) ** 2).mean()
    ridge = (1e-4 * scale * 50) ** 0.5 * np.eye(6)
    rows = np.r_[np.c_[H, np.ones(50)], np.c_[ridge, np.zeros(6)]]
    answers = np.r_[Y, np.zeros((6, 4))]
    fit = np.linalg.lstsq(rows, answers, rcond=None)[0]
    expected = np.c_[others, np.ones(9)] @ fit
    measured = features.readout(*map(torch.from_numpy, (H, Y, others)))
    assert np.allclose(measured, expected)


def test_features_are_what_the_output_layer_reads():
    run = Features(Config(**TINY))
    with torch.no_grad():
        logits = run.model(*run.inputs)
        from_features = run.features(run.model) @ run.model.head.weight.T
    torch.testing.assert_close(from_features, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift, quality", [(0, 1), (1, 0)])
def test_quality_is_that_of_validation_equations(shift, quality, monkeypatch):
    """Features that name the answer, or in validation that of another."""
    run = Features(Config(**TINY))
    hot = F.one_hot(run.labels, 11).float()
    hot[run.val_rows] = hot[run.val_rows].roll(shift, 1)
    monkeypatch.setattr(run, "features", lambda model: hot)
    assert run.measure(run.model)["quality"].item() == quality


def test_strength_is_that_of_training_equations(monkeypatch):
    """Features that name the answer, and in validation nothing."""
    run = Features(Config(**TINY))
    hot = F.one_hot(run.labels, 11).float()
    hot[run.val_rows] = 0
    monkeypatch.setattr(run, "features", lambda model: hot)
    assert run.measure(run.model)["strength"].item() == pytest.approx(1)


def test_the_scale_is_a_factor_on_the_logits_in_the_loss():
    run = Features(Config(**TINY, output_scale=3.0))
    logits = torch.randn(5, 13)
    labels = torch.arange(5)
    assert run.loss(logits, labels) == F.cross_entropy(3 * logits, labels)


def test_the_scale_is_not_in_the_columns():
    plain, scaled = (Features(Config(**TINY, output_scale=scale)) for scale in (1.0, 3.0))
    assert scaled.measure(scaled.model) == plain.measure(plain.model)

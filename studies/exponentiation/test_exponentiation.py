"""Properties of reciprocal training sets and of the three orders."""

import math

import exponentiation
import grok
import pytest
import torch
from exponentiation import Config, Exponentiation

TINY = dict(op="x_pow_y", p=11, width=16, heads=2, batch_size=16, steps=3, until=0.0, threads=1)


FRACTIONS = pytest.mark.parametrize("frac", [0.3, 0.7])


@FRACTIONS
def test_a_reciprocal_training_set_has_y_x_with_x_y(frac):
    run = Exponentiation(Config(**TINY, reciprocal=1, frac=frac))
    x, y = (t[run.train_rows].tolist() for t in run.inputs)
    pairs = set(zip(x, y, strict=True))
    assert {(b, a) for a, b in pairs} == pairs


@FRACTIONS
def test_a_reciprocal_training_set_has_the_size_asked_for_or_one_more(frac):
    run = Exponentiation(Config(**TINY, reciprocal=1, frac=frac))
    assert len(run.train_rows) - round(frac * 121) in (0, 1)


def test_training_and_validation_share_out_the_table():
    run = Exponentiation(Config(**TINY, reciprocal=1))
    rows = torch.cat([run.train_rows, run.val_rows])
    assert sorted(rows.tolist()) == list(range(121))


def test_each_seed_has_a_set_of_its_own():
    runs = [Exponentiation(Config(**TINY, reciprocal=1, seed=seed)) for seed in (0, 1)]
    assert set(runs[0].train_rows.tolist()) != set(runs[1].train_rows.tolist())


@pytest.mark.parametrize("planted", ["gini_log", "gini_plain"])
def test_gini_sees_a_wave_in_its_own_order_alone(planted):
    """2 is the least primitive root mod 11. One frequency of five has a coefficient of 4/5."""
    position = {z: z - 1 for z in range(1, 11)}
    if planted == "gini_log":
        position = {pow(2, i, 11): i for i in range(10)}
    run = Exponentiation(Config(**TINY))
    embed = run.model.embed.weight.data
    embed[:] = 0
    for z in range(1, 11):
        embed[z, 3] = math.cos(2 * math.pi * 3 * position[z] / 10 + 1)
    ginis = {k: v.item() for k, v in run.measure(run.model).items() if k.startswith("gini_")}
    assert ginis.pop(planted) == pytest.approx(0.8, abs=1e-3)
    assert max(ginis.values()) < 0.7


def test_each_order_has_all_elements_but_0():
    for order in exponentiation.orders(11).values():
        assert sorted(order) == list(range(1, 11))


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(op="s5_xy"), "odd prime"),
        (dict(p=9), "odd prime"),
        (dict(p=2), "odd prime"),
        (dict(op="x_div_y", reciprocal=1), "all pairs"),
        (dict(reciprocal=1, outliers=1), "outliers"),
    ],
)
def test_what_it_cannot_do_is_refused(given, said):
    with pytest.raises(grok.UsageError, match=said):
        Config(**TINY | given)

"""Properties of transfer entropy, on series of which it is known."""

import contextlib
import csv
import io
import math

import grok
import numpy as np
import pytest
import transfer_entropy as te

TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, steps=5, threads=1)


def noisy_copy(lag, errors):
    """A coin, and what it was some evaluations ago, with errors."""
    random = np.random.default_rng(0)
    s = random.integers(2, size=(4, 5000))
    t = np.roll(s, lag, 1) ^ (random.random(s.shape) < errors)
    t[:, :lag] = 0
    return s, t


CHANNELS = pytest.mark.parametrize("lag, errors", [(1, 0.0), (1, 0.1), (3, 0.2)])


@CHANNELS
def test_a_noisy_copy_of_a_coin_has_the_capacity_of_the_channel(lag, errors):
    """ln 2 - H(errors) nats."""
    capacity = math.log(2) + sum(q * math.log(q) for q in (errors, 1 - errors) if q)
    measured = te.transfer_entropy(*noisy_copy(lag, errors), lag)
    assert measured == pytest.approx(capacity, abs=0.01)


@CHANNELS
def test_of_a_noisy_copy_nothing_is_transferred_back(lag, errors):
    s, t = noisy_copy(lag, errors)
    assert te.transfer_entropy(t, s, lag) < 0.001


@CHANNELS
def test_of_a_noisy_copy_nothing_is_transferred_at_another_lag(lag, errors):
    assert te.transfer_entropy(*noisy_copy(lag, errors), lag + 1) < 0.001


def test_of_a_copy_without_delay_nothing_is_transferred():
    s = np.random.default_rng(0).integers(2, size=(4, 5000))
    assert te.transfer_entropy(s, s) == pytest.approx(0, abs=1e-9)


def test_of_what_its_own_past_tells_nothing_is_transferred():
    clock = np.arange(5000)[None].repeat(4, 0) % 3
    assert te.transfer_entropy((clock + 1) % 3, clock) == pytest.approx(0, abs=1e-9)


def test_the_control_has_what_all_runs_share():
    trend = np.random.default_rng(1).integers(2, size=(1, 4000)).repeat(3, 0)
    shared = te.with_control(trend, np.roll(trend, 1, 1), 1)
    assert shared == pytest.approx([math.log(2)] * 2, abs=0.01)


def test_the_control_has_nothing_of_what_is_each_runs_own():
    own = np.random.default_rng(1).integers(2, size=(3, 4000))
    measured = te.with_control(own, np.roll(own, 1, 1), 1)
    assert measured == pytest.approx([math.log(2), 0], abs=0.01)


def made(folder, curves, lr=1e-3):
    """A folder of runs with made curves {step: (train_acc, val_acc)}, one a seed."""
    for seed, rows in enumerate(curves):
        run = grok.Run(grok.Config(**TINY, lr=lr, eval_every=10, seed=seed))
        run.log = [
            dict(step=step, train_acc=train, val_acc=val, seconds=1.0)
            for step, (train, val) in rows.items()
        ]
        place = folder / f"{lr}-{seed}"
        place.mkdir()
        grok.lay_out(place, run.config, grok.Run)
        grok.write(place / "checkpoint.pt", grok.pack(run))


def rows_of(capsys):
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


@pytest.fixture(scope="module")
def follower(tmp_path_factory):
    """The row of runs in which val follows train in updates 210 to 400 alone. Those before 10 are
    no multiple of 10."""
    random, curves = np.random.default_rng(2), []
    inside = (np.arange(61) > 20) & (np.arange(61) <= 40)
    for _ in range(15):
        coin, other = random.integers(2, size=(2, 61)).astype(float)
        follows = np.where(inside, np.roll(coin, 1), other)
        rows = {step: (0.5, 0.5) for step in (1, 2, 5)}
        curves.append(rows | {10 * i: (coin[i], follows[i]) for i in range(1, 61)})
    folder = tmp_path_factory.mktemp("follower")
    made(folder, curves)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert te.main([str(folder), "--window", "20"]) == 0
    (row,) = csv.DictReader(out.getvalue().splitlines())
    return row


def test_what_follows_in_a_window_shows_over_the_whole(follower):
    assert 0.02 < float(follower["transfer"]) < 0.2


@pytest.mark.parametrize("name", ["control", "back", "back_control"])
def test_what_does_not_follow_does_not_show(name, follower):
    assert float(follower[name]) < 0.01


def test_the_window_is_where_one_follows_the_other(follower):
    assert int(follower["most_from"]) == pytest.approx(210, abs=10)


def test_the_window_is_as_long_as_was_asked_for(follower):
    assert int(follower["most_to"]) - int(follower["most_from"]) == 190


def test_the_excess_of_the_window_is_nearly_that_of_a_copy(follower):
    assert 0.6 < float(follower["most_excess"]) < math.log(2)


@pytest.mark.parametrize("lag, nats", [(1, 0), (2, math.log(4))])
def test_bins_have_as_many_values_each_whatever_their_size(lag, nats, tmp_path, capsys):
    """Very uneven values that come again after two evaluations, falling where they rose."""
    random, curves = np.random.default_rng(3), []
    for _ in range(20):
        drawn = random.normal(size=62)
        rising, falling = 7 + np.exp(3 * drawn), np.exp(-3 * drawn)
        curves.append({10 * i: (rising[i], falling[i - 2]) for i in range(2, 62)})
    made(tmp_path, curves)
    assert te.main([str(tmp_path), "--lag", str(lag)]) == 0
    (row,) = rows_of(capsys)
    measured = [float(row[name]) for name in ("transfer", "control", "back")]
    assert measured == pytest.approx([nats, 0, 0], abs=0.1)


def test_runs_of_other_settings_are_another_group(tmp_path, capsys):
    rows = {10 * i: (float(i % 2), float(i % 3)) for i in range(1, 8)}
    for lr in (1e-3, 2e-3):
        made(tmp_path, [rows, rows], lr)
    assert te.main([str(tmp_path), "--window", "3"]) == 0
    assert [(row["group"], row["n"]) for row in rows_of(capsys)] == [
        ("('lr', 0.001)", "2"),
        ("('lr', 0.002)", "2"),
    ]


@pytest.mark.parametrize(
    "given, said",
    [
        (["--window", "30"], "2 runs share 7 evaluations"),
        (["--window", "3", "--lag", "2"], "--lag"),
        (["--window", "3", "--bins", "1"], "--bins"),
        (["--window", "3", "--target", "gini"], "--target gini: must be columns"),
    ],
)
def test_what_cannot_be_computed_is_said_in_a_line(given, said, tmp_path, capsys):
    rows = {10 * i: (float(i % 2), float(i % 3)) for i in range(1, 8)}
    made(tmp_path, [rows, rows])
    assert te.main([str(tmp_path), *given]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert not out

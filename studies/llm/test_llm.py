"""Properties of the update since which an equation is right, and of what is made of it."""

import grok
import numpy as np
import pytest
import torch
from llm import Config, LocalGrokking

TINY = dict(op="x_plus_y", p=11, width=16, heads=2, batch_size=16, steps=3, until=0.0, threads=1)
UPDATES = 1, 2, 5, 10, 20


def measured(right, monkeypatch, **settings):
    """A run and its columns after evaluations at UPDATES with these answers, (5, 121) of bool."""
    run = LocalGrokking(Config(**TINY, **settings))
    for run.step, now in zip(UPDATES, right, strict=True):
        monkeypatch.setattr(run, "right", lambda model, now=now: torch.from_numpy(now))
        columns = run.measure(run.model)
    return run, {name: float(value) for name, value in columns.items()}


@pytest.fixture
def right():
    shares = np.array([0.2, 0.5, 0.7, 0.8, 0.95])
    return np.random.default_rng(0).random((5, 121)) < shares[:, None]


def since_by_loops(right):
    since = []
    for answers in right.T:
        k = len(UPDATES)
        while k and answers[k - 1]:
            k -= 1
        since.append(UPDATES[k] if k < len(UPDATES) else 0)
    return np.array(since)


def test_each_equation_keeps_the_update_since_which_it_is_right(right, monkeypatch):
    run, _ = measured(right, monkeypatch)
    assert run.since.tolist() == since_by_loops(right).tolist()


def test_quantiles_count_a_wrong_equation_as_right_only_now(right, monkeypatch):
    run, columns = measured(right, monkeypatch)
    when = since_by_loops(right)
    when[when == 0] = 20
    for name, rows in ("memorised", run.train_rows), ("generalised", run.val_rows):
        for q in (10, 50, 90):
            assert columns[f"{name}_{q}"] == pytest.approx(np.quantile(when[rows], q / 100))


def test_parts_are_by_the_remainder_of_y(right, monkeypatch):
    run, columns = measured(right, monkeypatch, parts=3)
    when = since_by_loops(right)
    when[when == 0] = 20
    remainder = np.tile(np.arange(11), 11) % 3  # y counts fastest
    trained = np.isin(np.arange(121), run.train_rows)
    for k in range(3):
        expected = np.median(when[trained & (remainder == k)])
        assert columns[f"memorised_50_y{k}"] == pytest.approx(expected)


def test_groups_are_correlated_by_their_mean_updates(right, monkeypatch):
    run, columns = measured(right, monkeypatch)
    when = since_by_loops(right)
    when[when == 0] = 20
    trained = np.isin(np.arange(121), run.train_rows)
    for name, group in ("x", run.inputs[0]), ("y", run.inputs[1]), ("z", run.labels):
        group = group.numpy()
        means = [
            [when[rows & (group == g)].mean() for g in range(11)] for rows in (trained, ~trained)
        ]
        assert columns[f"local_{name}"] == pytest.approx(np.corrcoef(means)[0, 1])


def test_a_group_of_one_kind_alone_is_left_out(monkeypatch):
    """x = 4 has training equations only, which are never right and would spoil it."""
    run = LocalGrokking(Config(**TINY))
    x = run.inputs[0]
    run.train_rows = torch.cat([run.train_rows, run.val_rows[x[run.val_rows] == 4]])
    run.val_rows = run.val_rows[x[run.val_rows] != 4]
    when = x * 7 % 11 + 2  # an order of the groups
    when[x == 4] = 1000
    monkeypatch.setattr(run, "right", lambda model: when <= run.step)
    for run.step in range(1, 13):
        columns = run.measure(run.model)
    assert columns["local_x"].item() == pytest.approx(1)


def test_what_is_kept_agrees_with_the_accuracies(tmp_path):
    config = Config(**TINY | dict(lr=0.01, steps=40, eval_every=10))
    grok.train(config, tmp_path, quiet=True, method=LocalGrokking)
    run = grok.load(tmp_path, Config, LocalGrokking)
    for name, rows in ("train", run.train_rows), ("val", run.val_rows):
        share = (run.since[rows] > 0).float().mean().item()
        assert share == pytest.approx(run.log[-1][f"{name}_acc"], abs=1e-6)


def test_a_longer_run_goes_on_exactly(tmp_path):
    longer = TINY | dict(lr=0.01, steps=40, eval_every=10)
    runs = dict(cut=[13, 40], whole=[40])
    for name, lengths in runs.items():
        for steps in lengths:
            config = Config(**longer | dict(steps=steps))
            grok.train(config, tmp_path / name, quiet=True, method=LocalGrokking)
    cut, whole = (grok.load(tmp_path / name, Config, LocalGrokking) for name in runs)
    assert cut.since.tolist() == whole.since.tolist()
    times = [name for name in whole.log[-1] if name != "seconds"]
    assert [[row[n] for n in times] for row in cut.log] == [
        [row[n] for n in times] for row in whole.log
    ]


def test_more_parts_than_elements_are_refused():
    with pytest.raises(grok.UsageError, match="--parts 9: must be below 7"):
        Config(**TINY | dict(p=7), parts=9)


def test_a_part_without_equations_is_refused():
    few = dict(op="x_plus_y", p=11, frac=0.97, width=8, heads=2, layers=1)
    with pytest.raises(grok.UsageError, match="--parts 9"):
        LocalGrokking(Config(**few, parts=9))

"""Properties of the progress measures, each against sums by hand or a least-squares fit."""

import math

import grok
import numpy as np
import progress
import pytest
import torch
from progress import Config, Progress

TINY = dict(p=11, layers=1, width=16, heads=2, batch_size=16, steps=2, until=0.0, threads=1)
BASE = 8  # of logarithms mod 11; the study's is the least, 2


def positions(op):
    """Places of the elements mod 11 on their circle, -1 for 0 where it has none; their number."""
    if op in ("x_plus_y", "x_minus_y"):
        return np.arange(11), 11
    logarithms = np.full(11, -1)
    for t in range(10):
        logarithms[BASE**t % 11] = t
    return logarithms, 10


def turn_of(n):
    """Angles of n places on a circle."""
    return 2 * np.pi * np.arange(n) / n


def cross_entropy(logits, labels):
    chosen = logits[np.arange(len(labels)), labels]
    return np.log(np.exp(logits).sum(1)) - chosen


def losses_by_least_squares(run, keys):
    """(restricted, excluded) loss by a fit of 1, cos w(x ∘ y), sin w(x ∘ y), a row an equation."""
    op = run.config.op
    place, n = positions(op)
    x, y, z = grok.equations(op, 11)
    kept = (place[x] >= 0) & (place[y] >= 0)
    trained = np.isin(np.arange(len(x)), run.train_rows.numpy())[kept]
    with torch.no_grad():
        logits = run.model(*run.inputs).double().numpy()[kept]
    sign = 1 if op in ("x_plus_y", "x_mul_y") else -1
    sums = place[x] + sign * place[y]
    turn = 2 * np.pi * sums[kept] / n
    columns = [np.ones(len(turn))]
    for k in keys:
        columns += [np.cos(k * turn), np.sin(k * turn)]
    design = np.stack(columns, axis=1)
    fit = np.linalg.lstsq(design, logits, rcond=None)[0]
    restricted = cross_entropy(design @ fit, z[kept])
    rest = logits - design[:, 1:] @ fit[1:]
    excluded = cross_entropy(rest, run.labels.numpy()[kept])
    return restricted.mean(), excluded[trained].mean()


def plant(run, keys):
    """Makes some frequencies the largest of the embedding."""
    place, n = positions(run.config.op)
    with torch.no_grad():
        for column, k in enumerate(keys):
            turn = 2 * np.pi * k * place / n
            wave = 9 * (place >= 0) * np.cos(turn + 1)
            run.model.embed.weight[:11, column] += torch.from_numpy(wave).float()


@pytest.mark.parametrize("net", ["grok", "theirs"])
@pytest.mark.parametrize("op", ["x_plus_y", "x_minus_y", "x_mul_y", "x_div_y"])
def test_both_losses_are_projections_on_waves(op, net):
    tiny = TINY | dict(layers=2) if net == "theirs" else TINY
    run = Progress(Config(**tiny, op=op, net=net, keys=2, outliers=5))
    plant(run, [1, 3])
    measured = run.measure(run.model)
    expected = losses_by_least_squares(run, [1, 3])
    others = losses_by_least_squares(run, [2, 4])
    losses = [measured[name].item() for name in ("restricted_loss", "excluded_loss")]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses != pytest.approx(others, rel=1e-3)


class Circle(torch.nn.Module):
    """The logits 20 cos w(x + y - z) at w = 3 · 2π / 11, and an embedding that turns at `key`."""

    def __init__(self, key):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 1)
        wave = np.cos(key * turn_of(11))
        self.embed.weight.data[:, 0] = torch.from_numpy(wave)

    def forward(self, x, y):
        places = (x + y)[:, None] - torch.arange(11)
        turn = 2 * math.pi * 3 * places / 11
        return 20 * turn.cos()


@pytest.mark.parametrize("key, restricted_is_low", [(3, True), (4, False)])
def test_a_solution_of_one_frequency_is_all_or_nothing(key, restricted_is_low):
    run = Progress(Config(**TINY, op="x_plus_y", keys=1))
    measured = run.measure(Circle(key))
    terms = np.exp(20 * np.cos(turn_of(11)) - 20)
    low = math.log(terms.sum())
    chance = math.log(11)
    expected = (low, chance) if restricted_is_low else (chance, low)
    losses = [measured[name].item() for name in ("restricted_loss", "excluded_loss")]
    assert losses == pytest.approx(expected, rel=1e-4)


def with_embedding(*columns):
    """A run whose elements have these columns in the embedding, and 0; its tokens have 100."""
    run = Progress(Config(**TINY, op="x_plus_y"))
    with torch.no_grad():
        weight = run.model.embed.weight.fill_(100)
        weight[:11] = 0
        for number, column in enumerate(columns):
            weight[:11, number] = torch.as_tensor(column)
    return run


ONE_TURN = [np.cos(3 * turn_of(11)), np.sin(3 * turn_of(11))]


@pytest.mark.parametrize(
    "columns, gini",
    [
        (ONE_TURN, 0.8),  # one frequency of five
        (np.eye(11), 0.0),  # all alike
    ],
)
def test_gini_of_known_embeddings(columns, gini):
    run = with_embedding(*columns)
    assert run.measure(run.model)["embed_gini"].item() == pytest.approx(gini, abs=1e-5)


def test_gini_is_the_mean_difference_of_all_pairs():
    sizes = torch.rand(7, generator=torch.Generator().manual_seed(0))
    differences = (sizes[:, None] - sizes).abs().sum()
    expected = differences / (14 * sizes.sum())
    assert progress.gini(sizes).item() == pytest.approx(expected.item())


PLACES = np.arange(11.0)


@pytest.mark.parametrize(
    "columns, length",
    [
        (ONE_TURN, 2 * math.sin(3 * math.pi / 11)),
        ([3 * PLACES**2, 4 * PLACES**2], 50),  # 5, 15, …, 95: 5 (2 i + 1)
    ],
)
def test_med_is_the_mean_length_of_neighbours_chords_and_leaves_out_tokens(columns, length):
    run = with_embedding(*columns)
    assert run.measure(run.model)["med"].item() == pytest.approx(length)


def largest_frequency(run):
    """Of the embedding, by sums."""
    embedding = run.model.embed.weight[:11].detach().numpy()
    sizes = {}
    for k in range(1, 6):
        wave = np.exp(1j * turn_of(11) * k)
        sizes[k] = np.linalg.norm(wave @ embedding)
    return max(sizes, key=sizes.get)


OF_ONE_KEY = TINY | dict(op="x_plus_y", seed=3, lr=0.1, init_scale=6.0, keys=1, steps=30)


@pytest.fixture
def ended(tmp_path):
    """A run at its end, in a folder."""
    return grok.train(Config(**OF_ONE_KEY), tmp_path / "first", quiet=True, method=Progress)


def test_keys_of_a_folder_are_those_of_the_same_run_at_its_end(ended, tmp_path):
    named = Progress(Config(**OF_ONE_KEY, keys_of=str(tmp_path)))
    key = largest_frequency(ended)
    assert key != largest_frequency(named)
    measured = named.measure(named.model)["restricted_loss"].item()
    by_key = {k: losses_by_least_squares(named, [k])[0] for k in range(1, 6)}
    assert measured == pytest.approx(by_key.pop(key), rel=1e-4)
    assert all(measured != pytest.approx(other, rel=1e-4) for other in by_key.values())


@pytest.mark.parametrize("column", ["embed_gini", "med"])
def test_keys_of_a_folder_leave_the_columns_of_the_embedding_as_they_are(column, ended, tmp_path):
    plain = Progress(Config(**OF_ONE_KEY))
    named = Progress(Config(**OF_ONE_KEY, keys_of=str(tmp_path)))
    now = plain.measure(plain.model)[column].item()
    assert named.measure(named.model)[column].item() == now
    assert ended.measure(ended.model)[column].item() != pytest.approx(now, rel=0.01)


def test_keys_of_another_run_are_refused(tmp_path):
    config = Config(**TINY, op="x_plus_y", seed=3)
    grok.train(config, tmp_path / "first", quiet=True, method=Progress)
    with pytest.raises(grok.UsageError, match="must hold one run"):
        Progress(Config(**TINY, op="x_plus_y", keys_of=str(tmp_path)))


@pytest.mark.parametrize("op, p", [("x2_plus_y2", 11), ("x_mul_y", 12)])
def test_an_operation_that_does_not_turn_is_refused(op, p):
    with pytest.raises(grok.UsageError, match=f"--op {op}: must be one of"):
        Config(**TINY | dict(op=op, p=p))


def test_a_resumed_run_keeps_the_keys_that_it_began_with(tmp_path):
    sizes = dict(op="x_plus_y", p=11, width=8, heads=2, layers=1, until=0.0)
    source, folder = tmp_path / "source", tmp_path / "run"
    grok.train(Config(**sizes, steps=3), source, quiet=True, method=Progress)
    config = Config(**sizes, steps=3, keys_of=str(source))
    named = grok.train(config, folder, quiet=True, method=Progress).named
    grok.train(Config(**sizes, steps=6), source, quiet=True, method=Progress)
    assert torch.equal(grok.load(folder, Config, Progress).named, named)

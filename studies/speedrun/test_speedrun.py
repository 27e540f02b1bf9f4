"""Properties of the judge, and of the network of squares."""

import contextlib
import csv
import io
from pathlib import Path

import grok
import pytest
import speedrun
import torch
from square import Config, Square

SQUARE = Path(__file__).with_name("square.py")
TINY = dict(op="x_plus_y", p=11, net="square", width=8, batch_size=16, eval_every=100, until=0.0)


def record(*rows):
    """A record with these evaluations, (update, validation accuracy)."""
    log = [dict(step=step, val_acc=accuracy) for step, accuracy in rows]
    return grok.Record(grok.Config(), step=rows[-1][0], log=log)


@pytest.mark.parametrize(
    "rows, lowest",
    [
        ([(100, 0.5), (200, 0.99), (700, 0.98), (1200, 1.0)], 0.98),
        ([(100, 0.99), (1100, 1.0), (1200, 0.1)], 0.99),  # later than 1,000 updates does not count
        ([(100, 0.99), (900, 1.0)], None),  # not yet there
        ([(100, 0.98), (5000, 0.98)], None),  # never arrived
    ],
)
def test_the_lowest_of_the_thousand_updates_after_arrival(rows, lowest):
    assert speedrun.lowest_after(record(*rows)) == lowest


def test_flops_are_those_of_the_products_forward_and_back():
    run = Square(Config(**TINY, threads=1))
    multiplications = 16 * 8 * 11  # batch, width, answers; rows of weights are no products
    assert speedrun.flops_of(run) == 2 * multiplications * 3


def test_the_network_squares_sums_and_reads_them_linearly():
    model = Square(Config(**TINY, threads=1)).model
    rows, out = model.parameters()
    x, y = torch.tensor([0, 3, 10]), torch.tensor([1, 3, 0])
    expected = (rows[x] + rows[11 + y]) ** 2 @ out.T
    torch.testing.assert_close(model(x, y), expected)


def folder_of(folder, *settings):
    for number, more in enumerate(settings):
        config = Config(**TINY | dict(steps=20, threads=1) | more)
        grok.train(config, folder / str(number), quiet=True, method=Square)
    return str(folder)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The row of two runs that do not arrive, as it is printed."""
    folder = folder_of(tmp_path_factory.mktemp("two"), dict(seed=0), dict(seed=1))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert speedrun.main([str(SQUARE), folder, "--turns", "1"]) == 0
    (row,) = csv.DictReader(out.getvalue().splitlines())
    return row


@pytest.mark.parametrize("name, value", [("seeds", "2"), ("updates", ""), ("valid", "False")])
def test_a_row_counts_seeds_and_is_not_valid_with_few_that_do_not_arrive(name, value, printed):
    assert printed[name] == value


@pytest.mark.parametrize("name", ["ms", "paper_ms"])
def test_an_update_takes_time(name, printed):
    assert float(printed[name]) > 0


FLOPS = 2 * 16 * 500 * 11 * 3  # of an update of batch 16, width 500, 11 answers


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A function of made runs, each a seed and the rows of its curve: their row. An update takes
    4 ms, one of the paper's recipe 100 ms."""
    monkeypatch.setattr(speedrun, "by_turns", lambda run, other, turns: [4.0, 100.0])

    def row_of(*runs):
        for number, (seed, curve) in enumerate(runs):
            run = Square(Config(**TINY | dict(width=500, seed=seed)))
            run.step, run.log = curve[-1][0], record(*curve).log
            folder = tmp_path / str(number)
            folder.mkdir()
            grok.lay_out(folder, run.config, Square)
            grok.write(folder / "checkpoint.pt", grok.pack(run))
        return speedrun.row_of(SQUARE, tmp_path, turns=1)

    return row_of


def arriving(step, lowest=0.98):
    """The curve of a run that reaches 99 % at this update and falls to `lowest`."""
    return [(step - 100, 0.5), (step, 0.99), (step + 500, lowest), (step + 1000, 1.0)]


@pytest.mark.parametrize(
    "name, value",
    [
        ("seeds", 3),
        ("updates", 2000),
        ("first", 1000),
        ("last", 3000),
        ("lowest", 0.975),
        ("mflop", round(FLOPS / 1e6)),
        ("gflop", round(FLOPS * 2000 / 1e9, 2)),
        ("ms", 4),
        ("paper_ms", 100),
        ("seconds", 8),
    ],
)
def test_the_row_of_runs_that_arrive(name, value, judged):
    runs = enumerate([arriving(3000), arriving(1000, 0.975), arriving(2000)])
    assert judged(*runs)[name] == value


@pytest.mark.parametrize("name", ["updates", "last", "lowest", "gflop", "seconds"])
def test_without_the_arrival_of_all_there_is_none(name, judged):
    never = [(100, 0.5), (5000, 0.98)]
    assert judged((0, arriving(1000)), (1, never))[name] is None


NINETEEN = [(seed, arriving(1000)) for seed in range(19)]


@pytest.mark.parametrize(
    "last, valid",
    [
        ([(19, arriving(1000))], True),
        ([(19, arriving(1000, 0.971))], True),
        ([(19, arriving(1000, 0.97))], False),  # which is not above 0.97
        ([(19, arriving(1000)[:-1])], False),  # went on for 500 updates
        ([(19, [(1000, 0.98), (9000, 0.98)])], False),  # never arrived
        ([(18, arriving(1000))], False),  # a seed again
        ([], False),
    ],
)
def test_valid_are_twenty_seeds_that_arrive_and_stay(last, valid, judged):
    assert judged(*NINETEEN, *last)["valid"] is valid


def test_runs_of_two_commands_are_refused(tmp_path, capsys):
    folder = folder_of(tmp_path, dict(lr=0.1), dict(lr=0.2))
    assert speedrun.main([str(SQUARE), folder]) == 2
    assert "differ in --seed alone" in capsys.readouterr().err


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert speedrun.main([str(SQUARE), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

"""Properties of the judge, and of the network of squares."""

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


def folder_of(tmp_path, *settings):
    for number, more in enumerate(settings):
        config = Config(**TINY | dict(steps=20, threads=1) | more)
        grok.train(config, tmp_path / str(number), quiet=True, method=Square)
    return str(tmp_path)


def test_a_row_counts_seeds_and_is_not_valid_with_few_that_do_not_arrive(tmp_path, capsys):
    folder = folder_of(tmp_path, dict(seed=0), dict(seed=1))
    assert speedrun.main([str(SQUARE), folder, "--turns", "1"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["seeds"], row["updates"], row["valid"]) == ("2", "", "False")
    assert float(row["ms"]) > 0


def test_runs_of_two_commands_are_refused(tmp_path, capsys):
    folder = folder_of(tmp_path, dict(lr=0.1), dict(lr=0.2))
    assert speedrun.main([str(SQUARE), folder]) == 2
    assert "differ in --seed alone" in capsys.readouterr().err


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert speedrun.main([str(SQUARE), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

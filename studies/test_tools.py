"""Properties of the tools that the rooms share, each against something independent: made tables
worked by hand, torch.nn; and of what the rooms have in common.

Run: python -m pytest -q studies"""

import ast
import contextlib
import csv
import dataclasses
import functools
import importlib.util
import math
import os
import re
import shlex
import sys
from pathlib import Path

import figures
import grok
import matplotlib.image as image
import models
import numpy as np
import pytest
import speedups
import tables
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

STUDIES = Path(__file__).parent
TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1)

# --- figures.py: made runs ------------------------------------------------------------------------

MEASURED = ["step", "train_loss", "train_acc", "val_loss", "val_acc", "weight_norm", "seconds"]
USUAL = grok.Config().fixed()


def made(folder, *runs, study=()):
    """A folder with a metrics.csv of runs: (settings, {step: (train_acc, val_acc)}). `study` names
    settings that grok.py does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, [*MEASURED, *USUAL, *study], lineterminator="\n")
        writer.writeheader()
        for settings, curve in runs:
            for step, (train_acc, val_acc) in curve.items():
                row = dict(step=step, train_acc=train_acc, val_acc=val_acc)
                losses = dict(train_loss=2 - train_acc, val_loss=3 - val_acc)
                rest = dict(weight_norm=9.0, seconds=1.0)
                writer.writerow(USUAL | settings | row | losses | rest)
    return folder


def with_a_column(folder, name, value):
    """Adds a measured column to the metrics.csv of a folder."""
    file = folder / "metrics.csv"
    head, *rows = file.read_text().splitlines()
    lines = [head.replace("seconds", f"{name},seconds")]
    for row in rows:
        cells = row.split(",")
        cells.insert(MEASURED.index("seconds"), str(value))
        lines.append(",".join(cells))
    file.write_text("\n".join(lines))
    return folder


def drawn(axes):
    """What a matplotlib axes shows as lines and markers: a list of lists of (x, y)."""
    lines = [line.get_xydata().tolist() for line in axes.lines]
    return [[tuple(point) for point in line] for line in lines if line]


def pictures(*folders):
    """{name: matplotlib Figure} of the runs in some folders."""
    return dict(figures.figures(figures.read_runs(folders)))


def legend(figure):
    return [text.get_text() for text in figure.legends[0].texts]


@pytest.fixture
def three_seeds(tmp_path):
    """The curves of three seeds, of which one has ended early."""
    return made(
        tmp_path,
        (dict(seed=0), {1: (0.0, 0.1), 10: (0.5, 0.2), 100: (1.0, 0.6)}),
        (dict(seed=1), {1: (0.1, 0.0), 10: (1.0, 1.0)}),
        (dict(seed=2), {1: (0.2, 0.05), 10: (0.6, 0.1), 100: (0.9, 0.2)}),
    )


def test_curves_are_medians_over_seeds_where_an_ended_run_keeps_its_last_value(three_seeds):
    accuracy, loss = pictures(three_seeds)["curves-x_div_y"].axes
    train_acc, val_acc = drawn(accuracy)
    assert train_acc == [(1, 0.1), (10, 0.6), (100, 1.0)]
    assert val_acc == [(1, 0.05), (10, 0.2), (100, 0.6)]
    val_loss = [y for _, y in drawn(loss)[1]]
    assert val_loss == pytest.approx([2.95, 2.8, 2.4])


def test_a_band_goes_from_the_least_to_the_greatest(three_seeds):
    accuracy, _ = pictures(three_seeds)["curves-x_div_y"].axes
    (path,) = accuracy.collections[1].get_paths()
    corners = {tuple(corner) for corner in path.vertices.tolist()}
    assert {(1, 0.0), (1, 0.1), (10, 0.1), (10, 1.0), (100, 0.2), (100, 1.0)} <= corners


def test_a_picture_says_what_it_shows(three_seeds):
    figure = pictures(three_seeds)["curves-x_div_y"]
    accuracy, loss = figure.axes
    assert accuracy.get_xscale() == "log"
    assert accuracy.get_xlabel() == "updates"
    assert loss.get_ylabel() == "loss (nats)"
    assert "x_div_y, frac 0.5" in figure.get_suptitle()
    assert "n = 3" in figure.get_suptitle()


def test_other_columns_each_have_a_panel(tmp_path):
    for lr in 0.1, 0.3:
        for seed in 1, 2, 3:
            curve = {1: (0.0, 0.1), 10: (seed / 10, lr)}
            made(tmp_path / f"{lr}-{seed}", (dict(seed=seed, lr=lr), curve))
    names = ["train_acc", "weight_norm", "val_acc"]
    figure = figures.curves(figures.read_runs([tmp_path]), names)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_ylabel() for axes in shown] == names
    assert drawn(shown[0]) == 2 * [[(1, 0.0), (10, 0.2)]]
    assert drawn(shown[2]) == [[(1, 0.1), (10, 0.1)], [(1, 0.1), (10, 0.3)]]


def test_columns_joined_by_a_comma_share_a_panel(three_seeds):
    runs = figures.read_runs([three_seeds])
    both, norm, *_ = figures.curves(runs, ["train_acc,val_acc", "weight_norm"]).axes
    train_acc, val_acc = drawn(both)
    assert train_acc == [(1, 0.1), (10, 0.6), (100, 1.0)]
    assert val_acc == [(1, 0.05), (10, 0.2), (100, 0.6)]
    legend = both.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["train_acc", "val_acc"]
    colours = [line.get_color() for line in both.lines if len(line.get_xdata())]
    assert [line.get_color() for line in legend.get_lines()] == colours
    assert len(drawn(norm)) == 1


def test_each_of_many_columns_in_a_panel_is_drawn(three_seeds):
    names = "train_acc,val_acc,weight_norm,train_loss,val_loss"
    panel = figures.curves(figures.read_runs([three_seeds]), [names]).axes[0]
    assert len(drawn(panel)) == 5


def test_columns_are_drawn_instead_of_all_else(three_seeds):
    assert figures.main([str(three_seeds), "--columns", "val_acc", "weight_norm"]) == 0
    assert [file.name for file in three_seeds.glob("*.png")] == ["columns-x_div_y.png"]


def test_a_column_that_is_not_there_is_refused_with_those_that_are(three_seeds, capsys):
    assert figures.main([str(three_seeds), "--columns", "norm"]) == 2
    error = capsys.readouterr().err
    assert "--columns norm: must be one of" in error
    assert "val_loss, weight_norm" in error


def test_growth_is_per_one_per_cent_of_the_table():
    fracs = [0.25, 0.26, 0.3, 0.5]
    updates = [1e6 * 1.45 ** (-100 * frac) for frac in fracs]
    assert np.allclose(figures.growth(fracs, updates), 0.45)
    assert np.allclose(figures.growth([0.2, 0.3], [1024, 1]), 1.0)  # doubled ten times in ten steps


@pytest.fixture
def fractions(tmp_path):
    """Three seeds at several fractions: a run at 0.3, those at 0.2 and 0.1 never arrive, the last
    not even in training."""
    runs = []
    for frac, updates in (0.3, 3200), (0.31, 1600), (0.35, 100):
        for seed in range(3):
            curve = {1: (0.0, 0.0), 50: (0.99, 0.3), updates + 20 * seed: (1.0, 0.995)}
            runs.append((dict(frac=frac, seed=seed), curve))
    runs[0] = dict(frac=0.3, seed=0), {1: (0.0, 0.0), 50: (0.99, 0.2), 9000: (1.0, 0.9)}
    for seed in range(3):
        curve = {1: (0.0, 0.0), 70: (1.0, 0.1), 9000: (1.0, 0.05 * seed)}
        runs.append((dict(frac=0.2, seed=seed), curve))
    runs.append((dict(frac=0.1), {1: (0.0, 0.0), 8000: (0.9, 0.1)}))
    made(tmp_path / "a", *runs[::2])
    made(tmp_path / "b", *runs[1::2])
    return pictures(tmp_path)["against-frac"]


def test_updates_against_the_fraction_are_medians(fractions):
    updates, _ = fractions.axes
    assert updates.get_yscale() == "log"
    assert [(0.2, 70), (0.3, 50), (0.31, 50), (0.35, 50)] in drawn(updates)  # of training
    assert [(0.3, 3240), (0.31, 1620), (0.35, 120)] in drawn(updates)  # none of three at 0.2


def test_each_run_is_shown(fractions):
    updates, _ = fractions.axes
    expected = [(0.2, 70)] * 3 + [(0.3, 50)] * 3 + [(0.31, 50)] * 3 + [(0.35, 50)] * 3
    assert expected in [sorted(line) for line in drawn(updates)]


def test_a_run_that_never_arrived_is_a_cross_at_its_last_update(fractions):
    updates, _ = fractions.axes
    lines = {line.get_marker(): line.get_xydata().tolist() for line in updates.lines}
    assert sorted(lines["x"]) == [[0.1, 8000], *[[0.2, 9000]] * 3, [0.3, 9000]]
    assert lines["+"] == [[0.1, 8000]]


def test_ranges_are_of_the_runs_that_arrived(fractions):
    updates, _ = fractions.axes
    bars = [bar.tolist() for lines in updates.collections for bar in lines.get_segments()]
    assert [[0.31, 1600], [0.31, 1640]] in bars
    assert [[0.3, 3220], [0.3, 3240]] in bars


def test_best_accuracies_against_the_fraction(fractions):
    _, best = fractions.axes
    arrived = [(0.3, 0.995), (0.31, 0.995), (0.35, 0.995)]
    assert [(0.1, 0.1), (0.2, 0.1), *arrived] in drawn(best)


def test_what_one_per_cent_less_costs_is_written_between_fractions(fractions):
    """By hand: 3,240 / 1,620 in 1 %; (1,620 / 120)^(1/4)."""
    updates, _ = fractions.axes
    assert [text.get_text() for text in updates.texts] == ["+100%", "+92%"]


def test_of_two_equal_runs_the_longer_one_counts(tmp_path):
    made(tmp_path / "long", ({}, {1: (0, 0), 50: (1, 0.5)}))
    made(tmp_path / "short", ({}, {1: (0, 0), 20: (1, 0.2)}))
    ((_, rows),) = figures.read_runs([tmp_path, tmp_path / "long"])
    assert rows[-1]["step"] == 50


def test_interventions_are_lines_against_the_fraction(tmp_path):
    runs = []
    for frac in 0.3, 0.5:
        for decay, dropout, high in (0.0, 0.0, 0.3), (0.0, 0.1, 0.4), (1.0, 0.0, 0.5 + frac):
            settings = dict(frac=frac, weight_decay=decay, dropout=dropout)
            runs.append((settings, {1: (0, 0), 100: (1, high), 200: (1, 0.2)}))
    figure = pictures(made(tmp_path, *runs))["against-frac"]
    assert "baseline: dropout 0, weight_decay 0" in figure.get_suptitle()
    assert legend(figure) == ["baseline (2)", "weight_decay 1 (2)", "dropout 0.1 (2)"]
    lines = drawn(figure.axes[1])
    assert [(0.3, 0.3), (0.5, 0.3)] in lines
    assert [(0.3, 0.4), (0.5, 0.4)] in lines
    assert [(0.3, 0.8), (0.5, 1.0)] in lines


def test_groups_are_compared_where_nothing_numeric_was_swept(tmp_path):
    runs = []
    for op, p, share in ("x_plus_y", 97, 0), ("x_plus_y", 31, 0.1), ("s5_xy", 120, 0.2):
        for seed in 0, 1, 2:
            settings = dict(op=op, p=p, seed=seed)
            runs.append((settings, {1: (0, 0), 100: (1, 1 - seed * share)}))
    found = pictures(made(tmp_path, *runs))
    assert list(found) == ["curves-x_plus_y", "curves-x_plus_y mod 31", "curves-s5_xy", "compare"]
    updates, best = found["compare"].axes
    names = [tick.get_text() for tick in updates.get_yticklabels()]
    assert names == ["s5_xy (3)", "x_plus_y (3)", "x_plus_y mod 31 (3)"]
    assert [(0.8, 0), (1, 1), (0.9, 2)] in drawn(best)
    assert [(100, 1)] in drawn(updates)  # the others' median is never


def test_groups_stand_in_the_order_of_their_values_whatever_that_of_the_files(tmp_path):
    for name, lr in ("a", 3e-3), ("b", 1e-3), ("c", 2e-3):
        made(tmp_path / name, (dict(lr=lr), {1: (0, 0)}))
    _, groups = figures.grouped(figures.read_runs([tmp_path]))
    assert list(groups) == ["lr 0.001 (1)", "lr 0.002 (1)", "lr 0.003 (1)"]


def test_the_baseline_is_what_most_runs_are(tmp_path):
    for name, lr, dropout in ("a", 3e-3, 0), ("b", 1e-3, 0), ("c", 2e-3, 0), ("d", 2e-3, 0.1):
        made(tmp_path / name, (dict(lr=lr, dropout=dropout), {1: (0, 0)}))
    made(tmp_path / "e", (dict(lr=2e-3, seed=1), {1: (0, 0)}))
    _, groups = figures.grouped(figures.read_runs([tmp_path]))
    labels = ["baseline (2)", "lr 0.001 (1)", "lr 0.003 (1)", "dropout 0.1 (1)"]
    assert list(groups) == labels


def test_many_groups_look_different(tmp_path):
    runs = [(dict(lr=i / 1000), {1: (0, 0), 10: (0.5, i / 20)}) for i in range(1, 17)]
    figure = pictures(made(tmp_path, *runs))["curves-x_div_y"]
    solid = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    looks = {(line.get_color(), line.get_marker()) for line in solid}
    assert len(looks) == 16 == len(legend(figure))


def test_any_numeric_setting_can_be_the_axis(tmp_path):
    widths = 16, 64, 256
    runs = [(dict(width=width), {1: (0, 0), 10 * width: (1, 1)}) for width in widths]
    updates, _ = pictures(made(tmp_path, *runs))["against-width"].axes
    assert [(16, 160), (64, 640), (256, 2560)] in drawn(updates)
    assert updates.get_xlabel() == "width"


def test_against_outliers_accuracies_are_the_last_ones(tmp_path):
    outliers = 0, 100, 300
    runs = [(dict(outliers=k), {10: (0.5, 0.97), 100: (1.0, 1 - k / 1000)}) for k in outliers]
    _, last = pictures(made(tmp_path, *runs))["against-outliers"].axes
    assert last.get_ylabel() == "last accuracy"
    assert [(0, 1), (100, 0.9), (300, 0.7)] in drawn(last)
    assert [(0, 1), (100, 1), (300, 1)] in drawn(last)


def test_a_study_s_setting_is_off_where_a_file_does_not_have_it(tmp_path):
    made(tmp_path / "plain", ({}, {1: (0, 0), 10: (1, 0.5)}))
    off, on = (dict(boost=0.0), {1: (0, 0), 20: (1, 0.6)}), (dict(boost=2.0), {1: (0, 0)})
    made(tmp_path / "study", off, on, study=["boost"])
    runs = figures.read_runs([tmp_path])
    found = sorted((settings["boost"], rows[-1]["step"]) for settings, rows in runs)
    assert found == [(0, 20), (2, 1)]  # the longer control counts


def test_what_a_study_measures_is_no_setting(tmp_path):
    with_a_column(made(tmp_path, ({}, {1: (0, 0)})), "sharpness", 7)
    ((settings, rows),) = figures.read_runs([tmp_path])
    assert "sharpness" not in settings
    assert rows[0]["sharpness"] == 7


@pytest.fixture
def table(tmp_path, capsys):
    """(what is said, the rows of runs.csv) of four runs."""
    runs = []
    for seed, lr, step, high in SPEEDS:
        curve = {1: (0, 0), 100: (0.99, 0.5), step - 1: (1, 0.96), step: (1, high), 9000: (1, 0.7)}
        runs.append((dict(seed=seed, lr=lr), curve))
    assert figures.main([str(made(tmp_path, *runs)), "--table"]) == 0
    with open(tmp_path / "runs.csv") as file:
        return capsys.readouterr().out, list(csv.DictReader(file))


SPEEDS = (0, 1e-3, 1000, 0.99), (1, 1e-3, 3000, 1.0), (2, 1e-3, 2000, 0.98), (0, 2e-3, 400, 0.995)


def test_the_table_has_medians_and_ranges(table):
    said, _ = table
    cells = "100 | 3,000 (1,000–never) | 0.990 (0.980–1.000) | 0.700"
    assert f"| lr 0.001 | 3 | 2 | {cells} |" in said
    assert "| lr 0.002 | 1 | 1 | 100 | 400 | 0.995 | 0.700 |" in said


def test_each_run_has_a_row_with_its_settings(table):
    _, rows = table
    settings = [(float(row["lr"]), int(row["seed"])) for row in rows]
    assert settings == [(0.001, 0), (0.001, 1), (0.001, 2), (0.002, 0)]


def test_a_row_has_the_updates_to_50_95_and_99_per_cent(table):
    _, rows = table
    assert [row["val_50"] for row in rows] == ["100"] * 4
    assert [row["train_95"] for row in rows] == ["100"] * 4
    assert [row["train_99"] for row in rows] == ["100"] * 4
    assert [row["val_95"] for row in rows] == ["999", "2999", "1999", "399"]
    assert [row["val_99"] for row in rows] == ["1000", "3000", "", "400"]


def test_a_row_has_accuracies(table):
    _, rows = table
    assert [row["then_val_acc"] for row in rows] == ["0.5"] * 4
    assert [row["best_val_acc"] for row in rows] == ["0.99", "1.0", "0.98", "0.995"]
    assert [row["low_val_acc"] for row in rows] == ["0.7", "0.7", "", "0.7"]
    assert [row["last_val_acc"] for row in rows] == ["0.7"] * 4


def test_a_row_has_the_greatest_and_the_last_of_all_else(table):
    _, rows = table
    assert {(row["most_val_loss"], row["last_val_loss"]) for row in rows} == {("3.0", "2.3")}
    assert {row["last_weight_norm"] for row in rows} == {"9.0"}
    assert {row["steps"] for row in rows} == {"9000"}


def test_a_row_has_the_version_that_trained_it(tmp_path):
    settings = TINY | dict(steps=20, device="cpu")
    grok.train(grok.Config(**settings), tmp_path / "run", quiet=True)
    (row,) = figures.rows_of(figures.read_runs([tmp_path]))
    assert row["grok"] == grok.__version__


def test_sweeps_are_read_run_by_run_from_several_folders(tmp_path):
    for name in "a", "b":
        for seed in 0, 1:
            config = grok.Config(**TINY, steps=5, seed=seed, lr=0.001 if name == "a" else 0.002)
            grok.train(config, tmp_path / name / str(seed), quiet=True)
    runs = figures.read_runs([tmp_path / "a", tmp_path / "b"])
    found = [(settings["lr"], settings["seed"]) for settings, _ in runs]
    assert found == [(0.001, 0), (0.001, 1), (0.002, 0), (0.002, 1)]


def test_a_run_s_settings_are_those_it_was_trained_with(tmp_path):
    config = grok.Config(**TINY, steps=5)
    grok.train(config, tmp_path / "run", quiet=True)
    ((settings, _),) = figures.read_runs([tmp_path])
    fixed = {name: value for name, value in config.fixed().items() if name != "p"}
    assert settings == fixed | dict(op="x_plus_y mod 11")


def test_a_title_is_wrapped_and_says_what_differs_from_the_nearer_recipe(tmp_path):
    odd = dict(op="x_plus_y", p=11, decay_to="init")
    settings = grok.Config(**grok.FAST | odd).fixed()
    made(tmp_path, *((settings | dict(seed=seed), {1: (0, 0)}) for seed in (0, 1)))
    title = figures.curves(figures.read_runs([tmp_path])).get_suptitle()
    assert title.startswith("x_plus_y mod 11, frac 0.5")
    assert "decay_to init" in title
    assert "else the fast recipe's" in title.replace("\n", " ")
    assert "layers" not in title
    assert max(map(len, title.splitlines())) <= 140


def test_tables_joined_under_one_header_are_read_like_their_folders(tmp_path):
    parts = [made(tmp_path / f"{seed}", (dict(seed=seed), {1: (0, 0)})) for seed in (0, 1)]
    (head, first), (_, second) = ((p / "metrics.csv").read_text().splitlines() for p in parts)
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "metrics.csv").write_text("\n".join([head, first, second]))
    assert figures.read_runs([tmp_path / "joined"]) == figures.read_runs(parts)


def refused(folder, capsys, *more):
    """The one line that figures.py says of a folder."""
    assert figures.main([str(folder), *more]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("figures.py: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("text", ["x", "", "nan", "inf"])
@pytest.mark.parametrize("column", ["lr", "width", "frac", "step", "val_acc"])
def test_a_wrong_cell_gets_one_line(text, column, tmp_path, capsys):
    file = made(tmp_path, ({}, {1: (0, 0), 10: (1, 1)})) / "metrics.csv"
    head, *rows, last = file.read_text().splitlines()
    cells = last.split(",")
    cells[head.split(",").index(column)] = text
    file.write_text("\n".join([head, *rows, ",".join(cells)]))
    assert "damaged" in refused(tmp_path, capsys)
    assert os.listdir(tmp_path) == ["metrics.csv"]


DAMAGED = ["", "a,b\n1,2\n", "step,val_acc,seconds\n1,0.5\n", "\udcff\n,", "1,2\nstep\n"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_csv_gets_one_line(text, tmp_path, capsys):
    data = text.encode(errors="surrogateescape")
    (tmp_path / "metrics.csv").write_bytes(data)
    assert str(tmp_path) in refused(tmp_path, capsys)
    assert os.listdir(tmp_path) == ["metrics.csv"]


@pytest.mark.parametrize("more", [[], ["--table"]])
@pytest.mark.parametrize("folder", ["nowhere", "FILE", "FILE/x", 300 * "x", "a\nb", "."])
def test_a_folder_that_is_none_gets_one_line(folder, more, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    refused(folder, capsys, *more)
    assert os.listdir() == ["FILE"]


@pytest.mark.parametrize("asked", [False, True])
def test_pictures_lie_beside_the_csv_or_where_asked(asked, tmp_path, capsys):
    fracs = 0.7, 0.8
    runs = [(dict(p=31, op="x_plus_y", frac=frac), {1: (0, 0), 10: (1, frac)}) for frac in fracs]
    run, elsewhere = made(tmp_path / "run", *runs), tmp_path / "deep" / "pictures"
    assert figures.main([str(run), *(["--out", str(elsewhere)] if asked else [])]) == 0
    folder = elsewhere if asked else run
    files = [folder / f"{name}.png" for name in ("curves-x_plus_y-mod-31", "against-frac")]
    assert capsys.readouterr().out.split() == list(map(str, files))
    for file in files:
        height, width, _ = image.imread(file).shape
        assert width > 2 * height > 400


def test_without_matplotlib_one_line_names_the_install(three_seeds, capsys, monkeypatch):
    loaded = [name for name in sys.modules if name.split(".")[0] == "matplotlib"]
    for name in loaded:
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install -r studies/requirements.txt" in refused(three_seeds, capsys)


# --- tables.py: MADE.csv is worked by hand --------------------------------------------------------

MADE = """\
op,lr,speed,seed,val_95,val_99,best_val_acc,apart
a,0.1,0,1,80,100,0.99,2
a,0.1,0,2,100,300,0.99,
a,0.01,0,1,90,,0.5,4
a,0.01,0,2,,,0.25,6
a,0.1,10,1,50,50,0.99,-2
a,0.1,10,2,50,,0.75,1
a,0.01,10,2,90,90,1.0,3
a,0.01,10,1,40,40,1.0,5
b,0.1,2,1,7,7,1.0,7
c,0.1,0,1,20,100,1,1
c,0.1,0,2,,,0,2
c,0.1,9,1,30,50,1,3
c,0.1,9,2,40,70,1,2
c,0.1,9,3,50,70,1,1
"""


@pytest.fixture
def from_made(tmp_path):
    (tmp_path / "made.csv").write_text(MADE)
    return lambda by, what: computed_rows(tmp_path, by, what)


def computed_rows(folder, by, what):
    """The table of a README, as lists of its cells, without the rule."""
    text = tables.computed(f"<!-- made.csv: {by}: {what} -->\n", folder)
    _, *lines = text.splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    return [head, *rows]


def test_a_cell_is_the_median_and_the_range(from_made):
    _, row = from_made("op=a speed=0 lr=0.1 op", "val_99")
    assert row == ["a", "200 (100–300)"]


def test_what_is_alike_has_no_range(from_made):
    _, row = from_made("op=a speed=0 lr=0.1 op", "best_val_acc")
    assert row == ["a", "0.990"]


def test_a_range_that_begins_below_zero_has_a_word_between(from_made):
    _, row = from_made("op=a speed=10 lr=0.1 op", "apart")
    assert row == ["a", "-0.500 (-2 to 1)"]


def test_updates_that_are_not_there_are_never(from_made):
    _, row = from_made("op=a speed=10 lr=0.1 op", "val_99")
    assert row == ["a", "never (50–never)"]


def test_numbers_that_are_not_there_are_left_out(from_made):
    _, row = from_made("op=a speed=0 lr=0.1 op", "apart")
    assert row == ["a", "2"]


def test_runs_and_arrivals_are_counted(from_made):
    _, *rows = from_made("op=a speed=0 lr", "n reached reached_95")
    assert rows == [["0.01", "2", "0 of 2", "1 of 2"], ["0.1", "2", "2 of 2", "2 of 2"]]


def test_settings_tell_groups_apart_and_stand_by_size(from_made):
    _, *rows = from_made("speed lr", "n")
    speeds, rates, _ = zip(*rows, strict=True)
    assert speeds == ("0", "0", "2", "9", "10", "10")
    assert rates == ("0.01", "0.1", "0.1", "0.1", "0.01", "0.1")


def test_a_value_may_be_a_regular_expression(from_made):
    _, *rows = from_made("op=(?!b). speed=0 op", "n")
    assert rows == [["a", "4"], ["c", "2"]]


def test_a_question_mark_keeps_the_soonest(from_made):
    _, *rows = from_made("op=a speed lr?", "val_99")
    assert rows == [["0", "0.1", "200 (100–300)"], ["10", "0.01", "65 (40–90)"]]


def test_a_question_mark_may_name_its_judge(from_made):
    _, *rows = from_made("op=a speed lr?val_95", "val_95")
    assert rows == [["0", "0.1", "90 (80–100)"], ["10", "0.1", "50"]]


def test_of_groups_that_never_arrive_the_most_accurate_is_kept(from_made):
    _, *rows = from_made("op=a speed=0 lr=0.01 seed?", "best_val_acc")
    assert rows == [["1", "0.500"]]


def test_a_column_for_each_value(from_made):
    assert from_made("op speed=0 lr>", "n") == [
        ["op", "0.01", "0.1"],
        ["a", "2", "2"],
        ["c", "–", "2"],
    ]


def test_a_ratio_is_taken_seed_by_seed(from_made):
    head, _, row = from_made("op=a speed lr?", "/speed=0")
    assert head == ["speed", "lr", "÷ that of speed=0"]
    assert row == ["10", "0.01", "0.35 (0.30–0.40)"]


def test_a_control_may_differ_in_two_settings(from_made):
    *_, row = from_made("op=a speed=10 lr=0.01 op", "/speed=0,lr=0.1")
    assert row == ["a", "0.35 (0.30–0.40)"]


def test_a_ratio_of_another_column(from_made):
    head, _, row = from_made("op=a lr=0.1 speed", "val_95/speed=0")
    assert head == ["speed", "95 % of validation ÷ that of speed=0"]
    assert row == ["10", "0.56 (0.50–0.62)"]


def test_a_ratio_leaves_out_seeds_whose_control_never_arrives(from_made):
    *_, row = from_made("op=c speed=9 op", "/speed=0")
    assert row == ["c", "0.50, n = 1"]


def test_a_control_that_never_arrives(from_made):
    *_, row = from_made("op=a lr=0.01 speed", "/speed=0")
    assert row == ["10", "control never"]


def test_a_rank_correlation(from_made):
    """By hand, of 50, 70, 70 with 3, 2, 1, as Pearson's of the ranks 1, 2.5, 2.5 and 3, 2, 1."""
    _, row = from_made("op=c speed=9 op", "val_99~apart")
    assert row == ["c", "-0.87"]


def test_a_table_takes_the_place_of_the_old_one(tmp_path):
    (tmp_path / "made.csv").write_text(MADE)
    marker = "<!-- made.csv: op: n -->\n"
    table = "| op | n |\n|---|---|\n| a | 8 |\n| b | 1 |\n| c | 5 |\n"
    text = tables.computed(f"x\n{marker}| old |\n| 1 |\n\ny", tmp_path)
    assert text == f"x\n{marker}{table}\ny"


def test_numbers_within_a_sentence(tmp_path):
    (tmp_path / "made.csv").write_text(MADE)
    marker = "<!-- made.csv: op=b lr?: val_99 n -->"
    text = tables.computed(f"of {marker}wrong<!-- --> runs", tmp_path)
    assert text == f"of {marker}7, 1<!-- --> runs"


def test_the_length_of_a_file(tmp_path):
    (tmp_path / "three.py").write_text("1\n\n3\n")
    text = tables.computed("<!-- three.py -->?<!-- --> lines", tmp_path)
    assert text == "<!-- three.py -->3<!-- --> lines"


# --- The picture of speed-ups ---------------------------------------------------------------------

LEFT = """
| work | claimed | in theirs | matched | the control |
|---|---|---|---|---|
| [One](one) | 43.8 | more than 2.4: never | 0.96 (0.80–1.67), n = 5 | L2 |
| Two | – no number | 5, in time | 10 of 12 arrive | decay |

| other | table | as | wide | as it |
|---|---|---|---|---|
| 1 | 2 | 3 | 4 | 5 |
"""


def test_a_factor_is_what_a_cell_begins_with():
    found, columns = speedups.factors(LEFT)
    assert columns == ["claimed", "in theirs", "matched"]
    assert found == {
        "One": [(False, 43.8, 43.8, 43.8), (True, 2.4, 2.4, 2.4), (False, 0.96, 0.8, 1.67)],
        "Two": [None, (False, 5, 5, 5), None],
    }


def test_each_factor_is_a_dot_at_its_place():
    axes = speedups.draw(*speedups.factors(LEFT)).axes[0]
    dots = {line.get_xdata()[0]: line for line in axes.lines if len(line.get_xdata()) == 1}
    assert {43.8, 2.4, 0.96, 5} <= dots.keys()
    assert dots[43.8].get_ydata()[0] < 0.5 < dots[5].get_ydata()[0]


@pytest.mark.parametrize("readme", tables.readmes(), ids=lambda readme: readme.parent.name)
def test_a_readme_says_what_its_results_say(readme):
    text = readme.read_text()
    assert text == tables.computed(text, readme.parent)


def test_a_readme_that_cannot_be_computed_does_not_keep_others_from_it(tmp_path, capsys):
    broken, good = tmp_path / "broken.md", tmp_path / "good.md"
    broken.write_text("<!-- nowhere.csv: op: n -->\n")
    (tmp_path / "made.csv").write_text(MADE)
    good.write_text("<!-- made.csv: op=b: n -->?<!-- -->")
    assert tables.main([broken, good]) == 1
    assert good.read_text() == "<!-- made.csv: op=b: n -->1<!-- -->"
    assert "broken.md" in capsys.readouterr().err


# --- models.py ------------------------------------------------------------------------------------


def elements(n, count, number=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(n, (count,), generator=generator) for _ in range(number)]


def copied(linear, *parts):
    """An nn.Linear or the like with the weights of several, one below the other."""
    with torch.no_grad():
        linear.copy_(torch.cat([part.detach() for part in parts]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_one_hot_is_a_linear_map_of_codes_side_by_side(tokens, bias):
    layer = models.OneHot(7, 5, tokens, bias)
    given = elements(7, 20, tokens)
    codes = torch.cat([F.one_hot(e, 7).float() for e in given], dim=1)
    linear = nn.Linear(7 * tokens, 5, bias)
    linear.weight = nn.Parameter(layer.weight.T)
    linear.bias = layer.bias
    torch.testing.assert_close(layer(*given), linear(codes))


def test_one_hot_starts_as_a_linear_map_does():
    torch.manual_seed(0)
    linear = nn.Linear(14, 5)
    torch.manual_seed(0)
    layer = models.OneHot(7, 5)
    assert torch.equal(layer.weight.T, linear.weight)
    assert torch.equal(layer.bias, linear.bias)


@pytest.mark.parametrize("summed", [False, True])
def test_an_mlp_of_embeddings_is_torch_nn_s(summed):
    model = models.MLP(7, [6, 4], embed=3, summed=summed, outputs=5)
    first, (second, third) = model.first, model.rest
    plain = nn.Sequential(first.up, nn.ReLU(), second, nn.ReLU(), third)
    x, y = elements(7, 20)
    a, b = first.embed(x), first.embed(y)
    read = a + b if summed else torch.cat([a, b], dim=1)
    torch.testing.assert_close(model(x, y), plain(read))


@pytest.mark.parametrize(
    "name, function", [("relu", torch.relu), ("square", lambda h: h * h), ("gelu", nn.GELU())]
)
def test_an_mlp_s_activation(name, function):
    model = models.MLP(7, [6], activation=name)
    x, y = elements(7, 20)
    logits = model.rest[0](function(model.first(x, y)))
    torch.testing.assert_close(model(x, y), logits)


def test_an_mlp_without_biases_has_none():
    model = models.MLP(7, [6, 4], embed=3, bias=False)
    assert all(w.ndim == 2 for w in model.parameters())


def causal(t):
    return torch.ones(t, t, dtype=torch.bool).triu(1)


def normless_by_torch_nn(model, x, y):
    """Logits of all three positions by nn.MultiheadAttention, of the last one."""
    width = model.embed.weight.shape[1]
    attention = nn.MultiheadAttention(width, model.heads, bias=False, batch_first=True)
    maps = [layer.weight for layer in (model.query, model.key, model.value)]
    copied(attention.in_proj_weight, *maps)
    copied(attention.out_proj.weight, model.out.weight)
    tokens = torch.stack([x, y, torch.full_like(x, model.n)], dim=1)
    h = model.embed(tokens) + model.positions
    h = h + attention(h, h, h, attn_mask=causal(3))[0]
    h = h + model.down(torch.relu(model.up(h)))
    return model.head(h)[:, -1]


def test_the_normless_transformer_is_torch_nn_s():
    model = models.NormlessTransformer(7, width=12, heads=3)
    x, y = elements(7, 20)
    torch.testing.assert_close(model(x, y), normless_by_torch_nn(model, x, y))


def test_the_normless_transformer_gives_the_same_of_embeddings_and_where_a_hook_sees_them():
    model = models.NormlessTransformer(7, width=12, heads=3)
    x, y = elements(7, 20)
    logits, seen = model(x, y), []
    tokens = torch.stack([x, y, torch.full_like(x, 7)], dim=1)
    torch.testing.assert_close(model.of_embeddings(model.embed(tokens)), logits)
    model.embed.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    torch.testing.assert_close(model(x, y), logits)
    assert seen == [(20, 3, 12)]


def test_the_normless_transformer_starts_as_the_authors_does():
    """N(0, 1 / D), the head N(0, 1 / outputs), biases 0."""
    torch.manual_seed(0)
    model = models.NormlessTransformer(113, width=128)
    for name, w in model.named_parameters():
        if name.endswith("bias"):
            assert not w.any()
        else:
            variance = 1 / 114 if name == "head.weight" else 1 / 128
            assert w.std().item() == pytest.approx(math.sqrt(variance), rel=0.1), name


def block_by_torch_nn(block, h):
    """h ← LN₁(h), then h + attention(h), then h + MLP(LN₂(h)), by nn.MultiheadAttention."""
    attention = nn.MultiheadAttention(h.shape[2], block.heads, batch_first=True)
    layers = block.query, block.keys_and_values
    copied(attention.in_proj_weight, *(layer.weight for layer in layers))
    copied(attention.in_proj_bias, *(layer.bias for layer in layers))
    attention.out_proj = block.out
    h = block.norm1(h)
    h = h + attention(h, h, h, attn_mask=causal(h.shape[1]))[0]
    return h + block.down(F.gelu(block.up(block.norm2(h))))


def scrambled(module):
    """A module with random weights of size 0.3, so that none is 0 or 1."""
    torch.manual_seed(0)
    for w in module.parameters():
        nn.init.normal_(w, std=0.3)
    return module


def test_grokfast_s_block_is_torch_nn_s():
    block = scrambled(models.GrokfastBlock(12, 3))
    h = torch.randn(5, 4, 12)
    torch.testing.assert_close(block(h), block_by_torch_nn(block, h))


def test_grokfast_s_block_starts_as_torch_nn_s():
    torch.manual_seed(0)
    block, attention = models.GrokfastBlock(128, 4), nn.MultiheadAttention(128, 4)
    both = torch.cat([block.query.weight, block.keys_and_values.weight])
    std = attention.in_proj_weight.std().item()
    assert both.std().item() == pytest.approx(std, rel=0.02)
    assert both.abs().max() <= attention.in_proj_weight.abs().max() * 1.001
    out = attention.out_proj.weight.std().item()
    assert block.out.weight.std().item() == pytest.approx(out, rel=0.03)
    for bias in (block.query.bias, block.keys_and_values.bias, block.out.bias):
        assert not bias.any()


def grokfast_by_blocks(model, x, y):
    """Logits at "=" (token n + 1), from whole sequences x ∘ y =."""
    operation = torch.full_like(x, model.n)
    tokens = torch.stack([x, operation, y, operation + 1], dim=1)
    h = model.embed(tokens) + model.positions
    for block in model.blocks:
        h = block_by_torch_nn(block, h)
    return model.head(h)[:, -1]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_grokfast_s_transformer_is_that_of_its_blocks_cached_or_not(layers):
    model = scrambled(models.GrokfastTransformer(7, layers, width=12, heads=3))
    x, y = elements(7, 20)
    expected = grokfast_by_blocks(model, x, y)
    torch.testing.assert_close(model(x, y), expected, rtol=1e-4, atol=1e-4)
    few = model(x[:3], y[:3])  # below n equations nothing is cached
    torch.testing.assert_close(few, expected[:3], rtol=1e-4, atol=1e-4)


def test_grokfast_s_embeddings_and_positions_start_from_a_standard_normal():
    torch.manual_seed(0)
    model = models.GrokfastTransformer(97)
    assert model.embed.weight.std().item() == pytest.approx(1, rel=0.03)
    assert model.positions.std().item() == pytest.approx(1, rel=0.1)
    assert model.positions.requires_grad


def test_grokfast_s_transformer_has_the_authors_number_of_weights():
    """423 thousand, of which embedding and head have 99 rows each."""
    model = models.GrokfastTransformer(97)
    block = 2 * 2 * 128 + 4 * (128 * 128 + 128) + 2 * 4 * 128 * 128 + 5 * 128
    rest = 2 * 99 * 128 + 4 * 128 + 2 * 128
    count = sum(w.numel() for w in model.parameters())
    assert count == 2 * block + rest
    assert round(count / 1000) == 423


@pytest.mark.parametrize(
    "path, names",
    [("../grok.py", ["Config", "Run"]), ("unified/unified.py", ["Config", "Unified"])],
)
def test_a_study_is_found_in_its_file(path, names, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = models.study(STUDIES / path)
    module = sys.modules[Path(path).stem]
    assert list(found) == [getattr(module, name) for name in names]


def test_a_file_without_a_study_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(grok.UsageError, match="has no Config and Run"):
        models.study(STUDIES / "speedups.py")


def test_an_mlp_has_a_layer():
    with pytest.raises(grok.UsageError, match="--hidden"):
        models.MLP(11, [])


def test_a_setting_that_is_not_read_is_refused():
    models.refuse_unread(grok.Config(), "dropout", "layers")
    with pytest.raises(grok.UsageError, match="--dropout: has no effect here"):
        models.refuse_unread(grok.Config(dropout=0.1), "dropout", "layers")


def test_last_weights_are_those_of_the_run_with_these_settings(tmp_path):
    for seed in 0, 1:
        run = grok.train(grok.Config(**TINY, steps=3, seed=seed), tmp_path / str(seed), quiet=True)
    weights = models.last_weights("--of", str(tmp_path), seed=1)
    assert torch.equal(weights["embed.weight"], run.model.embed.weight)


@pytest.mark.parametrize("settings, count", [(dict(seed=2), 0), (dict(p=11), 2)])
def test_last_weights_are_of_one_run(settings, count, tmp_path):
    for seed in 0, 1:
        grok.train(grok.Config(**TINY, steps=1, seed=seed), tmp_path / str(seed), quiet=True)
    with pytest.raises(grok.UsageError, match=f"--of .*; it holds {count}"):
        models.last_weights("--of", str(tmp_path), **settings)


# --- The rooms: each is found by looking ----------------------------------------------------------

INDEX = STUDIES / "README.md"
PAGES = {readme.parent.name: readme for readme in STUDIES.glob("[!._]*/README.md")}
ROOMS = sorted(file.parent.name for file in STUDIES.glob("*/*.py") if file.stem == file.parent.name)
SMALL = dict(p=11, layers=1, width=16, heads=2, batch_size=16, embed=8, seed=0, threads=1)


@functools.cache
def study(room, name=None):
    """The module of a room's study, under a name of its own."""
    folder = STUDIES / room
    sys.path.append(str(folder))  # for modules beside it
    spec = importlib.util.spec_from_file_location(f"room_{room}", folder / f"{name or room}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def method(room):
    """What a study gives to grok.main: its Run."""
    module = study(room)
    found = [value for value in vars(module).values() if isinstance(value, type)]
    (run,) = [k for k in found if issubclass(k, grok.Run) and k.__module__ == module.__name__]
    return run


TRAINED = [
    room
    for room in ROOMS
    if "class Config(grok.Config)" in (STUDIES / room / f"{room}.py").read_text()
]


def commands(text):
    """The command lines of a page or a docstring, of studies on version 3 and of grok.py, with the
    variables that are set beside them."""
    names, found = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda match: names.get(match[1], match[0]), line.strip())
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            names[assigned[1]] = assigned[2]
        if re.match(r"python (studies/\w+/\w+|grok)\.py ", line):
            found.append(line)
    return found


def pages_commands():
    """(page, command) of all ```bash blocks of pages, and of the studies' introductions."""
    for room, page in PAGES.items():
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
        yield from ((room, command) for command in commands("\n".join(blocks)))
    for room in TRAINED:
        source = (STUDIES / room / f"{room}.py").read_text()
        introduction = ast.get_docstring(ast.parse(source))
        yield from ((f"{room}.py", command) for command in commands(introduction))


def asked_for(command):
    """(method, Configs) of a command; no method where the program is none of grok.main's."""
    program, *words = shlex.split(command, comments=True)[1:]
    room = Path(program).stem
    if room != "grok" and room not in TRAINED:
        return None, []
    config, run = (study(room).Config, method(room)) if room != "grok" else (grok.Config, grok.Run)
    given = vars(grok.parser(config).parse_args(words))
    names = {f.name for f in dataclasses.fields(config)}
    settings = {name: value for name, value in given.items() if name in names}
    recipe = grok.FAST if given.get("recipe") == "fast" else {}
    return run, [] if "resume" in given else config.grid(**recipe | settings)


def shrunk(config):
    """A Config as small as its study lets it be: what it refuses stays as it is."""
    small = SMALL | dict(outliers=min(config.outliers, 5))
    if config.batch_size == 0:  # a full batch
        small["batch_size"] = 0
    if hasattr(config, "hidden"):
        small["hidden"] = tuple(8 for _ in config.hidden)
    for name, value in small.items():
        if hasattr(config, name):
            with contextlib.suppress(grok.UsageError):
                config = dataclasses.replace(config, **{name: value})
    return config


def needs_a_folder(config):
    """Whether a setting names a folder of other runs: a free text that is not its default."""
    for f in dataclasses.fields(config):
        free = isinstance(f.default, str) and not f.metadata["allowed"]
        if free and getattr(config, f.name) != f.default:
            return True
    return False


@pytest.mark.parametrize("room", TRAINED)
def test_off_a_study_trains_as_grok_py(room):
    config = study(room).Config(**TINY, steps=12, eval_every=4)
    ours = grok.train(config, quiet=True, method=method(room))
    plain = grok.train(grok.Config(**TINY, steps=12, eval_every=4), quiet=True)
    for row, expected in zip(ours.log, plain.log, strict=True):
        del expected["seconds"]
        assert {name: row[name] for name in expected} == expected
    weights = ours.model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in plain.model.state_dict().items())


@functools.cache
def rehearsed(run, config):
    """Rehearses what another command has not: raises UsageError."""
    grok.rehearse(run, config)


@pytest.mark.parametrize("page, command", sorted(set(pages_commands())))
def test_a_command_parses_and_its_first_and_last_run_pass_a_rehearsal(page, command):
    run, configs = asked_for(command)
    if not configs:
        pytest.skip("a command line of its own" if not run else "a resumed run")
    small = {shrunk(config) for config in (configs[0], configs[-1])}
    alone = [config for config in small if not needs_a_folder(config)]
    for config in alone:
        rehearsed(run, config)
    if not alone:
        pytest.skip("needs the folder of another command")


def beside_tables(text):
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    return re.sub("<!--.*?-->", "", "\n".join(lines))


@pytest.mark.parametrize("room", PAGES)
def test_a_page_keeps_to_its_length(room):
    assert len(beside_tables(PAGES[room].read_text())) <= 6000


def test_the_index_keeps_to_its_length():
    assert len(INDEX.read_text()) <= 12_000


def test_the_picture_of_speed_ups_is_drawn_from_the_index_as_it_is():
    with Image.open(STUDIES / "speedups.png") as picture:
        assert picture.text["Description"] == str(speedups.factors(INDEX.read_text()))


ROWS = [line for line in INDEX.read_text().splitlines() if re.match(r"\| \[", line)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[3:20])
def test_a_number_of_the_index_stands_on_the_page_of_its_room(row):
    rooms = re.findall(r"\]\((\w+)[)/]", row)
    pages = " ".join(re.sub("<!--.*?-->", "", PAGES[room].read_text()) for room in rooms)
    row = re.sub(r"\]\(.*?\)|et al\. \d+", "", row)
    for number in re.findall(r"-?\d+(?:[.,]\d+)+(?: \([^()=]*\d\))?|\d{3,}", row):
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d,]*\d)", pages), number


@pytest.mark.parametrize("room", sorted({*PAGES, *ROOMS}))
def test_the_index_has_each_room(room):
    assert f"]({room})" in INDEX.read_text()


@pytest.mark.parametrize("readme", tables.readmes(), ids=lambda readme: readme.parent.name)
def test_a_readme_s_links_lead_somewhere(readme):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", readme.read_text()):
        assert target.startswith("http") or (readme.parent / target).exists(), target


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*/*.csv")), ids=lambda file: file.stem)
def test_each_row_says_which_version_made_it(file):
    with open(file) as opened:
        versions = {row["grok"] for row in csv.DictReader(opened)}
    assert versions and all(re.fullmatch(r"[23]\.\d+\.\d+", version) for version in versions)

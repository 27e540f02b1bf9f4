"""Properties of the studies, each against something independent: made tables, a worked example,
brute force.
Run: python -m pytest -q studies"""

import csv
import itertools
import os
import re
import sys
from pathlib import Path

import figures
import grok2 as grok
import matplotlib.image as image
import numpy as np
import pytest
import speed
import torch
from grok2 import Config

COLUMNS = [
    "op",
    "p",
    "frac",
    "seed",
    "lr",
    "weight_decay",
    "decay_to",
    "dropout",
    "weight_noise",
    "update_noise",
    "outliers",
    "step",
    "train_loss",
    "train_acc",
    "val_loss",
    "val_acc",
    "weight_norm",
    "seconds",
    "layers",
    "width",
    "eps",
    "beta2",
    "warmup",
]
USUAL = dict(
    op="x_div_y",
    p=97,
    frac=0.5,
    seed=0,
    lr=0.001,
    weight_decay=1.0,
    decay_to="origin",
    dropout=0.0,
    weight_noise=0.0,
    update_noise=0.0,
    outliers=0,
    layers=2,
    width=128,
    eps=1e-8,
    beta2=0.98,
    warmup=10,
)
PERMS = list(itertools.permutations(range(5)))
TINY = dict(
    op="x_plus_y",
    p=11,
    layers=1,
    width=16,
    heads=2,
    steps=30,
    batch_size=16,
    eval_every=10,
    device="cpu",
    threads=1,
)


def made(folder, *runs, columns=COLUMNS):
    """A folder with a metrics.csv of made runs: (settings, {step: (train_acc, val_acc)})."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for settings, curve in runs:
            for step, (train_acc, val_acc) in curve.items():
                writer.writerow(
                    USUAL
                    | settings
                    | dict(
                        step=step,
                        train_acc=train_acc,
                        val_acc=val_acc,
                        weight_norm=9.0,
                        train_loss=2 - train_acc,
                        val_loss=3 - val_acc,
                        seconds=1.0,
                    )
                )
    return folder


def drawn(axes):
    """What a matplotlib axes shows as lines and markers: a list of lists of (x, y)."""
    return [
        [tuple(map(float, point)) for point in line.get_xydata()]
        for line in axes.lines
        if len(line.get_xydata())
    ]


# --- figures.py -----------------------------------------------------------------------------------


def test_curves_are_medians_and_ranges_over_seeds(tmp_path):
    made(
        tmp_path,
        (dict(seed=0), {1: (0.0, 0.1), 10: (0.5, 0.2), 100: (1.0, 0.6)}),
        (dict(seed=1), {1: (0.1, 0.0), 10: (1.0, 1.0)}),  # ended early: keeps its last value
        (dict(seed=2), {1: (0.2, 0.05), 10: (0.6, 0.1), 100: (0.9, 0.2)}),
    )
    figure = figures.curves(figures.read_runs([tmp_path]))
    accuracy, loss = figure.axes
    train_acc, val_acc = drawn(accuracy)
    assert train_acc == [(1, 0.1), (10, 0.6), (100, 1.0)] and val_acc == [
        (1, 0.05),
        (10, 0.2),
        (100, 0.6),
    ]
    assert np.allclose([y for _, y in drawn(loss)[1]], [2.95, 2.8, 2.4])
    band = {tuple(point) for point in accuracy.collections[1].get_paths()[0].vertices}
    assert {(1, 0.0), (1, 0.1), (10, 0.1), (10, 1.0), (100, 0.2), (100, 1.0)} <= band
    assert accuracy.get_xscale() == "log" and (accuracy.get_xlabel(), loss.get_ylabel()) == (
        "updates",
        "loss (nats)",
    )
    assert "x_div_y, frac 0.5" in figure.get_suptitle() and "n = 3" in figure.get_suptitle()


def test_other_columns_each_have_a_panel(tmp_path, capsys):
    made(
        tmp_path,
        *(
            (dict(seed=seed, lr=lr), {1: (0.0, 0.1), 10: (seed / 10, lr)})
            for seed in (1, 2, 3)
            for lr in (0.1, 0.3)
        ),
    )
    figure = figures.curves(figures.read_runs([tmp_path]), ["train_acc", "weight_norm", "val_acc"])
    shown = [a for a in figure.axes if a.get_visible()]
    assert [a.get_ylabel() for a in shown] == ["train_acc", "weight_norm", "val_acc"] and len(
        figure.axes
    ) == 4
    assert drawn(shown[0]) == 2 * [[(1, 0.0), (10, 0.2)]] and drawn(shown[2]) == [
        [(1, 0.1), (10, lr)] for lr in (0.1, 0.3)
    ]
    assert figures.main([str(tmp_path), "--columns", "val_acc", "weight_norm"]) == 0
    assert [file.name for file in tmp_path.glob("*.png")] == ["columns-x_div_y.png"]
    assert figures.main([str(tmp_path), "--columns", "val_acc", "norm"]) == 2
    assert (
        "--columns norm: must be one of" in (error := capsys.readouterr().err)
        and "val_loss, weight_norm" in error
    )


def test_growth_is_per_one_per_cent_of_the_table():
    fracs = [0.25, 0.26, 0.3, 0.5]
    assert np.allclose(figures.growth(fracs, [1e6 * 1.45 ** (-100 * frac) for frac in fracs]), 0.45)
    assert np.allclose(figures.growth([0.2, 0.3], [1024, 1]), 1.0)  # doubled ten times in ten steps


def test_updates_against_the_fraction_with_runs_that_never_arrived(tmp_path):
    runs = [
        (
            dict(frac=frac, seed=seed),
            {1: (0.0, 0.0), 50: (0.99, 0.3), updates + 20 * seed: (1.0, 0.995)},
        )
        for frac, updates in ((0.3, 3200), (0.31, 1600), (0.35, 100))
        for seed in range(3)
    ]
    runs[0] = (dict(frac=0.3, seed=0), {1: (0.0, 0.0), 50: (0.99, 0.2), 9000: (1.0, 0.9)})
    runs += [
        (dict(frac=0.2, seed=seed), {1: (0.0, 0.0), 70: (1.0, 0.1), 9000: (1.0, 0.05 * seed)})
        for seed in range(3)
    ]
    runs += [(dict(frac=0.1), {1: (0.0, 0.0), 8000: (0.9, 0.1)})]  # not even training
    made(tmp_path / "rank-0", *runs[::2])
    made(tmp_path / "rank-1", *runs[1::2])
    made(
        tmp_path / "again", (dict(frac=0.3, seed=1), {1: (0.0, 0.0), 50: (0.5, 0.1)})
    )  # the longer one counts
    updates, best = figures.against(figures.read_runs([tmp_path, tmp_path / "rank-1"]), "frac").axes
    lines = drawn(updates)
    assert [(0.2, 70), (0.3, 50), (0.31, 50), (0.35, 50)] in lines  # 99 % of training
    assert [(0.3, 3240), (0.31, 1620), (0.35, 120)] in lines  # medians; none of three at 0.2
    assert [(0.2, 70)] * 3 + [(0.3, 50)] * 3 + [(0.31, 50)] * 3 + [(0.35, 50)] * 3 in map(
        sorted, lines
    )  # every run
    crosses = {
        line.get_marker(): sorted(map(tuple, line.get_xydata().tolist())) for line in updates.lines
    }
    assert crosses["x"] == [(0.1, 8000)] + [(0.2, 9000)] * 3 + [(0.3, 9000)] and crosses["+"] == [
        (0.1, 8000)
    ]
    ranges = [segment.tolist() for bars in updates.collections for segment in bars.get_segments()]
    assert [[0.31, 1600], [0.31, 1640]] in ranges and [[0.3, 3220], [0.3, 3240]] in ranges
    assert [(0.1, 0.1), (0.2, 0.1), (0.3, 0.995), (0.31, 0.995), (0.35, 0.995)] in drawn(best)
    assert [text.get_text() for text in updates.texts] == [
        "+100%",
        "+92%",
    ]  # 3240/1620 in 1 %, (1620/120)^(1/4) - 1
    assert updates.get_yscale() == "log"


def test_best_accuracy_by_intervention_and_by_operation(tmp_path):
    made(
        tmp_path,
        *(
            (
                dict(frac=frac, weight_decay=decay, dropout=dropout),
                {1: (0, 0), 100: (1, high), 200: (1, 0.2)},
            )
            for frac in (0.3, 0.5)
            for decay, dropout, high in ((0.0, 0.0, 0.3), (0.0, 0.1, 0.4), (1.0, 0.0, 0.5 + frac))
        ),
    )
    names = [name for name, _ in figures.figures(figures.read_runs([tmp_path]))]
    assert names == ["curves-x_div_y", "against-frac"]
    figure = dict(figures.figures(figures.read_runs([tmp_path])))["against-frac"]
    assert "baseline: weight_decay 0, dropout 0" in figure.get_suptitle()
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["baseline (2)", "dropout 0.1 (2)", "weight_decay 1 (2)"]
    for line in [(0.3, 0.3), (0.5, 0.3)], [(0.3, 0.4), (0.5, 0.4)], [(0.3, 0.8), (0.5, 1.0)]:
        assert line in drawn(figure.axes[1])


def test_groups_are_compared_where_nothing_numeric_was_swept(tmp_path):
    made(
        tmp_path,
        *(
            (dict(op=op, p=p, seed=seed), {1: (0, 0), 100: (1, 1 - seed * share)})
            for op, p, share in (("x_plus_y", 97, 0), ("x_plus_y", 31, 0.1), ("s5_xy", 120, 0.2))
            for seed in (0, 1, 2)
        ),
    )
    found = dict(figures.figures(figures.read_runs([tmp_path])))
    assert list(found) == ["curves-x_plus_y", "curves-x_plus_y mod 31", "curves-s5_xy", "compare"]
    updates, best = found["compare"].axes
    names = [tick.get_text() for tick in updates.get_yticklabels()]
    assert names == ["s5_xy (3)", "x_plus_y (3)", "x_plus_y mod 31 (3)"]
    assert [(0.8, 0), (1, 1), (0.9, 2)] in drawn(best) and [(100, 1)] in drawn(updates)
    assert [(100, 0)] * 2 + [(100, 2)] * 2 in map(
        sorted, drawn(updates)
    )  # of p 31 and S5 one seed of three arrived
    assert "frac 0.5, else the paper's settings" in found["compare"].get_suptitle()


def test_groups_stand_in_the_order_of_their_values_whatever_that_of_the_files(tmp_path):
    for name, lr in ("a", 3e-3), ("b", 1e-3), ("c", 2e-3):
        made(tmp_path / name, (dict(lr=lr), {1: (0, 0)}))
    assert list(figures.grouped(figures.read_runs([tmp_path]))[1]) == [
        "lr 0.001 (1)",
        "lr 0.002 (1)",
        "lr 0.003 (1)",
    ]
    made(
        tmp_path / "d",
        *((dict(lr=2e-3, dropout=0.1 * (seed > 1), seed=seed), {1: (0, 0)}) for seed in (1, 2)),
    )
    labels = list(figures.grouped(figures.read_runs([tmp_path]))[1])
    assert labels == ["baseline (2)", "lr 0.001 (1)", "dropout 0.1 (1)", "lr 0.003 (1)"]


def test_many_groups_look_different(tmp_path):
    made(tmp_path, *((dict(lr=lr / 1000), {1: (0, 0), 10: (0.5, lr / 20)}) for lr in range(1, 17)))
    figure = figures.curves(figures.read_runs([tmp_path]))
    looks = {
        (line.get_color(), line.get_marker())
        for line in figure.axes[0].lines
        if line.get_linestyle() == "-"
    }
    assert len(looks) == 16 == len(figure.legends[0].texts)


def test_any_numeric_setting_can_be_the_axis(tmp_path):
    made(
        tmp_path,
        *(
            (dict(width=width, frac=0.5), {1: (0, 0), 10 * width: (1, 1)})
            for width in (16, 64, 256)
        ),
    )
    ((name, figure),) = [
        (n, f) for n, f in figures.figures(figures.read_runs([tmp_path])) if n.startswith("against")
    ]
    assert name == "against-width" and [(16, 160), (64, 640), (256, 2560)] in drawn(figure.axes[0])
    assert figure.axes[0].get_xlabel() == "width"


def test_a_study_s_columns_are_settings_and_absent_ones_are_off(tmp_path):
    made(tmp_path / "plain", ({}, {1: (0, 0), 10: (1, 0.5)}))
    made(
        tmp_path / "study",
        (dict(boost=0.0), {1: (0, 0), 20: (1, 0.6)}),
        (dict(boost=2.0), {1: (0, 0), 10: (1, 1)}),
        columns=[*COLUMNS, "boost"],
    )
    made(tmp_path / "odd", ({}, {1: (0, 0)}), columns=[*COLUMNS[:16], "measured", *COLUMNS[16:]])
    (tmp_path / "odd" / "metrics.csv").write_text(
        (tmp_path / "odd" / "metrics.csv").read_text().replace(",0,", ",1,", 1).replace(",,", ",7,")
    )
    runs = figures.read_runs([tmp_path / "plain", tmp_path / "study"])
    assert sorted((settings["boost"], rows[-1]["step"]) for settings, rows in runs) == [
        (0, 20),
        (2, 10),
    ]  # the longer control
    ((_, rows),) = figures.read_runs([tmp_path / "odd"])
    assert rows[0]["measured"] == 7


def test_a_run_that_a_study_went_on_with_is_one_run(tmp_path):
    plain = (made(tmp_path / "plain", ({}, {1: (0, 0), 10: (1, 0.5)})) / "metrics.csv").read_text()
    measures = [*COLUMNS[:16], "measured", *COLUMNS[16:]]
    for name, first, columns in (
        ("later", 30, [*COLUMNS, "boost"]),
        ("beside", 5, [*COLUMNS, "boost"]),
        ("more", 30, [*measures, "boost"]),
    ):
        file = (
            made(
                tmp_path / name, (dict(boost=0.9), {first: (1, 0.7), 40: (1, 0.8)}), columns=columns
            )
            / "metrics.csv"
        )
        file.write_text(plain + file.read_text().replace(",,", ",7,"))
    ((settings, rows),) = figures.read_runs([tmp_path / "later"])
    assert settings["boost"] == 0.9 and [row["step"] for row in rows] == [1, 10, 30, 40]
    assert [
        (settings["boost"], rows[-1]["step"])
        for settings, rows in figures.read_runs([tmp_path / "beside"])
    ] == [(0, 10), (0.9, 40)]
    assert figures.main([str(tmp_path / "more"), "--table"]) == 0


def test_the_table_has_medians_and_ranges_and_a_row_for_each_run(tmp_path, capsys):
    made(
        tmp_path,
        *(
            (dict(seed=seed, lr=lr), {1: (0, 0), 100: (0.99, 0.5), step: (1, acc), 9000: (1, 0.7)})
            for seed, lr, step, acc in (
                (0, 1e-3, 1000, 0.99),
                (1, 1e-3, 3000, 1.0),
                (2, 1e-3, 2000, 0.98),
                (0, 2e-3, 400, 0.995),
            )
        ),
    )
    assert figures.main([str(tmp_path), "--table"]) == 0
    said = capsys.readouterr().out
    assert (
        "| lr 0.001 | 3 | 2 | 100 | 3,000 (1,000–never) | 0.990 (0.980–1.000) | 0.700 |"
        in said.replace("1 (", "1.000 (").replace("–1)", "–1.000)")
    )
    assert "| lr 0.002 | 1 | 1 | 100 | 400 | 0.995 | 0.700 |" in said
    with open(tmp_path / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    names = (
        "lr",
        "seed",
        "train_99",
        "val_99",
        "then_val_acc",
        "best_val_acc",
        "low_val_acc",
        "last_val_acc",
        "steps",
    )
    assert [tuple(map(row.get, names)) for row in rows] == [
        ("0.001", "0", "100", "1000", "0.5", "0.99", "0.7", "0.7", "9000"),
        ("0.001", "1", "100", "3000", "0.5", "1.0", "0.7", "0.7", "9000"),
        ("0.001", "2", "100", "", "0.5", "0.98", "", "0.7", "9000"),
        ("0.002", "0", "100", "400", "0.5", "0.995", "0.7", "0.7", "9000"),
    ]
    assert {
        tuple(row[f"last_{name}"] for name in ("train_loss", "val_loss", "weight_norm"))
        for row in rows
    } == {("1.0", "2.3", "9.0")}
    assert {(row["most_train_loss"], row["most_val_loss"]) for row in rows} == {("2.0", "3.0")}


def test_what_grok_writes_is_what_is_read(tmp_path):
    runs = grok.train(Config.grid(**TINY, seed=[0, 1]), out=tmp_path, quiet=True)
    for run, (settings, rows) in zip(runs, figures.read_runs([tmp_path])):
        assert rows == run.log and settings == {
            k: v for k, v in run.config.columns().items() if k != "p"
        } | dict(op="x_plus_y mod 11")


def test_version_3_s_folders_are_read_beside_version_2_s(tmp_path):
    version3 = figures.grok  # the one that figures.py itself reads settings of
    one = version3.train(version3.Config(**TINY, seed=3), out=tmp_path / "3" / "run", quiet=True)
    (two,) = grok.train(Config(**TINY, seed=2), out=tmp_path / "2", quiet=True)
    (_, second), (_, third) = figures.read_runs([tmp_path])
    assert third == one.log
    assert second == two.log
    ((settings, _),) = figures.read_runs([tmp_path / "3"])
    fixed = {k: v for k, v in one.config.fixed().items() if k != "p"}
    assert settings == fixed | dict(op="x_plus_y mod 11")


def test_a_title_is_wrapped_and_says_what_differs_from_the_nearer_recipe(tmp_path):
    grok.train(
        Config.grid(**TINY | grok.FAST | dict(steps=2, layers=1, decay_to="init"), seed=[0, 1]),
        out=tmp_path,
        quiet=True,
    )
    title = figures.curves(figures.read_runs([tmp_path])).get_suptitle()
    assert (
        "decay_to init" in title
        and "else the fast recipe's" in title.replace("\n", " ")
        and "layers" not in title
    )
    assert (
        title.startswith("x_plus_y mod 11, frac 0.5") and max(map(len, title.splitlines())) <= 140
    )


def test_merged_tables_are_read_like_their_folders(tmp_path):
    parts = [
        made(tmp_path / name, (dict(seed=seed), {1: (0, 0), 100: (1, 1)})) / "metrics.csv"
        for seed, name in enumerate("ab")
    ]
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "metrics.csv").write_text("".join(part.read_text() for part in parts))
    assert figures.read_runs([tmp_path / "merged"]) == figures.read_runs(
        [part.parent for part in parts]
    )


def test_final_accuracies_against_outliers(tmp_path):
    made(
        tmp_path,
        *((dict(outliers=k), {10: (0.5, 0.97), 100: (1.0, 1 - k / 1000)}) for k in (0, 100, 300)),
    )
    _, last = dict(figures.figures(figures.read_runs([tmp_path])))["against-outliers"].axes
    assert [(0, 1), (100, 0.9), (300, 0.7)] in drawn(last) and [
        (0, 1),
        (100, 1),
        (300, 1),
    ] in drawn(last)
    assert last.get_ylabel() == "last accuracy"


@pytest.mark.parametrize("change", ["x", "", "nan", "inf"])
@pytest.mark.parametrize("column", ["lr", "width", "frac", "step", "val_acc"])
def test_a_wrong_cell_gets_one_line(change, column, tmp_path, capsys):
    made(
        tmp_path,
        ({}, {1: (0, 0), 10: (1, 1)}),
        ({"seed": 1, column: change} if column in USUAL else {"seed": 1}, {1: (0, 0)}),
    )
    if column not in USUAL:
        text = (tmp_path / "metrics.csv").read_text().splitlines()
        cells = text[-1].split(",")
        cells[COLUMNS.index(column)] = change
        (tmp_path / "metrics.csv").write_text("\n".join([*text[:-1], ",".join(cells)]))
    assert figures.main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("figures.py: ") and "damaged" in err and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a,b\n1,2\n",
        ",".join(COLUMNS).encode() + b"\nx_div_y,97,0.5,0\n",
        b"\xff\n,",
        b"1,2\nstep\n",
    ],
)
def test_a_damaged_csv_gets_one_line(text, tmp_path, capsys):
    (tmp_path / "metrics.csv").write_bytes(text)
    assert figures.main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (
        not out and err.startswith("figures.py: ") and str(tmp_path) in err and err.count("\n") == 1
    )
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("folder", ["nowhere", "FILE", "FILE/x", 300 * "x", "a\nb", "."])
def test_a_folder_that_is_none_gets_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    for more in [], ["--table"]:
        assert figures.main([folder, *more]) == 2
        out, err = capsys.readouterr()
        assert (
            not out
            and err.startswith("figures.py: ")
            and err.count("\n") == 1
            and os.listdir() == ["FILE"]
        )


def test_pictures_lie_beside_the_csv_or_where_asked(tmp_path, capsys):
    run, elsewhere = tmp_path / "run", tmp_path / "deep" / "pictures"
    made(
        run,
        *(
            (dict(p=31, op="x_plus_y", frac=frac), {1: (0, 0), 10: (1, frac)})
            for frac in (0.7, 0.8)
        ),
    )
    for extra, folder in ([], run), (["--out", str(elsewhere)], elsewhere):
        assert figures.main([str(run), *extra]) == 0
        names = ["curves-x_plus_y-mod-31", "against-frac"]
        assert capsys.readouterr().out.split() == [str(folder / f"{name}.png") for name in names]
        for name in names:
            data = (folder / f"{name}.png").read_bytes()
            height, width, _ = image.imread(folder / f"{name}.png").shape
            assert data.startswith(b"\x89PNG") and width > 2 * height > 400 and len(data) < 400_000
    assert {file.name for file in run.iterdir() if file.suffix != ".png"} == {"metrics.csv"}


def test_without_matplotlib_one_line_names_the_install(tmp_path, capsys, monkeypatch):
    made(tmp_path, ({}, {1: (0, 0), 10: (1, 1)}))
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert figures.main([str(tmp_path)]) == 2
    assert "pip install -r studies/requirements.txt" in capsys.readouterr().err


# --- speed.py -------------------------------------------------------------------------------------


def test_the_plain_program_has_as_many_weights_and_learns():
    config = Config(**TINY, frac=0.1, weight_decay=0)  # a dozen equations to memorise
    sizes = dict(zip(config.model().shapes, config.model().sizes))
    matrices = [w for w in speed.Plain(config).parameters() if w.dim() > 1]
    assert (
        sum(w.numel() for w in matrices)
        == sum(n for name, n in sizes.items() if "norm" not in name) + 4 * config.width
    )
    advance = speed.plain(config, torch.device("cpu"))
    advance(400)
    assert np.mean([advance(1) for _ in range(10)]) < 0.5 * np.log(11)


def test_speed_refuses_and_prints_both_times(capsys, monkeypatch):
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    for bad in ["--turns", "0"], ["--device", "mps"], ["--device", "tpu"]:
        with pytest.raises(SystemExit, match="2"):
            speed.main(bad)
    speed.main(["--turns", "1"])
    ours, plain, ratio = map(float, re.findall(r"\d+\.\d+", capsys.readouterr().out))
    assert ours > 0 and plain > 0 and 0.9 * ours / plain < ratio < 1.1 * ours / plain

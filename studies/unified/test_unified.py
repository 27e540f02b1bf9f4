"""Properties of the courses and of their map."""

import courses
import grok
import pytest
from unified import Config, Unified

TINY = dict(op="x_plus_y", p=11, heads=2, batch_size=16, steps=5, threads=1)


@pytest.mark.parametrize(
    "train, val, kind",
    [
        (None, None, "neither"),
        (100, None, "memorised"),
        (100, 200, "grokked"),
        (100, 199, "at once"),
        (None, 50, "at once"),
        (300, 100, "at once"),
    ],
)
def test_the_four_courses(train, val, kind):
    assert courses.course(train, val) == kind


def group(*times):
    return [(courses.course(*pair), *pair) for pair in times]


def test_a_cell_says_what_most_seeds_do_and_the_medians():
    three = group((100, 900), (200, None), (300, 1000))
    assert courses.said(three) == ("grokked", "200 / 1,000")


def test_of_a_tie_the_first_counts():
    assert courses.said(group((100, None), (100, 300))) == ("memorised", "100 / never")


@pytest.fixture
def folder(tmp_path):
    cells = [(8, 0.5, 0), (16, 0.4, 0), (16, 0.4, 1), (16, 0.6, 0)]
    for number, (width, frac, seed) in enumerate(cells):
        config = Config(**TINY, width=width, frac=frac, seed=seed)
        grok.train(config, tmp_path / str(number), quiet=True, method=Unified)
    return tmp_path


def test_the_table_of_a_folder(folder, capsys):
    assert courses.main(folder) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["width", width, "fraction", frac, "neither", "never", "/", "never", "n", "=", n]
        for width, frac, n in (("8", "0.5", "1"), ("16", "0.4", "2"), ("16", "0.6", "1"))
    ]


def test_the_picture_of_a_folder(folder):
    courses.main(folder)
    assert (folder / "unified.png").stat().st_size > 5000


def test_runs_that_differ_otherwise_are_refused(folder, capsys):
    config = Config(**TINY, width=8, lr=0.1)
    grok.train(config, folder / "other", quiet=True, method=Unified)
    assert courses.main(folder) == 2
    assert "differ" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_said_in_a_line(tmp_path, capsys):
    assert courses.main(tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_map_has_fractions_across_and_widths_up_each_in_its_colour():
    from matplotlib.colors import to_hex

    cells = {(8, 0.2): group((5, None)), (8, 0.6): group((5, 50)), (32, 0.6): group((5, 6))}
    axes = courses.draw(cells).axes[0]
    bars = [bar for bar in axes.patches if bar.get_width() == 1]
    colours = {(b.get_x() + 0.5, b.get_y() + 0.5): to_hex(b.get_facecolor()) for b in bars}
    kinds = {(0, 0): "memorised", (1, 0): "grokked", (1, 1): "at once"}
    assert colours == {place: courses.COLOURS[kind] for place, kind in kinds.items()}
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.2", "0.6"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["8", "32"]

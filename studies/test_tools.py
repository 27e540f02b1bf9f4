"""Properties of the tools that the rooms share, each against something independent: made tables
worked by hand, torch.nn, brute force.

Run: python -m pytest -q studies"""

import pytest
import tables

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
def made(tmp_path):
    (tmp_path / "made.csv").write_text(MADE)
    return lambda by, what: computed_rows(tmp_path, by, what)


def computed_rows(folder, by, what):
    """The table of a README, as lists of its cells, without the rule."""
    text = tables.computed(f"<!-- made.csv: {by}: {what} -->\n", folder)
    _, *lines = text.splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    return [head, *rows]


def test_a_cell_is_the_median_and_the_range(made):
    _, row = made("op=a speed=0 lr=0.1 op", "val_99")
    assert row == ["a", "200 (100–300)"]


def test_what_is_alike_has_no_range(made):
    _, row = made("op=a speed=0 lr=0.1 op", "best_val_acc")
    assert row == ["a", "0.990"]


def test_a_range_that_begins_below_zero_has_a_word_between(made):
    _, row = made("op=a speed=10 lr=0.1 op", "apart")
    assert row == ["a", "-0.500 (-2 to 1)"]


def test_updates_that_are_not_there_are_never(made):
    _, row = made("op=a speed=10 lr=0.1 op", "val_99")
    assert row == ["a", "never (50–never)"]


def test_numbers_that_are_not_there_are_left_out(made):
    _, row = made("op=a speed=0 lr=0.1 op", "apart")
    assert row == ["a", "2"]


def test_runs_and_arrivals_are_counted(made):
    _, *rows = made("op=a speed=0 lr", "n reached reached_95")
    assert rows == [["0.01", "2", "0 of 2", "1 of 2"], ["0.1", "2", "2 of 2", "2 of 2"]]


def test_settings_tell_groups_apart_and_stand_by_size(made):
    _, *rows = made("speed lr", "n")
    speeds, rates, _ = zip(*rows, strict=True)
    assert speeds == ("0", "0", "2", "9", "10", "10")
    assert rates == ("0.01", "0.1", "0.1", "0.1", "0.01", "0.1")


def test_a_value_may_be_a_regular_expression(made):
    _, *rows = made("op=(?!b). speed=0 op", "n")
    assert rows == [["a", "4"], ["c", "2"]]


def test_a_question_mark_keeps_the_soonest(made):
    _, *rows = made("op=a speed lr?", "val_99")
    assert rows == [["0", "0.1", "200 (100–300)"], ["10", "0.01", "65 (40–90)"]]


def test_a_question_mark_may_name_its_judge(made):
    _, *rows = made("op=a speed lr?val_95", "val_95")
    assert rows == [["0", "0.1", "90 (80–100)"], ["10", "0.1", "50"]]


def test_of_groups_that_never_arrive_the_most_accurate_is_kept(made):
    _, *rows = made("op=a speed=0 lr=0.01 seed?", "best_val_acc")
    assert rows == [["1", "0.500"]]


def test_a_column_for_each_value(made):
    assert made("op speed=0 lr>", "n") == [
        ["op", "0.01", "0.1"],
        ["a", "2", "2"],
        ["c", "–", "2"],
    ]


def test_a_ratio_is_taken_seed_by_seed(made):
    head, _, row = made("op=a speed lr?", "/speed=0")
    assert head == ["speed", "lr", "by that of speed=0"]
    assert row == ["10", "0.01", "0.350 (0.300–0.400)"]


def test_a_ratio_of_another_column(made):
    head, _, row = made("op=a lr=0.1 speed", "val_95/speed=0")
    assert head == ["speed", "95 % of validation by that of speed=0"]
    assert row == ["10", "0.562 (0.500–0.625)"]


def test_a_ratio_leaves_out_seeds_whose_control_never_arrives(made):
    *_, row = made("op=c speed=9 op", "/speed=0")
    assert row == ["c", "0.500, n = 1"]


def test_a_control_that_never_arrives(made):
    *_, row = made("op=a lr=0.01 speed", "/speed=0")
    assert row == ["10", "control never"]


def test_a_rank_correlation(made):
    """By hand, of 50, 70, 70 with 3, 2, 1, as Pearson's of the ranks 1, 2.5, 2.5 and 3, 2, 1."""
    _, row = made("op=c speed=9 op", "val_99~apart")
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

"""Properties of leads, alarms and ROC areas, and of all measures together."""

import csv

import grok
import lead
import measures
import numpy as np
import progress
import pytest

TINY = dict(op="x_plus_y", p=11, width=16, heads=2, batch_size=16, until=0.0, threads=1)
STEPS = np.arange(0, 100, 10)
TRAIN = [0, 0.5, 0.99, 1, 1, 1, 1, 1, 1, 1]
VAL = [0, 0, 0.01, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99, 1]  # starts at 20, is half way at 60, ends at 80


def curves(train=TRAIN, val=VAL, seed=0, **columns):
    columns = dict(step=STEPS, train_acc=train, val_acc=val, **columns)
    rows = lead.figures.Rows()
    for values in zip(*columns.values(), strict=True):
        rows.append(dict(zip(columns, values, strict=True)))
    return lead.Curves(dict(seed=seed), rows)


def moved(run, name, *others):
    return lead.moved(run, name, {"": others})


def of(column, rows):
    return [row for row in rows if row["column"] == column]


@pytest.mark.parametrize("name, value", [("lead", 20), ("moves", 0.5), ("stays", 0.5)])
def test_a_column_that_is_half_way_in_the_middle_of_the_plateau(name, value):
    """From 5 at 20 to 1 at 80, half way at 40: what follows 80 does not count."""
    row = moved(curves(early=[9, 9, 5, 4, 2.9, 2, 1.5, 1, 1, 7]), "early")
    assert row[name] == pytest.approx(value)


def test_a_column_that_follows_has_a_negative_lead():
    row = moved(curves(late=[0, 3, 0, 0, 0, 0, 0, 0, 8, 0]), "late")
    assert row["lead"] == -20


@pytest.mark.parametrize("name, step", [("moves", 30), ("stays", 70)])
def test_a_column_stays_from_when_on_it_does_not_come_back(name, step):
    row = moved(curves(noisy=[0, 0, 0, 5, 1, 6, 2, 6, 8, 0]), "noisy")
    assert row[name] == (step - 20) / (60 - 20)


def test_validation_accuracy_itself_moves_at_1():
    assert moved(curves(), "val_acc")["moves"] == 1


@pytest.mark.parametrize(
    "run",
    [
        curves(val=[0.01] * 10, c=STEPS),  # never generalises
        curves(val=np.maximum(VAL, TRAIN), c=STEPS),  # has generalised by then
    ],
)
def test_a_run_without_a_plateau_has_no_lead(run):
    assert not moved(run, "c")


def test_a_column_that_ends_where_it_began_has_no_lead():
    assert not moved(curves(flat=[2.0] * 10), "flat")


def beside_others():
    """The row of a run, and of others of which two go as far as half of its way."""
    run = curves(c=[0, 0, 0, 1, 2, 3, 4, 5, 6, 6])  # a way of 6 from 20 on
    others = [curves(val=[0] * 10, c=[9, 9, 0, 0, 0, far, 0, 0, 0, 0]) for far in (2.9, 3.0, 8.0)]
    return moved(run, "c", *others)


def test_alarms_are_the_share_of_others_that_go_half_as_far():
    assert beside_others()["alarms"] == pytest.approx(2 / 3)


def test_farthest_is_how_far_any_of_the_others_goes():
    assert beside_others()["farthest"] == pytest.approx(8 / 6)


@pytest.mark.parametrize("name, moves", [("c_loss", 1 / 4), ("log_c_loss", 5 / 4)])
def test_a_loss_has_its_logarithm_beside_it(name, moves):
    run = curves(c_loss=[1, 1, 1, 0.5, 0.25, 0.125, 1e-1, 1e-2, 1e-3, 0])
    assert moved(run, name)["moves"] == pytest.approx(moves)


def test_auc_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    generalise = [seed < 4 for seed in range(9)]
    runs = [
        curves(val=VAL if yes else [0] * 10, drawn=random.normal(size=10)) for yes in generalise
    ]
    rows = of("drawn", lead.rows_of(runs))
    expected = roc_auc_score(generalise, [row["at_99"] for row in rows])
    assert [row["auc"] for row in rows] == pytest.approx([expected] * 9)


def beside_random():
    """The rows of a run that generalises and of one that does not and whose column is still, beside
    one on random answers whose column moves."""
    random = [curves(val=[0] * 10, seed=5, c=STEPS)]
    still = curves(val=[0] * 10, seed=1, c=[0] * 10)
    return of("c", lead.rows_of([curves(c=STEPS), still], random))


def test_runs_on_random_answers_have_no_rows():
    assert [row["seed"] for row in beside_random()] == [0, 1]


@pytest.mark.parametrize(
    "name, value", [("alarms", 0), ("random_alarms", 1), ("auc", 1), ("random_auc", 0.5)]
)
def test_runs_on_random_answers_are_others_of_their_own(name, value):
    assert beside_random()[0][name] == value


LATE = [0, 0, 0, 0, 0, 0, 0, 1, 2, 2]


def test_matrices_are_one_measure():
    rows = lead.rows_of([curves(alpha_up=STEPS, alpha_down=STEPS, late=LATE)])
    assert {row["measure"] for row in rows} == {"alpha, all matrices", "val_acc", "late"}


def test_measures_have_the_places_of_their_turns():
    rows = lead.rows_of([curves(late=LATE, alpha_up=STEPS, alpha_down=STEPS)])
    places = {row["column"]: row["place"] for row in rows}
    assert places == dict(alpha_up=1, alpha_down=1, val_acc=2, late=3)


def trained(folder, **settings):
    config = measures.Config(**TINY, **settings)
    grok.train(config, folder, quiet=True, method=measures.Measures)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What is written of three runs, of which two memorise."""
    folder = tmp_path_factory.mktemp("lead")
    for seed, steps in enumerate([200, 200, 2]):
        trained(folder / f"runs/{seed}", seed=seed, weight_decay=0.0, lr=0.01, steps=steps)
    assert lead.main([str(folder / "runs"), "--out", str(folder / "to")]) == 0
    return folder / "to"


def values_of(name, file):
    with open(file, newline="") as opened:
        return {row[name] for row in csv.DictReader(opened)}


def test_it_writes_a_row_for_each_run_that_memorises(written):
    assert values_of("seed", written / "lead.csv") == {"0", "1"}


@pytest.mark.parametrize("column", ["inactive", "restricted_loss", "strength", "local_x"])
def test_it_writes_a_row_for_each_column(column, written):
    assert column in values_of("column", written / "lead.csv")


def test_it_draws_a_picture(written):
    assert (written / "lead.png").stat().st_size > 5_000


def test_a_folder_in_which_nothing_memorises_is_refused(tmp_path, capsys):
    trained(tmp_path / "short", steps=2)
    assert lead.main([str(tmp_path / "short"), "--out", str(tmp_path / "no")]) == 2
    assert "no run in it reaches 99 %" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("net", ["grok", "theirs"])
def test_all_measures_together_are_those_of_each_room_and_leave_training_alone(net):
    settings = TINY | dict(heads=4, net=net, steps=12, eval_every=5)
    together = grok.train(measures.Config(**settings), quiet=True, method=measures.Measures)
    alone = grok.train(progress.Config(**settings), quiet=True, method=progress.Progress)
    for mine, all_of_them in zip(alone.log, together.log, strict=True):
        for name, value in mine.items():
            assert name == "seconds" or value == all_of_them[name]


@pytest.mark.parametrize("room", ["spectra", "features", "llm", "tracing"])
def test_each_other_room_has_its_columns_in_them(room):
    module = getattr(measures, room)
    (method,) = (b for b in measures.Measures.__bases__ if b.__module__ == room)
    settings = TINY | dict(steps=5)
    together = grok.train(measures.Config(**settings), quiet=True, method=measures.Measures)
    alone = grok.train(module.Config(**settings), quiet=True, method=method)
    random = "dropout_acc", "dropout_var", "seconds"  # the passes come later in the stream
    for mine, all_of_them in zip(alone.log, together.log, strict=True):
        assert all(value == all_of_them[n] for n, value in mine.items() if n not in random)

"""Properties of the dropout passes, of the share of inactive units, of the cosines, and of where
they turn."""

import csv

import grok
import numpy as np
import peaks
import pytest
import torch
from tracing import Config, Tracing

TINY = dict(op="x_plus_y", p=11, width=16, batch_size=16, steps=5, until=0.0, threads=1)
GROK = TINY | dict(heads=2)
NETS = pytest.mark.parametrize("settings", [GROK, TINY | dict(net="theirs", units=32)])


class Coin(torch.nn.Module):
    """Right where the one unit that its last layer reads is kept."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(33, 4)
        self.blocks = torch.nn.ModuleList([torch.nn.Module()])
        self.blocks[0].down = torch.nn.Identity()

    def forward(self, x, y):
        unit = self.blocks[0].down(torch.ones(len(x), 1))
        return torch.nn.functional.one_hot((x + y + (unit[:, 0] == 0)) % 31, 33).float()


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_dropout_accuracy_is_binomial_when_a_unit_decides(rate):
    """Mean 1 - rate, variance rate · (1 - rate) / B, each within 5 standard errors."""
    run = Tracing(Config(**GROK | dict(p=31), frac=0.3, mc_dropout=rate, passes=300))
    torch.manual_seed(0)
    measured = run.measure(Coin())
    variance = rate * (1 - rate) / 512
    mean = measured["dropout_acc"].item()
    assert mean == pytest.approx(1 - rate, abs=5 * (variance / 300) ** 0.5)
    assert measured["dropout_var"].item() == pytest.approx(variance, rel=5 * (2 / 299) ** 0.5)


@NETS
def test_without_dropout_it_is_validation_accuracy(settings):
    run = grok.train(Config(**settings, mc_dropout=0.0, lr=0.01), quiet=True, method=Tracing)
    row = run.log[-1]
    assert row["val_acc"] > 0
    assert row["dropout_acc"] == pytest.approx(row["val_acc"])
    assert row["dropout_var"] == pytest.approx(0, abs=1e-12)


@NETS
def test_dropout_leaves_training_alone(settings):
    run = grok.train(Config(**settings), quiet=True, method=Tracing)
    off = grok.train(Config(**settings, mc_dropout=0.0), quiet=True, method=Tracing)
    for a, b in zip(run.model.parameters(), off.model.parameters(), strict=True):
        assert torch.equal(a, b)


@NETS
def test_dropout_is_other_at_each_evaluation(settings):
    run = grok.train(Config(**settings, lr=1e-30), quiet=True, method=Tracing)
    assert len({row["val_loss"] for row in run.log}) == 1  # one model, which updates do not move
    assert len({row["dropout_var"] for row in run.log}) == 3


def transformer(layers):
    """A run, and for each layer where its units are off (…, units). A shift before the units makes
    some constant."""
    run = Tracing(Config(**GROK, layers=layers, seed=1))
    shift = 3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    seen = [[] for _ in range(layers)]
    for block, outputs in zip(run.model.blocks, seen, strict=True):
        block.norm1.bias.data = shift
        block.up.register_forward_hook(lambda m, i, out, outputs=outputs: outputs.append(out))
    with torch.no_grad():
        grok.Transformer.forward(run.model, *run.inputs)
    return run, [torch.cat(outputs).flatten(0, -2) <= 0 for outputs in seen]


def mlp():
    """The same, of which the biases are spread."""
    run = Tracing(Config(**TINY, net="theirs", units=32))
    run.model.first.up.bias.data = torch.linspace(-9, 9, 32)
    with torch.no_grad():
        return run, [run.model.first(*run.inputs) <= 0]


MADE = pytest.mark.parametrize(
    "made", [mlp, lambda: transformer(1), lambda: transformer(2)], ids=["mlp", "one", "two"]
)


@MADE
def test_inactive_are_units_that_no_equation_makes_active(made):
    run, off = made()
    never = np.mean([layer.all(0).float().mean() for layer in off])
    assert 0.02 < never < 0.9
    assert run.measure(run.model)["inactive"].item() == pytest.approx(never)


@MADE
def test_zeros_are_among_the_outputs_of_all_units_for_all_equations(made):
    run, off = made()
    zeros = np.mean([layer.float().mean() for layer in off])
    assert run.measure(run.model)["zeros"].item() == pytest.approx(zeros)


@pytest.mark.parametrize(
    "embedding, cosine",
    [
        (3 * torch.eye(11, 16), 0),
        (torch.linspace(-2, 3.1, 11)[:, None] * torch.arange(1.0, 17), 1),
    ],
)
def test_cosines_of_orthogonal_and_of_parallel_embeddings(embedding, cosine):
    run = Tracing(Config(**GROK))
    run.model.embed.weight.data[:11] = embedding
    assert run.measure(run.model)["embed_cosine"].item() == pytest.approx(cosine, abs=1e-5)


# --- peaks.py -------------------------------------------------------------------------------------

CURVES = [  # step, train_acc, val_acc, dropout_acc, dropout_var, embed_cosine
    (1, 0.0, 0.0, 0.0, 0.0, 0.5),
    (100, 1.0, 0.0, 0.05, 9e-6, 0.4),
    (200, 1.0, 0.3, 0.2, 0.5 * 0.16 / 512, 0.3),
    (250, 1.0, 0.4, 0.3, 0.8 * 0.21 / 512, 0.35),
    (300, 1.0, 0.6, 0.5, 0.8 * 0.25 / 512, 0.6),
    (350, 1.0, 0.9, 0.8, 1.2 * 0.16 / 512, 0.7),
]
NAMES = "step", "train_acc", "val_acc", "dropout_acc", "dropout_var", "embed_cosine"


def row_of(curves):
    log = [dict(zip(NAMES, row, strict=True)) for row in curves]
    return peaks.row_of(grok.Record(Config(**TINY), log=log))


@pytest.mark.parametrize(
    "name, value",
    [
        ("train_99", 100),
        ("half", 300),
        ("peak", 300),
        ("peak_acc", 0.5),
        ("peak_sd", (0.8 * 0.25 / 512) ** 0.5),
        ("peak_at", 1.0),
        ("binomial", 0.8),
        ("embed_cosine_first", 0.5),
        ("embed_cosine_low", 0.3),
        ("embed_cosine_last", 0.7),
        ("embed_cosine_low_step", 200),
        ("embed_cosine_low_at", 0.5),
    ],
)
def test_where_the_measures_turn(name, value):
    assert row_of(CURVES)[name] == pytest.approx(value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("half", None),
        ("peak", 100),
        ("peak_at", ""),
        ("embed_cosine_low_at", ""),
        ("binomial", ""),
    ],
)
def test_the_row_of_a_run_that_does_not_generalise(name, value):
    assert row_of(CURVES[:2])[name] == value


@pytest.mark.parametrize("name", ["first", "low", "last", "low_step", "low_at"])
def test_a_column_that_is_not_there_is_lowest_nowhere(name):
    assert row_of(CURVES)[f"zeros_{name}"] == ""


def test_a_row_for_each_run_of_a_folder(tmp_path):
    for seed in 0, 1:
        config = Config(**TINY, seed=seed)
        grok.train(config, tmp_path / str(seed), quiet=True, method=Tracing)
    assert peaks.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "peaks.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert {row["half"] for row in rows} == {""}


def test_a_folder_of_another_study_gets_one_line(tmp_path, capsys):
    grok.train(grok.Config(**TINY, heads=2), tmp_path, quiet=True)
    assert peaks.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

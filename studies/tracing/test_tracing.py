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
def test_dropout_is_other_at_each_evaluation_and_leaves_training_alone(settings):
    run = grok.train(Config(**settings), quiet=True, method=Tracing)
    off = grok.train(Config(**settings, mc_dropout=0.0), quiet=True, method=Tracing)
    for a, b in zip(run.model.parameters(), off.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len({row["dropout_var"] for row in run.log}) > 1


@pytest.mark.parametrize("layers", [1, 2])
def test_units_of_a_transformer_that_are_never_active_and_zeros_of_all(layers):
    """With a shift before the units, which makes some constant; by hooks on `up`."""
    run = Tracing(Config(**GROK, layers=layers, seed=1))
    shift = 3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    seen = [[] for _ in range(layers)]
    for block, outputs in zip(run.model.blocks, seen, strict=True):
        block.norm1.bias.data = shift
        block.up.register_forward_hook(lambda m, i, out, outputs=outputs: outputs.append(out))
    with torch.no_grad():
        grok.Transformer.forward(run.model, *run.inputs)
    silent = [torch.cat(outputs).flatten(0, -2) <= 0 for outputs in seen]
    never = np.mean([off.all(0).float().mean() for off in silent])
    zeros = np.mean([off.float().mean() for off in silent])
    assert 0.02 < never < 0.9
    measured = run.measure(run.model)
    assert measured["inactive"].item() == pytest.approx(never)
    assert measured["zeros"].item() == pytest.approx(zeros)


def test_inactive_units_and_zeros_of_the_mlp_by_its_own_first_layer():
    run = Tracing(Config(**TINY, net="theirs", units=32))
    run.model.first.up.bias.data = torch.linspace(-9, 9, 32)
    with torch.no_grad():
        off = run.model.first(*run.inputs) <= 0
    never = off.all(0).float().mean().item()
    assert 0.1 < never < 0.9
    measured = run.measure(run.model)
    assert measured["inactive"].item() == pytest.approx(never)
    assert measured["zeros"].item() == pytest.approx(off.float().mean().item())


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
    (300, 1.0, 0.6, 0.5, 0.8 * 0.25 / 512, 0.6),
    (350, 1.0, 0.9, 0.8, 1.2 * 0.16 / 512, 0.7),
]
NAMES = "step", "train_acc", "val_acc", "dropout_acc", "dropout_var", "embed_cosine"


def made(curves):
    log = [dict(zip(NAMES, row, strict=True)) for row in curves]
    return grok.Record(Config(**TINY), log=log)


def test_where_the_measures_turn():
    row = peaks.row_of(made(CURVES))
    assert (row["train_99"], row["half"]) == (100, 300)
    assert (row["peak"], row["peak_acc"]) == (300, 0.5)
    assert row["peak_sd"] == pytest.approx((0.8 * 0.25 / 512) ** 0.5)
    assert (row["rise_at"], row["peak_at"]) == (1.0, 1.0)
    assert row["binomial"] == pytest.approx(0.8)


def test_a_run_that_does_not_generalise_has_no_plateau():
    row = peaks.row_of(made(CURVES[:2]))
    assert (row["peak"], row["half"]) == (100, None)
    assert row["peak_at"] == row["embed_cosine_low_at"] == row["binomial"] == ""


def test_where_a_column_is_lowest_if_it_is_there():
    row = peaks.row_of(made(CURVES))
    found = [row[f"embed_cosine_{place}"] for place in ("first", "low", "last")]
    assert found == [0.5, 0.3, 0.7]
    assert (row["embed_cosine_low_step"], row["embed_cosine_low_at"]) == (200, 0.5)
    assert {row[name] for name in row if name.startswith("zeros_")} == {""}


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

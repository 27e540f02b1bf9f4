"""Properties of the dropout passes, of the share of inactive units and of the cosines."""

import grok
import numpy as np
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
def test_inactive_units_of_a_transformer_are_those_that_no_equation_makes_active(layers):
    """With a shift before the units, which makes some constant; by hooks on `up`."""
    run = Tracing(Config(**GROK, layers=layers, seed=1))
    seen = [[] for _ in range(layers)]
    for block, outputs in zip(run.model.blocks, seen, strict=True):
        block.norm1.bias.data = 3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
        block.up.register_forward_hook(lambda m, i, out, outputs=outputs: outputs.append(out))
    with torch.no_grad():
        grok.Transformer.forward(run.model, *run.inputs)
    never = [(torch.cat(o).flatten(0, 1) <= 0).all(0).float().mean().item() for o in seen]
    assert 0.02 < np.mean(never) < 0.9
    assert run.measure(run.model)["inactive"].item() == pytest.approx(np.mean(never))


def test_inactive_units_of_the_mlp_by_its_own_first_layer():
    run = Tracing(Config(**TINY, net="theirs", units=32))
    run.model.first.up.bias.data = torch.linspace(-9, 9, 32)
    with torch.no_grad():
        never = (run.model.first(*run.inputs) <= 0).all(0).float().mean().item()
    assert 0.1 < never < 0.9
    assert run.measure(run.model)["inactive"].item() == pytest.approx(never)


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

"""Properties of the Jacobian's norm and of the alignment, against torch.func.jacrev."""

import grok
import pytest
import torch
import torch.nn.functional as F
from grokalign import Config, GrokAlign

SHAPE = dict(op="x_plus_y", p=11, width=16, heads=2)
TINY = SHAPE | dict(batch_size=16, steps=5, until=0.0, threads=1)
NETS = pytest.mark.parametrize("net", ["grok", "theirs"])


def jacobian(model, x, y):
    """Of the logits of one equation by its embedded tokens, (V, T, D): by the rows of the table of
    embeddings, each of which it uses once, as x and y differ."""
    tokens = [x, 11, y, 12] if isinstance(model, grok.Transformer) else [x, y, 11]
    inputs = torch.tensor([x]), torch.tensor([y])

    def logits(embed):
        return torch.func.functional_call(model, {"embed.weight": embed}, inputs)[0]

    return torch.func.jacrev(logits)(model.embed.weight.detach())[:, tokens]


@NETS
@pytest.mark.parametrize("frozen", [0, 1])
def test_the_penalty_is_the_mean_norm_along_random_directions(frozen, net):
    run = GrokAlign(Config(**TINY, net=net, grokalign=0.5, frozen=frozen))
    x = torch.tensor([1, 4, 10])
    y = torch.tensor([2, 9, 0])
    rows = 11 * x + y
    with run.watched(run.model) as run.seen:
        logits = run.model(*(t[rows] for t in run.inputs))
    torch.manual_seed(0)
    loss = run.loss(logits, run.labels[rows]).item()
    torch.manual_seed(0)
    v = F.normalize(torch.randn_like(logits), dim=1)
    norms = torch.zeros(3)
    for i, direction in enumerate(v):
        slopes = jacobian(run.model, x[i].item(), y[i].item())
        along = torch.einsum("v,vtd->td", direction, slopes)
        norms[i] = len(direction) ** 0.5 * along.norm()
    plain = F.cross_entropy(logits, run.labels[rows]).item()
    expected = plain + 0.5 * norms.mean().item()
    assert loss == pytest.approx(expected, rel=1e-4)


@NETS
def test_alignment_is_the_cosine_of_the_jacobians_row_sum_and_the_input(net):
    run = GrokAlign(Config(**TINY, net=net))
    x, y = 3, 7
    rows = torch.tensor([x * 11 + y])
    measured = run.alignment(run.model, rows).item()
    tokens = torch.tensor([x, 11, y, 12] if net == "grok" else [x, y, 11])
    embedded = run.model.embed.weight.detach()[tokens].flatten()
    total = jacobian(run.model, x, y).sum(0).flatten()
    cosine = torch.cosine_similarity(embedded, total, dim=0).item()
    assert measured == pytest.approx(cosine, abs=1e-5)


@NETS
def test_a_frozen_embedding_stays(net):
    config = Config(**TINY, net=net, grokalign=0.5, frozen=1)
    run = grok.train(config, quiet=True, method=GrokAlign)
    assert torch.equal(run.model.embed.weight, GrokAlign(config).model.embed.weight)


@NETS
def test_a_frozen_embedding_is_penalised_all_the_same(net):
    heads = []
    for factor in 0.5, 1e-30:  # which is too small for an effect
        config = Config(**TINY, net=net, grokalign=factor, frozen=1)
        run = grok.train(config, quiet=True, method=GrokAlign)
        heads.append(run.model.head.weight)
    assert not torch.equal(*heads)

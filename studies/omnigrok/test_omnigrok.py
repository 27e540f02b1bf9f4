"""Properties of the clamp on the weights' norm."""

import grok
import pytest
import torch
from omnigrok import Config, Omnigrok

TINY = dict(op="x_plus_y", p=11, width=16, heads=2, batch_size=16, threads=1, lr=0.02)
NETS = pytest.mark.parametrize("net", ["grok", "theirs"])


def norm(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()]).norm().item()


@NETS
def test_the_norm_stays_where_it_has_started(net):
    run = Omnigrok(Config(**TINY, net=net, hold_norm=True, init_scale=0.8))
    first = norm(run.model)
    for _ in range(5):
        run.advance()
        assert norm(run.model) == pytest.approx(first, rel=1e-5)


@NETS
def test_the_norm_in_the_log_is_that_at_the_start(net):
    run = Omnigrok(Config(**TINY, net=net, hold_norm=True, init_scale=0.8))
    first = norm(run.model)
    run.advance()
    run.evaluate()
    assert run.log[-1]["weight_norm"] == pytest.approx(first, rel=1e-5)


@NETS
def test_off_the_norm_is_free(net):
    run = Omnigrok(Config(**TINY, net=net))
    first = norm(run.model)
    for _ in range(5):
        run.advance()
    assert norm(run.model) != pytest.approx(first, rel=1e-3)


def test_an_update_is_adamws_and_then_one_factor_on_all_weights():
    config = Config(**TINY, net="theirs", hold_norm=True, weight_decay=0.3, warmup=1)
    run = Omnigrok(config)
    other = Omnigrok(config).model  # of the same first weights
    first = norm(other)
    adamw = torch.optim.AdamW(other.parameters(), lr=0.02, betas=(0.9, 0.98), weight_decay=0.3)
    for _ in range(4):
        run.step += 1
        rows = run.batch()
        run.update(rows)
        x, y = (t[rows] for t in run.inputs)
        adamw.zero_grad()
        torch.nn.functional.cross_entropy(other(x, y), run.labels[rows]).backward()
        adamw.step()
        factor = first / norm(other)
        for w in other.parameters():
            w.data *= factor
    for a, b in zip(run.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_first_weights_are_in_proportion_to_the_scale():
    one, less = (Omnigrok(Config(**TINY, net="theirs", init_scale=s)).model for s in (1.0, 0.8))
    for a, b in zip(one.parameters(), less.parameters(), strict=True):
        torch.testing.assert_close(0.8 * a, b)


@pytest.mark.parametrize("net, expected", [("grok", 0.0), ("theirs", 1.523e-8)])
def test_the_loss_of_their_network_alone_is_computed_in_float64(net, expected):
    """Of a margin of 18 it is log(1 + e⁻¹⁸), in float32 0."""
    logits, labels = torch.tensor([[18.0, 0.0]]), torch.tensor([0])
    loss = Omnigrok(Config(**TINY, net=net)).loss(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_before_a_layernorm_weights_act_by_their_direction():
    """As the introduction says of grok.py's network: three times the first LayerNorm is three times
    all that the second one gets."""
    run = Omnigrok(Config(**TINY, layers=1))
    before = run.model(*run.inputs)
    first = run.model.blocks[0].norm1
    with torch.no_grad():
        first.weight *= 3
        first.bias *= 3
    torch.testing.assert_close(run.model(*run.inputs), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "unread",
    [dict(layers=1), dict(dropout=0.1), dict(embed_init_scale=0.1), dict(position_scale=0.1)],
)
def test_their_network_refuses_what_it_does_not_read(unread):
    with pytest.raises(grok.UsageError, match="has no effect"):
        Config(**TINY, net="theirs", **unread)

"""Properties of GrokTransfer: the factored embedding, where A comes from, what is refused."""

import grok
import pytest
import torch
from transfer import Config, Transfer

TINY = dict(op="x_plus_y", p=11, batch_size=16, steps=3, until=0.0, threads=1)
GROK = TINY | dict(layers=1, width=16, heads=2)
MLP = TINY | dict(net="mlp", embed=8, hidden=(16,))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of small runs of seeds 0 and 1, of each network."""
    folder = tmp_path_factory.mktemp("small")
    for seed in (0, 1):
        config = grok.Config(**GROK | dict(width=4), seed=seed)
        grok.train(config, folder / f"grok/{seed}", quiet=True)
        config = Config(**MLP | dict(embed=4), seed=seed)
        grok.train(config, folder / f"mlp/{seed}", quiet=True, method=Transfer)
    return folder


def test_a_embeds_as_the_small_model_of_the_same_seed(small):
    run = Transfer(Config(**MLP, seed=1, transfer=str(small / "mlp")))
    last = grok.load(small / "mlp/1", Config, Transfer).model
    assert torch.equal(run.model.first.embed[0].weight, last.first.embed.weight)


def test_the_tokens_of_a_transformer_come_along(small):
    run = Transfer(Config(**GROK, seed=0, transfer=str(small / "grok")))
    last = grok.load(small / "grok/0").model
    assert torch.equal(run.model.embed[0].weight, last.embed.weight)  # n + 2 rows


def test_an_mlps_embedding_can_start_a_transformer(small):
    run = Transfer(Config(**GROK, seed=1, transfer=str(small / "mlp")))
    last = grok.load(small / "mlp/1", Config, Transfer).model
    assert torch.equal(run.model.embed[0].weight[:11], last.first.embed.weight)


def test_the_embedding_is_the_product_of_a_and_b(small):
    factored = Transfer(Config(**MLP, seed=1, transfer=str(small / "mlp"))).model
    plain = Transfer(Config(**MLP, seed=1)).model
    plain.load_state_dict(factored.state_dict(), strict=False)
    A, B = factored.first.embed[0].weight, factored.first.embed[1].weight.T
    plain.first.embed.weight = torch.nn.Parameter(A @ B)
    x, y = torch.arange(11), torch.arange(11).flip(0)
    torch.testing.assert_close(factored(x, y), plain(x, y))


def test_both_factors_are_trained():
    run = grok.train(Config(**MLP, rank=4), quiet=True, method=Transfer)
    before = Transfer(Config(**MLP, rank=4)).model.first.embed
    for new, old in zip(run.model.first.embed.parameters(), before.parameters(), strict=True):
        assert not torch.equal(new, old)


def test_their_initial_weights_are_pytorchs_times_a_factor():
    half, whole = (Transfer(Config(**MLP, init_scale=scale)).model for scale in (0.5, 1.0))
    for a, b in zip(half.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, 0.5 * b)


@pytest.mark.parametrize("given", [dict(seed=5), dict(frac=0.4), dict(outliers=1)])
def test_a_small_run_of_other_equations_is_refused(given, small):
    with pytest.raises(grok.UsageError, match="--transfer .*: must hold one run with .* holds 0"):
        Transfer(Config(**MLP, transfer=str(small / "mlp"), **given))


def test_two_sources_of_a_are_refused():
    with pytest.raises(grok.UsageError, match="--rank 4"):
        Config(**MLP, transfer="runs/small", rank=4)

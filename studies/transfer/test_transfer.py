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
    narrow_grok = GROK | dict(width=4)
    narrow_mlp = MLP | dict(embed=4)
    for seed in (0, 1):
        config = grok.Config(**narrow_grok, seed=seed)
        grok.train(config, folder / f"grok/{seed}", quiet=True)
        config = Config(**narrow_mlp, seed=seed)
        out = folder / f"mlp/{seed}"
        grok.train(config, out, quiet=True, method=Transfer)
    return folder


def started(small, kind, given, seed):
    """A model whose embedding starts as that of a small run of this kind."""
    folder = str(small / kind)
    config = Config(**given, seed=seed, transfer=folder)
    return Transfer(config).model


def test_a_embeds_as_the_small_model_of_the_same_seed(small):
    model = started(small, "mlp", MLP, seed=1)
    last = grok.load(small / "mlp/1", Config, Transfer).model
    A = model.first.embed[0].weight
    assert torch.equal(A, last.first.embed.weight)


def test_the_tokens_of_a_transformer_come_along(small):
    model = started(small, "grok", GROK, seed=0)
    last = grok.load(small / "grok/0").model
    A = model.embed[0].weight  # n + 2 rows
    assert torch.equal(A, last.embed.weight)


def test_an_mlps_embedding_can_start_a_transformer(small):
    model = started(small, "mlp", GROK, seed=1)
    last = grok.load(small / "mlp/1", Config, Transfer).model
    A = model.embed[0].weight
    assert torch.equal(A[:11], last.first.embed.weight)


def test_the_embedding_is_the_product_of_a_and_b(small):
    factored = started(small, "mlp", MLP, seed=1)
    plain = Transfer(Config(**MLP, seed=1)).model
    plain.load_state_dict(factored.state_dict(), strict=False)
    A, B = (factor.weight for factor in factored.first.embed)
    plain.first.embed.weight = torch.nn.Parameter(A @ B.T)
    x = torch.arange(11)
    y = x.flip(0)
    torch.testing.assert_close(factored(x, y), plain(x, y))


def test_both_factors_are_trained():
    config = Config(**MLP, rank=4)
    before = Transfer(config).model
    after = grok.train(config, quiet=True, method=Transfer).model
    for old, new in zip(before.first.embed, after.first.embed, strict=True):
        assert not torch.equal(new.weight, old.weight)


def test_their_initial_weights_are_pytorchs_times_a_factor():
    half = Transfer(Config(**MLP, init_scale=0.5)).model
    whole = Transfer(Config(**MLP)).model
    pairs = zip(half.parameters(), whole.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, 0.5 * b)


@pytest.mark.parametrize("given", [dict(seed=5), dict(frac=0.4), dict(outliers=1)])
def test_a_small_run_of_other_equations_is_refused(given, small):
    config = Config(**MLP, transfer=str(small / "mlp"), **given)
    message = "--transfer .*: must hold one run with .* holds 0"
    with pytest.raises(grok.UsageError, match=message):
        Transfer(config)


def test_two_sources_of_a_are_refused():
    with pytest.raises(grok.UsageError, match="--rank 4"):
        Config(**MLP, transfer="runs/small", rank=4)


def test_a_transformers_embedding_can_start_an_mlp(small):
    model = started(small, "grok", MLP, seed=1)
    last = grok.load(small / "grok/1").model
    assert torch.equal(model.first.embed[0].weight, last.embed.weight[:11])


def test_an_embedding_of_permutations_is_found(tmp_path):
    permutations = MLP | dict(op="s5_xy", frac=0.01)
    run = grok.train(Config(**permutations), tmp_path, quiet=True, method=Transfer)
    large = Transfer(Config(**permutations, transfer=str(tmp_path)))
    assert torch.equal(large.model.first.embed[0].weight, run.model.first.embed.weight)


def test_an_embedding_that_is_a_product_is_refused(tmp_path):
    grok.train(Config(**MLP, rank=4), tmp_path, quiet=True, method=Transfer)
    with pytest.raises(grok.UsageError, match="is a product"):
        Transfer(Config(**MLP, transfer=str(tmp_path)))

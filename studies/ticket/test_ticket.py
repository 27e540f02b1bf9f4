"""Properties of tickets: which weights are kept, where they start, that the others stay at 0."""

import grok
import pytest
import torch
import torch.nn.utils.prune as prune
from ticket import Config, Ticket

TINY = dict(
    op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, steps=5, until=0.0, threads=1
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The folder of a dense run that was trained for a while."""
    folder = tmp_path_factory.mktemp("dense")
    grok.train(Config(**TINY | dict(lr=0.01, steps=30)), folder, quiet=True, method=Ticket)
    return str(folder)


def matrices(model):
    return {name: w for name, w in model.named_parameters() if w.ndim == 2}


def test_the_mask_is_that_of_torch_prune(dense):
    run = Ticket(Config(**TINY, ticket=dense, kept=0.3))
    last = grok.load(dense, Config, Ticket).model
    layers = [m for m in last.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]
    pairs = [(layer, "weight") for layer in layers]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.7)
    theirs = {f"{name}.weight": m for name, m in last.named_modules() if m in layers}
    assert theirs.keys() == run.masks.keys()
    for name, layer in theirs.items():
        assert torch.equal(run.masks[name], layer.weight_mask)


def test_kept_weights_start_where_the_dense_ones_did_and_the_others_at_0(dense):
    run, first = Ticket(Config(**TINY, ticket=dense)), Ticket(Config(**TINY))
    for name, w in matrices(run.model).items():
        assert torch.equal(w, matrices(first.model)[name] * run.masks[name])


def test_layer_norm_is_kept(dense):
    run = Ticket(Config(**TINY, ticket=dense, kept=0.01))
    assert (run.model.blocks[0].norm1.weight == 1).all()


def test_a_random_mask_keeps_as_many_of_each_matrix_but_others(dense):
    largest = Ticket(Config(**TINY, ticket=dense)).masks
    random = Ticket(Config(**TINY, ticket=dense, control="random")).masks
    for name, mask in largest.items():
        assert mask.sum() == random[name].sum()
        assert not torch.equal(mask, random[name])


def test_the_norm_control_is_the_dense_network_at_the_norm_of_the_ticket(dense):
    def norm(model):
        return torch.nn.utils.get_total_norm(matrices(model).values()).item()

    ticket = Ticket(Config(**TINY, ticket=dense)).model
    scaled = Ticket(Config(**TINY, ticket=dense, control="norm")).model
    first = Ticket(Config(**TINY)).model
    assert norm(scaled) == pytest.approx(norm(ticket), rel=1e-5)
    for name, w in matrices(scaled).items():
        torch.testing.assert_close(w, matrices(first)[name] * norm(ticket) / norm(first))


def test_what_is_pruned_stays_at_0_beside_noise_and_the_rest_is_trained(dense):
    config = Config(**TINY, ticket=dense, update_noise=0.1)
    run = grok.train(config, quiet=True, method=Ticket)
    start = matrices(Ticket(config).model)
    for name, w in matrices(run.model).items():
        kept = run.masks[name] > 0
        assert not w[~kept].any()
        assert (w[kept] != start[name][kept]).float().mean() > 0.9


def test_clipping_sees_the_kept_weights_alone(dense):
    run = Ticket(Config(**TINY, ticket=dense))
    for w in run.model.parameters():
        w.grad = torch.ones_like(w)
    run.on_after_backward()
    for name, w in matrices(run.model).items():
        assert torch.equal(w.grad, run.masks[name])


def test_unordered_pairs_are_each_in_one_set_once():
    run = Ticket(Config(**TINY, pairs="unordered", frac=0.4))
    x, y = run.inputs
    rows = torch.cat([run.train_rows, run.val_rows])
    assert (x[rows] < y[rows]).all()
    assert len(rows) == len(rows.unique()) == 11 * 10 // 2
    assert len(run.train_rows) == round(0.4 * 55)


def test_their_network_starts_with_one_over_the_fan_in():
    settings = {
        name: value for name, value in TINY.items() if name not in ("layers", "width", "heads")
    }
    model = Ticket(Config(**settings, net="theirs")).model
    fans = {"first.embed.weight": 11, "first.up.weight": 500, "rest.0.weight": 48}
    fans["head.weight"] = 500
    for name, fan_in in fans.items():
        w = model.get_parameter(name)
        assert w.std().item() == pytest.approx(fan_in**-0.5, rel=0.03)


def test_their_network_has_one_relu():
    settings = {
        name: value for name, value in TINY.items() if name not in ("layers", "width", "heads")
    }
    model = Ticket(Config(**settings, net="theirs")).model
    embed, up, down, head = model.parameters()
    x, y = torch.tensor([1, 2, 10]), torch.tensor([3, 0, 10])
    units = ((embed[x] + embed[y]) @ up.T).clamp(min=0)
    torch.testing.assert_close(model(x, y), units @ down.T @ head.T)


@pytest.mark.parametrize("given", [dict(seed=2), dict(init_scale=3.0), dict(pairs="unordered")])
def test_a_folder_without_the_same_dense_run_is_refused(given, dense):
    with pytest.raises(grok.UsageError, match="--ticket .*: must hold one run with .* holds 0"):
        Ticket(Config(**TINY, ticket=dense, **given))

"""Properties of tickets: which weights are kept, where they start, that the others stay at 0."""

import itertools
import math

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


def masks(dense, control):
    """Pairs for each matrix: the mask of the largest weights, and that of a control."""
    largest = Ticket(Config(**TINY, ticket=dense)).masks
    others = Ticket(Config(**TINY, ticket=dense, control=control)).masks
    return [(mask, others[name]) for name, mask in largest.items()]


def test_a_random_mask_keeps_as_many_of_each_matrix(dense):
    for largest, random in masks(dense, "random"):
        assert largest.sum() == random.sum()


def test_a_random_mask_keeps_others_of_each_matrix(dense):
    for largest, random in masks(dense, "random"):
        assert not torch.equal(largest, random)


def norm(model):
    """Of all matrices together."""
    return torch.nn.utils.get_total_norm(matrices(model).values()).item()


def test_the_norm_control_has_the_norm_of_the_ticket(dense):
    ticket = Ticket(Config(**TINY, ticket=dense)).model
    scaled = Ticket(Config(**TINY, ticket=dense, control="norm")).model
    assert norm(scaled) == pytest.approx(norm(ticket), rel=1e-5)


def test_the_norm_control_is_the_dense_network_but_for_one_factor(dense):
    scaled = Ticket(Config(**TINY, ticket=dense, control="norm")).model
    first = Ticket(Config(**TINY)).model
    for name, w in matrices(scaled).items():
        torch.testing.assert_close(w / norm(scaled), matrices(first)[name] / norm(first))


def test_what_is_pruned_stays_at_0_beside_noise(dense):
    config = Config(**TINY, ticket=dense, update_noise=0.1)
    run = grok.train(config, quiet=True, method=Ticket)
    for name, w in matrices(run.model).items():
        assert not w[run.masks[name] == 0].any()


def test_what_is_kept_is_trained_as_in_a_dense_network_with_these_weights(dense):
    """In one update, in which AdamW sees each weight by itself."""
    run, plain = Ticket(Config(**TINY, ticket=dense)), Ticket(Config(**TINY))
    plain.model.load_state_dict(run.model.state_dict())
    run.advance()
    plain.advance()
    for name, w in matrices(run.model).items():
        kept = run.masks[name] > 0
        assert torch.equal(w[kept], matrices(plain.model)[name][kept])


def test_clipping_sees_the_kept_weights_alone(dense):
    run = Ticket(Config(**TINY, ticket=dense))
    for w in run.model.parameters():
        w.grad = torch.ones_like(w)
    run.on_after_backward()
    for name, w in matrices(run.model).items():
        assert torch.equal(w.grad, run.masks[name])


def test_unordered_pairs_are_each_in_one_set_once():
    run = Ticket(Config(**TINY, pairs="unordered", frac=0.4))
    rows = torch.cat([run.train_rows, run.val_rows])
    x, y = (t[rows].tolist() for t in run.inputs)
    assert sorted(zip(x, y, strict=True)) == list(itertools.combinations(range(11), 2))


def test_the_fraction_is_one_of_the_unordered_pairs():
    run = Ticket(Config(**TINY, pairs="unordered", frac=0.4))
    assert len(run.train_rows) == 22  # of 11 · 10 / 2


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


OTHERS = [
    dict(seed=2),
    dict(init_scale=3.0),
    dict(position_scale=0.5),
    dict(outliers=1),
    dict(pairs="unordered"),
]


@pytest.mark.parametrize("given", OTHERS)
def test_a_folder_without_the_same_dense_run_is_refused(given, dense):
    with pytest.raises(grok.UsageError, match="--ticket .*: must hold one run with .* holds 0"):
        Ticket(Config(**TINY, ticket=dense, **given))


def test_a_ticket_of_permutations_is_found(tmp_path):
    permutations = TINY | dict(op="s5_xy", frac=0.01)
    grok.train(Config(**permutations), tmp_path, quiet=True, method=Ticket)
    assert Ticket(Config(**permutations, ticket=str(tmp_path))).masks


def test_the_least_ticket_has_a_weight(dense):
    assert sum(m.sum() for m in Ticket(Config(**TINY, ticket=dense, kept=1e-9)).masks.values()) >= 1


@pytest.mark.parametrize(
    "given, flag",
    [
        (dict(control="random"), "--control"),
        (dict(kept=0.3), "--kept"),
        (dict(pairs="unordered", outliers=1), "--pairs unordered"),
    ],
)
def test_what_would_have_no_effect_or_a_part_of_it_is_refused(given, flag):
    with pytest.raises(grok.UsageError, match=flag):
        Config(**TINY, **given)


def test_a_run_that_has_not_ended_gives_no_ticket(tmp_path):
    grok.train(Config(**TINY), tmp_path, quiet=True, method=Ticket)
    about = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(about.replace('"steps": 5', '"steps": 6'))
    with pytest.raises(grok.UsageError, match="at update 5; end it first"):
        Ticket(Config(**TINY, ticket=str(tmp_path)))


def test_a_sure_answer_has_a_gradient_in_their_network():
    """1 - p = 10 / e^20 is rounded to 0 in float32."""
    sizes = dict(op="x_plus_y", p=11, frac=0.4, pairs="unordered")
    logits = 20 * torch.eye(11)[:1].requires_grad_()
    logits.retain_grad()
    Ticket(Config(**sizes, net="theirs")).loss(logits, torch.tensor([0])).backward()
    assert logits.grad[0, 0].item() == pytest.approx(-10 / math.e**20, rel=1e-5)

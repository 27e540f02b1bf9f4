"""Properties of the embedding's own rate, of L2 in the gradient and of the authors' network."""

import grok
import pytest
import torch
from embedding import Config, Embedding

GROK = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1, warmup=1)
THEIRS = dict(op="x_mul_y", p=11, width=8, batch_size=16, threads=1, warmup=1, net="theirs")


def split_weights(run):
    """The weights before and after one update of a run: (embedding, others) each."""
    embed = (run.model if run.config.net == "grok" else run.model.first).embed.weight
    rest = [w for w in run.model.parameters() if w is not embed]
    before = [w.detach().clone() for w in (embed, *rest)]
    run.advance()
    return zip(before, (embed, *rest), strict=True)


@pytest.mark.parametrize("settings", [GROK, THEIRS])
def test_the_first_step_of_adam_is_the_rate_and_the_embeddings_is_ratio_times_it(settings):
    run = Embedding(Config(**settings, lr=0.01, embed_lr_ratio=10.0, weight_decay=0.0))
    embed, *rest = (after - before for before, after in split_weights(run))
    assert embed.abs().max().item() == pytest.approx(0.1, rel=1e-3)
    longest = [w.abs().max().item() for w in rest]
    assert max(longest) == pytest.approx(0.01, rel=1e-3)


def test_decay_takes_the_same_share_of_all_weights(monkeypatch):
    monkeypatch.setattr(Embedding, "on_after_backward", lambda self: self.model.zero_grad(False))
    run = Embedding(Config(**THEIRS, lr=0.01, embed_lr_ratio=10.0, weight_decay=0.5))
    for before, after in split_weights(run):
        torch.testing.assert_close(after.detach(), 0.995 * before)


@pytest.mark.parametrize("decay_to", ["origin", "init"])
def test_it_is_adamw_with_a_group_for_the_embedding(decay_to, monkeypatch):
    """With decay to the first weights AdamW is that of the weights' distance to them."""
    settings = GROK | dict(lr=0.01, weight_decay=0.5, embed_lr_ratio=4.0, warmup=3)
    run = Embedding(Config(**settings, decay_to=decay_to))
    weights = dict(run.model.named_parameters())
    anchors = {}
    away = {}
    for name, w in weights.items():
        start = w.detach().clone()
        anchors[name] = start if decay_to == "init" else torch.zeros_like(start)
        away[name] = torch.nn.Parameter(start - anchors[name])
    groups = [
        dict(params=[away.get("embed.weight")], lr=0.04, weight_decay=0.125),
        dict(params=[w for name, w in away.items() if name != "embed.weight"]),
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), weight_decay=0.5)

    def give_gradients(self):
        for name, w in weights.items():
            w.grad = torch.randn_like(w)
            away[name].grad = w.grad.clone()

    monkeypatch.setattr(Embedding, "on_after_backward", give_gradients)
    for step in range(1, 6):
        for group, lr in zip(adamw.param_groups, (0.04, 0.01), strict=True):
            group["lr"] = lr * min(1, step / 3)
        run.advance()
        adamw.step()
    for name, w in weights.items():
        torch.testing.assert_close(w, away[name] + anchors[name], rtol=1e-5, atol=2e-6)


def test_l2_is_that_of_torch_adam():
    settings = THEIRS | dict(lr=0.01, weight_decay=0.0, beta2=0.999, steps=5, until=0.0)
    ours = grok.train(Config(**settings, embed_lr_ratio=3.0, l2=0.1), quiet=True, method=Embedding)

    class WithAdam(Embedding):
        def build_optimizer(self):
            first, rest = self.model.first, self.model.rest
            groups = [
                dict(params=first.embed.parameters(), lr=0.03),
                dict(params=[*first.up.parameters(), *rest.parameters()]),
            ]
            return torch.optim.Adam(groups, lr=0.01, weight_decay=0.1)

    theirs = grok.train(Config(**settings), quiet=True, method=WithAdam)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_update_noise_goes_by_the_common_rate(monkeypatch):
    """Without gradients and decay all that an update adds is noise, of lr · σ."""
    monkeypatch.setattr(Embedding, "on_after_backward", lambda self: self.model.zero_grad(False))
    settings = THEIRS | dict(lr=0.01, weight_decay=0.0, update_noise=2.0, width=32)
    run = Embedding(Config(**settings, embed_lr_ratio=100.0))
    for before, after in split_weights(run):
        assert (after - before).std().item() == pytest.approx(0.02, rel=0.25)


def test_their_network_embeds_elements_and_two_signs_and_has_four_widths_of_hidden_units():
    embed, up, up_bias, down, down_bias = Embedding(Config(**THEIRS)).model.parameters()
    assert embed.shape == (11 + 2, 8)
    assert up.shape == (4 * 8, 4 * 8)
    assert down.shape == (11, 4 * 8)


def test_their_network_reads_four_tokens_side_by_side():
    """Against one-hot codes of x ∘ y = times matrices."""
    run = Embedding(Config(**THEIRS))
    embed, up, up_bias, down, down_bias = run.model.parameters()
    x, y, _ = (torch.from_numpy(a) for a in grok.equations("x_mul_y", 11))
    codes = torch.eye(13)
    operation = codes[[11] * 121]
    equals = codes[[12] * 121]
    tokens = [codes[x], operation, codes[y], equals]
    h = torch.cat([token @ embed for token in tokens], dim=1)
    units = (h @ up.T + up_bias).clamp(min=0)
    logits = units @ down.T + down_bias
    torch.testing.assert_close(run.model(*run.inputs), logits)


def test_their_network_s_labels_are_the_answers():
    run = Embedding(Config(**THEIRS))
    answers = [x * y % 11 for x in range(11) for y in range(11)]
    assert run.labels.tolist() == answers


def test_the_scale_of_the_embedding_is_that_of_its_first_weights():
    one = Embedding(Config(**THEIRS)).model.first
    small = Embedding(Config(**THEIRS, embed_init_scale=0.1)).model.first
    torch.testing.assert_close(small.embed.weight, 0.1 * one.embed.weight)
    assert torch.equal(small.up.weight, one.up.weight)


@pytest.mark.parametrize(
    "unread",
    [
        dict(layers=1),
        dict(heads=2),
        dict(dropout=0.1),
        dict(init_scale=2.0),
        dict(position_scale=2.0),
    ],
)
def test_their_network_refuses_what_it_does_not_read(unread):
    with pytest.raises(grok.UsageError, match="has no effect"):
        Config(**THEIRS | unread)


def test_two_decays_are_refused():
    with pytest.raises(grok.UsageError, match="--l2 0.1: goes with --weight-decay 0"):
        Config(**GROK, l2=0.1)

"""Properties of the interventions: each formula against something independent, and what all of them
share.
Run: python -m pytest -q studies"""

import contextlib

import efficiency
import embedding
import experts
import exponentiation
import features
import figures
import grok2 as grok
import grokalign
import grokfast
import lazy_rich
import llm
import neuralgrok
import nonstationary
import numpy as np
import optimisers
import progress2 as progress
import pytest
import spectra
import stability
import ticket
import torch
import torch.nn.utils.prune as prune
import tracing
import transfer
from grok2 import Config

TINY = dict(
    op="x_plus_y",
    p=11,
    layers=1,
    width=16,
    heads=2,
    steps=30,
    batch_size=16,
    eval_every=10,
    device="cpu",
    threads=1,
)


def stack_of(method, config, **several):
    """A stack of the product of settings, before its first update."""
    return method([grok.Run(c, "") for c in config.grid(**TINY | several)])


def reference(run, lrs, logits, W, after=lambda W: W, mask=1):
    """The weights (P,) of a run's Config after len(lrs) updates of torch.optim.AdamW, from W.
    logits(model, W, x, y) is what is trained."""
    c, (x, y, labels, train) = run.config, map(torch.from_numpy, grok.split(run.config))
    batches = torch.from_numpy(
        grok.batches(c.seed, train.nonzero()[:, 0].numpy(), c.sizes()[3], 0, len(lrs))
    )
    model, W = c.model(), torch.nn.Parameter(W.clone())
    adamw = torch.optim.AdamW([W], betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.weight_decay)
    for lr, rows in zip(lrs, batches):
        adamw.param_groups[0]["lr"] = lr
        loss = torch.nn.functional.cross_entropy(
            logits(model, W[None] * mask, x[None, rows], y[None, rows])[0], labels[rows]
        )
        (W.grad,) = torch.autograd.grad(loss, W)
        adamw.step()
        W.data = after(W.detach())
    return W.detach()


# --- what all share -------------------------------------------------------------------------------

NOISE = dict(grad_clip=0.1, update_noise=0.1)
ON = [
    (grokfast, [dict(grokfast=2.0), dict(grokfast=0.5, grokfast_alpha=0.5)]),
    (
        stability,
        [
            dict(loss="stablemax", loss_dtype="float64"),
            dict(orthograd=1),
            dict(loss="stablemax", orthograd=1),
        ],
    ),
    (embedding, [dict(embed_lr_ratio=10.0), NOISE | dict(embed_lr_ratio=0.1)]),
    (transfer, [dict(transfer="small"), dict(rank=4, decay_to="init")]),
    (lazy_rich, [dict(output_scale=3.0, centre=1), dict(hold_norm=7.0)]),
    (
        ticket,
        [dict(ticket="run", control=control) for control in ("magnitude", "random", "norm")]
        + [NOISE | dict(ticket="run")],
    ),
    (efficiency, [dict(go_on="run"), dict(go_on="run", frac=0.3)]),
    (
        nonstationary,
        [dict(project=1), dict(rewarm=3, rewarm_lr=0.02)],
    ),  # the checkpoint is of the second warm-up
    (
        neuralgrok,
        [
            dict(neuralgrok=1),
            dict(neuralgrok=1, inner=5, grad_clip=0.1),
            dict(neuralgrok=1, amplifier=0),
        ],
    ),
    (grokalign, [dict(grokalign=0.01), dict(grokalign=1.0)]),
    (progress, [dict(seed=1)]),
    (tracing, [dict(seed=1)]),
    (llm, [dict(seed=1)]),
    (experts, [dict(experts=4, top_k=2), dict(experts=7)]),
    (features, [dict(output_scale=4.0)]),
    (exponentiation, [dict(reciprocal=1)]),
    (spectra, [dict(coupled_l2=1), dict(coupled_l2=1, weight_decay=0.01)]),
    (
        optimisers,
        [NOISE | dict(optimizer=name) for name in ("muon", "sgd", "columns")]
        + [dict(mlp=1, dropout=0.1, optimizer="columns")],
    ),
]


@pytest.mark.parametrize("study, on", ON, ids=lambda given: getattr(given, "__name__", ""))
def test_by_default_a_study_is_plain_training_and_on_it_changes_that_and_resumes_exactly(
    study, on, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for folder, width in ("run", 16), ("small", 4):
        grok.train(Config(**TINY | dict(width=width)), out=folder, quiet=True)
    (method,) = (
        c for c in vars(study).values() if isinstance(c, type) and issubclass(c, grok.Stack)
    )
    config = getattr(study, "Config", Config)
    train = lambda **more: grok.train(
        [config(**TINY | more) for more in [{}, *on]], quiet=True, method=method, **more
    )
    rows = lambda run, names=None: [
        {name: row[name] for name in names or row if name != "seconds"} for row in run.log
    ]
    whole = train()
    together = [run for run in whole if run.state["W"].shape == whole[0].state["W"].shape]
    plain = grok.train(
        Config.grid(**TINY, seed=range(len(together))), quiet=True
    )  # as many in a stack: the same kernels
    assert [rows(run, plain[0].log[0]) == rows(plain[0]) for run in whole] == [True] + [
        False
    ] * len(on)
    assert torch.equal(whole[0].state["W"], plain[0].state["W"])
    measure, left = method.measure, [4]

    def cut(self):
        left[0] -= 1
        return measure(self) if left[0] else 1 / 0

    with monkeypatch.context() as patched:
        patched.setattr(method, "measure", cut)
        patched.setattr(grok.Records, "due", lambda self: True)
        with pytest.raises(ZeroDivisionError):
            train(out="cut")
    assert grok.read("cut", config)[0].step == 5
    for run, other in zip(whole, train(out="cut"), strict=True):
        assert rows(run) == rows(other) and run.state.keys() == other.state.keys() == set(
            method.state
        )
        assert all(torch.equal(run.state[name], other.state[name]) for name in run.state)


def test_a_study_goes_on_with_a_plain_folder_under_a_header_of_its_own_and_it_is_one_run(tmp_path):
    grok.train(Config(**TINY), out=tmp_path, quiet=True)
    grok.train(
        stability.Config(**TINY | dict(steps=50)),
        out=tmp_path,
        quiet=True,
        method=stability.Stability,
    )
    grok.train(Config(**TINY | dict(steps=70)), out=tmp_path, quiet=True)
    ((settings, rows),) = figures.read_table(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 5, 10, 20, 30, 40, 50, 60, 70] and settings[
        "loss"
    ] == "softmax"
    assert ["collapse" in row for row in rows] == [False] * 6 + [True] * 2 + [False] * 2


# --- grokfast.py ----------------------------------------------------------------------------------


def test_grokfast_by_hand_for_three_steps():
    """h starts at the first gradient, then h = α h + (1 - α) g; the gradient becomes g + λ h (the
    authors' code)."""
    configs = grokfast.Config.grid(**TINY, grokfast=[0.0, 2.0], grokfast_alpha=0.9, beta1=0.0)
    stack, given, seen = grokfast.Grokfast([grok.Run(c, "") for c in configs]), [1.0, 2.0, -1.0], []
    plain = grok.Stack.gradient
    try:
        grok.Stack.gradient = lambda self, rows: torch.full_like(self.W, given[self.step - 1])
        for t in range(1, 4):
            stack.advance(t)
            seen.append(stack.m[:, 0].tolist())  # with beta1 = 0, m is the gradient
    finally:
        grok.Stack.gradient = plain
    assert np.allclose(
        seen, [[1, 3], [2, 4.2], [-1, 0.78]]
    )  # h: 1, 0.9 + 0.2 = 1.1, 0.99 - 0.1 = 0.89


# --- stability.py ---------------------------------------------------------------------------------


def test_stablemax_and_the_precision_of_the_loss_are_each_runs_own():
    """s(z) = z + 1 from 0 on and 1 / (1 - z) below it; the loss is -log of the label's share of the
    sum of s."""
    stack = stack_of(
        stability.Stability,
        stability.Config,
        loss=["softmax", "stablemax"],
        loss_dtype=["float32", "float64"],
    )
    z = np.array(
        [[0.5, -1, 30, -40, 3], [20, 0.1, -0.1, -3, 1]], np.float32
    )  # 1 + 4.8 e⁻²⁰ is 1 in float32
    labels, z64 = np.array([4, 0]), z.astype(float)
    logits = torch.tensor(z).repeat(4, 1, 1).requires_grad_()
    losses = stack.losses(logits, torch.from_numpy(labels).repeat(4, 1))
    losses.sum().backward()
    far = 1 + abs(z64)
    stable, slope = np.where(z < 0, 1 / far, far), np.where(z < 0, 1 / far**2, 1)
    hit = np.arange(5) == labels[:, None]
    for i, (s, ds) in enumerate([(np.exp(z64), np.exp(z64))] * 2 + [(stable, slope)] * 2):
        others = np.where(hit, 0, s).sum(1)  # -log(share) = log1p(others / own)
        loss, gradient = np.log1p(others / s[hit]), ds * (1 / s.sum(1, keepdims=True) - hit / s)
        gradient[hit] = -(ds / s)[hit] * others / s.sum(1)  # the same, without cancellation
        if i == 0:
            loss[1], gradient[1] = (
                0,
                np.where(hit[1], 0, gradient[1]),
            )  # collapse: nothing is left to learn
        assert np.allclose(losses[i].detach(), loss, rtol=1e-5, atol=0)
        assert np.allclose(logits.grad[i], gradient, rtol=1e-5, atol=0)
    assert losses.dtype == torch.float32
    with pytest.raises(grok.UsageError, match="--loss-dtype float64: must be float32"):
        stability.Config(device="mps", loss_dtype="float64")


def test_collapse_is_the_share_of_training_equations_of_which_one_term_is_left():
    stack = stack_of(
        stability.Stability,
        stability.Config,
        frac=0.4,
        loss=["softmax", "stablemax"],
        loss_dtype=["float32", "float64"],
    )
    lead = torch.tensor(
        [0.0, 5, 12, 16, 18, 30, 34, 36, 45, 80, 1000]
    )  # of the largest logit, for each x
    stack.model = lambda W, x, y: lead[x][..., None] * torch.tensor([1.0] + [0.0] * 12)
    x = stack.x[0][stack.train[0]]  # 1 + 12 e⁻¹⁸ is more than 1 in float32,
    expected = [
        (x >= 5).float().mean().item(),
        (x >= 8).float().mean().item(),
        0,
        0,
    ]  # 1 + 12 e⁻³⁶ in float64
    assert (
        stack.measure()["collapse"].tolist() == pytest.approx(expected)
        and 1 > expected[0] > expected[1] > 0
    )


def test_orthograd_turns_each_tensor_of_the_runs_that_have_it(monkeypatch):
    """g - (w·g / w·w) w, rescaled to |g|, for each tensor of torch.nn's modules (the authors'
    code)."""
    stack = stack_of(stability.Stability, stability.Config, orthograd=[0, 1], seed=[0, 1])
    given = torch.from_numpy(np.random.default_rng(0).normal(size=stack.W.shape)).float()
    monkeypatch.setattr(grok.Stack, "gradient", lambda self, rows: given)
    turned, count = stack.gradient(None), 0
    assert torch.equal(turned[:2], given[:2])
    named = [stack.model.weights(t.double()) for t in (stack.W, given, turned)]
    for name in named[0]:
        for run in 2, 3:
            tensors = [t[name][run] if "norm" in name else t[name][run][None] for t in named]
            for w, g, new in zip(*tensors):  # LayerNorm's scale, then its shift
                expected = (
                    g - (w * g).sum() / (w * w).sum() * w if w.any() else g
                )  # the shift starts at 0
                torch.testing.assert_close(
                    new, expected * g.norm() / expected.norm(), atol=1e-5, rtol=1e-5
                )
                count += 1
    assert count == 2 * (8 + 4)  # embed, head, q, k, v, out, up, down


# --- embedding.py ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decay_to", ["origin", "init"])
def test_the_embedding_has_a_learning_rate_and_a_decay_of_its_own(decay_to, monkeypatch):
    """Against torch.optim.AdamW with a group for the embedding: `ratio` times the lr, a `ratio`th
    of the decay."""
    configs = [
        embedding.Config(
            **TINY, warmup=4, decay_to=decay_to, embed_lr_ratio=ratio, lr=lr, weight_decay=decay
        )
        for ratio, lr, decay in ((1.0, 3e-3, 1.0), (10.0, 1e-3, 0.5), (0.1, 3e-3, 1.0))
    ]
    stack = embedding.Embedding([grok.Run(c, "") for c in configs])
    (R, P), first = stack.W.shape, stack.model.sizes[0]
    given, start = torch.randn(6, R, P, generator=torch.Generator().manual_seed(0)), stack.W.clone()
    monkeypatch.setattr(grok.Stack, "gradient", lambda self, rows: given[self.step - 1])
    away = start * (decay_to == "init")  # AdamW on W - anchor decays to the anchor
    parts = [
        [torch.nn.Parameter(part.clone()) for part in (row[:first], row[first:])]
        for row in start - away
    ]
    groups = [
        [
            dict(params=[embed], weight_decay=c.weight_decay / c.embed_lr_ratio),
            dict(params=[rest], weight_decay=c.weight_decay),
        ]
        for (embed, rest), c in zip(parts, configs)
    ]
    adams = [torch.optim.AdamW(group, betas=(0.9, 0.98), eps=1e-8) for group in groups]
    for t in range(1, 7):
        stack.advance(t)
        for adam, c, row in zip(adams, configs, given[t - 1]):
            lr = c.lr * min(1, t / 4)
            for group, grad, ratio in zip(
                adam.param_groups, (row[:first], row[first:]), (c.embed_lr_ratio, 1)
            ):
                group["lr"], group["params"][0].grad = lr * ratio, grad
            adam.step()
    want = torch.stack([torch.cat(pair) for pair in parts]).detach() + away
    assert torch.allclose(stack.W, want, rtol=0, atol=2e-6) and not torch.allclose(
        stack.W, start, atol=1e-2
    )


# --- transfer.py ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of small runs: seeds 0 and 1, at width 4 and, seed 2, also at 8."""
    folder, narrow = tmp_path_factory.mktemp("transfer") / "small", TINY | dict(width=4, steps=5)
    grok.train(
        Config.grid(**narrow, seed=[0, 1, 2]) + [Config(**narrow | dict(width=8), seed=2)],
        out=folder,
        quiet=True,
    )
    with contextlib.ExitStack() as opened:  # a folder where nothing is trained yet
        grok.Records(folder.parent / "new", grok.named([Config(**narrow)]), True, opened)
    return str(folder)


def test_the_embedding_is_that_of_the_small_run_of_its_seed_times_a_random_matrix_and_both_learn(
    small,
):
    """Logits and gradients against the plain transformer whose embedding is A·B, by the chain rule:
    GBᵀ and AᵀG."""
    configs = transfer.Config.grid(**TINY, transfer=small, seed=[1, 0])
    stack, plain, rows = (
        transfer.Transfer([grok.Run(c, "") for c in configs]),
        Config(**TINY).model(),
        torch.arange(60).expand(2, -1),
    )
    w = {
        name: part.clone()
        for name, part in zip(stack.model.shapes, stack.W.split(stack.model.sizes, 1))
    }
    A, B = w.pop("embed").view(2, 13, 4), w.pop("lift").view(2, 4, 16)
    runs = {run.config.seed: run for run in grok.read(small) if run.config.width == 4}
    assert all(
        torch.equal(A[i].flatten(), runs[seed].state["W"][:52]) for i, seed in enumerate((1, 0))
    )
    assert not torch.equal(B[0], B[1]) and 0.25 < B.abs().max() <= 0.5  # U(-1/√4, 1/√4)
    W = torch.cat(
        [torch.einsum("rvk,rkd->rvd", A, B).flatten(1), *w.values()], 1
    )  # as plain.shapes has them
    assert list(plain.shapes)[1:] == list(w) and all((part != 0).any() for part in (A, B))
    x, y = stack.x[:, :60], stack.y[:, :60]
    assert torch.allclose(stack.model(stack.W, x, y), plain(W, x, y), atol=1e-5)
    leaf = W.clone().requires_grad_()
    loss = grok.cross_entropy(plain(leaf, x, y), stack.labels[:, :60]).mean(1)
    want = torch.autograd.grad(loss.sum(), leaf)[0]
    G = want[:, : 13 * 16].view(2, 13, 16)
    got = dict(zip(stack.model.shapes, stack.gradient(rows).split(stack.model.sizes, 1)))
    assert torch.allclose(got.pop("embed").view_as(A), G @ B.mT, atol=1e-6) and torch.allclose(
        got.pop("lift").view_as(B), A.mT @ G, atol=1e-6
    )
    assert torch.allclose(torch.cat([*got.values()], 1), want[:, 13 * 16 :], atol=1e-6)
    before = stack.W.clone()
    stack.advance(2)
    assert all(
        (new != old).all()
        for name, new, old in zip(
            stack.model.shapes,
            stack.W.split(stack.model.sizes, 1),
            before.split(stack.model.sizes, 1),
        )
        if name in ("embed", "lift")
    )


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(seed=5), "has 0 trained runs"),
        (dict(seed=2), "has 2 trained runs"),
        (dict(frac=0.4), "has 0"),
        (dict(transfer="../new"), "has 0 trained"),
        (dict(transfer="nowhere"), "is no run folder"),
        (dict(transfer="a,b"), "--transfer a,b: must be without a comma"),
    ],
)
def test_a_small_run_that_will_not_do_gets_one_line(given, said, small, monkeypatch):
    monkeypatch.chdir(small)
    with pytest.raises(grok.UsageError, match=said) as raised:
        transfer.Config(**TINY | dict(transfer=small) | given)
    assert "\n" not in str(raised.value)
    assert (
        transfer.Config(**TINY, transfer=small, seed=2, rank=8).small().config.width == 8
    )  # --rank tells which


# --- lazy_rich.py ---------------------------------------------------------------------------------


def test_lazy_rich_is_adamw_on_scaled_and_centred_logits_at_a_norm():
    """α (f - f₀), lr / α; weights of norm ρ from the start; against torch.optim.AdamW, a run
    each."""
    settings = [
        dict(output_scale=4.0, centre=1, weight_decay=0.5),
        dict(output_scale=0.25, hold_norm=9.0, weight_decay=0.0),
    ]
    stack = lazy_rich.LazyRich(
        [grok.Run(lazy_rich.Config(**TINY | c, seed=5, warmup=2), "") for c in settings]
    )
    start = stack.initial()
    stack.advance(3)
    first = Config(**TINY, seed=5).model().initial(5)
    assert torch.equal(start[0], first) and torch.allclose(start[1], first * 9 / first.norm())
    lrs, after = (1 / 2000, 1 / 1000, 1 / 1000), lambda W: W * (9 / W.square().sum().sqrt())
    expected = [
        reference(
            stack.runs[0],
            [lr / 4 for lr in lrs],
            lambda f, W, x, y: 4 * (f(W, x, y) - f(first[None], x, y)),
            start[0],
        ),
        reference(
            stack.runs[1],
            [lr * 4 for lr in lrs],
            lambda f, W, x, y: f(W, x, y) / 4,
            start[1],
            after,
        ),
    ]
    for W, other, begin in zip(stack.W, expected, start):
        assert (
            torch.allclose(W - begin, other - begin, atol=2e-6) and (W - begin).abs().max() > 1e-4
        )
    measured, (x, y, labels, train) = (
        stack.measure(),
        (torch.from_numpy(a) for a in grok.split(stack.runs[0].config)),
    )
    assert measured["weight_norm"][1] == pytest.approx(9) and measured["weight_norm"][
        0
    ] != pytest.approx(9)
    model = stack.config.model()
    logits = 4 * (model(stack.W[:1], x[None], y[None]) - model(first[None], x[None], y[None]))[0]
    assert measured["val_loss"][0] == pytest.approx(
        torch.nn.functional.cross_entropy(logits[~train], labels[~train]).item(), rel=1e-4
    )


# --- ticket.py ------------------------------------------------------------------------------------


def test_a_ticket_is_what_torch_prunes_reset_to_its_start_and_trained_alone(tmp_path):
    dense = grok.train(Config.grid(**TINY, seed=[0, 1], init_scale=2.0), out=tmp_path, quiet=True)
    settings = TINY | dict(ticket=str(tmp_path), init_scale=2.0, warmup=2)
    configs = [
        ticket.Config(**settings, seed=1, kept=0.4),
        ticket.Config(**settings, seed=0, kept=0.3),
        ticket.Config(**settings, seed=1, control="random"),
        ticket.Config(**settings, seed=1, control="norm"),
    ]
    stack = ticket.Ticket([grok.Run(c, "") for c in configs])
    names, model = [name for name in stack.model.shapes if "norm" not in name], stack.model
    for i, (run, kept) in enumerate([(dense[1], 0.4), (dense[0], 0.3)]):
        module = torch.nn.ParameterDict(
            {
                name.replace(".", "_"): w[0]
                for name, w in model.weights(run.state["W"][None].clone()).items()
            }
        )
        prune.global_unstructured(
            [(module, name.replace(".", "_")) for name in names],
            prune.L1Unstructured,
            amount=1 - kept,
        )
        for name, mask in model.weights(stack.mask).items():
            assert torch.equal(
                mask[i],
                getattr(module, name.replace(".", "_") + "_mask")
                if name in names
                else torch.ones_like(mask[i]),
            ), name
    for name, mask in model.weights(stack.mask).items():
        assert mask[0].sum() == mask[2].sum() and torch.equal(mask[0], mask[2]) == (
            name not in names
        ), name
    starts = stack.W.clone()
    first = model.initial(1, 2.0)
    ratio = torch.cat(
        [
            (w[3] / old[0]).flatten()
            for (name, w), old in zip(
                model.weights(starts).items(), model.weights(first[None]).values()
            )
            if name in names
        ]
    )
    assert (
        torch.allclose(ratio, ratio[0])
        and starts[3].norm().item() == pytest.approx(starts[0].norm().item(), rel=1e-5)
        and stack.mask[3].all()
    )
    for i, seed in enumerate([1, 0, 1]):
        assert torch.equal(starts[i], model.initial(seed, 2.0) * stack.mask[i])
    stack.advance(3)
    for run, W, start, mask in zip(stack.runs, stack.W, starts, stack.mask):
        other = reference(
            run, [0.0005, 0.001, 0.001], lambda f, W, x, y: f(W, x, y), start, mask=mask
        )
        assert (
            torch.allclose(W, other, atol=2e-6)
            and (W[mask > 0] != start[mask > 0]).float().mean() > 0.9
        )


def test_pruned_weights_stay_at_zero_beside_noise_and_leave_clipping_to_the_others(tmp_path):
    grok.train(Config(**TINY), out=tmp_path, quiet=True)
    stack = ticket.Ticket(
        [
            grok.Run(
                ticket.Config(
                    **TINY, ticket=str(tmp_path), update_noise=0.1, grad_clip=1e-3, beta1=0.0
                ),
                "",
            )
        ]
    )
    stack.advance(1)
    assert not stack.W[stack.mask == 0].any() and not stack.m[stack.mask == 0].any()
    assert stack.m.norm().item() == pytest.approx(
        1e-3, rel=1e-2
    )  # with beta1 = 0, m is the clipped gradient


def test_ticket_refuses_what_does_not_fit(tmp_path, capsys):
    folder = str(tmp_path / "dense")
    grok.train(Config(**TINY | dict(steps=1)), out=folder, quiet=True)
    tiny = [
        "--op",
        "x_plus_y",
        "--p",
        "11",
        "--layers",
        "1",
        "--width",
        "16",
        "--heads",
        "2",
        "--steps",
        "2",
        "--quiet",
    ]
    for given, said in (
        (["--ticket", str(tmp_path)], f"{tmp_path}: is no run folder"),
        (["--ticket", folder, "--init-scale", "3"], "--init-scale 3.0"),
        (["--ticket", folder, "--seed", "2"], "--seed 2"),
        (["--ticket", folder, "--kept", "0"], "--kept 0"),
        (["--control", "none"], "magnitude, random, norm"),
    ):
        assert (
            grok.main([*tiny, *given, "--out", str(tmp_path / "out")], ticket.Config, ticket.Ticket)
            == 2
        )
        out, err = capsys.readouterr()
        assert said in err and err.count("\n") == 1 and not out and not (tmp_path / "out").exists()
    assert (
        grok.main(
            [*tiny, "--ticket", folder, "--control", "random", "--out", str(tmp_path / "out")],
            ticket.Config,
            ticket.Ticket,
        )
        == 0
    )


# --- efficiency.py --------------------------------------------------------------------------------


def test_efficiency_goes_on_from_the_run_of_its_seed_with_part_of_its_data(tmp_path):
    folder = str(tmp_path)
    before = grok.train(
        Config.grid(**TINY | dict(steps=20), seed=[0, 1], frac=0.6), out=folder, quiet=True
    )
    configs = [
        efficiency.Config(**TINY, go_on=folder, seed=1, frac=0.3, warmup=2),
        efficiency.Config(**TINY, seed=1, frac=0.3, warmup=2),
    ]
    stack = efficiency.Efficiency([grok.Run(c, "") for c in configs])
    assert torch.equal(stack.W[0], before[1].state["W"]) and torch.equal(
        stack.W[1], Config(**TINY).model().initial(1)
    )
    kept, whole = stack.train[0].numpy(), grok.split(before[1].config)[3]
    assert (
        kept.sum() == round(0.3 * 121)
        and whole.sum() == round(0.6 * 121)
        and not (kept & ~whole).any()
    )
    starts = stack.W.clone()
    stack.advance(3)
    for run, W, start in zip(stack.runs, stack.W, starts):
        assert torch.allclose(
            W,
            reference(run, [0.0005, 0.001, 0.001], lambda f, W, x, y: f(W, x, y), start),
            atol=2e-6,
        )
    measured, (x, y, _, train) = stack.measure(), grok.split(configs[0])
    for i, W in enumerate(stack.W):
        logits = (
            stack.model(W[None], *(torch.from_numpy(a[train])[None] for a in (x, y)))[0]
            .double()
            .numpy()
        )
        norm = np.mean([np.sqrt(sum(row**2)) for row in logits])
        assert measured["logit_norm"][i] == pytest.approx(norm, rel=1e-5)
        assert measured["logit_norm_per_weight_norm"][i] == pytest.approx(
            norm / np.linalg.norm(W.double()), rel=1e-5
        )


def test_efficiency_refuses_what_it_cannot_go_on_from(tmp_path, capsys):
    folder = str(tmp_path / "whole")
    grok.train(
        Config.grid(**TINY | dict(steps=1), lr=[1e-3, 2e-3], frac=0.5, seed=[1])
        + [Config(**TINY | dict(steps=1))],
        out=folder,
        quiet=True,
    )
    tiny = [
        "--op",
        "x_plus_y",
        "--p",
        "11",
        "--layers",
        "1",
        "--width",
        "16",
        "--heads",
        "2",
        "--steps",
        "2",
        "--quiet",
    ]
    for given, said in (
        (["--go-on", str(tmp_path)], f"{tmp_path}: is no run folder"),
        (["--go-on", folder, "--seed", "2"], "it holds 0"),
        (["--go-on", folder, "--seed", "1"], "it holds 2"),
        (["--go-on", folder, "--width", "32"], "--width 32"),
        (["--go-on", folder, "--frac", "0.6"], "--frac 0.6: must be at most 0.5"),
    ):
        assert (
            grok.main(
                [*tiny, *given, "--out", str(tmp_path / "out")],
                efficiency.Config,
                efficiency.Efficiency,
            )
            == 2
        )
        out, err = capsys.readouterr()
        assert said in err and err.count("\n") == 1 and not out and not (tmp_path / "out").exists()
    assert (
        grok.main(
            [*tiny, "--go-on", folder, "--out", str(tmp_path / "out")],
            efficiency.Config,
            efficiency.Efficiency,
        )
        == 0
    )


# --- nonstationary.py -----------------------------------------------------------------------------


def test_nonstationary_projects_each_matrix_and_warms_the_learning_rate_up_again():
    """W ← W ‖W₀‖ / ‖W‖ for each matrix, not for LayerNorm; the lr of each update written out;
    against torch.optim.AdamW, a run each."""
    settings = [dict(project=1), dict(project=0, rewarm=3, rewarm_lr=0.05)]
    stack = nonstationary.Nonstationary(
        [grok.Run(nonstationary.Config(**TINY, **c, seed=5, warmup=2), "") for c in settings]
    )
    start, model = stack.W.clone(), stack.model
    stack.advance(5)

    def projected(W):
        parts = zip(model.shapes, W.split(model.sizes), start[0].split(model.sizes))
        return torch.cat(
            [
                w if "norm" in name else w * (first.square().sum() / w.square().sum()).sqrt()
                for name, w, first in parts
            ]
        )

    plain = lambda f, W, x, y: f(W, x, y)
    expected = [
        reference(stack.runs[0], [0.0005, 0.001, 0.001, 0.001, 0.001], plain, start[0], projected),
        reference(stack.runs[1], [0.0005, 0.001, 0.0255, 0.05, 0.05], plain, start[1]),
    ]
    for W, other in zip(stack.W, expected):
        assert torch.allclose(W, other, atol=2e-5) and (W - start[0]).abs().max() > 1e-3
    for (name, w), first in zip(model.weights(stack.W).items(), model.weights(start).values()):
        assert torch.isclose(w[0].norm(), first[0].norm(), rtol=1e-6) == ("norm" not in name), name


# --- neuralgrok.py --------------------------------------------------------------------------------


def test_neuralgrok_weighs_each_tensor_and_its_amplifier_goes_down_the_loss_of_the_step_ahead():
    """g becomes p g / ‖p g‖ with p the softmax over the components of amplifier(g_i), and g / ‖g‖
    without one. The amplifier moves in every second update, by torch.optim.AdamW, down the loss of
    equations that no batch has. The reference is torch's layers in double."""
    stack = stack_of(
        neuralgrok.NeuralGrok, neuralgrok.Config, neuralgrok=[0, 1], seed=[0, 1], amplifier=3
    )
    rows, first = torch.arange(16).repeat(4, 1), stack.phi.clone()
    plain = grok.Stack.gradient(stack, rows)
    assert not torch.equal(first[2], first[3]) and not torch.equal(stack.outer[2], stack.outer[3])

    def weighed(i, net=None):
        parts = [part[i].double() for part in stack.model.weights(plain).values()]
        parts = [g * net(g.reshape(-1, 1)).softmax(0).reshape(g.shape) if net else g for g in parts]
        return torch.cat([(g / g.norm()).flatten() for g in parts])

    nets = [
        torch.nn.Sequential(
            torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1, bias=False)
        ).double()
        for _ in range(4)
    ]
    for net, phi in zip(nets, first):
        for parameter, value in zip(net.parameters(), phi.double().split(3)):
            parameter.data = value.reshape(parameter.shape)
    stack.step = 1
    odd = stack.gradient(rows)
    assert torch.equal(odd[:2], plain[:2]) and torch.equal(stack.phi, first)
    stack.step = 2
    even = stack.gradient(rows)
    assert torch.equal(even[:2], plain[:2])
    for i in 2, 3:
        assert torch.allclose(odd[i].double(), weighed(i, nets[i]), atol=1e-6)
        outer = stack.outer[i]
        logits = stack.model(
            (stack.W[i] - 1e-3 * weighed(i, nets[i]))[None],
            stack.x[i : i + 1, outer],
            stack.y[i : i + 1, outer],
        )[0]
        torch.nn.functional.cross_entropy(logits, stack.labels[i, outer]).backward()
        torch.optim.AdamW(
            nets[i].parameters(), lr=1e-4, weight_decay=1e-6, betas=(0.9, 0.98)
        ).step()
        moved = torch.cat([parameter.data.flatten() for parameter in nets[i].parameters()])
        assert (
            torch.allclose(stack.phi[i].double(), moved, atol=1e-6)
            and (moved - first[i]).abs().min() > 5e-5
        )
        assert torch.allclose(even[i].double(), weighed(i, nets[i]), atol=1e-6)
    bare = stack_of(
        neuralgrok.NeuralGrok, neuralgrok.Config, neuralgrok=[0, 1], seed=[0, 1], amplifier=0
    )
    assert torch.allclose(bare.gradient(rows)[3].double(), weighed(3), atol=1e-6)


def test_no_batch_of_neuralgrok_has_the_outer_equations_and_the_controls_has_all():
    stack, seen = stack_of(neuralgrok.NeuralGrok, neuralgrok.Config, neuralgrok=[0, 1]), []
    train, outer = stack.train.clone(), stack.outer[1]
    stack.update = seen.append
    stack.advance(40)  # several epochs of batches
    assert (
        train[1, outer].all()
        and len(set(outer.tolist())) == len(outer) == 1
        and torch.equal(stack.train, train)
    )
    control, mine = (set(rows.flatten().tolist()) for rows in torch.stack(seen, 1))
    assert control == set(train[0].nonzero()[:, 0].tolist()) and mine == control - set(
        outer.tolist()
    )


# --- grokalign.py ---------------------------------------------------------------------------------


def jacobian(model, W, x, y):
    """Of the logits of one equation by the embeddings of its tokens, (V, 4, D): by those of the
    table, of which the equation uses each row once (x ≠ y), through the model itself."""
    P, tokens = model.sizes[0], [x, model.n, y, model.n + 1]
    logits = lambda embed: model(
        torch.cat([embed, W[P:]])[None], torch.tensor([[x]]), torch.tensor([[y]])
    )[0, 0]
    J = torch.func.jacrev(logits)(W[:P]).unflatten(1, model.shapes["embed"])
    assert x != y and not J[:, [i for i in range(model.n) if i not in (x, y)]].any()
    return J[:, tokens]


@pytest.mark.parametrize("layers", [1, 2])
def test_grokalign_is_the_jacobian_of_the_embeddings_of_an_equation(layers):
    """λ · mean √(V |Jᵀv|²), with v a random unit vector for each equation (the authors' code), on
    each run with its own λ."""
    stack = stack_of(
        grokalign.GrokAlign, grokalign.Config, layers=layers, grokalign=[0.0, 0.5, 3.0]
    )
    x, y = torch.tensor([[1, 4, 10]] * 3), torch.tensor([[2, 9, 0]] * 3)
    rows, stack.step, stack.generators = x * 11 + y, 1, {}
    plain, grad = grok.Stack.gradient(stack, rows), stack.gradient(rows)
    assert torch.equal(plain[0], grad[0])
    stack.generators = {}
    v = stack.random("grokalign", torch.Tensor.normal_, torch.empty(3, 3, 13))
    v = torch.nn.functional.normalize(v, dim=2)
    for i, factor in (1, 0.5), (2, 3.0):
        W = stack.W[i].clone().requires_grad_()
        norms = [
            torch.einsum(
                "vtd,v->td", jacobian(stack.model, W, x[i, b].item(), y[i, b].item()), v[i, b]
            ).norm()
            for b in range(3)
        ]
        (expected,) = torch.autograd.grad(factor * 13**0.5 * sum(norms) / 3, W)
        assert expected.norm() > 0.1
        torch.testing.assert_close(
            grad[i] - plain[i], expected, atol=1e-5 * expected.norm().item(), rtol=1e-3
        )


def test_alignment_is_the_cosine_of_the_jacobians_row_sum_and_the_embeddings():
    stack = stack_of(
        grokalign.GrokAlign, grokalign.Config, seed=[0, 1], embed_init_scale=0.3, layers=2
    )
    stack.train &= stack.x != stack.y
    for run, alignment in enumerate(stack.measure()["alignment"].tolist()):
        W, cosines = stack.W[run], []
        for x, y in zip(*(table[run][stack.train[run]].tolist() for table in (stack.x, stack.y))):
            tokens = (
                stack.model.weights(W[None])["embed"][0][[x, stack.model.n, y, stack.model.n + 1]]
                .flatten()
                .numpy()
            )
            centroid = jacobian(stack.model, W, x, y).sum(0).flatten().numpy()
            cosines.append(tokens @ centroid / np.linalg.norm(tokens) / np.linalg.norm(centroid))
        assert 40 < len(cosines) < 61 and np.std(cosines) > 0.01
        assert alignment == pytest.approx(np.mean(cosines), abs=1e-5)


# --- optimisers.py --------------------------------------------------------------------------------


def normalised(g):
    return g / np.maximum(np.sqrt((g**2).sum(0)), 0.01)


def test_each_optimiser_against_torch_and_numpy(monkeypatch):
    """Rows of one stack, with settings of their own, over six made gradients: torch.optim.Muon with
    bfloat16 made float32, AdamW, SGD, and columns by numpy. Decay to the initial weights is decay
    of what lies between, W - away."""
    arms = [
        ("muon", 3e-3, 0.5, "origin"),
        ("adamw", 2e-3, 1.0, "origin"),
        ("muon", 1e-3, 1.0, "init"),
        ("sgd", 0.3, 0.1, "origin"),
        ("columns", 0.2, 1e-3, "init"),
        ("sgd", 0.1, 1.0, "init"),
    ]
    ratios = [1.0, 1.0, 4.0, 0.5, 1.0, 1.0]  # of Muon's rate, or SGD's, to lr
    configs = [
        optimisers.Config(
            **TINY, optimizer=name, lr=lr, lr_ratio=ratio, weight_decay=decay, decay_to=to, warmup=3
        )
        for (name, lr, decay, to), ratio in zip(arms, ratios)
    ]
    stack = optimisers.Optimisers([grok.Run(c, "") for c in configs])
    scale = torch.logspace(-3, 0, 6)[:, None, None]  # the first columns' norms are below 0.01
    given = scale * torch.randn(6, *stack.W.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(grok.Stack, "gradient", lambda self, rows: given[self.step - 1])
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    named = lambda row: {
        name: part[0].clone() for name, part in stack.model.weights(row[None]).items()
    }
    inner = ["0." + name for name in ("q", "k", "v", "out", "up", "down")]
    want = []
    for (name, lr, decay, to), ratio, W, grads in zip(
        arms, ratios, stack.W.clone(), given.unbind(1)
    ):
        away = W * (to == "init")
        w = {key: torch.nn.Parameter(part) for key, part in named(W - away).items()}
        ours, rest = (
            [w[key] for key in inner],
            [part for key, part in w.items() if key not in inner],
        )
        adamw = lambda parts: torch.optim.AdamW(
            parts, betas=(0.9, 0.98), eps=1e-8, weight_decay=decay
        )
        optims = {
            "muon": lambda: [
                torch.optim.Muon(ours, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
                adamw(rest),
            ],
            "adamw": lambda: [adamw(w.values())],
            "sgd": lambda: [torch.optim.SGD(w.values(), weight_decay=decay)],
            "columns": lambda: [],
        }[name]()
        for t, grad in enumerate(grads, 1):
            for key, part in named(grad).items():
                w[key].grad = part
                if name == "columns":
                    step = (part + decay * w[key]).detach().numpy()
                    w[key].data -= (
                        lr
                        * min(1, t / 3)
                        * torch.from_numpy(normalised(step) if key in inner else step)
                    )
            for optim in optims:
                optim.param_groups[0]["lr"] = (
                    lr * min(1, t / 3) * (1 if isinstance(optim, torch.optim.AdamW) else ratio)
                )
                optim.step()
        want.append(torch.cat([part.detach().flatten() for part in w.values()]) + away)
    start = stack.W.clone()
    stack.advance(6)
    for row, expected, before in zip(stack.W, want, start):
        assert (
            torch.allclose(row, expected, rtol=1e-5, atol=3e-6)
            and (row - before).abs().max() > 1e-3
        )


def test_orthogonal_keeps_singular_vectors_and_makes_their_values_alike():
    tall = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for G in tall, tall.mT:
        U, _, V = np.linalg.svd(G.numpy(), full_matrices=False)
        S = (
            U.transpose(0, 2, 1)
            @ optimisers.orthogonal(G).numpy()
            @ V.transpose(0, 2, 1)
            / (0.2 * 24**0.5)
        )
        values = np.diagonal(S, axis1=1, axis2=2)
        assert (
            np.allclose(S, values[:, :, None] * np.eye(16), atol=1e-9)
            and 0.65 < values.min() < values.max() < 1.25
        )


def test_the_mlp_is_two_matrices_on_one_hot_inputs():
    model, random = (
        optimisers.Config(**TINY | dict(width=24), mlp=1).model(),
        np.random.default_rng(0),
    )
    up, head = (
        random.normal(size=(2, 22, 24)).astype(np.float32),
        random.normal(size=(2, 24, 11)).astype(np.float32),
    )
    x, y = random.integers(11, size=(2, 2, 7))
    W = torch.from_numpy(np.concatenate([up.reshape(2, -1), head.reshape(2, -1)], 1))
    for i in range(2):
        one_hot = np.concatenate([np.eye(11)[x[i]], np.eye(11)[y[i]]], 1)
        want = np.maximum(one_hot @ up[i], 0) @ head[i]
        assert np.allclose(model(W, *map(torch.from_numpy, (x, y)))[i], want, atol=1e-4)
    assert (
        model(W, *map(torch.from_numpy, (x, y)), torch.zeros_like) == 0
    ).all()  # dropout, of all units
    parts = model.weights(model.initial(0, init_scale=6**0.5)[None])
    assert [part.square().mean().item() for part in parts.values()] == pytest.approx(
        [2 / 22, 2 / 24], rel=0.15
    )  # variance of He et al.

"""Properties of the mixture, of edit distances and of the pathways."""

import itertools

import experts
import grok
import numpy as np
import pytest
import torch
from experts import Config, Routing

TINY = dict(op="x_plus_y", p=11, width=16, heads=2, batch_size=16, steps=3, until=0.0, threads=1)


def test_a_mixture_is_the_sum_of_its_best_experts_times_their_shares():
    mixture = experts.Mixture(16, 64, experts=4, top_k=2)
    h = torch.randn(16)
    shares = mixture.router(h).softmax(0).tolist()
    best = sorted(range(4), key=lambda e: -shares[e])[:2]
    expected = torch.zeros(16)
    for e in best:
        units = slice(16 * e, 16 * e + 16)
        hidden = (mixture.up.weight[units] @ h).relu()
        expected += shares[e] * mixture.down.weight[:, units] @ hidden
    torch.testing.assert_close(mixture(h[None, None])[0, 0], expected)


def test_one_expert_with_all_units_is_the_plain_feed_forward_layer():
    mixture = experts.Mixture(16, 64, experts=1, top_k=1)
    h = torch.randn(3, 4, 16)
    plain = mixture.down(mixture.up(h).relu())
    torch.testing.assert_close(mixture(h), plain)


def levenshtein(a, b):
    if not a or not b:
        return max(len(a), len(b))
    return min(
        levenshtein(a[1:], b) + 1,
        levenshtein(a, b[1:]) + 1,
        levenshtein(a[1:], b[1:]) + (a[0] != b[0]),
    )


def test_edit_distances_are_those_of_the_recursion():
    a, b = np.random.default_rng(0).integers(3, size=(2, 50, 5))
    measured = experts.edit_distance(torch.from_numpy(a), torch.from_numpy(b)).tolist()
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    assert measured == [levenshtein(*pair) for pair in pairs]


def routed(layers):
    """A run."""
    return Routing(Config(**TINY, experts=4, top_k=2, layers=layers, init_scale=3.0))


def best_of_each(run):
    """For each equation alone and each layer the two best experts at "=", by the routers: their
    shares and their numbers."""
    best = []
    for row in run.train_rows.tolist():
        seen = []
        handles = [
            block.mixture.router.register_forward_hook(
                lambda m, i, out, s=seen: s.append(out[0, -1])
            )
            for block in run.model.blocks
        ]
        with torch.no_grad():
            run.model(*(t[row : row + 1] for t in run.inputs))
        for handle in handles:
            handle.remove()
        best.append([z.softmax(0).topk(2) for z in seen])
    return best


LAYERS = pytest.mark.parametrize("layers", [1, 2, 3])


@LAYERS
def test_the_distance_is_the_mean_over_neighbours(layers):
    run = routed(layers)
    paths = [torch.cat([two.indices for two in one]).tolist() for one in best_of_each(run)]
    neighbours = zip(paths, paths[-1:] + paths[:-1], strict=True)
    distance = np.mean([levenshtein(a, b) for a, b in neighbours])
    assert run.measure(run.model)["route_distance"].item() == pytest.approx(distance)


@LAYERS
def test_the_load_is_the_share_of_the_busiest_first_expert(layers):
    run = routed(layers)
    first = np.array([[two.indices[0].item() for two in one] for one in best_of_each(run)])
    busiest = [np.bincount(column).max() for column in first.T]
    load = np.mean(busiest) / len(first)
    assert run.measure(run.model)["route_load"].item() == pytest.approx(load)


@LAYERS
def test_the_consistency_is_the_cosine_of_successive_layers(layers):
    run = routed(layers)
    routers = [block.mixture.router.weight.detach() for block in run.model.blocks]
    cosines = []
    for one in best_of_each(run):
        layered = zip(one, routers, strict=True)
        towards = [two.values @ router[two.indices] for two, router in layered]
        for a, b in itertools.pairwise(towards):
            cosines.append(torch.cosine_similarity(a, b, dim=0).item())
    measured = run.measure(run.model)["route_consistency"].item()
    assert measured == pytest.approx(np.mean(cosines or [0]), abs=1e-5)


def test_the_distance_by_answer_is_of_equations_with_one_answer():
    """Every answer is that of two training equations: their partners are known."""
    config = Config(**TINY, frac=22 / 121, experts=4, top_k=2, layers=2, init_scale=3.0)
    run = Routing(config)
    count = len(run.train_rows)
    run.labels[run.train_rows] = torch.arange(count) // 2
    shares = run.shares(run.model, run.train_rows)
    path = torch.cat([s.topk(2).indices for s in shares], dim=1).tolist()
    pairs = [levenshtein(path[i], path[i + 1]) for i in range(0, count - 1, 2)]
    measured = run.measure(run.model)["route_distance_z"].item()
    assert measured == pytest.approx(np.mean(pairs))


def test_one_expert_is_the_plain_transformer():
    assert type(Routing(Config(**TINY)).model) is grok.CachedTransformer

"""Figure 3: what lies together among the rows of the output layer, one for each element. The paper
shows them by t-SNE and finds cosets of a subgroup of S5, and strands z, z + 8, … of x + y.
"""

import functools
import itertools
from typing import NamedTuple

import grok
import numpy as np


def cycles(element):
    """A permutation of S5 as the paper writes it: (0 3)(1 4)."""
    perm, text = list(grok.PERMUTATIONS)[element], ""
    for first in range(5):
        cycle = [first]
        while perm[cycle[-1]] != first:
            cycle.append(perm[cycle[-1]])
        if len(cycle) > 1 and first == min(cycle):
            text += f"({' '.join(map(str, cycle))})"
    return text


def generated(a, b):
    """The elements of the subgroup of S5 that two of them generate, sorted."""
    group = np.unique([0, a, b])
    while True:
        larger = np.unique(grok.S5[group][:, group])
        if len(larger) == len(group):
            return group
        group = larger


def distinct(families):
    """Sets of elements, a row each, without repetition: sorted rows."""
    return np.unique(np.sort(families), axis=0)


@functools.cache
def subgroups():
    """The subgroups of S5 but for 1 and S5, in 17 classes: [(name, its conjugates (C, order))]."""
    x_after_inverse = grok.S5[grok.S5_INVERSE]  # [g, x]: g⁻¹ · x
    turned = grok.S5[x_after_inverse, np.arange(120)[:, None]]  # [g, x]: g⁻¹ · x · g
    one_of_each_class = np.unique(turned.min(axis=0))
    found = {}
    for a, b in itertools.product(one_of_each_class, range(120)):  # two generate any of them
        conjugates = distinct(turned[:, generated(a, b)])
        name = ", ".join(cycles(x) for x in (a, b) if x)
        found.setdefault(conjugates.tobytes(), (f"⟨{name}⟩", conjugates))
    return [(name, c) for name, c in found.values() if 1 < c.shape[1] < 120]


def candidates(op, n):
    """What may lie together among n elements: (name, size, groupings), each grouping families of
    elements, a row each. In S5 the left and right cosets of a subgroup's conjugates, and size is
    its order; else z and z + k, and size is k."""
    if op.startswith("s5"):
        for name, conjugates in subgroups():
            cosets = [c for group in conjugates for c in (grok.S5[group].T, grok.S5[:, group])]
            yield name, conjugates.shape[1], [distinct(c) for c in cosets]
        return
    z = np.arange(n)
    for k in range(1, n // 2 + 1):
        yield f"z+{k}", k, [np.stack([z, (z + k) % n], axis=1)]


class Relation(NamedTuple):
    """How near the families of a grouping lie together."""

    F: float  # the variance ratio of a one-way analysis; of z and z + k, 1 / apart
    apart: float  # mean squared distance in a family by that of any two
    size: int
    name: str
    families: np.ndarray


def apart(rows, families):
    return rows[families].var(axis=1, ddof=1).mean() / rows.var(axis=0, ddof=1).mean()


def relations(rows, op):
    """What lies together among output rows (n, D), the clearest first. Of the groupings of one name
    the one that lies nearest counts."""
    found = []
    for name, size, groupings in candidates(op, len(rows)):
        families = min(groupings, key=functools.partial(apart, rows))
        value, n, count = apart(rows, families), len(rows), len(families)
        ratio = ((n - 1) / value - n + count) / (count - 1)
        found.append(Relation(ratio, value, size, name, families))
    return sorted(found, key=lambda relation: -relation.F)


def output_rows(run):
    """The rows (n, D) of a run's output layer that belong to elements."""
    head = run.model.head.weight.detach()
    return head[: run.config.elements].double().cpu().numpy()


def relation_rows(run):
    """What lies together in a run's output layer, and in its rows shuffled: a dict a relation."""
    rows, c = output_rows(run), run.config
    shuffled = np.random.default_rng([6, 0]).permutation(rows)
    for number, some in enumerate((rows, shuffled)):
        about = dict(op=c.op, seed=c.seed, shuffled=number)
        for rank, found in enumerate(relations(some, c.op), 1):
            named = dict(relation=found.name, size=found.size, rank=rank)
            yield about | named | dict(apart=found.apart, F=found.F, grok=grok.__version__)


def output_map(run):
    """The rows of a run's output layer in the plane, a matplotlib Figure, and by lines what lies
    together in the paper (its subgroup has order 10) and what does most clearly here."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    rows, op = output_rows(run), run.config.op
    found, theirs = relations(rows, op), 10 if op.startswith("s5") else 8
    points = TSNE(random_state=0, perplexity=len(rows) / 5).fit_transform(rows)
    figure = Figure((10, 4.8), layout="constrained")
    title = f"{op}, seed {run.config.seed}, update {run.step:,}: t-SNE of the output layer"
    figure.suptitle(title, fontsize=9)
    paper = next(relation for relation in found if relation.size == theirs)
    shown = {"the paper's": paper, "the clearest": found[0]}
    for axes, (whose, relation) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        axes.plot(*points.T, ".", color="0.5")
        axes.plot(*points[relation.families].transpose(2, 1, 0), "o-", ms=4, lw=0.6)
        for element, point in enumerate(points):
            axes.annotate(str(element), point, (2, 2), textcoords="offset points", fontsize=5)
        axes.set(xticks=[], yticks=[])
        title = f"{relation.name}, {whose}: squared distances {relation.apart:.2f} of any two's"
        axes.set_title(title, fontsize=7)
    return figure

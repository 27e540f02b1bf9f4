"""Properties of grok.py, each held against something independent: brute force, torch.nn's own
layers, torch.optim.AdamW, a plain loop, a worked example, another process. Run: python -m pytest -q
"""

import collections
import contextlib
import copy
import csv
import dataclasses
import errno
import fcntl
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import platform
import pty
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from types import ModuleType

import grok  # before torch, as its users do
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grok import Config, UsageError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SHORT = dict(
    op="x_plus_y",
    p=11,
    layers=1,
    width=16,
    heads=2,
    batch_size=16,
    steps=20,
    eval_every=10,
    device="cpu",
    threads=1,
)  # a run of a twentieth of a second
NOISE = dict(dropout=0.2, weight_noise=0.02, update_noise=0.1, decay_to="init")


def short(**changes):
    return Config(**SHORT | changes)


def train_one(method=grok.Run, **changes):
    return grok.train(short(**changes), quiet=True, method=method)


@pytest.fixture(scope="module")
def plain():
    """What plain training measures."""
    return rows(train_one())


@pytest.fixture(scope="module")
def usual():
    """What training with every noise measures."""
    return rows(train_one(**NOISE))


def advanced(run, updates=1):
    for _ in range(updates):
        run.advance()
    return run


def rows(run):
    """What a run has measured, without the time."""
    return [{name: row[name] for name in row if name != "seconds"} for row in run.log]


def vector(run):
    """All weights of a run in one vector."""
    return nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()


def close(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


# --- tables ---------------------------------------------------------------------------------------


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, n))


def quotient(x, y, p):
    return next(z for z in range(p) if z * y % p == x)


PLAIN = {  # the operations once more, in plain Python
    "x_plus_y": lambda x, y, p: (x + y) % p,
    "x_minus_y": lambda x, y, p: (x - y) % p,
    "x_mul_y": lambda x, y, p: (x * y) % p,
    "x_div_y": quotient,
    "x_div_y_if_y_odd_else_x_minus_y": lambda x, y, p: quotient(x, y, p) if y % 2 else (x - y) % p,
    "x_pow_y": lambda x, y, p: math.prod([x] * y) % p,
    "x2_plus_y2": lambda x, y, p: (x * x + y * y) % p,
    "x2_plus_xy_plus_y2": lambda x, y, p: (x * x + x * y + y * y) % p,
    "x2_plus_xy_plus_y2_plus_x": lambda x, y, p: (x * x + x * y + y * y + x) % p,
    "x3_plus_xy": lambda x, y, p: (x * x * x + x * y) % p,
    "x3_plus_xy2_plus_y": lambda x, y, p: (x * x * x + x * y * y + y) % p,
}
PERMUTATIONS = list(itertools.permutations(range(5)))


def after(x, y):
    """The permutation that does x first, then y."""
    return tuple(y[i] for i in x)


def inverse(x):
    return tuple(x.index(i) for i in range(5))


PLAIN_S5 = {
    "s5_xy": after,
    "s5_xyxinv": lambda x, y: after(after(x, y), inverse(x)),
    "s5_xyx": lambda x, y: after(after(x, y), x),
}


def table_of(op, p=97):
    """The equations (x, y, z) of an operation, in order."""
    return sorted(zip(*(a.tolist() for a in grok.equations(op, p)), strict=True))


def test_the_paper_s_tables_have_their_sizes():
    sizes = {op: len(grok.equations(op)[2]) for op in grok.OPS}
    division, s5 = {"x_div_y": 97 * 96}, dict.fromkeys(PLAIN_S5, 120 * 120)
    assert sizes == dict.fromkeys(PLAIN, 97 * 97) | division | s5


@pytest.mark.parametrize("op", PLAIN)
@pytest.mark.parametrize("p", [2, 3, 5, 13, 97])
def test_a_modular_table_equals_plain_python(op, p):
    ys = range(1, p) if op == "x_div_y" else range(p)
    assert table_of(op, p) == [(x, y, PLAIN[op](x, y, p)) for x in range(p) for y in ys]


@pytest.mark.parametrize("op", [op for op in PLAIN if "div" not in op])
@pytest.mark.parametrize("p", [4, 12])
def test_a_modulus_need_not_be_prime_where_nothing_is_divided(op, p):
    assert table_of(op, p) == [(x, y, PLAIN[op](x, y, p)) for x in range(p) for y in range(p)]


@pytest.mark.parametrize("op", PLAIN_S5)
def test_an_s5_table_composes_tuples(op):
    number = {perm: i for i, perm in enumerate(PERMUTATIONS)}
    plain = [(x, y, PLAIN_S5[op](x, y)) for x in PERMUTATIONS for y in PERMUTATIONS]
    assert table_of(op) == [tuple(number[perm] for perm in row) for row in plain]


def test_permutations_count_in_lexicographic_order():
    assert list(grok.PERMUTATIONS) == sorted(PERMUTATIONS)
    assert list(grok.PERMUTATIONS.values()) == list(range(120))


@pytest.mark.parametrize(
    "op, row",
    [
        ("x_plus_y", (90, 10, 3)),
        ("x_minus_y", (3, 10, 90)),
        ("x_mul_y", (50, 2, 3)),
        ("x_div_y", (1, 2, 49)),
        ("x_div_y", (5, 3, 34)),
        ("x_div_y_if_y_odd_else_x_minus_y", (5, 4, 1)),
        ("x_div_y_if_y_odd_else_x_minus_y", (5, 3, 34)),
        ("x_pow_y", (2, 10, 54)),
        ("x_pow_y", (0, 0, 1)),
        ("x2_plus_xy_plus_y2_plus_x", (9, 10, 86)),
        ("x3_plus_xy2_plus_y", (2, 3, 29)),
        ("s5_xy", (24, 6, 48)),  # (1 0 2 3 4), then (0 2 1 3 4): 0, 1, 2 go to 2, 0, 1
    ],
)
def test_a_row_worked_by_hand_is_in_the_table(op, row):
    assert row in table_of(op)


@pytest.mark.parametrize("op", grok.OPS)
def test_a_table_is_three_arrays_of_int64(op):
    arrays = grok.equations(op, 13)
    assert {a.dtype for a in arrays} == {np.dtype(np.int64)}
    assert len({a.shape for a in arrays}) == 1


@pytest.fixture
def mine(monkeypatch):
    """Adds an operation of the user's own."""

    def add(function, **options):
        monkeypatch.setitem(grok.OPS, "mine", grok.Op("mine", function, **options))

    return add


def test_a_user_s_operation_has_a_table(mine):
    mine(lambda x, y, p: (x + 2 * y) % p)
    assert table_of("mine", 5) == [(x, y, (x + 2 * y) % 5) for x in range(5) for y in range(5)]


def test_a_user_s_operation_may_have_a_domain_of_its_own(mine):
    mine(lambda x, y, p: np.maximum(x, y), n=7, y_from=3)
    assert table_of("mine") == [(x, y, max(x, y)) for x in range(7) for y in range(3, 7)]


def test_a_user_s_operation_is_trained_on(mine, plain):
    mine(lambda x, y, p: (x + 2 * y) % p)
    assert rows(train_one(op="mine")) != plain


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, p: x + y,
        lambda x, y, p: x - y,
        lambda x, y, p: (x + y) % p / 2,
        lambda x, y, p: (x + y) % p * 1.0,
        lambda x, y, p: x == y,
        lambda x, y, p: (x + y)[1:] % p,
        lambda x, y, p: 3,
        lambda x, y, p: None,
    ],
)
def test_an_operation_that_gives_no_elements_is_refused(mine, function):
    mine(function)
    with pytest.raises(UsageError, match=r"^--op mine: .*\[0, 10\]$"):
        train_one(op="mine")


@pytest.mark.parametrize(
    "op, p",
    [
        ("x_times_y", 97),
        ("", 97),
        (None, 97),
        (["x_plus_y"], 97),
        ("x_div_y", 96),
        ("x_div_y_if_y_odd_else_x_minus_y", 96),
        ("x_plus_y", 0),
        ("x_plus_y", 1),
        ("x_plus_y", -5),
        ("x_plus_y", 4097),
        ("x_plus_y", 10**30),
        ("x_plus_y", "seven"),
        ("x_plus_y", None),
        ("x_plus_y", [97]),
    ],
)
def test_a_table_that_does_not_exist_is_refused(op, p):
    with pytest.raises(UsageError, match="^--(op|p) "):
        grok.equations(op, p)


# --- settings -------------------------------------------------------------------------------------


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lr = 1.0


@pytest.mark.parametrize(
    "name, given, made",
    [
        ("p", "13", 13),
        ("p", np.int64(13), 13),
        ("p", 13.0, 13),
        ("steps", 1e6, 1_000_000),
        ("steps", "1e6", 1_000_000),
        ("lr", "1e-2", 0.01),
        ("lr", 1, 1.0),
        ("frac", np.float32(0.5), 0.5),
        ("frac", np.float64(0.1), 0.1),
        ("seed", "0", 0),
        ("op", np.str_("x_mul_y"), "x_mul_y"),
    ],
)
def test_a_value_is_in_its_type_however_it_is_given(name, given, made):
    value = getattr(Config(**{name: given}), name)
    assert value == made
    assert type(value) is type(made)


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 1, 2**64 + 1, 10**400])
def test_any_whole_number_is_a_seed(seed):
    assert Config(seed=seed).seed == seed
    assert Config(seed=str(seed)).seed == seed


LIMITS = dict(  # setting: values at the ends of what it may be, and just beyond
    p=([2, 4093], [1, 4097, 9.5, "seven", None, True, [97, 3]]),
    frac=([1e-3, 0.999], [0, 1, -0.1, math.nan, "half", [0.5, 0.6]]),
    seed=([0, 10**6], [-1, 0.5, math.inf, "0,1", ""]),
    outliers=([0, 4656], [-1, 4657]),
    layers=([1, 1024], [0, 1025, 1.5]),
    width=([4, 65536], [0, 65540, 130]),
    heads=([1, 128], [0, 5, 256]),
    dropout=([0, 0.99], [1, -0.1]),
    init_scale=([1e-9, 1e9], [0, math.inf]),
    embed_init_scale=([1e-9, 1e9], [0, math.inf]),
    position_scale=([0, 1e9], [-1, math.inf]),
    batch_size=([0, 10**9], [-1, math.inf]),
    batch_frac=([1e-9, 1], [0, 1.1]),
    lr=([1e-30, 1e30], [0, -1e-3, math.inf, math.nan, "", None, True, np.ones(3)]),
    warmup=([0, 10**9], [-1, 0.5]),
    beta1=([0, 0.999], [1, -0.1]),
    beta2=([0, 0.999], [1, -0.1]),
    eps=([0, 1e9], [-1e-9, math.inf]),
    weight_decay=([0, 1e9], [-1, math.inf]),
    weight_noise=([0, 1e9], [-1, math.inf]),
    update_noise=([0, 1e9], [-1, math.inf]),
    grad_clip=([0, 1e9], [-1, math.inf]),
    eval_every=([1, 10**9], [0, math.inf]),
    steps=([1, 10**9], [0, math.inf]),
    until=([0, 1], [-0.1, 1.1]),
    expect=([0, 1], [-0.1, 1.1]),
    threads=([0, 1024], [-1, 1025]),
    op=(["x_plus_y", "s5_xyx"], ["x_times_y", "", 3, None, ["x_plus_y"]]),
    decay_to=(["origin", "init", "identity"], ["zero", "", None, "Origin"]),
    device=(["auto", "cpu", "cuda", "mps"], ["tpu", "", "cuda:0"]),
)
RIGHT = [(name, value) for name, (right, _) in LIMITS.items() for value in right]
WRONG = [(name, value) for name, (_, wrong) in LIMITS.items() for value in wrong]


def test_every_setting_has_its_limits_tested():
    assert LIMITS.keys() == asdict(Config()).keys()


@pytest.mark.parametrize("name, value", RIGHT)
def test_a_value_within_the_limits_is_taken(name, value):
    assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize("name, value", WRONG)
def test_a_value_beyond_the_limits_is_refused_by_its_flag(name, value):
    flag = name.replace("_", "-")
    with pytest.raises(UsageError, match=f"^--({flag}|heads) [^\n]*$"):
        Config(**{name: value})


@pytest.mark.parametrize("given", ["x_plus_y\n", "a\nb", "\n" * 99, np.ones((2, 2))])
def test_a_refusal_takes_one_line_whatever_was_given(given):
    with pytest.raises(UsageError) as refusal:
        Config(op=given)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_number_that_python_does_not_write_out_is_refused():
    with pytest.raises(ValueError, match="Exceeds the limit"):
        Config(p=10**5000)


@pytest.mark.parametrize("frac", [1e-9, 0.99999])
def test_a_fraction_that_leaves_a_set_empty_is_refused(frac):
    with pytest.raises(UsageError, match="^--frac .* 9312 equations"):
        Config(frac=frac)


@pytest.mark.parametrize("p", [4, 91, 96, 1001, 4096])
def test_a_modulus_that_is_not_prime_meets_its_nearest_prime(p):
    with pytest.raises(UsageError, match=f"^--p {p}: x_div_y needs a prime") as refusal:
        Config(p=p)
    named = [int(n) for n in re.findall(r"\d+", str(refusal.value).partition("nearest")[2])]
    distance = min(d for d in range(p) if is_prime(p - d) or is_prime(p + d))
    assert all(map(is_prime, named))
    assert min(abs(n - p) for n in named) == distance


@dataclass(frozen=True)
class Mixed(Config):
    """A study's settings, one of each type."""

    rate: float = grok.setting(1, "", "[0, inf)")
    depth: int = grok.setting(2, "", "[0, 9]")
    nested: bool = grok.setting(False, "")
    kind: str = grok.setting("a", "", ("a", "b"))
    name: str = grok.setting("any", "")
    sizes: tuple[int, ...] = grok.setting((64, 64), "", "[1, inf)")


NAMES = [f.name for f in dataclasses.fields(Mixed)]
FLAGS = "|".join(name.replace("_", "-") for name in NAMES)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10**30),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=3),
    st.lists(st.lists(st.integers(), max_size=2), max_size=2),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=1), st.none()),
    st.sampled_from(["0.5", "1e3", "nan", "cpu", "x_mul_y", "init", "true", "64,64", "a\nb"]),
    st.sampled_from([1e308, 5e-324, 10**400, np.float32(0.5), np.int64(3)]),
    st.sampled_from([np.ones(2), np.ones((2, 2)), torch.ones(2), torch.tensor(0.5), print]),
)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(st.dictionaries(st.sampled_from(NAMES), ODD, max_size=4))
def test_any_values_make_a_config_that_json_can_hold_or_are_refused_in_one_line(changes):
    try:
        config = Mixed(**changes)
    except UsageError as refusal:
        assert re.match(f"--({FLAGS}) ", str(refusal))
        assert len(str(refusal).splitlines()) == 1
    else:
        assert Mixed(**json.loads(json.dumps(asdict(config)))) == config


def test_a_grid_is_the_product_of_its_settings():
    grid = Config.grid(op=["x_plus_y", "s5_xy"], seed=range(2), frac=np.array([0.2, 0.5]), lr=0.01)
    product = itertools.product(["x_plus_y", "s5_xy"], [0, 1], [0.2, 0.5], [0.01])
    assert [(c.op, c.seed, c.frac, c.lr) for c in grid] == list(product)


def test_a_grid_of_nothing_is_the_paper_s_run():
    assert Config.grid() == [Config()]


def test_a_text_and_a_tuple_are_one_value_of_a_grid():
    (config,) = Mixed.grid(op="x_mul_y", name="word", sizes=(8, 16))
    assert (config.op, config.name, config.sizes) == ("x_mul_y", "word", (8, 16))


def test_several_tuples_are_several_values_of_a_grid():
    assert [c.sizes for c in Mixed.grid(sizes=[(8,), (8, 16)])] == [(8,), (8, 16)]


STUDY = """
from dataclasses import dataclass
import grok

@dataclass(frozen=True)
class Study(grok.Config):
    rate: float = grok.setting(1, "", "[0, inf)")
    depth: int = grok.setting(2, "", "[0, 9]")
    nested: bool = grok.setting(False, "")
    kind: str = grok.setting("a", "", ("a", "b"))
    name: str = grok.setting("any", "")
    sizes: tuple[int, ...] = grok.setting((64, 64), "", "[1, inf)")
"""


@pytest.fixture(params=["", "from __future__ import annotations"], ids=["types", "texts"])
def study(request, monkeypatch):
    """A study's Config whose annotations are types, or texts."""
    module = types.ModuleType("study")
    monkeypatch.setitem(sys.modules, "study", module)
    exec(request.param + STUDY, vars(module))
    return module.Study


@pytest.mark.parametrize(
    "name, given, made",
    [
        ("rate", "0.5", 0.5),
        ("rate", 2, 2.0),
        ("depth", "3", 3),
        ("depth", 3.0, 3),
        ("nested", True, True),
        ("nested", "true", True),
        ("nested", "False", False),
        ("kind", "b", "b"),
        ("name", "3", "3"),
        ("sizes", "8,16", (8, 16)),
        ("sizes", [8, 16], (8, 16)),
        ("sizes", (8,), (8,)),
        ("sizes", "8", (8,)),
    ],
)
def test_a_study_s_value_is_in_its_type(study, name, given, made):
    value = getattr(study(**{name: given}), name)
    assert value == made
    assert type(value) is type(made)


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("rate", -1),
        ("rate", "fast"),
        ("depth", 10),
        ("depth", 1.5),
        ("nested", "yes"),
        ("nested", 2),
        ("kind", "c"),
        ("sizes", (8, 0)),
        ("sizes", "8,big"),
        ("sizes", (8, 1.5)),
        ("sizes", None),
    ],
)
def test_a_study_s_wrong_value_is_refused(study, name, wrong):
    with pytest.raises(UsageError, match=f"^--{name} "):
        study(**{name: wrong})


def test_a_float_has_its_type_though_its_default_is_a_whole_number(study):
    assert type(study().rate) is float


def test_a_study_s_settings_are_part_of_what_a_run_is(study):
    own = {name: getattr(study(), name) for name in NAMES if not hasattr(Config, name)}
    assert len(own) == 6
    assert study().fixed() == Config().fixed() | own


def test_the_defaults_are_the_paper_s():
    paper = dict(op="x_div_y", p=97, frac=0.5, layers=2, width=128, heads=4, lr=1e-3, warmup=10)
    paper |= dict(beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=1.0, decay_to="origin")
    paper |= dict(batch_size=512, batch_frac=0.5, steps=100_000, dropout=0.0, outliers=0)
    paper |= dict(weight_noise=0.0, update_noise=0.0, grad_clip=0.0)
    paper |= dict(init_scale=1.0, embed_init_scale=1.0, position_scale=1.0)
    assert {name: asdict(Config())[name] for name in paper} == paper


def test_the_fast_recipe_differs_from_the_paper_s_in_all_it_names():
    fast, paper = asdict(Config(**grok.FAST)), asdict(Config())
    assert {name for name in paper if fast[name] != paper[name]} == set(grok.FAST)


def test_what_is_not_fixed_is_how_far_and_where_a_run_goes():
    free = asdict(Config()).keys() - Config().fixed().keys()
    assert free == {"steps", "until", "expect", "device", "threads"}


def test_s5_has_120_elements_whatever_the_modulus():
    assert Config(op="s5_xy", p=31).fixed() == Config(op="s5_xy").fixed()
    assert Config(op="s5_xy").fixed()["p"] == 120


@pytest.mark.parametrize(
    "op, p, frac, sizes",
    [
        ("x_plus_y", 97, 0.5, (97, 9409, 4704)),
        ("x_div_y", 97, 0.3, (97, 9312, 2794)),
        ("x_div_y", 5, 0.5, (5, 20, 10)),
        ("s5_xy", 97, 0.01, (120, 14400, 144)),
    ],
)
def test_a_config_knows_the_sizes_of_its_data(op, p, frac, sizes):
    c = Config(op=op, p=p, frac=frac)
    assert (c.elements, c.table_size, c.train_size) == sizes


# --- data -----------------------------------------------------------------------------------------


def seeds_of(seeds, purposes, numbers):
    return [grok.seed_of(*key) for key in itertools.product(seeds, purposes, numbers)]


PURPOSES = ["split", "outliers", "weights", "batches", "noise", "a", "b", "ab", "ba"]


def test_no_two_seeds_purposes_or_numbers_share_a_stream():
    streams = seeds_of(range(10), PURPOSES, range(50))
    assert len(set(streams)) == 10 * len(PURPOSES) * 50


def test_no_two_huge_seeds_share_a_stream():
    seeds = [low + high * 2**32 for low in (0, 1, 97) for high in (0, 1, 5, 97, 2**32)]
    streams = seeds_of(seeds, PURPOSES, [0, 1, 5, *b"abnsw"])
    assert len(set(streams)) == len(seeds) * len(PURPOSES) * 8


def test_a_stream_s_seed_fits_every_generator():
    assert all(0 <= seed < 2**64 for seed in seeds_of([0, 2**100], PURPOSES, range(10)))


def test_a_run_with_a_huge_seed_trains(plain):
    assert rows(train_one(seed=2**100)) != plain


def test_a_permutation_has_each_number_once():
    assert grok.permutation(50, 0, "split").sort().values.tolist() == list(range(50))


@pytest.mark.parametrize("key", [(1, "split", 0), (0, "batches", 0), (0, "split", 1)])
def test_a_permutation_is_another_for_each_seed_purpose_and_number(key):
    assert grok.permutation(50, *key).tolist() != grok.permutation(50, 0, "split", 0).tolist()


SPLITS = [dict(frac=0.3), dict(op="x_div_y"), dict(op="s5_xy", frac=0.01), dict(outliers=9)]


@pytest.mark.parametrize("changes", SPLITS)
def test_a_split_has_its_size(changes):
    c = short(**changes)
    *_, chosen, held = grok.split(c)
    assert len(chosen) == round(c.frac * c.table_size)
    assert len(held) == c.table_size - len(chosen)


@pytest.mark.parametrize("changes", SPLITS)
def test_each_equation_is_for_training_or_for_validation(changes):
    c = short(**changes)
    *_, chosen, held = grok.split(c)
    assert sorted([*chosen.tolist(), *held.tolist()]) == list(range(c.table_size))


def test_a_split_follows_the_seed_alone():
    chosen, same, other = (
        grok.split(short(**changes))[3].tolist()
        for changes in (
            dict(seed=3),
            dict(seed=3, outliers=5, width=32, op="x_mul_y"),
            dict(seed=4),
        )
    )
    assert chosen == same
    assert chosen != other


@pytest.mark.parametrize("changes", SPLITS[:3])
def test_a_run_learns_the_answers_of_its_table(changes):
    c = short(**changes)
    for one, other in zip(grok.split(c), grok.equations(c.op, c.p), strict=False):
        assert one.tolist() == other.tolist()


def test_outliers_are_training_answers_alone():
    *_, labels, chosen, _ = grok.split(short(p=97, outliers=1000))
    changed = np.flatnonzero(labels.numpy() != grok.equations("x_plus_y")[2])
    assert set(changed) <= set(chosen.tolist())
    assert 960 <= len(changed) <= 1000  # a random answer is right in one case of 97


def test_a_run_has_the_data_of_its_split():
    run = grok.Run(short(outliers=5))
    data = [*run.inputs, run.labels, run.train_rows, run.val_rows]
    assert [t.tolist() for t in data] == [t.tolist() for t in grok.split(run.config)]


def stream(updates, **changes):
    """The batches of some updates, as a run reads them."""
    run, batches = grok.Run(short(**changes)), []
    for run.step in updates:
        batches.append(run.batch().tolist())
    return batches


def test_batches_are_cut_from_shuffled_epochs():
    chosen = grok.split(short())[3]
    batches = stream(range(1, 46))  # 45 batches of 16 are 12 epochs of 60
    assert {len(batch) for batch in batches} == {16}
    epochs = np.reshape(batches, (12, 60))
    assert (np.sort(epochs) == np.sort(chosen)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 12


def test_a_full_batch_is_the_training_set():
    chosen = grok.split(short())[3].tolist()
    assert [sorted(batch) for batch in stream([1, 2, 3], batch_size=0)] == 3 * [sorted(chosen)]


def test_any_part_of_the_stream_follows_from_the_seed():
    backwards = [stream([step])[0] for step in range(20, 0, -1)]
    assert backwards[::-1] == stream(range(1, 21))


def test_a_run_reads_any_batch_in_any_order():
    assert stream(range(20, 0, -1))[::-1] == stream(range(1, 21))


def test_batches_do_not_depend_on_what_was_drawn_before():
    torch.manual_seed(1)
    first = stream(range(1, 5))
    torch.manual_seed(2)
    assert stream(range(1, 5)) == first


@pytest.mark.parametrize(
    "batch_size, batch_frac, frac, size",
    [(512, 0.5, 0.5, 30), (16, 0.5, 0.5, 16), (0, 0.5, 0.5, 60), (512, 0.5, 0.11, 7)]
    + [(512, 0.2, 0.5, 12), (512, 1, 0.5, 60), (1, 0.5, 0.5, 1)],
)
def test_a_batch_is_at_most_a_share_of_the_training_set_rounded_up(
    batch_size, batch_frac, frac, size
):
    (batch,) = stream([1], batch_size=batch_size, batch_frac=batch_frac, frac=frac)
    assert len(batch) == size


# --- model ----------------------------------------------------------------------------------------


class Reference(nn.Module):
    """The model once more, of torch.nn's own layers."""

    def __init__(self, n, layers, width, heads):
        super().__init__()
        self.n, self.width = n, width
        self.embed = nn.Embedding(n + 2, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, n + 2, bias=False)

    def forward(self, x, y):
        tokens = [x, torch.full_like(x, self.n), y, torch.full_like(x, self.n + 1)]
        h = self.embed(torch.stack(tokens, 1)) + torch.tensor(waves(self.width))
        for block in self.blocks:
            h = block(h, nn.Transformer.generate_square_subsequent_mask(4))
        return self.head(h)[:, -1]

    def take(self, model):
        """Takes over the weights of a grok.Transformer; biases, which that lacks, become 0."""
        zeros = {name: torch.zeros_like(w) for name, w in self.state_dict().items()}
        self.load_state_dict(zeros | translated(dict(model.named_parameters())))


def waves(width):
    """The fixed positions, number by number."""
    return [
        [(math.cos if i % 2 else math.sin)(t / 10000 ** (i // 2 * 2 / width)) for i in range(width)]
        for t in range(4)
    ]


def translated(tensors):
    """Tensors by the names of a grok.Transformer's parameters, by those of the reference."""
    by_name = dict(tensors)
    for name in tensors:
        if name.endswith("query.weight"):
            qkv = [by_name.pop(name), by_name.pop(name.replace("query", "key_value"))]
            by_name[name.replace("query.weight", "self_attn.in_proj_weight")] = torch.cat(qkv)
    names = {".out.": ".self_attn.out_proj.", ".up.": ".linear1.", ".down.": ".linear2."}
    for old, new in names.items():
        by_name = {name.replace(old, new): t for name, t in by_name.items()}
    return by_name


def made(kind, n=11, layers=2, dropout=0.0):
    """A model whose weights all differ, LayerNorm's too: the same for every kind."""
    torch.manual_seed(0)
    model = kind(n, layers, 32, 4, dropout)
    with torch.no_grad():
        for w in model.parameters():
            w += 0.05 * torch.randn_like(w)
    return model


def drawn(n, size):
    """x, y and z of some equations."""
    return torch.randint(n, (3, size), generator=torch.Generator().manual_seed(7))


def outcome(model, n, size):
    """The logits of some equations and the gradients of their loss."""
    x, y, z = drawn(n, size)
    model.zero_grad()
    logits = model(x, y)
    F.cross_entropy(logits, z).backward()
    return logits, {name: w.grad for name, w in model.named_parameters()}


SHAPES = [(97, 2, 512), (120, 2, 512), (97, 1, 512), (23, 3, 100), (97, 2, 40)]
SHAPES += [(11, 1, 11), (11, 2, 10), (5, 4, 1)]


@pytest.mark.parametrize("n, layers, size", SHAPES)
def test_logits_equal_those_of_torch_s_own_layers(n, layers, size):
    model, reference = made(grok.Transformer, n, layers), Reference(n, layers, 32, 4)
    reference.take(model)
    close(outcome(model, n, size)[0], outcome(reference, n, size)[0])


@pytest.mark.parametrize("n, layers, size", SHAPES)
def test_gradients_equal_those_of_torch_s_own_layers(n, layers, size):
    model, reference = made(grok.Transformer, n, layers), Reference(n, layers, 32, 4)
    reference.take(model)
    gradients = translated(outcome(model, n, size)[1])
    expected = outcome(reference, n, size)[1]
    close(gradients, {name: expected[name] for name in gradients})


@pytest.mark.parametrize("n, layers, size", SHAPES)
def test_cached_it_is_the_same_function(n, layers, size):
    cached, plain = made(grok.CachedTransformer, n, layers), made(grok.Transformer, n, layers)
    close(outcome(cached, n, size), outcome(plain, n, size))


@pytest.mark.parametrize(
    "one, other",
    [(grok.Transformer, grok.CachedTransformer), (grok.CachedTransformer, grok.Transformer)],
)
def test_weights_go_from_one_model_to_the_other(one, other):
    source, target = made(one), other(11, 2, 32, 4)
    target.load_state_dict(source.state_dict())
    close(outcome(target, 11, 50), outcome(source, 11, 50))


def test_with_dropout_each_equation_has_a_mask_of_its_own():
    logits = []
    for kind in grok.CachedTransformer, grok.Transformer:
        model = made(kind, dropout=0.5)
        torch.manual_seed(1)
        logits.append(model(*drawn(11, 50)[:2]))
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", [grok.Transformer, grok.CachedTransformer])
def test_in_evaluation_dropout_is_off(kind):
    dropping = made(kind, dropout=0.5).eval()
    close(outcome(dropping, 11, 50), outcome(made(grok.Transformer), 11, 50))


def operations(model, n=11, size=50):
    """How many floating-point operations the matrix products of a forward pass take."""
    with FlopCounterMode(display=False) as counter:
        model(*drawn(n, size)[:2])
    return counter.get_total_flops()


def test_cached_it_takes_less_than_half_of_the_operations():
    cached, plain = grok.CachedTransformer(97), grok.Transformer(97)
    assert operations(cached, 97, 512) < operations(plain, 97, 512) / 2


def test_in_evaluation_it_is_cached_whatever_the_dropout():
    dropping = made(grok.CachedTransformer, dropout=0.5).eval()
    assert operations(dropping) == operations(made(grok.CachedTransformer))


def test_a_small_batch_takes_no_more_operations_than_it_has_equations():
    cached, plain = made(grok.CachedTransformer), made(grok.Transformer)
    assert operations(cached, size=3) == operations(plain, size=3)


MODULES = [
    name
    for name, module in grok.CachedTransformer(5).named_modules()
    if not isinstance(module, nn.ModuleList)  # that is never called
]
HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


def watch(module, register):
    """Hooks a module. Returns the list of sizes that the hook sees, and the hook's handle."""
    sizes = []

    def hook(module, *seen):
        tensor = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
        sizes.append(len(tensor))

    return sizes, getattr(module, register)(hook)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("name", MODULES)
def test_a_hook_sees_a_row_for_each_equation(name, register):
    model = made(grok.CachedTransformer)
    sizes, _ = watch(model.get_submodule(name), register)
    outcome(model, 11, 50)
    assert set(sizes) == {50}


@pytest.mark.parametrize("register", HOOKS)
def test_a_hook_meets_the_plain_model(register):
    model = made(grok.CachedTransformer)
    watch(model.blocks[0].pattern, register)
    assert torch.equal(outcome(model, 11, 50)[0], outcome(made(grok.Transformer), 11, 50)[0])


@pytest.mark.parametrize("register", HOOKS)
def test_without_its_hook_a_model_is_as_fast_as_before(register):
    model = made(grok.CachedTransformer)
    before = operations(model)
    _, handle = watch(model.blocks[1].up, register)
    assert operations(model) > before
    handle.remove()
    assert operations(model) == before


def patterns(model):
    """The attention patterns (B, T, T, H) of each block for some equations."""
    seen = []
    for block in model.blocks:
        block.pattern.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(*drawn(11, 50)[:2])
    return seen


def test_a_pattern_has_a_query_a_key_and_a_head_for_each_equation():
    assert [pattern.shape for pattern in patterns(made(grok.CachedTransformer))] == 2 * [
        (50, 4, 4, 4)
    ]


def test_a_pattern_sums_to_one_over_the_keys():
    for pattern in patterns(made(grok.CachedTransformer)):
        close(pattern.sum(2), torch.ones(50, 4, 4))


def test_a_pattern_gives_later_keys_nothing_and_others_something():
    causal = torch.ones(4, 4).tril().bool()
    for pattern in patterns(made(grok.CachedTransformer)):
        assert torch.equal(pattern > 0, causal[:, :, None].expand(50, 4, 4, 4))


@pytest.mark.parametrize("position", range(4))
def test_a_position_changes_itself_and_what_comes_after(position):
    block, h = grok.Block(16, 2), torch.randn(5, 4, 16)
    changed = h.clone()
    changed[:, position] += torch.randn(16)
    moved = (block(changed) - block(h)).abs().amax((0, 2)) > 1e-4
    assert moved.tolist() == [later >= position for later in range(4)]


@pytest.mark.parametrize("head", range(4))
def test_a_head_taken_out_of_the_pattern_is_out_of_the_sum(head):
    hooked, without = made(grok.CachedTransformer), made(grok.CachedTransformer)
    kept = torch.arange(4) != head
    hooked.blocks[0].pattern.register_forward_hook(lambda module, inputs, output: output * kept)
    with torch.no_grad():
        without.blocks[0].out.weight[:, 8 * head : 8 * head + 8] = 0
    logits, whole = outcome(hooked, 11, 50)[0], outcome(made(grok.CachedTransformer), 11, 50)[0]
    close(logits, outcome(without, 11, 50)[0])
    assert (logits - whole).abs().max() > 1e-3


def initial(**changes):
    """The model of the paper's shape, before training."""
    shape = dict(p=97, layers=2, width=128, heads=4)
    return grok.Run(short(**shape | changes)).model


def test_two_blocks_of_width_128_have_the_paper_s_number_of_parameters():
    assert sum(w.numel() for w in initial().blocks.parameters()) == 394_240


def test_the_embedding_starts_standard_normal():
    embed = initial().embed.weight
    assert embed.shape == (99, 128)
    assert abs(embed.mean()) < 0.03
    assert abs(embed.std() - 1) < 0.02
    assert 3 < embed.abs().max() < 6


def test_linear_maps_start_uniform_within_one_over_the_root_of_their_inputs():
    linear = [m for m in initial().modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 2 * 5 + 1
    for module in linear:
        share = module.weight * math.sqrt(module.in_features)
        assert 0.98 < share.abs().max() <= 1
        assert abs(share.mean()) < 0.03
        assert abs(share.std() * math.sqrt(3) - 1) < 0.03


def test_layernorm_starts_as_the_identity():
    norms = [m for m in initial().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 4
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones(128))
        assert torch.equal(norm.bias, torch.zeros(128))


@pytest.mark.parametrize(
    "changes, embed, linear, positions",
    [
        (dict(init_scale=2.0), 2, 2, 1),
        (dict(embed_init_scale=0.25), 0.25, 1, 1),
        (dict(position_scale=3.0), 1, 1, 3),
        (dict(init_scale=2.0, embed_init_scale=0.25, position_scale=0), 0.5, 2, 0),
    ],
)
def test_a_scale_multiplies_what_it_names(changes, embed, linear, positions):
    scaled = initial(**changes).state_dict()
    for name, w in initial().state_dict().items():
        factor = dict(embed=embed, positions=positions).get(name.split(".")[0], linear)
        close(scaled[name], w * (1 if "norm" in name else factor))


def test_initial_weights_follow_the_seed_alone():
    one, same, other = (
        initial(seed=seed, lr=lr).state_dict() for seed, lr in ((3, 0.1), (3, 0.2), (4, 0.1))
    )
    close(one, same, atol=0)
    assert not torch.equal(one["embed.weight"], other["embed.weight"])
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("width", [1, 7, 16, 128])
def test_positions_are_sines_and_cosines(width):
    close(grok.Transformer(5, 1, width, 1).state_dict()["positions"], torch.tensor(waves(width)))


# --- optimiser ------------------------------------------------------------------------------------


def gradients(run):
    return nn.utils.parameters_to_vector([w.grad for w in run.model.parameters()]).clone()


def given(gradient):
    """A Run whose gradients are `gradient` of each weight."""

    class Given(grok.Run):
        def on_after_backward(self):
            for w in self.model.parameters():
                w.grad = gradient(w)

    return Given


def moves(run):
    """How an update moves the weights."""
    before = vector(run)
    return vector(advanced(run)) - before


def test_decay_to_the_origin_is_torch_s_adamw():
    run = grok.Run(short(warmup=0, lr=0.02, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.3))
    (group,) = run.optimizer.param_groups
    assert type(run.optimizer) is torch.optim.AdamW
    assert (group["lr"], group["betas"], group["eps"]) == (0.02, (0.8, 0.95), 1e-6)
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == len(list(run.model.parameters()))


def plain_loop(config, updates):
    """The weights after a loop as any PyTorch user would write it."""
    run = grok.Run(config)  # for its data, its batches and its initial weights
    model, (x, y), z = copy.deepcopy(run.model), run.inputs, run.labels
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1, (done + 1) / config.warmup)
    )
    for run.step in range(1, updates + 1):
        batch = run.batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch], y[batch]), z[batch]).backward()
        if config.grad_clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
    return nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(warmup=3, grad_clip=0.05),
        dict(lr=0.01, weight_decay=0.2, beta1=0.5, beta2=0.9, eps=1e-4),
        dict(layers=2, batch_size=0, outliers=9, seed=3),
    ],
)
def test_ten_updates_equal_a_plain_loop(changes):
    config = short(**changes)
    close(vector(advanced(grok.Run(config), 10)), plain_loop(config, 10).detach(), atol=1e-6)


def anchored():
    """An AnchoredAdamW of two groups, with the weights 2, 3, 3 and a frozen 7, anchored at 1, -1,
    nothing and 5, after an update at gradients whose first step has length lr."""
    first, second, free, frozen = (nn.Parameter(torch.tensor(w)) for w in (2.0, 3.0, 3.0, 7.0))
    frozen.requires_grad_(False)
    anchors = {first: torch.tensor(1.0), second: torch.tensor(-1.0), frozen: torch.tensor(5.0)}
    groups = [
        dict(params=[first, frozen], lr=0.1, weight_decay=0.5),
        dict(params=[second, free], lr=0.2, weight_decay=0.1),
    ]
    optimizer = grok.AnchoredAdamW(groups, anchors)
    for w, gradient in (first, 0.5), (second, -0.3), (free, -0.3):
        w.grad = torch.tensor(gradient)
    optimizer.step()
    return [w.item() for w in (first, second, free, frozen)]


def test_anchored_decay_worked_by_hand():
    first = 2 * (1 - 0.1 * 0.5) - 0.1 + 0.1 * 0.5 * 1
    second = 3 * (1 - 0.2 * 0.1) + 0.2 - 0.2 * 0.1 * 1
    assert anchored()[:2] == pytest.approx([first, second], abs=1e-6)


def test_without_an_anchor_decay_pulls_to_the_origin():
    assert anchored()[2] == pytest.approx(3 * (1 - 0.2 * 0.1) + 0.2, abs=1e-6)


def test_a_frozen_weight_is_not_pulled():
    assert anchored()[3] == 7


def test_without_anchors_an_anchored_adamw_is_torch_s():
    ends = []
    for kind in (
        torch.optim.AdamW,
        lambda params, **options: grok.AnchoredAdamW(params, {}, **options),
    ):
        model = made(grok.Transformer)
        optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.5)
        for _ in range(3):
            outcome(model, 11, 50)
            optimizer.step()
        ends.append(model.state_dict())
    close(*ends, atol=0)


class Net(nn.Module):
    """A model with names that mislead, LayerNorm without weights, and BatchNorm's buffers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm = nn.Linear(16, 16)
        self.scale = nn.LayerNorm(16)
        self.bare = nn.LayerNorm(16, bias=False)
        self.batch = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 11)

    def forward(self, x, y):
        h = self.scale(self.norm(self.embed(x) + self.embed(y)))
        return self.head(self.batch(self.bare(h)).relu())


class NetRun(grok.Run):
    def build_model(self):
        return Net()


class Still(NetRun):
    """Its gradients are 0: decay alone moves its weights."""

    def on_after_backward(self):
        for w in self.model.parameters():
            w.grad = torch.zeros_like(w)


def pulled(decay_to, pull=0.2):
    """The state of a model before and after an update that decays its weights + 1 by a share."""
    run = Still(short(decay_to=decay_to, lr=pull / 2, weight_decay=2, warmup=0))
    start = {name: w.detach().clone() for name, w in run.model.named_parameters()}
    with torch.no_grad():
        for w in run.model.parameters():
            w += 1
    advanced(run)
    return start, dict(run.model.named_parameters())


def test_decay_pulls_to_the_origin():
    start, end = pulled("origin")
    for name, w in start.items():
        close(end[name], 0.8 * (w + 1))


def test_decay_pulls_to_the_initial_weights():
    start, end = pulled("init")
    for name, w in start.items():
        close(end[name], w + 0.8)


def test_decay_pulls_layernorm_s_scales_to_one_and_all_else_to_the_origin():
    start, end = pulled("identity")
    for name, w in start.items():
        goal = float(name in ("scale.weight", "bare.weight"))
        close(end[name], 0.8 * (w + 1) + 0.2 * goal)


def test_a_layernorm_without_scales_may_be_decayed_to_the_identity():
    class Bare(NetRun):
        def build_model(self):
            net = Net()
            net.bare = nn.LayerNorm(16, elementwise_affine=False)
            return net

    assert advanced(Bare(short(decay_to="identity"))).step == 1


UNIT = dict(lr=0.01, weight_decay=0, beta1=0, beta2=0, eps=0)  # AdamW moves each weight by lr


@pytest.mark.parametrize("warmup", [1, 4, 10])
def test_warm_up_is_linear_from_its_first_share_on(warmup):
    run = given(torch.ones_like)(short(**UNIT, warmup=warmup))
    lengths = [-moves(run).mean().item() for _ in range(12)]
    expected = [0.01 * min(1, t / warmup) for t in range(1, 13)]
    assert lengths == pytest.approx(expected, rel=1e-3)


def test_without_warm_up_the_first_update_has_the_whole_learning_rate():
    run = given(torch.ones_like)(short(**UNIT, warmup=0))
    assert -moves(run).mean().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("grad_clip, norm", [(0, 50), (0.5, 0.5), (3, 3), (49, 49), (51, 50)])
def test_gradients_are_clipped_to_the_norm_asked_for(grad_clip, norm):
    size = len(vector(grok.Run(short())))
    run = given(lambda w: torch.full_like(w, 50 / math.sqrt(size)))(short(grad_clip=grad_clip))
    assert gradients(advanced(run)).norm().item() == pytest.approx(norm, rel=1e-4)


class Watched(grok.Run):
    """Keeps its weights during the forward pass and after the backward one, and its gradients."""

    def loss(self, logits, labels):
        self.noisy = vector(self)
        return super().loss(logits, labels)

    def on_after_backward(self):
        self.clean, self.gradient = vector(self), gradients(self)


def watched(**changes):
    """A Watched run after an update, and its weights before that."""
    run = Watched(short(**changes))
    before = vector(run)
    return advanced(run), before


@pytest.mark.parametrize("sigma", [0.01, 0.2])
def test_weight_noise_has_the_standard_deviation_asked_for(sigma):
    run, before = watched(weight_noise=sigma)
    noise = run.noisy - before
    assert noise.std().item() == pytest.approx(sigma, rel=0.05)
    assert abs(noise.mean()) < 0.05 * sigma


def test_weight_noise_is_another_in_each_update_and_run():
    noises = []
    for seed in 0, 1:
        run, before = watched(weight_noise=0.1, seed=seed)
        first, before = run.noisy - before, vector(run)
        noises += [first, advanced(run).noisy - before]
    for one, other in itertools.combinations(noises, 2):
        assert (one - other).std().item() == pytest.approx(0.1 * math.sqrt(2), rel=0.05)


def test_weight_noise_leaves_the_weights_to_the_bit():
    run, before = watched(weight_noise=0.1)
    assert torch.equal(run.clean, before)


def test_the_gradient_is_taken_at_the_noisy_weights():
    run, before = watched(weight_noise=0.1)
    plain = grok.Run(run.config)
    plain.step = 1
    batch = plain.batch()
    for start in run.noisy, before:
        nn.utils.vector_to_parameters(start, plain.model.parameters())
        plain.model.zero_grad()
        logits = plain.model(*(t[batch] for t in plain.inputs))
        F.cross_entropy(logits, plain.labels[batch]).backward()
        agree = torch.allclose(run.gradient, gradients(plain), atol=1e-6)
        assert agree == (start is run.noisy)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_weight_noise_does_not_hold_back_buffers(sigma):
    batch = advanced(NetRun(short(weight_noise=sigma)), 3).model.batch
    assert batch.num_batches_tracked == 3
    assert batch.running_mean.abs().min() > 0


def test_update_noise_has_the_standard_deviation_asked_for():
    run = given(torch.zeros_like)(short(lr=0.01, weight_decay=0, warmup=2, update_noise=3))
    spreads = [moves(run).std().item() for _ in range(3)]
    assert spreads == pytest.approx([0.015, 0.03, 0.03], rel=0.05)


def test_update_noise_comes_on_top_of_the_update():
    moved, noise = (
        moves(given(gradient)(short(weight_decay=0, update_noise=1, warmup=0)))
        for gradient in (torch.ones_like, torch.zeros_like)
    )
    close(moved - noise, torch.full_like(noise, -1e-3), atol=1e-6)


class Frozen(grok.Run):
    def build_model(self):
        model = super().build_model()
        model.embed.requires_grad_(False)
        return model


@pytest.mark.parametrize("decay_to", ["origin", "init", "identity"])
def test_a_frozen_weight_is_left_alone(decay_to):
    run = Frozen(short(weight_noise=0.1, update_noise=1, grad_clip=1, decay_to=decay_to))
    before = run.model.embed.weight.clone()
    assert torch.equal(advanced(run, 3).model.embed.weight, before)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_drops_the_share_asked_for_of_the_feed_forward_branch(share):
    run, branches = grok.Run(short(dropout=share)), []
    run.model.blocks[0].dropout.register_forward_hook(
        lambda module, inputs, output: branches.append((*inputs, output))
    )
    run.update(run.train_rows)
    branch, dropped = branches[0]
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.03)
    close(dropped, torch.where(dropped == 0, 0, branch / (1 - share)))


SWITCHES = dict(
    op="x_mul_y",
    p=13,
    frac=0.6,
    seed=1,
    outliers=5,
    layers=2,
    width=32,
    heads=4,
    dropout=0.1,
    init_scale=2.0,
    embed_init_scale=2.0,
    position_scale=2.0,
    batch_size=8,
    batch_frac=0.1,
    lr=2e-3,
    warmup=0,
    beta1=0.8,
    beta2=0.9,
    eps=1e-3,
    weight_decay=0.5,
    decay_to="init",
    weight_noise=0.01,
    update_noise=1.0,
    grad_clip=0.01,
)


def test_every_fixed_setting_is_tried():
    assert {*SWITCHES, "eval_every"} == Config().fixed().keys()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_the_trajectory(name, plain):
    switched = train_one(**{name: SWITCHES[name]})
    assert switched.log[-1]["train_loss"] != plain[-1]["train_loss"]


def test_how_often_a_run_is_evaluated_does_not_change_its_weights():
    assert torch.equal(vector(train_one(eval_every=3)), vector(train_one(eval_every=1000)))


@pytest.mark.parametrize("free", [dict(until=0), dict(expect=0.5), dict(steps=40)])
def test_what_is_not_fixed_does_not_change_a_row(free, plain):
    assert rows(train_one(**free))[: len(plain)] == plain


def test_a_switch_is_off_by_default(plain):
    off = dict(dropout=0, weight_noise=0, update_noise=0, grad_clip=0, outliers=0)
    off |= dict(init_scale=1, embed_init_scale=1, position_scale=1, decay_to="origin")
    assert rows(train_one(**off)) == plain


def test_by_default_an_update_draws_no_random_number():
    run = grok.Run(short())
    run.step, before = 1, torch.get_rng_state()
    run.update(run.batch())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("noise", [dict(dropout=0.1), dict(weight_noise=0.1), dict(update_noise=1)])
def test_noise_follows_from_the_seed_and_the_update(noise):
    whole = advanced(grok.Run(short(**noise)), 10)
    first, second = (grok.Run(short(**noise)) for _ in range(2))
    second.load_state_dict(copy.deepcopy(advanced(first, 5).state_dict()))
    second.step = 5
    torch.manual_seed(123)  # whatever was drawn in between
    assert torch.equal(vector(advanced(second, 5)), vector(whole))


# --- evaluation -----------------------------------------------------------------------------------


def recomputed(run, numbers, size):
    """The mean loss and accuracy over some rows, so many at a time."""
    losses, hits = [], []
    for part in numbers.split(size):
        with torch.no_grad():
            logits = run.model(*(t[part] for t in run.inputs)).double()
        losses.append(-logits.log_softmax(1)[range(len(part)), run.labels[part]])
        hits.append(logits.argmax(1) == run.labels[part])
    return torch.cat(losses).mean().item(), torch.cat(hits).double().mean().item()


@pytest.mark.parametrize(
    "changes, size", [(dict(outliers=9, dropout=0.5), 1), (dict(op="x_div_y"), 1), (dict(p=47), 99)]
)
def test_an_evaluation_is_the_mean_over_each_set_one_by_one(changes, size):
    run = train_one(frac=0.3, **changes)
    for name, numbers in dict(train=run.train_rows, val=run.val_rows).items():
        loss, accuracy = recomputed(run, numbers, size)
        assert run.log[-1][f"{name}_loss"] == pytest.approx(loss, abs=1e-6)
        assert run.log[-1][f"{name}_acc"] == pytest.approx(accuracy, abs=1e-6)


def test_the_weight_norm_is_that_of_all_weights():
    run = train_one()
    assert run.log[-1]["weight_norm"] == pytest.approx(vector(run).norm().item(), rel=1e-5)


def test_a_row_has_the_columns_of_the_contract():
    columns = ["step", "train_loss", "train_acc", "val_loss", "val_acc", "weight_norm", "seconds"]
    assert [list(row) for row in train_one(steps=2).log] == 2 * [columns]


@pytest.mark.parametrize(
    "steps, eval_every, updates",
    [
        (137, 40, [1, 2, 5, 10, 20, 40, 50, 80, 100, 120, 137]),
        (20, 1000, [1, 2, 5, 10, 20]),
        (7, 3, [1, 2, 3, 5, 6, 7]),
        (1, 1, [1]),
    ],
)
def test_evaluations_are_at_the_updates_of_the_contract(steps, eval_every, updates):
    run = train_one(steps=steps, eval_every=eval_every, until=0)
    assert [row["step"] for row in run.log] == updates


class Rough(grok.Run):
    """Measures first, and then leaves the model, and torch's generator, as they should not be."""

    def measure(self, model):
        columns = super().measure(model)
        model.train()
        with torch.no_grad():
            for w in model.parameters():
                w.copy_(torch.randn_like(w))
        return columns


def test_an_evaluation_leaves_no_trace_in_what_follows(usual):
    assert rows(train_one(Rough, **NOISE)) == usual


def test_an_evaluation_leaves_the_weights_to_the_bit():
    run = advanced(Rough(short()), 3)
    before = vector(run)
    run.evaluate()
    assert torch.equal(vector(run), before)


def test_an_evaluation_leaves_each_module_in_its_mode():
    run = Rough(short(dropout=0.1))
    run.model.blocks[0].norm1.eval()
    modes = [module.training for module in run.model.modules()]
    run.evaluate()
    assert [module.training for module in run.model.modules()] == modes
    assert True in modes


def test_what_is_measured_is_in_evaluation_mode():
    modes = set()

    class Looking(grok.Run):
        def measure(self, model):
            modes.update(module.training for module in model.modules())
            return super().measure(model)

    train_one(Looking, dropout=0.1)
    assert modes == {False}


def test_a_run_whose_loss_is_not_finite_ends_without_a_row():
    run = train_one(lr=1e30, warmup=0, steps=50)
    assert run.diverged
    assert run.finished()
    assert run.step < 50
    assert run.step not in [row["step"] for row in run.log]
    assert all(math.isfinite(value) for row in run.log for value in row.values())


def test_a_healthy_run_has_not_diverged():
    assert not train_one().diverged


class Doubled(grok.Run):
    def loss(self, logits, labels):
        return 2 * super().loss(logits, labels)


def test_a_study_s_loss_is_trained_on():
    plain, doubled = (advanced(kind(short())) for kind in (grok.Run, Doubled))
    close(gradients(doubled), 2 * gradients(plain))


def test_a_study_s_loss_does_not_change_what_is_measured():
    plain, doubled = grok.Run(short()), Doubled(short())
    assert plain.measure(plain.model) == doubled.measure(doubled.model)


def measuring(columns):
    """A Run that measures more, columns(run)."""

    class Measuring(grok.Run):
        def measure(self, model):
            return super().measure(model) | columns(self)

    return Measuring


def test_what_a_study_measures_is_a_column():
    run = train_one(measuring(lambda run: dict(double=torch.tensor(2.0 * run.step))), steps=5)
    assert [row["double"] for row in run.log] == [2, 4, 10]


@pytest.mark.parametrize("first", [1, 2])
def test_columns_of_one_run_that_come_and_go_are_refused(first):
    odd = measuring(lambda run: dict(extra=0.0) if run.step % 2 == first % 2 else {})
    with pytest.raises(UsageError, match="^measure: .*columns"):
        train_one(odd)


@pytest.mark.parametrize("name", ["step", "seconds"])
def test_a_column_that_hides_another_is_refused(name):
    with pytest.raises((TypeError, UsageError), match=name):
        train_one(measuring(lambda run: {name: torch.tensor(0.0)}))


def test_after_training_the_model_is_in_evaluation_mode():
    assert not any(module.training for module in train_one(dropout=0.1).model.modules())


def record(*accuracies, **changes):
    """A Record evaluated at every tenth update."""
    log = [dict(step=10 * i + 10, val_acc=a, train_acc=2 * a) for i, a in enumerate(accuracies)]
    return grok.Record(short(steps=100, **changes), step=10 * len(accuracies), log=log)


def test_a_record_knows_its_best_validation_accuracy():
    assert record(0.1, 0.7, 0.3).best() == 0.7
    assert record().best() == 0


def test_a_record_knows_when_an_accuracy_was_reached():
    assert record(0.1, 0.98, 0.99, 1.0).reached() == 30
    assert record(0.1, 0.4, 0.9).reached("train_acc", 0.8) == 20
    assert record(0.1, 0.7).reached() is None


@pytest.mark.parametrize(
    "until, expect, accuracy, ends",
    [
        (0.5, 0, 0.5, True),
        (0.5, 0, 0.4, False),
        (0.5, 0.8, 0.7, False),
        (0.5, 0.8, 0.8, True),
        (0.8, 0.5, 0.7, False),
        (0, 0, 1.0, False),
        (0, 0.5, 1.0, False),
    ],
)
def test_a_run_ends_at_until_which_expect_raises(until, expect, accuracy, ends):
    assert record(accuracy, until=until, expect=expect).finished() == ends


def test_a_run_that_has_left_its_goal_again_goes_on():
    assert not record(0.9, 0.4, until=0.5).finished()


def test_a_run_ends_after_its_last_update():
    assert not record(*9 * [0.1]).finished()
    assert record(*10 * [0.1]).finished()


def test_a_run_stops_at_the_first_evaluation_that_reaches_its_goal():
    whole = train_one(until=0)
    goal = sorted(row["val_acc"] for row in whole.log)[-2]
    first = next(i for i, row in enumerate(whole.log) if row["val_acc"] >= goal)
    assert rows(train_one(until=goal)) == rows(whole)[: first + 1]
    assert first + 1 < len(whole.log)


# --- published kinds of methods, nets and tasks ---------------------------------------------------


class Filter(grok.Run):
    """Adds to each gradient twice its running mean."""

    means = None
    saved = (*grok.Run.saved, "means")

    def on_after_backward(self):
        grads = [w.grad for w in self.model.parameters()]
        means = self.means or [g.clone() for g in grads]
        self.means = [m.lerp(g, 0.1) for m, g in zip(means, grads, strict=True)]
        for g, m in zip(grads, self.means, strict=True):
            g.add_(m, alpha=2)


class Perpendicular(torch.optim.Optimizer):
    """Steps as AdamW does, with gradients less their part along the weights."""

    def __init__(self, params, **options):
        params = list(params)
        super().__init__(params, {})
        self.inner = torch.optim.AdamW(params, **options)
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for w in group["params"]:
                w.grad -= (w.grad * w).sum() / (w * w).sum().clamp(min=1e-30) * w
        self.inner.step(closure)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)
        self.param_groups = self.inner.param_groups  # which are new ones


class Wrapped(grok.Run):
    wrapper = Perpendicular

    def build_optimizer(self):
        return self.wrapper(self.model.parameters(), lr=self.config.lr)


class Perceptron(nn.Module):
    """One hidden layer over the embeddings of any number of inputs."""

    def __init__(self, n, inputs, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(n, 8)
        self.hidden = nn.Linear(8 * inputs, 32)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(32, n)

    def forward(self, *inputs):
        h = self.embed(torch.stack(inputs, 1)).flatten(1)
        return self.head(self.dropout(self.hidden(h)).relu())


class OtherModel(grok.Run):
    def build_model(self):
        return Perceptron(self.config.elements, 2, dropout=0.1)


class SecondOptimizer(grok.Run):
    """Muon for the blocks' matrices, AdamW for the rest."""

    saved = (*grok.Run.saved, "second")

    def build_optimizer(self):
        matrices = [w for w in self.model.blocks.parameters() if w.ndim == 2]
        rest = [w for w in self.model.parameters() if all(w is not m for m in matrices)]
        self.second = torch.optim.AdamW(rest, lr=1e-3)
        return torch.optim.Muon(matrices, lr=0.02)

    def update(self, rows):
        super().update(rows)
        self.second.step()


class Cosine(grok.Run):
    def build_schedule(self):
        return torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)


class WeightAverage(grok.Run):
    """Measures the mean of its weights over all updates."""

    saved = (*grok.Run.saved, "average")

    def __init__(self, config):
        super().__init__(config)
        self.average = torch.optim.swa_utils.AveragedModel(self.model)

    def update(self, rows):
        super().update(rows)
        self.average.update_parameters(self.model)

    def measure(self, model):
        return super().measure(self.average.module.eval())


class Hooked(grok.Run):
    """Measures the share of hidden units that are on."""

    def measure(self, model):
        shares = []
        hook = model.blocks[-1].up.register_forward_hook(
            lambda module, inputs, output: shares.append((output > 0).float().mean())
        )
        try:
            return super().measure(model) | dict(active=sum(shares) / len(shares))
        finally:
            hook.remove()


class ThreeInputs(grok.Run):
    """Learns x + y + z mod 7."""

    def build_data(self):
        terms = torch.cartesian_prod(*3 * [torch.arange(7)])
        order = grok.permutation(343, self.config.seed, "split")
        return list(terms.T), terms.sum(1) % 7, order[:200], order[200:]

    def build_model(self):
        return Perceptron(7, 3)


class OtherLoss(grok.Run):
    """Cross-entropy over shares that grow linearly, in float64."""

    def loss(self, logits, labels):
        z = logits.double()
        s = torch.where(z >= 0, z + 1, 1 / (1 - z.clamp(max=0)))
        return F.nll_loss((s / s.sum(1, keepdim=True)).log(), labels)


PUBLISHED = [
    Filter,
    Wrapped,
    OtherModel,
    SecondOptimizer,
    Cosine,
    WeightAverage,
    Hooked,
    ThreeInputs,
    OtherLoss,
]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_published_kind_learns(kind):
    run = train_one(kind, lr=0.01, steps=50)
    assert run.step == 50
    assert run.log[-1]["train_loss"] < run.log[0]["train_loss"] - 0.01


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_published_kind_is_something_else_than_plain_training(kind, plain):
    assert rows(train_one(kind))[-1] != plain[-1]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_published_kind_resumes_exactly(kind):
    grok.rehearse(kind, short(**NOISE | dict(decay_to="origin")))


def test_a_hook_in_an_evaluation_does_not_change_what_else_is_measured(plain):
    for row, other in zip(rows(train_one(Hooked)), plain, strict=True):
        assert row.pop("active") > 0
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [dict(), NOISE, dict(decay_to="identity"), dict(batch_size=0), dict(steps=3), dict(until=0.01)],
)
def test_plain_training_resumes_exactly(changes):
    assert grok.rehearse(grok.Run, short(**changes)) is None


class OneCycle(grok.Run):
    """Its schedule is as long as the run, and refuses to go on."""

    def build_schedule(self):
        c = self.config
        return torch.optim.lr_scheduler.OneCycleLR(self.optimizer, c.lr, total_steps=c.steps + 1)


def test_a_rehearsal_is_no_longer_than_the_run():
    grok.rehearse(OneCycle, short(steps=8))


class Since(grok.Run):
    """Measures how far the loss has come since its first evaluation, and forgets that."""

    first = None

    def measure(self, model):
        columns = super().measure(model)
        if self.first is None:
            self.first = columns["train_loss"]
        return columns | dict(since=columns["train_loss"] - self.first)


def test_what_is_measured_must_resume_too():
    with pytest.raises(UsageError, match="Since: .*what it measures differs"):
        grok.rehearse(Since, short())


def test_a_run_that_diverges_in_its_rehearsal_resumes_exactly_too():
    grok.rehearse(grok.Run, short(lr=1e30, warmup=0))


# --- what would not resume ------------------------------------------------------------------------


class Unsaved(Filter):
    """Forgets the running mean."""

    saved = grok.Run.saved


class Stateless(Perpendicular):
    """An optimiser that keeps its state from its checkpoint."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Untied(Perpendicular):
    """An optimiser whose groups are not those of the inner one once that is loaded."""

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class StatelessRun(Wrapped):
    wrapper = Stateless


class UntiedRun(Wrapped):
    wrapper = Untied


class Forgotten(grok.Run):
    """Has every fifth gradient doubled, and forgets its count."""

    count = 0

    def on_after_backward(self):
        self.count += 1
        if self.count % 5 == 0:
            for w in self.model.parameters():
                w.grad *= 2


class SecondUnsaved(SecondOptimizer):
    saved = grok.Run.saved


class Lookahead(grok.Run):
    """Goes back half the way to its slow weights every three updates."""

    saved = (*grok.Run.saved, "slow")

    def __init__(self, config):
        super().__init__(config)
        self.slow = vector(self)

    def update(self, rows):
        super().update(rows)
        if self.step % 3 == 0:
            self.slow = self.slow.lerp(vector(self), 0.5)
            nn.utils.vector_to_parameters(self.slow.clone(), self.model.parameters())


class LookaheadUnsaved(Lookahead):
    saved = grok.Run.saved


class AveragedUnsaved(WeightAverage):
    """Lets its average, which is not saved, pull at its weights."""

    saved = grok.Run.saved

    def update(self, rows):
        super().update(rows)
        with torch.no_grad():
            for w, mean in zip(
                self.model.parameters(), self.average.module.parameters(), strict=True
            ):
                w.lerp_(mean, 0.1)


class AveragedSaved(AveragedUnsaved):
    saved = WeightAverage.saved


class NumpyNoise(grok.Run):
    """Draws from a generator of its own that is not saved."""

    def __init__(self, config):
        super().__init__(config)
        self.generator = np.random.default_rng(0)

    def on_after_backward(self):
        for w in self.model.parameters():
            w.grad *= self.generator.uniform(0.5, 2)


FORGETFUL = [Unsaved, StatelessRun, UntiedRun, Forgotten, SecondUnsaved]
FORGETFUL += [LookaheadUnsaved, AveragedUnsaved, NumpyNoise]


@pytest.mark.parametrize("kind", FORGETFUL)
def test_what_forgets_its_state_is_refused_by_name(kind):
    with pytest.raises(UsageError, match=f"^{kind.__name__}: [^\n]+$"):
        grok.rehearse(kind, short())


@pytest.mark.parametrize("kind", [Lookahead, AveragedSaved])
def test_what_saves_its_state_is_not_refused(kind):
    grok.rehearse(kind, short())


def test_a_count_that_is_saved_is_not_refused():
    class Counted(Forgotten):
        saved = (*grok.Run.saved, "count")

    grok.rehearse(Counted, short())


def keeping(value):
    """A Run that saves a value."""

    class Keeping(grok.Run):
        saved = (*grok.Run.saved, "kept")
        kept = value

    return Keeping


@pytest.mark.parametrize(
    "value",
    [
        deque([1.0]),
        deque([torch.ones(2)]),
        np.float64(0.5),
        np.ones(2),
        [np.int64(3)],
        [lambda: 0],
        {1, 2}.__iter__(),
        random.Random(0),
        re.compile("a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_torch_would_not_read_back_is_refused_by_name(value):
    with pytest.raises(UsageError, match="^Keeping: [^\n]*saved[^\n]*kept[^\n]*$"):
        grok.rehearse(keeping(value), short())


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.5, "text", [1, 2], (1, "a"), dict(a=torch.ones(2)), {1, 2}],
    ids=lambda value: type(value).__name__,
)
def test_tensors_and_plain_types_are_kept(value):
    grok.rehearse(keeping(value), short())


def test_a_function_is_refused():
    class Keeping(grok.Run):
        saved = (*grok.Run.saved, "kept")

        def __init__(self, config):
            super().__init__(config)
            self.kept = lambda: 0

    with pytest.raises(UsageError, match="^Keeping: [^\n]*kept"):
        grok.rehearse(Keeping, short())


def test_what_is_saved_is_there_again():
    class Summing(grok.Run):
        saved = (*grok.Run.saved, "total", "seen")
        total, seen = 0, ()

        def update(self, rows):
            super().update(rows)
            self.total += len(rows)
            self.seen = (*self.seen, rows[0].item())

    one, other = advanced(Summing(short()), 4), Summing(short())
    other.load_state_dict(one.state_dict())
    assert (other.total, other.seen) == (4 * 16, one.seen)


def test_a_state_dict_has_what_saved_names():
    run = WeightAverage(short())
    assert list(run.state_dict()) == ["model", "optimizer", "schedule", "average"]


# --- the caller's state ---------------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


PLACES = dict(
    no_grad=torch.no_grad,
    inference_mode=torch.inference_mode,
    set_grad_enabled=lambda: torch.set_grad_enabled(False),
    bfloat16=lambda: default_dtype(torch.bfloat16),
    float64=lambda: default_dtype(torch.float64),
    autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    device_meta=lambda: torch.device("meta"),
    default_device_meta=lambda: default_device("meta"),
)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_is_the_same_wherever_it_is_called(place, usual):
    with PLACES[place]():
        run = train_one(**NOISE)
    assert rows(run) == usual


@pytest.mark.parametrize("place", PLACES)
def test_a_rehearsal_is_the_same_wherever_it_is_called(place):
    with PLACES[place]():
        grok.rehearse(Filter, short(**NOISE))


@pytest.mark.parametrize("place", PLACES)
def test_a_trained_model_is_an_ordinary_one_wherever_it_was_trained(place):
    with PLACES[place]():
        model = train_one().model
    logits, _ = outcome(model, 11, 50)
    assert logits.dtype == torch.float32
    assert all(w.grad.abs().sum() > 0 for w in model.parameters())


@pytest.mark.parametrize("place", PLACES)
def test_another_thread_trains_the_same_run(place, usual):
    def elsewhere():
        with PLACES[place]():
            return rows(train_one(**NOISE))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(elsewhere).result() == usual


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_does_not_depend_on_the_caller_s_generators(seed, usual):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    assert rows(train_one(**NOISE)) == usual


def test_a_run_has_the_threads_it_asks_for():
    seen = []

    class Looking(grok.Run):
        def update(self, rows):
            seen.append(torch.get_num_threads())
            super().update(rows)

    train_one(Looking, threads=2, steps=1)
    assert seen == [2]


def process():
    """What of the process is the caller's."""
    return dict(
        torch=torch.get_rng_state().tolist(),
        numpy=pickle.dumps(np.random.get_state()),
        python=random.getstate(),
        threads=torch.get_num_threads(),
        deterministic=torch.get_deterministic_debug_mode(),
        dtype=torch.get_default_dtype(),
        device=torch.get_default_device(),
        modes=(torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        autocast=(torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        signals=[signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        folder=os.getcwd(),
        environment=dict(os.environ),
    )


class Failing(grok.Run):
    def on_after_backward(self):
        if self.step == 3:
            raise ZeroDivisionError


CALLS = dict(
    train=lambda: train_one(threads=2, steps=3, **NOISE),
    rehearse=lambda: grok.rehearse(Filter, short(threads=2, **NOISE), updates=2),
    failing=lambda: train_one(Failing, threads=2, **NOISE),
    failing_rehearsal=lambda: grok.rehearse(Failing, short(threads=2, **NOISE)),
    refused=lambda: grok.rehearse(Unsaved, short(threads=2), updates=2),
)


@pytest.mark.parametrize("place", ["nowhere", *PLACES])
@pytest.mark.parametrize("call", CALLS)
def test_the_process_is_the_caller_s_again(call, place):
    torch.manual_seed(5)
    with PLACES.get(place, contextlib.nullcontext)():
        before = process()
        with contextlib.suppress(ZeroDivisionError, UsageError):
            CALLS[call]()
        assert process() == before


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")


@on_a_gpu
def test_a_gpu_begins_as_the_cpu_and_both_generalise():
    logs = []
    for device in ("cpu", "cuda"):
        config = Config(**grok.FAST | dict(op="x_plus_y", p=31, frac=0.7, device=device))
        logs.append(grok.train(config, quiet=True).log)
    for name in ("train_loss", "val_loss", "weight_norm"):
        assert logs[0][0][name] == pytest.approx(logs[1][0][name], rel=1e-4)
    assert all(log[-1]["val_acc"] >= 0.99 for log in logs)


@on_a_gpu
def test_a_gpu_gives_the_same_again_with_many_rows_in_a_batch():
    config = Config(op="x_plus_y", batch_size=0, steps=5, device="cuda")
    one, two = (grok.train(config, quiet=True).model.state_dict() for _ in range(2))
    assert all(torch.equal(w, two[name]) for name, w in one.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(UsageError, match="^--device cuda: "):
        train_one(device="cuda")


def test_a_study_s_error_is_the_caller_s_to_see():
    with pytest.raises(ZeroDivisionError):
        train_one(Failing)


GROK = Path(grok.__file__)
TINY = dict(  # a run of a tenth of a second
    op="x_plus_y",
    p=11,
    layers=1,
    width=16,
    heads=2,
    batch_size=16,
    eval_every=10,
    steps=30,
    device="cpu",
    threads=1,
)
FORK = multiprocessing.get_context("fork")  # a process of its own in milliseconds


def settings(**changes):
    return Config(**TINY | changes)


def train(out=None, method=grok.Run, **changes):
    return grok.train(settings(**changes), out=out, quiet=True, method=method)


def flags(**changes):
    """TINY, with changes, as a command line."""
    words = []
    for name, value in (TINY | changes).items():
        several = value if isinstance(value, list) else [value]
        words += ["--" + name.replace("_", "-"), *map(str, several)]
    return words


def call(method=grok.Run, config=Config, **changes):
    return grok.main([*flags(**changes), "--jobs", "1", "--quiet"], config, method)


def resume(folder, *words, method=grok.Run, config=Config):
    words = ["--resume", str(folder), "--jobs", "1", "--quiet", *map(str, words)]
    return grok.main(words, config, method)


def table(folder):
    """The rows of a run's metrics.csv, as text, without the time."""
    if not (folder / "metrics.csv").exists():
        return []
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: text for name, text in row.items() if name != "seconds"} for row in rows]


def tables(sweep):
    return {path.name: table(path) for path in sweep.iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep of two seeds."""
    out = tmp_path_factory.mktemp("trained")
    assert call(out=out, seed=[0, 1]) == 0
    return out


@pytest.fixture
def sweep(trained, tmp_path):
    """A sweep of two seeds, to be harmed."""
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


def folder_of(sweep, seed):
    """The folder of a run in a sweep over seeds."""
    (folder,) = sweep.glob(f"*-seed{seed}-*")
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder, **kind):
    return grok.load(folder, **kind).model.state_dict()


def same(one, other):
    """Whether two state_dicts are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def one_line(text):
    return text.startswith("grok.py: ") and text.endswith("\n") and text.count("\n") == 1


def wait_until(condition):
    for _ in range(6000):  # a minute
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited for a minute")


def before_each_update(monkeypatch, action):
    """Has action(run) come before each update."""
    update = grok.Run.update
    monkeypatch.setattr(grok.Run, "update", lambda run, rows: [action(run), update(run, rows)])


def interrupt(run):
    raise KeyboardInterrupt


def eager(monkeypatch):
    """Has a checkpoint written after each update: by this clock it takes less than no time."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: -next(ticks))


@contextlib.contextmanager
def interrupted_after(updates, method):
    """Within, Ctrl-C comes after so many updates, and every chance of a checkpoint is taken."""
    done, update = itertools.count(), method.update

    def cut(run, rows):
        if next(done) == updates:
            raise KeyboardInterrupt
        update(run, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "update", cut)
        eager(patch)
        yield


def train_in_parts(config, out, method=grok.Run, seed=0):
    """Trains a run, interrupted at random updates, to its end. Returns how often."""
    dice = random.Random(seed)
    for parts in range(99):
        with interrupted_after(dice.randint(3, 15), method), contextlib.suppress(KeyboardInterrupt):
            grok.train(config, out=out, quiet=True, method=method)
            return parts
    pytest.fail("it does not get on")


def started(*words, prepare=None, typed=False, **kind):
    """grok.main(words), after prepare(), in a process forked from this one; or as if it was typed
    on the command line."""

    def child():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
        if prepare:
            prepare()
        sys.argv = [str(GROK), *map(str, words), "--quiet"]
        sys.exit(grok.main(None if typed else sys.argv[1:], **kind))

    process = FORK.Process(target=child)
    process.start()
    STARTED.append(process)
    return process


STARTED = []


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    yield
    while STARTED:
        STARTED.pop().kill()


def ended(process):
    """The exit status of a process, negative after a signal."""
    process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail("a process does not end")
    return process.exitcode


@contextlib.contextmanager
def held(folder):
    """Within, the lock of a run is in these hands."""
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # forked processes have the file open, too


# --- Studies. -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inertia(Config):
    pull: float = grok.setting(0.5, "factor on the past gradients", "[0, inf)")
    sizes: tuple = grok.setting((4, 8), "numbers that do nothing", "[1, inf)")
    flip: bool = grok.setting(False, "a switch that does nothing")


class Heavy(grok.Run):
    """Adds all past gradients to the gradient."""

    saved = *grok.Run.saved, "past"

    def __init__(self, config):
        super().__init__(config)
        self.past = None

    def on_after_backward(self):
        grads = {name: w.grad for name, w in self.model.named_parameters()}
        past = self.past or {name: torch.zeros_like(grad) for name, grad in grads.items()}
        self.past = {name: past[name] + grads[name] for name in grads}
        for name, grad in grads.items():
            grad += 0.1 * self.past[name]


class OneTensor(grok.Run):
    """Adds the past gradients of the head, in one tensor."""

    saved = *grok.Run.saved, "past"

    def __init__(self, config):
        super().__init__(config)
        self.past = torch.zeros_like(self.model.head.weight)

    def on_after_backward(self):
        self.past += self.model.head.weight.grad
        self.model.head.weight.grad += 0.1 * self.past


class Counting(grok.Run):
    """Skips the gradient of every third update, and measures the count."""

    saved = *grok.Run.saved, "count", "names"

    def __init__(self, config):
        super().__init__(config)
        self.count, self.names = 0, []

    def on_after_backward(self):
        self.count += 1
        self.names.append(f"update {self.count}")
        if self.count % 3 == 0:
            self.model.zero_grad()

    def measure(self, model):
        return super().measure(model) | dict(count=self.count, names=len(self.names))


class TwoOptimizers(grok.Run):
    """Trains the head by an optimiser of its own."""

    saved = *grok.Run.saved, "second"

    def build_optimizer(self):
        head = self.model.head.weight
        self.second = torch.optim.Adagrad([head], lr=0.01)
        return torch.optim.AdamW([w for w in self.model.parameters() if w is not head])

    def on_after_backward(self):
        self.second.step()


class Averaged(grok.Run):
    """Measures the mean of all weights so far."""

    saved = *grok.Run.saved, "average"

    def build_optimizer(self):
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        return super().build_optimizer()

    def update(self, rows):
        super().update(rows)
        self.average.update_parameters(self.model)

    def measure(self, model):
        return super().measure(self.average)


class PlainSGD(grok.Run):
    """Its optimiser has no state."""

    def build_optimizer(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


class Late(grok.Run):
    """What it keeps is None until update 5, then `thing`."""

    saved = *grok.Run.saved, "kept"
    thing = None

    def __init__(self, config):
        super().__init__(config)
        self.kept = None

    def on_after_backward(self):
        if self.step >= 5:
            self.kept = type(self).__dict__["thing"]


class Scripted(grok.Run):
    """Its accuracies are 1 from update 5, and 0, 0.5 from update 10, and 1 from update 100."""

    def measure(self, model):
        val = sum(0.5 * (self.step >= step) for step in (10, 100))
        return super().measure(model) | dict(train_acc=float(self.step >= 5), val_acc=val)


class Fragile(grok.Run):
    """Has an error in the runs of seed 1."""

    def update(self, rows):
        if self.config.seed == 1 and self.step == 15:
            raise RuntimeError("a mistake in the study")
        super().update(rows)


# --- The folder of a run. -------------------------------------------------------------------------


def about(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_config_json_holds_the_settings_and_the_method(tmp_path):
    run = train(out=tmp_path, method=Heavy, seed=3)
    assert about(tmp_path)["settings"] == asdict(run.config)
    assert about(tmp_path)["method"] == "Heavy"


def test_config_json_holds_the_command_as_main_was_given_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "--of", "pytest"])
    words = [*flags(out=tmp_path), "--quiet"]
    assert grok.main(words) == 0
    assert about(folder_of(tmp_path, 0))["command"] == ["study.py", *words]


def test_config_json_holds_the_command_line_if_main_was_given_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grok.py", *flags(out=tmp_path), "--quiet"])
    assert grok.main() == 0
    assert about(folder_of(tmp_path, 0))["command"] == sys.argv


def test_config_json_holds_the_versions_the_device_and_the_threads(tmp_path):
    train(out=tmp_path)
    there = about(tmp_path)
    assert there["grok"] == grok.__version__
    assert there["python"] == platform.python_version()
    assert there["numpy"] == np.__version__
    assert there["torch"] == torch.__version__
    assert there["device"] == "cpu"
    assert there["threads"] == 1


def test_config_json_is_written_once(sweep):
    file = folder_of(sweep, 0) / "config.json"
    before = file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns
    assert resume(sweep, "--steps", 33) == 0
    assert call(out=sweep, seed=[0, 1], steps=35, until=0.5) == 0
    assert (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) == before


def test_metrics_csv_has_the_columns_of_the_contract(tmp_path):
    config = Inertia(**TINY)
    grok.train(config, out=tmp_path, quiet=True, method=Counting)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    measured = "step,train_loss,train_acc,val_loss,val_acc,weight_norm,count,names,seconds"
    free = "steps", "until", "expect", "device", "threads"
    fixed = [f.name for f in fields(Inertia) if f.name not in free]
    assert header == ",".join([measured, *fixed])


def test_metrics_csv_has_one_header_however_often_it_is_resumed(tmp_path):
    assert train_in_parts(settings(), tmp_path) > 1
    train(out=tmp_path, steps=40)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line for line in lines if "step" in line] == lines[:1]


def test_metrics_csv_is_utf_8_with_line_feeds_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(grok.OPS, "x_π_y", grok.OPS["x_plus_y"])
    run = train(out=tmp_path, op="x_π_y")
    text = (tmp_path / "metrics.csv").read_bytes().decode("utf-8")
    assert text.count(",x_π_y,") == len(run.log)
    assert text.endswith("\n")
    assert "\r" not in text


def test_metrics_csv_read_back_is_the_log_beside_the_settings(tmp_path):
    run = train(out=tmp_path, steps=137, eval_every=40, until=0, op="s5_xy", frac=0.01)
    with open(tmp_path / "metrics.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["step"] for row in run.log] == [1, 2, 5, 10, 20, 40, 50, 80, 100, 120, 137]
    for row, text in zip(run.log, written, strict=True):
        assert {name: float(text[name]) for name in row} == row
        assert {name: text[name] for name in text.keys() - row} == {
            name: str(value) for name, value in run.config.fixed().items()
        }


def test_rows_are_on_the_disk_as_soon_as_they_are_measured(tmp_path, monkeypatch):
    seen, measure = [], grok.Run.measure

    def spy(run, model):
        seen.append(len(table(tmp_path)))
        return measure(run, model)

    monkeypatch.setattr(grok.Run, "measure", spy)
    train(out=tmp_path)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_row_is_appended_and_what_is_there_stays(tmp_path, monkeypatch):
    seen, measure = [], grok.Run.measure

    def spy(run, model):
        if run.step > 1:
            seen.append((tmp_path / "metrics.csv").stat())
        return measure(run, model)

    monkeypatch.setattr(grok.Run, "measure", spy)
    train(out=tmp_path, eval_every=1, steps=100, until=0)
    lines = (tmp_path / "metrics.csv").read_bytes().splitlines(keepends=True)
    sizes = [stat.st_size for stat in seen]
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    assert grown == [len(line) for line in lines[2:-1]]
    assert len({stat.st_ino for stat in seen}) == 1


def test_a_checkpoint_is_read_by_torch_without_running_code(trained):
    for folder in trained.iterdir():
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert same(saved["state"]["model"], weights(folder))


def test_a_checkpoint_holds_no_float64_which_a_mac_s_gpu_has_not(trained):
    for folder in trained.iterdir():
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        tensors = [t for t in torch.utils._pytree.tree_leaves(saved) if torch.is_tensor(t)]
        assert tensors
        assert all(t.dtype != torch.float64 for t in tensors)


def test_the_metrics_of_all_runs_have_one_set_of_columns(tmp_path):
    several = dict(op=["x_plus_y", "s5_xy"], frac=[0.01, 0.1], weight_noise=0.01, layers=1)
    assert call(out=tmp_path, steps=5, **several) == 0
    headers = [file.read_text().splitlines()[0] for file in tmp_path.glob("*/metrics.csv")]
    assert len(headers) == 4
    assert len(set(headers)) == 1


def test_every_metrics_csv_has_a_header_even_of_a_run_without_rows(tmp_path):
    assert call(out=tmp_path, lr=1e30, seed=[0, 1]) == 0
    assert all(run.diverged for run in grok.read(tmp_path))
    for file in tmp_path.glob("*/metrics.csv"):  # pandas stumbles over an empty file
        assert file.read_text().startswith("step,")


@pytest.mark.parametrize("name", ["lr", "op", "seconds", "step"])
def test_a_column_named_like_another_is_refused_at_the_first_evaluation(tmp_path, name):
    class Hiding(grok.Run):
        measured = 0

        def measure(self, model):
            Hiding.measured += 1
            return super().measure(model) | {name: torch.tensor(1.0)}

    with pytest.raises((TypeError, UsageError), match=name):
        train(out=tmp_path, method=Hiding)
    assert Hiding.measured == 1


def test_columns_that_come_and_go_are_refused(tmp_path):
    class Fickle(grok.Run):
        def measure(self, model):
            return super().measure(model) | ({"more": 1.0} if self.step == 5 else {})

    with pytest.raises(UsageError, match="more"):
        train(out=tmp_path, method=Fickle)
    assert [row["step"] for row in grok.read(tmp_path)[0].log] in ([], [1], [1, 2])


def test_a_column_keeps_its_values_in_whatever_order_it_is_measured(tmp_path):
    class Turning(grok.Run):
        def measure(self, model):
            columns = super().measure(model)
            more = dict(one=1.0, two=2.0)
            return columns | more if self.step % 2 else more | columns

    with contextlib.suppress(UsageError):  # or it is refused
        train(out=tmp_path, method=Turning)
    rows = table(tmp_path) + grok.read(tmp_path)[0].log
    assert {(float(row["one"]), float(row["two"])) for row in rows} == {(1.0, 2.0)}


# --- The same rows again. -------------------------------------------------------------------------

NOISY = dict(steps=32, eval_every=7, until=0.0)
KINDS = {
    "dropout": dict(dropout=0.2, layers=2),
    "noise": dict(weight_noise=0.01, update_noise=0.1),
    "init": dict(decay_to="init", weight_decay=3.0),
    "identity": dict(decay_to="identity", grad_clip=0.1),
    "full batch": dict(batch_size=0, batch_frac=1.0),
    "odd batch": dict(batch_frac=0.37, batch_size=512, outliers=9),
    "all": dict(dropout=0.1, weight_noise=0.01, update_noise=0.1, decay_to="init", warmup=30),
}


def test_the_same_command_twice_gives_the_same_metrics(tmp_path):
    for name in "ab":
        assert call(out=tmp_path / name, **NOISY, **KINDS["all"]) == 0
    assert tables(tmp_path / "a") == tables(tmp_path / "b")
    assert len(tables(tmp_path / "a")) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_random_updates_it_resumes_to_the_same_rows_and_weights(tmp_path, kind):
    config = settings(**NOISY, **KINDS[kind])
    whole = grok.train(config, out=tmp_path / "whole", quiet=True)
    assert train_in_parts(config, tmp_path / "cut") > 1
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert same(weights(tmp_path / "cut"), whole.model.state_dict())


def test_killed_hard_at_random_moments_it_resumes_to_the_same_rows(tmp_path, monkeypatch):
    given = dict(steps=80, until=0.0, eval_every=5) | KINDS["all"]
    assert call(out=tmp_path / "whole", **given) == 0
    eager(monkeypatch)
    dice, cut, words = random.Random(0), tmp_path / "cut", flags(out=tmp_path / "cut", **given)
    statuses, before = [], 0
    for _ in range(5):
        process = started(*words, "--jobs", 1)
        wait_until(lambda: not process.is_alive() or rows_of(cut) != before)  # noqa: B023
        time.sleep(dice.uniform(0, 0.2))
        process.kill()
        statuses.append(ended(process))
        words, before = ["--resume", cut], rows_of(cut)
    assert statuses.count(-signal.SIGKILL) > 2
    assert resume(cut) == 0
    assert tables(cut) == tables(tmp_path / "whole")
    assert not list(cut.rglob("*.tmp"))


def rows_of(sweep):
    """How many rows there are so far."""
    return sum(len(table(file.parent)) for file in sweep.glob("*/metrics.csv"))


@pytest.mark.parametrize("first", [30, 33])
def test_raised_steps_give_the_rows_of_a_run_of_that_length(tmp_path, first):
    train(out=tmp_path / "raised", steps=first)
    assert table(tmp_path / "raised")[-1]["step"] == str(first)
    train(out=tmp_path / "raised", steps=60)
    train(out=tmp_path / "whole", steps=60)
    assert table(tmp_path / "raised") == table(tmp_path / "whole")
    assert same(weights(tmp_path / "raised"), weights(tmp_path / "whole"))


def test_the_row_of_an_old_last_update_is_dropped_even_if_it_is_cut_right_then(tmp_path):
    train(out=tmp_path / "raised", steps=33)
    train_in_parts(settings(steps=45), tmp_path / "raised")
    train(out=tmp_path / "whole", steps=45)
    assert table(tmp_path / "raised") == table(tmp_path / "whole")


def test_a_raised_until_gives_the_rows_of_a_run_with_that_until(tmp_path):
    train(out=tmp_path / "raised", until=0.01, steps=60)
    assert grok.read(tmp_path / "raised")[0].step < 60
    train(out=tmp_path / "raised", until=0, steps=60)
    train(out=tmp_path / "whole", until=0, steps=60)
    assert table(tmp_path / "raised") == table(tmp_path / "whole")


def test_resume_goes_to_the_steps_that_are_recorded(tmp_path):
    with interrupted_after(12, grok.Run):
        assert call(out=tmp_path, steps=43) == 130
    assert resume(tmp_path) == 0
    assert [run.step for run in grok.read(tmp_path)] == [43]


def test_steps_come_from_the_command_at_hand(tmp_path):
    assert call(out=tmp_path) == 0
    assert call(out=tmp_path, steps=50) == 0
    assert [run.step for run in grok.read(tmp_path)] == [50]


HARM = {
    "lost": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, 40),
    "overwritten": lambda path: path.write_text("mine\n"),
}


@pytest.mark.parametrize("harm", HARM)
def test_metrics_csv_harmed_during_a_run_is_whole_at_its_end(tmp_path, monkeypatch, harm):
    train(out=tmp_path / "whole")
    before_each_update(
        monkeypatch, lambda run: run.step == 15 and HARM[harm](run.folder / "metrics.csv")
    )
    train(out=tmp_path / "run")
    assert table(tmp_path / "run") == table(tmp_path / "whole")


@pytest.mark.parametrize("harm", HARM)
def test_metrics_csv_harmed_after_a_run_is_put_back_by_train(sweep, harm):
    folder = folder_of(sweep, 0)
    before = (folder / "metrics.csv").read_bytes()
    HARM[harm](folder / "metrics.csv")
    train(out=folder)
    assert (folder / "metrics.csv").read_bytes() == before


def full_disk(monkeypatch, writes):
    """The disk is full after so many files."""
    sync, left = os.fsync, itertools.count(1)

    def fail(file):
        if next(left) > writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_failing_write_leaves_the_previous_checkpoint(sweep, capsys, monkeypatch, writes):
    folder = folder_of(sweep, 0)
    with monkeypatch.context() as patch:
        full_disk(patch, writes)
        assert resume(folder, "--steps", 45) == 3
    error = capsys.readouterr().err
    assert one_line(error)
    assert "No space left on device" in error
    assert str(folder) in error
    assert not list(folder.glob("*.tmp"))
    assert grok.load(folder).step >= 30
    assert resume(folder, "--steps", 45) == 0
    train(out=sweep / "whole", steps=45)
    assert table(folder) == table(sweep / "whole")


@dataclass(frozen=True)
class Noted(Config):
    note: str = grok.setting("x" * 2000, "makes a metrics.csv larger than its checkpoint")


def limited(size):
    """Has no file grow beyond this."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("config, larger", [(Config, "checkpoint.pt"), (Noted, "metrics.csv")])
def test_a_full_disk_gets_status_3_and_one_line_and_the_run_resumes(
    tmp_path, capfd, config, larger
):
    given = dict(steps=60, until=0, eval_every=1)
    assert call(out=tmp_path / "whole", config=config, **given) == 0
    sizes = {f.stat().st_size: f.name for f in folder_of(tmp_path / "whole", 0).iterdir()}
    assert sizes[max(sizes)] == larger
    words, full = flags(out=tmp_path / "run", **given), limited(max(sizes) * 3 // 4)
    assert ended(started(*words, "--jobs", 1, config=config, prepare=full)) == 3
    error = capfd.readouterr().err
    assert one_line(error)
    assert str(folder_of(tmp_path / "run", 0)) in error
    assert ended(started("--resume", tmp_path / "run", "--jobs", 1, config=config)) == 0
    assert tables(tmp_path / "run") == tables(tmp_path / "whole")


def test_a_disk_that_is_full_from_the_start_gets_status_2_and_one_line(tmp_path, capfd):
    words = [*flags(out=tmp_path), "--jobs", 1]
    assert ended(started(*words, prepare=limited(400))) == 2
    error = capfd.readouterr().err
    assert one_line(error)
    assert str(tmp_path) in error


def test_a_folder_deleted_during_its_run_gets_status_3_and_one_line(tmp_path, capsys, monkeypatch):
    def delete(run):
        if run.step == 15 and run.config.seed == 0:
            shutil.rmtree(run.folder)

    before_each_update(monkeypatch, delete)
    assert call(out=tmp_path, seed=[0, 1]) == 3
    error = capsys.readouterr().err
    assert one_line(error)
    assert str(tmp_path) in error
    assert [run.step for run in grok.read(tmp_path)] == [30]


LOST = {
    "no memory": lambda: torch.empty(2**55),
    "python's memory": lambda: bytearray(2**62),
    "a GPU's memory": lambda: throw(torch.OutOfMemoryError("CUDA out of memory")),
    "a GPU": lambda: throw(torch.AcceleratorError("CUDA error: device lost")),
}


def throw(error):
    raise error


@pytest.mark.parametrize("lost", LOST)
def test_what_the_machine_lacks_gets_status_3_and_one_line(tmp_path, capsys, monkeypatch, lost):
    before_each_update(monkeypatch, lambda run: run.step == 15 and LOST[lost]())
    assert call(out=tmp_path) == 3
    error = capsys.readouterr().err
    assert one_line(error)
    assert str(folder_of(tmp_path, 0)) in error


# --- What a study keeps. --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [Heavy, OneTensor, Counting, TwoOptimizers, Averaged, PlainSGD], ids=vars
)
def test_what_a_study_keeps_is_resumed_exactly(tmp_path, method):
    config = settings(steps=32, eval_every=7, until=0)
    whole = grok.train(config, out=tmp_path / "whole", quiet=True, method=method)
    assert train_in_parts(config, tmp_path / "cut", method) > 1
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert same(weights(tmp_path / "cut", method=method), whole.model.state_dict())


UNKEPT = {
    "a deque": collections.deque([1]),
    "numpy's number": np.float64(1),
    "numpy's array": np.zeros(3),
    "a function": len,
    "a lambda": lambda: 1,
    "a list of modules": [nn.Linear(2, 2)],
    "a dict of classes": {"a": Config},
}


@pytest.mark.parametrize("thing", UNKEPT)
def test_what_a_checkpoint_cannot_hold_is_refused_at_once(tmp_path, thing):
    class Holding(grok.Run):
        saved = *grok.Run.saved, "kept"
        kept = UNKEPT[thing]

    with pytest.raises(UsageError, match="kept"):
        train(out=tmp_path, method=Holding)
    assert grok.read(tmp_path)[0].step == 0


@pytest.mark.parametrize("thing", [*UNKEPT, "a module"])
def test_what_comes_later_and_cannot_be_kept_is_refused_in_training(tmp_path, monkeypatch, thing):
    class Later(Late):
        pass

    Later.thing = UNKEPT.get(thing, nn.Linear(2, 2))
    eager(monkeypatch)
    with pytest.raises(UsageError, match="kept"):
        train(out=tmp_path, method=Later)
    assert grok.load(tmp_path, method=Later).step == 4


def test_a_state_that_is_none_until_later_is_kept(tmp_path):
    class Patient(Late):
        thing = {"later": torch.ones(3)}

    train_in_parts(settings(), tmp_path, Patient)
    assert torch.equal(grok.load(tmp_path, method=Patient).kept["later"], torch.ones(3))


# --- Another run is refused. ----------------------------------------------------------------------


@pytest.mark.parametrize("first, then", [(grok.Run, Heavy), (Heavy, grok.Run)])
def test_another_method_in_the_same_folder_is_refused(tmp_path, first, then):
    train(out=tmp_path, method=first)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=first.__name__):
        train(out=tmp_path, method=then, steps=60)
    assert files(tmp_path) == before


@pytest.mark.parametrize("steps", [30, 60])
def test_other_settings_in_the_same_folder_are_refused_with_what_differs(sweep, steps):
    before, folder = files(sweep), folder_of(sweep, 0)
    for name, value in dict(lr=0.5, seed=1, eval_every=7, op="x_mul_y", p=13).items():
        with pytest.raises(UsageError, match=rf"{name} .*, not {value}\b"):
            train(out=folder, steps=steps, **{name: value})
    assert files(sweep) == before


def test_a_folder_laid_out_for_another_run_is_refused(tmp_path, monkeypatch):
    names(tmp_path, monkeypatch, seed=[0, 1])
    before = files(tmp_path)
    with pytest.raises(UsageError, match="lr 0.001, not 0.5"):
        train(out=folder_of(tmp_path, 1), seed=1, lr=0.5)
    assert files(tmp_path) == before


def with_default(pull):
    """The study's Config of a day on which its default was this."""
    new = [("pull", float, grok.setting(pull, "factor", "[0, inf)"))]
    return make_dataclass("Pulling", new, bases=(Config,), frozen=True)


def test_a_study_whose_default_has_changed_is_refused(tmp_path):
    one, other = with_default(0.5), with_default(0.7)
    grok.train(one(**TINY), out=tmp_path, quiet=True, method=Heavy)
    with pytest.raises(UsageError, match="pull 0.5, not 0.7"):
        grok.train(other(**TINY | dict(steps=60)), out=tmp_path, quiet=True, method=Heavy)


def test_a_study_whose_default_has_changed_has_another_folder_in_a_sweep(tmp_path):
    one, other = with_default(0.5), with_default(0.7)
    for config in one, other, one:
        assert call(out=tmp_path, config=config, method=PlainSGD) == 0
    assert sorted(run.config.pull for run in grok.read(tmp_path)) == [0.5, 0.7]


def test_a_resumed_run_keeps_the_default_it_began_with(tmp_path):
    one, other = with_default(0.5), with_default(0.7)
    assert call(out=tmp_path, config=one, method=PlainSGD) == 0
    assert resume(tmp_path, "--steps", 40, config=other, method=PlainSGD) == 0
    assert {row["pull"] for row in table(folder_of(tmp_path, 0))} == {"0.5"}


def test_a_folder_from_before_a_study_had_a_setting_is_refused(tmp_path, capsys):
    assert call(out=tmp_path, method=PlainSGD) == 0
    assert resume(tmp_path, config=with_default(0.5), method=PlainSGD) == 2
    error = capsys.readouterr().err
    assert one_line(error)
    assert "pull" in error


def sum_of(factor):
    return grok.Op("x + factor · y mod p", lambda x, y, p: (x + factor * y) % p)


def refusal(way, sweep, capsys, **changes):
    """With what words the run of seed 0 in a sweep is refused; nothing there may change."""
    before, folder = files(sweep), folder_of(sweep, 0)
    if way in ("--out", "--resume"):
        words = flags(out=sweep, **changes)
        if way == "--resume":
            words = ["--resume", str(folder), "--steps", str(changes.get("steps", 30))]
        assert grok.main([*words, "--jobs", "1", "--quiet"]) == 2
        said = capsys.readouterr().err
        assert one_line(said)
    else:
        kinds = dict(read=grok.read, load=grok.load)
        with pytest.raises(UsageError) as refused:
            kinds[way](folder) if way in kinds else train(out=folder, **changes)
        said = str(refused.value)
    assert files(sweep) == before
    assert str(folder) in said
    return said


@pytest.mark.parametrize("steps", [30, 60])
@pytest.mark.parametrize("way", ["train", "--out", "--resume"])
def test_an_operation_redefined_under_its_name_is_refused(
    tmp_path, capsys, monkeypatch, way, steps
):
    monkeypatch.setitem(grok.OPS, "mine", sum_of(2))
    assert call(out=tmp_path, op="mine") == 0
    monkeypatch.setitem(grok.OPS, "mine", sum_of(3))
    assert "another run" in refusal(way, tmp_path, capsys, op="mine", steps=steps)


def test_resume_of_a_study_s_folder_says_which_program_to_call(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["elsewhere/heavy.py"])
    assert call(out=tmp_path, method=Heavy) == 0
    before = files(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grok.py"])
    assert resume(tmp_path, "--steps", 60) == 2
    error = capsys.readouterr().err
    assert one_line(error)
    assert "Heavy" in error
    assert "elsewhere/heavy.py" in error
    assert files(tmp_path) == before


@pytest.mark.parametrize("steps", [30, 60])
@pytest.mark.parametrize("way", ["train", "--out", "--resume", "read", "load"])
def test_a_checkpoint_copied_from_another_run_is_refused(sweep, capsys, way, steps):
    shutil.copy(folder_of(sweep, 1) / "checkpoint.pt", folder_of(sweep, 0) / "checkpoint.pt")
    assert "seed 1, not 0" in refusal(way, sweep, capsys, steps=steps)


@pytest.mark.parametrize(
    "line",
    ["--lr 0.5", "--op x_mul_y", "--seed 0", "--beta1 0.8", "--eval-every 10", "--recipe fast"]
    + ["--out elsewhere", "--steps 50 60", "--until 0.5 0.6", "--threads 1 --device cpu cpu"],
)
def test_what_is_fixed_or_has_several_values_does_not_go_with_resume(sweep, capsys, line):
    before = files(sweep)
    assert resume(sweep, *line.split()) == 2
    error = capsys.readouterr().err
    assert one_line(error)
    assert line.split()[0] in error or "--device" in error
    assert "--until" in error
    assert files(sweep) == before


def test_what_is_not_fixed_goes_with_resume(sweep):
    given = "--steps 40 --until 0.5 --expect 0 --threads 1 --device cpu --jobs 1 --quiet"
    assert grok.main(["--resume", str(sweep), *given.split()]) == 0
    assert [run.step for run in grok.read(sweep)] == [40, 40]


def test_a_renamed_sweep_and_a_renamed_run_resume_under_their_names(sweep, tmp_path):
    assert call(out=tmp_path / "whole", seed=[0, 1], steps=45) == 0
    folder_of(sweep, 0).rename(sweep / "my best run")
    sweep.rename(tmp_path / "new")
    assert resume(tmp_path / "new", "--steps", 45) == 0
    there, whole = tables(tmp_path / "new"), tables(tmp_path / "whole")
    assert there.pop("my best run") == whole.pop(folder_of(tmp_path / "whole", 0).name)
    assert there == whole


# --- Damaged folders. -----------------------------------------------------------------------------

DAMAGE = {
    "cut": ("checkpoint.pt", lambda data: data[: len(data) // 2]),
    "empty": ("checkpoint.pt", lambda data: b""),
    "garbage": ("checkpoint.pt", lambda data: b"\x80\x04garbage" * 99),
    "a list": ("config.json", lambda data: b"[1]"),
    "half": ("config.json", lambda data: data[:40]),
    "bytes": ("config.json", lambda data: b"\xff\xfe"),
    "nothing": ("config.json", lambda data: b""),
    "no method": ("config.json", lambda data: data.replace(b'"method"', b'"how"')),
    "no settings": ("config.json", lambda data: b'{"runs": 3}'),
    "unknown": ("config.json", lambda data: data.replace(b'"layers"', b'"levels"')),
    "no such p": ("config.json", lambda data: data.replace(b'"p": 11', b'"p": 1')),
    "other": ("config.json", lambda data: data.replace(b'_size": 16', b'_size": 17')),
}


def refused_and_left_alone(folder, capsys, *words):
    """Whether --resume of a folder ends in one line that names it, and changes nothing."""
    before = files(folder)
    capsys.readouterr()
    status = resume(folder, *words)
    out, error = capsys.readouterr()
    assert status == 2
    assert one_line(error)
    assert str(folder) in error
    assert out == ""
    assert files(folder) == before


@pytest.mark.parametrize("steps", [30, 60])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_gets_one_line_and_is_left_alone(sweep, capsys, damage, steps):
    name, change = DAMAGE[damage]
    file = folder_of(sweep, 0) / name
    intact = file.read_bytes()
    file.write_bytes(change(intact))
    assert file.read_bytes() != intact
    refused_and_left_alone(file.parent, capsys, "--steps", steps)


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
def test_a_folder_without_one_of_its_files_gets_one_line_and_is_left_alone(sweep, capsys, name):
    folder = folder_of(sweep, 0)
    (folder / name).unlink()
    refused_and_left_alone(folder, capsys, "--steps", 60)


def test_a_checkpoint_of_another_program_gets_one_line_and_is_left_alone(sweep, capsys):
    folder = folder_of(sweep, 0)
    torch.save({"state_dict": {"w": torch.zeros(3)}}, folder / "checkpoint.pt")
    refused_and_left_alone(folder, capsys, "--steps", 60)


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(sweep):
    folder = folder_of(sweep, 0)
    file, dice, refused = folder / "checkpoint.pt", random.Random(0), 0
    run, intact = grok.load(folder), file.read_bytes()
    for _ in range(100):
        data = bytearray(intact)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        file.write_bytes(data)
        try:
            again = grok.load(folder)
        except UsageError:
            refused += 1
        else:
            assert again.log == run.log
            assert same(again.model.state_dict(), run.model.state_dict())
            assert same_state(again.optimizer, run.optimizer)
    assert refused > 30


def same_state(one, other):
    states = zip(one.state.values(), other.state.values(), strict=True)
    return all(same(a, b) for a, b in states)


@pytest.mark.parametrize("way", ["train", "--out", "--resume", "read", "load"])
def test_a_run_whose_checkpoint_is_gone_is_refused(sweep, capsys, way):
    (folder_of(sweep, 0) / "checkpoint.pt").unlink()
    assert "checkpoint.pt" in refusal(way, sweep, capsys)


# --- Reading what is recorded. --------------------------------------------------------------------


def test_read_gives_every_run_of_a_sweep(trained):
    runs = grok.read(trained)
    assert sorted(run.config.seed for run in runs) == [0, 1]
    for run in runs:
        alone = train(seed=run.config.seed)
        assert [row["val_loss"] for row in run.log] == [row["val_loss"] for row in alone.log]
        assert run.folder == folder_of(trained, run.config.seed)


def test_read_gives_the_run_of_a_run_s_folder(trained):
    (run,) = grok.read(folder_of(trained, 1))
    assert run.config.seed == 1


def test_read_gives_what_train_gave(tmp_path):
    run = train(out=tmp_path)
    (again,) = grok.read(tmp_path)
    assert vars(again.config) == asdict(run.config)
    assert again.log == run.log
    assert again.folder == run.folder == tmp_path
    assert (again.step, again.best(), again.reached()) == (30, run.best(), run.reached())
    assert again.seconds == pytest.approx(run.seconds)


def test_read_picks_the_runs_of_given_settings(tmp_path):
    assert call(out=tmp_path, seed=[0, 1], lr=[0.001, 0.01], steps=2) == 0
    assert [run.config.lr for run in grok.read(tmp_path, seed=1, lr=0.01)] == [0.01]
    assert len(grok.read(tmp_path, seed=1)) == 2
    assert grok.read(tmp_path, seed=7) == []


def test_read_picks_the_runs_of_a_setting_of_several_numbers(tmp_path):
    config = Inertia(**TINY, sizes=(5, 6))
    grok.train(config, out=tmp_path, quiet=True)
    (run,) = grok.read(tmp_path, sizes=(5, 6))
    assert run.config.sizes == (5, 6)


def test_read_refuses_a_setting_that_no_run_has(trained):
    with pytest.raises(UsageError, match="sede"):
        grok.read(trained, seed=9, sede=0)


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_read_refuses_a_folder_without_runs(tmp_path, folder):
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / folder))):
        grok.read(tmp_path / folder)


def test_a_run_that_has_not_begun_is_read_at_update_0(tmp_path, monkeypatch):
    before_each_update(monkeypatch, interrupt)
    assert call(out=tmp_path, seed=[0, 1]) == 130
    runs = grok.read(tmp_path)
    assert [(run.config.seed, run.step, run.log) for run in runs] == [(0, 0, []), (1, 0, [])]


def test_read_builds_nothing(trained, monkeypatch):
    monkeypatch.setattr(grok.Run, "__init__", None)
    monkeypatch.setattr(grok, "equations", None)
    assert len(grok.read(trained)) == 2


def test_read_needs_no_operation_of_that_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(grok.OPS, "mine", sum_of(2))
        train(out=tmp_path, op="mine")
    assert grok.read(tmp_path)[0].config.op == "mine"


def test_a_loaded_model_has_the_accuracy_and_loss_of_the_last_row(tmp_path):
    train(out=tmp_path, dropout=0.3, outliers=5, layers=2)
    run = grok.load(tmp_path)
    with torch.inference_mode():
        logits = run.model(*(t[run.val_rows] for t in run.inputs))
    answers = run.labels[run.val_rows]
    right = (logits.argmax(1) == answers).double().mean().item()
    assert right == pytest.approx(run.log[-1]["val_acc"], abs=1e-6)
    loss = nn.functional.cross_entropy(logits, answers).item()
    assert loss == pytest.approx(run.log[-1]["val_loss"], rel=1e-5)
    assert run.folder == tmp_path


def test_a_loaded_model_is_in_evaluation_mode(tmp_path):
    assert not any(m.training for m in train(out=tmp_path, dropout=0.3).model.modules())
    assert not any(m.training for m in grok.load(tmp_path).model.modules())


def test_a_model_is_loaded_whatever_the_caller_s_mode(trained):
    folder = folder_of(trained, 0)
    with torch.inference_mode():
        inside = grok.load(folder)
    assert same(inside.model.state_dict(), weights(folder))
    inside.model(*inside.inputs).sum().backward()  # can be trained outside


def test_a_loaded_run_goes_on_as_it_would_have(tmp_path):
    whole = train(steps=40, until=0)
    train(out=tmp_path, until=0)
    run = grok.load(tmp_path, steps=40)
    for _ in range(10):
        run.advance()
    assert [row["val_loss"] for row in run.log] == [row["val_loss"] for row in whole.log]


def test_a_loaded_run_has_all_rows_that_are_read(tmp_path):
    with interrupted_after(12, grok.Run):
        assert call(out=tmp_path, steps=60) == 130
    assert resume(tmp_path, "--steps", 33) == 0
    (run,) = grok.read(tmp_path)
    assert run.log[-1]["step"] == 33
    assert grok.load(run.folder).log == run.log


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_folder_of_a_gpu_is_loaded_and_resumed_without_one(sweep, capsys):
    folder = folder_of(sweep, 0)
    before, text = weights(folder), (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
    assert grok.read(folder)[0].config.device == "cuda"
    assert same(weights(folder, device="cpu"), before)
    with pytest.raises(UsageError, match="--device cuda: there is none here"):
        grok.load(folder)
    assert resume(folder, "--steps", 40) == 2
    assert "--device cuda: there is none here" in capsys.readouterr().err
    assert resume(folder, "--steps", 40, "--device", "cpu") == 0


def test_load_refuses_another_method(tmp_path):
    train(out=tmp_path, method=Heavy)
    with pytest.raises(UsageError, match="Heavy"):
        grok.load(tmp_path)


def test_load_gives_what_a_study_keeps(tmp_path):
    run = train(out=tmp_path, method=Heavy)
    assert same(grok.load(tmp_path, method=Heavy).past, run.past)


# --- A sweep. -------------------------------------------------------------------------------------


def test_all_runs_are_laid_out_before_the_first_is_trained(tmp_path, monkeypatch):
    def look(run):
        there = [about(folder)["settings"] for folder in tmp_path.iterdir()]
        assert sorted(one["seed"] for one in there) == [0, 1, 2]
        interrupt(run)

    before_each_update(monkeypatch, look)
    assert call(out=tmp_path, seed=[0, 1, 2]) == 130


def test_killed_in_its_first_second_a_sweep_resumes_whole(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before_each_update(patch, lambda run: time.sleep(60))
        process = started(*flags(out=tmp_path / "cut", seed=[0, 1, 2]), "--jobs", 1)
        wait_until(lambda: list(tmp_path.glob("cut/*/checkpoint.pt")))
        process.kill()
        assert ended(process) == -signal.SIGKILL
    assert resume(tmp_path / "cut") == 0
    assert call(out=tmp_path / "whole", seed=[0, 1, 2]) == 0
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")


def names(out, monkeypatch, **changes):
    """The names of the folders that a command makes."""
    with monkeypatch.context() as patch:
        before_each_update(patch, interrupt)
        assert call(out=out, **changes) == 130
    return {path.name for path in out.iterdir()}


def test_a_run_s_name_holds_operation_fraction_seed_and_a_digest(tmp_path, monkeypatch):
    (name,) = names(tmp_path, monkeypatch, op="x_mul_y", frac=0.25, seed=7)
    assert re.fullmatch(r"x_mul_y-0\.25-seed7-[0-9a-f]{10}", name)


def test_the_same_run_has_the_same_name_whoever_starts_it(tmp_path, monkeypatch):
    several = dict(op=["x_plus_y", "s5_xy"], seed=[1, 0])
    free = dict(steps=9, until=0.5, expect=0.1, threads=2)
    made = names(tmp_path / "a", monkeypatch, p=97, **several)
    assert names(tmp_path / "b", monkeypatch, p=97, seed=1, **free) < made
    monkeypatch.setattr(sys, "argv", ["elsewhere.py"])
    of_s5 = {name for name in names(tmp_path / "c", monkeypatch, **several) if "s5" in name}
    assert len(of_s5) == 2
    assert of_s5 < made  # whose p is that of others


def test_another_fixed_setting_is_another_name(tmp_path, monkeypatch):
    changes = [{}, dict(lr=0.5), dict(eval_every=11), dict(frac=0.5000001), dict(layers=2)]
    made = [names(tmp_path / str(i), monkeypatch, **c) for i, c in enumerate(changes)]
    assert len(set.union(*made)) == len(changes)


def test_a_method_never_takes_its_baseline_s_folder(tmp_path):
    assert call(out=tmp_path) == 0
    before = files(tmp_path)
    assert call(out=tmp_path, method=PlainSGD) == 0
    assert len(grok.read(tmp_path)) == 2
    assert before.items() <= files(tmp_path).items()


def test_more_seeds_join_a_sweep_and_what_is_finished_is_not_trained_again(sweep, monkeypatch):
    seeds = collections.Counter()
    before_each_update(monkeypatch, lambda run: seeds.update([run.config.seed]))
    assert call(out=sweep, seed=[0, 1, 2]) == 0
    assert seeds == {2: 30}
    assert [run.step for run in grok.read(sweep)] == [30, 30, 30]


def test_a_command_trains_the_runs_that_it_names(tmp_path, monkeypatch):
    names(tmp_path, monkeypatch, seed=[0, 1, 2])
    assert call(out=tmp_path, seed=[1]) == 0
    assert [run.step for run in grok.read(tmp_path)] == [0, 30, 0]


def test_workers_share_a_sweep_and_train_each_run_once(tmp_path, monkeypatch):
    sweep, updates = dict(seed=[0, 1, 2, 3, 4, 5]), tmp_path / "updates"

    def note(run):
        with open(updates, "a") as file:
            file.write(f"{run.config.seed} {run.step} {os.getpid()}\n")

    assert call(out=tmp_path / "whole", **sweep) == 0
    with monkeypatch.context() as patch:
        before_each_update(patch, note)
        workers = [started(*flags(out=tmp_path / "shared", **sweep), "--jobs", 1) for _ in range(3)]
        assert [ended(worker) for worker in workers] == [0, 0, 0]
    done = [line.split() for line in updates.read_text().splitlines()]
    whose = collections.Counter((seed, pid) for seed, _, pid in done)
    assert sorted(whose.values()) == [30] * 6
    assert len({seed for seed, _ in whose}) == 6
    assert len({pid for _, pid in whose}) > 1
    assert tables(tmp_path / "shared") == tables(tmp_path / "whole")


def test_the_run_of_a_killed_worker_is_taken_by_another(tmp_path, monkeypatch):
    sweep, shared = dict(seed=[0, 1]), tmp_path / "shared"
    with monkeypatch.context() as patch:
        before_each_update(patch, lambda run: run.step == 15 and time.sleep(60))
        first = started(*flags(out=shared, **sweep), "--jobs", 1)
        wait_until(lambda: rows_of(shared) == 4)
    second = started(*flags(out=shared, **sweep), "--jobs", 1)
    wait_until(lambda: grok.read(folder_of(shared, 1))[0].finished())
    time.sleep(0.2)
    assert second.is_alive()  # and waits for the first
    first.kill()
    assert ended(first) == -signal.SIGKILL
    assert ended(second) == 0
    assert call(out=tmp_path / "whole", **sweep) == 0
    assert tables(shared) == tables(tmp_path / "whole")


def test_a_locked_run_is_waited_for(tmp_path, monkeypatch):
    names(tmp_path, monkeypatch, seed=[0, 1])
    locked = folder_of(tmp_path, 0)
    before = files(locked)
    with held(locked):
        process = started(*flags(out=tmp_path, seed=[0, 1]), "--jobs", 1)
        wait_until(lambda: grok.read(folder_of(tmp_path, 1))[0].finished())
        assert process.is_alive()
        assert files(locked) == before
    assert ended(process) == 0
    assert [run.step for run in grok.read(tmp_path)] == [30, 30]


def test_a_finished_run_is_read_without_its_lock(sweep):
    with held(folder_of(sweep, 0)):
        assert len(grok.read(sweep)) == 2
        assert ended(started(*flags(out=sweep, seed=[0, 1]), "--jobs", 1)) == 0
        assert ended(started("--resume", sweep, "--expect", 1e-9, "--jobs", 1)) == 0


def test_a_run_in_other_hands_is_read_without_its_lock(tmp_path):
    with interrupted_after(25, grok.Run):
        assert call(out=tmp_path) == 130
    with held(folder_of(tmp_path, 0)):
        (run,) = grok.read(tmp_path)
        assert [row["step"] for row in run.log] == [1, 2, 5, 10, 20]
        assert grok.load(run.folder).step == run.step == 25


def test_train_on_a_locked_folder_says_that_it_is_busy(sweep):
    before, folder = files(sweep), folder_of(sweep, 0)
    with held(folder), pytest.raises(grok.Busy, match=str(folder)):
        train(out=folder, steps=60)
    assert issubclass(grok.Busy, UsageError)
    assert files(sweep) == before


@pytest.mark.parametrize("number", ["ENOLCK", "ENOSYS", "ENOTSUP"])
def test_where_no_lock_can_be_had_training_goes_on_and_says_so_once(
    tmp_path, capsys, monkeypatch, number
):
    def flock(file, how):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert call(out=tmp_path, seed=[0, 1], steps=5) == 0
    error = capsys.readouterr().err
    assert one_line(error)
    assert "lock" in error
    assert [run.step for run in grok.read(tmp_path)] == [5, 5]


def test_where_there_is_no_fcntl_training_goes_on_and_says_so_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert call(out=tmp_path, seed=[0, 1], steps=5) == 0
    error = capsys.readouterr().err
    assert one_line(error)
    assert "lock" in error
    assert [run.step for run in grok.read(tmp_path)] == [5, 5]


def test_expect_is_judged_over_all_runs(tmp_path, capsys):
    assert call(out=tmp_path, seed=[0, 1, 2], until=0) == 0
    low, middle, high = sorted(run.best() for run in grok.read(tmp_path))
    assert low < middle
    for expect, missed in (low, 0), (middle, 1), (high + 0.01, 3):
        status = min(1, missed)
        assert call(out=tmp_path, seed=[0, 1, 2], until=0, expect=expect) == status
        assert resume(tmp_path, "--until", 0, "--expect", expect) == status
        error = capsys.readouterr().err
        assert error.count("\n") == 2 * status
        said = f"--expect {expect}: missed in {missed} of 3 runs; see {tmp_path}\n"
        assert error.count(said) == 2 * status


def test_the_runs_beside_a_damaged_one_are_trained(sweep, capsys):
    damaged = folder_of(sweep, 1)
    (damaged / "checkpoint.pt").write_bytes(b"damaged")
    assert call(out=sweep, seed=[0, 1, 2], steps=40) == 2
    error = capsys.readouterr().err
    assert one_line(error)
    assert str(damaged) in error
    assert [grok.read(folder_of(sweep, seed))[0].step for seed in (0, 2)] == [40, 40]


def test_the_runs_beside_one_with_an_error_in_a_study_are_trained(tmp_path, capsys):
    assert call(out=tmp_path, seed=[0, 1, 2], method=Fragile) == 3
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "RuntimeError: a mistake in the study\n" in error
    assert error.splitlines()[-1].startswith(f"grok.py: {folder_of(tmp_path, 1)}: ")
    assert [grok.read(folder_of(tmp_path, seed))[0].step for seed in (0, 2)] == [30, 30]
    assert grok.load(folder_of(tmp_path, 1), method=Fragile).step < 15


def test_a_file_that_a_study_misses_is_told_with_its_traceback(tmp_path, capsys):
    class Missing(grok.Run):
        def on_after_backward(self):
            if self.step == 15:  # after the rehearsal
                Path("no such file").read_text()

    assert call(out=tmp_path, method=Missing) == 3
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "no such file" in error


def test_the_status_of_a_failed_run_comes_before_that_of_a_missed_one(sweep, tmp_path):
    (folder_of(sweep, 1) / "checkpoint.pt").write_bytes(b"damaged")
    assert call(out=sweep, seed=[0, 1], expect=0.99) == 2
    assert call(out=tmp_path / "b", seed=[0, 1], steps=20, method=Fragile, expect=0.99) == 3


# --- Several processes. ---------------------------------------------------------------------------


def call_two(**changes):
    """As `call`, by two worker processes."""
    return grok.main([*flags(**changes), "--jobs", "2", "--quiet"])


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """A sweep of two operations by two processes, one of them redefined here, and by one."""
    out, handlers = tmp_path_factory.mktemp("by_two"), signal_handlers()
    given = dict(op=["x_plus_y", "x_mul_y"], seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grok.OPS, "x_mul_y", sum_of(3))
        assert call_two(out=out / "two", **given) == 0
        assert call(out=out / "one", **given) == 0
    assert handlers == signal_handlers()
    return out


def signal_handlers():
    return [signal.getsignal(number) for number in signal.valid_signals()]


def test_two_jobs_give_the_rows_of_one(by_two):
    for folder in by_two.glob("one/x_plus_y-*"):
        assert table(folder) == table(by_two / "two" / folder.name) != []
    assert len(tables(by_two / "two")) == 2


def test_two_jobs_train_an_operation_as_it_is_defined_here(by_two):
    for folder in by_two.glob("one/x_mul_y-*"):
        assert table(folder) == table(by_two / "two" / folder.name) != []


def test_a_sweep_is_finished_though_a_worker_is_killed(tmp_path):
    given, statuses = dict(seed=[0, 1], steps=100, until=0), []
    done = lambda: statuses.append(call_two(out=tmp_path / "two", **given))  # noqa: E731
    thread = threading.Thread(target=done)
    thread.start()
    wait_until(lambda: rows_of(tmp_path / "two") > 0)
    first, second = multiprocessing.active_children()
    first.kill()
    thread.join()
    assert statuses == [0]
    assert call(out=tmp_path / "one", **given) == 0
    assert tables(tmp_path / "two") == tables(tmp_path / "one")


def test_finished_runs_need_no_workers(tmp_path, monkeypatch):
    assert call(out=tmp_path, seed=[0, 1]) == 0
    kind = multiprocessing.get_context("spawn").Process
    monkeypatch.setattr(kind, "start", lambda process: pytest.fail("a worker was started"))
    assert grok.main(["--resume", str(tmp_path), "--jobs", "2", "--quiet"]) == 0


def local_method():
    class Local(PlainSGD):
        pass

    return Local


def test_a_method_that_workers_cannot_import_is_trained_without_them(tmp_path, capfd):
    words = [*flags(out=tmp_path, seed=[0, 1]), "--jobs", 2]
    assert ended(started(*words, method=local_method())) == 0
    assert capfd.readouterr().err == ""
    assert [run.step for run in grok.read(tmp_path)] == [30, 30]


@pytest.mark.parametrize(("threads", "jobs"), [(0, 4), (1, 4), (2, 2), (3, 1)])
def test_by_default_all_jobs_together_have_a_thread_a_core(tmp_path, monkeypatch, threads, jobs):
    sweeps = []

    class Sweep(grok.Sweep):
        def employ(self):
            sweeps.append(self)

    monkeypatch.setattr(grok, "Sweep", Sweep)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    given = dict(out=tmp_path, seed=[0, 1, 2, 3], steps=1, threads=threads)
    assert grok.main([*flags(**given), "--quiet"]) == 0
    assert max([sweep.jobs for sweep in sweeps], default=1) == jobs


def test_workers_that_cannot_start_leave_ctrl_c_as_it_was(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    words = [*flags(out=tmp_path, seed=[0, 1]), "--quiet", "--jobs", "2"]
    grok.main(words, method=local_method())
    assert signal.signal(signal.SIGINT, before) == before


def workers_of(pid):
    """The worker processes that a process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    paths = [Path(f"/proc/{child}") for child in children]
    return [path for path in paths if b"spawn_main" in path.joinpath("cmdline").read_bytes()]


def alive(process):
    with contextlib.suppress(OSError):
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_ctrl_c_leaves_no_worker_and_says_one_line(tmp_path, capfd):
    words = [*flags(out=tmp_path, seed=[0, 1, 2], steps=10**6, until=0), "--jobs", 2]
    process = started(*words, prepare=os.setsid)
    wait_until(lambda: len([*tmp_path.glob("*/metrics.csv")]) == 2)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert ended(process) == 130
    wait_until(lambda: not any(map(alive, workers)))
    assert len(workers) == 2
    assert one_line(capfd.readouterr().err)


def test_a_terminated_sweep_leaves_no_worker(tmp_path):
    process = started(*flags(out=tmp_path, seed=[0, 1], steps=10**6, until=0), "--jobs", 2)
    wait_until(lambda: len(workers_of(process.pid)) == 2)
    workers = workers_of(process.pid)
    process.terminate()
    assert ended(process) == -signal.SIGTERM
    wait_until(lambda: not any(map(alive, workers)))


# --- Ctrl-C, and how to go on. --------------------------------------------------------------------


def test_ctrl_c_ends_with_a_line_that_goes_on_as_it_is_typed(tmp_path, capfd):
    given = dict(seed=[0, 1], steps=200, until=0)
    process = started(*flags(out=tmp_path / "a folder", **given), "--jobs", "1", typed=True)
    wait_until(lambda: rows_of(tmp_path / "a folder") > 5)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    error = capfd.readouterr().err
    assert one_line(error)
    line = shlex.split(error.partition("go on with: ")[2])
    subprocess.run(line, check=True, capture_output=True)
    assert call(out=tmp_path / "whole", **given) == 0
    assert tables(tmp_path / "a folder") == tables(tmp_path / "whole")


def test_a_run_that_was_cut_beyond_its_steps_ends_with_a_row_of_its_own(tmp_path):
    train(tmp_path, until=0.0)
    longer = grok.Run(settings(until=0.0, steps=60))
    for _ in range(33):
        longer.advance()
    grok.write(tmp_path / "checkpoint.pt", grok.pack(longer))
    assert train(tmp_path, until=0.0).log[-1]["step"] == 33


class Rising(grok.Run):
    """As if each update taught one answer in a hundred."""

    def measure(self, model):
        return super().measure(model) | dict(val_acc=torch.tensor(self.step / 100))


def test_a_last_row_that_had_arrived_does_not_end_a_longer_run(tmp_path):
    train(tmp_path, method=Rising, steps=33, until=0.0)
    assert resume(tmp_path, "--steps", 60, "--until", 0.33, method=Rising) == 0
    assert [row["step"] for row in grok.read(tmp_path)[0].log] == [1, 2, 5, 10, 20, 30, 40]


def test_a_run_with_more_elements_than_a_modulus_may_be_is_read_again(tmp_path, monkeypatch):
    large = grok.Op("x", lambda x, y, p: x, n=5000, y_from=4998)
    monkeypatch.setitem(grok.OPS, "large", large)
    run = train(tmp_path, op="large", p=97, steps=1)
    assert grok.load(tmp_path).config == run.config


def test_an_operation_may_work_in_place(monkeypatch):
    def add(x, y, p):
        x += y
        x %= p
        return x

    monkeypatch.setitem(grok.OPS, "add", grok.Op("x + y mod p", add))
    for mine, plain in zip(grok.equations("add", 11), grok.equations("x_plus_y", 11), strict=True):
        assert (mine == plain).all()


class Interrupted(grok.Run):
    """As if Ctrl-C came while it is rehearsed."""

    def build_model(self):
        raise KeyboardInterrupt


def test_ctrl_c_before_the_first_run_names_no_folder_to_go_on_with(tmp_path, capsys):
    assert grok.main([*flags(out=tmp_path)], method=Interrupted) == 130
    assert capsys.readouterr().err == "grok.py: stopped before the first run\n"


def stopped(capsys, monkeypatch, argv, *given):
    """What is said of how to go on, where Ctrl-C comes at the first update."""
    monkeypatch.setattr(sys, "argv", argv)
    with monkeypatch.context() as patch:
        before_each_update(patch, interrupt)
        assert grok.main(*given) == 130
    error = capsys.readouterr().err
    assert one_line(error)
    return error.strip().partition("go on with: ")[2]


def test_the_line_to_go_on_with_names_this_interpreter(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    argv = ["study 1.py", *flags(out=tmp_path), "--quiet"]
    line = shlex.split(stopped(capsys, monkeypatch, argv))
    assert line[:3] == [sys.executable, "study 1.py", "--resume"]


def test_the_line_to_go_on_with_names_uv_if_that_started_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    argv = ["grok.py", *flags(out=tmp_path), "--quiet"]
    line = shlex.split(stopped(capsys, monkeypatch, argv))
    assert line[:4] == ["uv", "run", "grok.py", "--resume"]


def test_the_line_to_go_on_with_calls_main_if_that_was_called(tmp_path, capsys, monkeypatch):
    words = [*flags(out=tmp_path, seed=[0, 1]), "--quiet", "--jobs", "1"]
    line = stopped(capsys, monkeypatch, ["ipython"], words)
    assert re.fullmatch(r"main\(\[.*\]\)", line)
    assert eval(f"grok.{line}") == 0
    assert [run.step for run in grok.read(tmp_path)] == [30, 30]


def test_main_that_was_called_without_flags_is_to_be_called_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stopped(capsys, monkeypatch, ["ipython"], []).startswith("main(['--resume', 'runs/")


GIVEN = ["--out sweep", "--resume sweep", "--resume=sweep", "a new folder"]


@pytest.mark.parametrize("way", GIVEN)
def test_the_line_to_go_on_with_goes_as_far_as_was_asked(sweep, tmp_path, capsys, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    given = ["--steps", "40", "--quiet", "--jobs", "1"]
    if "--resume" not in way:
        given = [*flags(steps=40, seed=[0, 1]), "--quiet", "--jobs", "1"]
    if "sweep" in way:
        given += way.split()
    line = stopped(capsys, monkeypatch, ["grok.py", *given])
    monkeypatch.setattr(sys, "argv", shlex.split(line)[1:])
    assert grok.main() == 0
    folder = sweep if "sweep" in way else next(Path("runs").iterdir())
    assert [run.step for run in grok.read(folder)] == [40, 40]


def test_ctrl_c_keeps_what_its_checkpoint_holds(tmp_path):
    with interrupted_after(17, grok.Run):
        assert call(out=tmp_path) == 130
    assert [row["step"] for row in grok.read(tmp_path)[0].log] == [1, 2, 5, 10]


# --- The command line. ----------------------------------------------------------------------------

MISTAKES = [
    ("--p 96", "--p 96: x_div_y needs a prime modulus (nearest: "),
    ("--p 1", "--p 1: must be a whole number in [2, 4096]"),
    ("--p 9.5", "--p 9.5: must be a whole number"),
    ("--p seven", "--p seven: must be a whole number"),
    ("--op s5_xy --p 31", "--p 31: s5_xy has no modulus"),
    ("--op x_dvi_y", "--op x_dvi_y: must be one of x_plus_y, "),
    ("--op", "--op: expected at least one argument"),
    ("--frac 0", "--frac 0: must be a number in (0, 1)"),
    ("--frac nan", "--frac nan: must be a number in (0, 1)"),
    ("--frac 1e-9", "--frac 1e-09: must be some of 9312 equations, is 0"),
    ("--frac 0.99999", "--frac 0.99999: must be some of 9312 equations, is 9312"),
    ("--frac 0.5 0.3 0.50", "--frac 0.5 0.3 0.50: some run is given twice"),
    ("--seed 1 --seed 1", "--seed 1 1: some run is given twice"),
    ("--seed -1", "--seed -1: must be a whole number in [0, inf)"),
    ("--seed 0,1,2", "--seed 0,1,2: must be a whole number in [0, inf)"),
    ("--seed \n", "--seed \\n: must be"),
    ("--outliers 5000", "--outliers 5000: only 4656 training answers"),
    ("--layers 0", "--layers 0: must be a whole number in [1, 1024]"),
    ("--heads 5", "--heads 5: must divide --width 128"),
    ("--dropout 1", "--dropout 1: must be a number in [0, 1)"),
    ("--lr inf", "--lr inf: must be a number in (0, inf)"),
    ("--lr=-1e-3", "--lr -1e-3: must be a number in (0, inf)"),
    ("--decay-to zero", "--decay-to zero: must be one of origin, init, identity"),
    ("--steps 0", "--steps 0: must be a whole number in [1, inf)"),
    ("--until 1.1", "--until 1.1: must be a number in [0, 1]"),
    ("--expect 2", "--expect 2: must be a number in [0, 1]"),
    ("--recipe slow", "--recipe: invalid choice: 'slow'"),
    ("--device tpu", "--device tpu: must be one of auto, cpu, cuda, mps"),
    ("--threads -1", "--threads -1: must be"),
    ("--eval-every 0", "--eval-every 0: must be"),
    ("--jobs 0", "--jobs 0: must be a whole number in [1, inf)"),
    ("--jobs -3", "--jobs -3: must be a whole number in [1, inf)"),
    ("--jobs two", "--jobs: invalid int value: 'two'"),
    ("--step 5", "unrecognized arguments: --step 5"),
    ("--stack 5", "unrecognized arguments: --stack 5"),
    ("--foo\nbar 5", "--foo\\nbar"),
    ("5", "unrecognized arguments: 5"),
    ("--out FILE", "FILE"),
    ("--out FILE/run", "FILE/run"),
    ("--out " + 300 * "x", "File name too long"),
    ("--resume nowhere", "nowhere: holds no runs"),
    ("--resume FILE", "FILE: holds no runs"),
    ("--resume .", ".: holds no runs"),
    ("--resume " + 300 * "x", "xxx"),
    ("--resume", "--resume: expected one argument"),
    ("--list-ops --p 96", "--p 96: x_div_y needs a prime modulus"),
]


@pytest.mark.parametrize("line, message", MISTAKES)
def test_a_mistake_gets_one_line_and_status_2(line, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    assert grok.main(line.split(" ")) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert one_line(error)
    assert out == "" or "--list-ops" in line
    assert os.listdir() == ["FILE"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_gets_one_line_and_nothing_is_written(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert grok.main(["--device", "cuda"]) == 2
    assert one_line(capsys.readouterr().err)
    assert os.listdir() == []


def test_a_file_where_the_default_folder_should_be_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("")
    assert grok.main(flags()) == 2
    error = capsys.readouterr().err
    assert one_line(error)
    assert "runs" in error
    assert "None" not in error


def test_list_ops_names_formula_domain_and_size(capsys):
    assert grok.main(["--list-ops", "--p", "13"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(grok.OPS)
    assert re.search(r" x / y mod p +0 ≤ x < 13, 1 ≤ y < 13: 156$", lines[3])
    assert lines[-1].endswith("14,400")


def test_help_names_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        grok.main(["--help"])
    assert end.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out.partition("options:")[2])
    for f in fields(Config):
        name = "--" + f.name.replace("_", "-")
        entry = re.search(rf"{name} [A-Z] \[[^\[]*\[([^\]]*)\]", text)
        assert entry, name
        assert entry[1].split(";")[0] == str(f.default)


def test_help_says_what_the_fast_recipe_changes(capsys):
    with pytest.raises(SystemExit):
        grok.main(["--help"])
    assert "[0.001; fast: 0.006]" in capsys.readouterr().out


def test_version_is_said(capsys):
    with pytest.raises(SystemExit) as end:
        grok.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"grok.py {grok.__version__}\n"


def test_a_study_s_tuples_and_switches_are_given_on_the_command_line(tmp_path):
    given = dict(sizes=["4,8,16", "2"], flip=["true", "False"], steps=5)
    assert call(out=tmp_path, config=Inertia, method=PlainSGD, **given) == 0
    made = {(tuple(run.config.sizes), run.config.flip) for run in grok.read(tmp_path)}
    assert made == set(itertools.product([(4, 8, 16), (2,)], [True, False]))
    assert resume(tmp_path, "--steps", 6, config=Inertia, method=PlainSGD) == 0
    assert {run.step for run in grok.read(tmp_path)} == {6}


def test_the_default_folder_is_new_in_the_same_second_and_process_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    monkeypatch.setattr(os, "getpid", lambda: 7)
    for _ in range(3):
        assert grok.main([*flags(steps=5), "--quiet", "--jobs", "1"]) == 0
    folders = list(Path("runs").iterdir())
    assert [len(grok.read(folder)) for folder in folders] == [1, 1, 1]


# --- What is said. --------------------------------------------------------------------------------


def test_quiet_prints_nothing(sweep, capsys):
    assert call(out=sweep, seed=[0, 1, 2]) == 0
    assert resume(folder_of(sweep, 0), "--steps", 33) == 0
    train()
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_no_flood(capsys, monkeypatch):
    monkeypatch.setattr(grok.Run, "update", lambda run, rows: None)
    grok.train(settings(steps=1000, until=0, eval_every=5))
    lines = capsys.readouterr().out.splitlines()
    assert 12 < len(lines) < 40
    assert "\r" not in "".join(lines)
    assert any(line.startswith("update   1,000") for line in lines)


def hurried(monkeypatch):
    """Has ten seconds pass whenever somebody looks at the clock."""
    ticks = itertools.count(0, 10)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))


def test_a_line_tells_when_a_run_of_a_sweep_ends(tmp_path, capsys, monkeypatch):
    hurried(monkeypatch)
    seeds = [f"seed {seed}" for seed in range(4)]
    assert grok.main([*flags(out=tmp_path, seed=[0, 1, 2, 3], steps=12), "--jobs", "1"]) == 0
    told, _, summary = capsys.readouterr().out.partition("train 99 %")
    assert [told.count(seed) for seed in seeds[:-1]] == [1, 1, 1]
    assert [summary.count(seed) for seed in seeds] == [1, 1, 1, 1]


def test_the_summary_ends_with_the_folder(tmp_path, capsys):
    assert grok.main([*flags(out=tmp_path), "--jobs", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path)


def test_the_summary_has_the_numbers_of_the_metrics(tmp_path, capsys):
    words = flags(out=tmp_path, steps=100)
    assert grok.main([*words, "--jobs", "1"], method=Scripted) == 0
    (run,) = grok.read(tmp_path)
    line = capsys.readouterr().out.splitlines()[-2]
    assert line.split()[:-1] == ["x_plus_y", "5", "100", "1.0000", "100", f"{run.seconds:.1f}"]


def test_the_summary_draws_what_was_known_at_log_spaced_updates(tmp_path, capsys):
    words = flags(out=tmp_path, steps=100)
    assert grok.main([*words, "--jobs", "1"], method=Scripted) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert line.split()[-1] == "▁" * 20 + "▅" * 19 + "█"


def test_the_summary_says_never_of_what_was_not_reached(capsys):
    grok.train(settings())
    assert capsys.readouterr().out.splitlines()[-1].split()[1:3] == ["never", "never"]


def test_a_diverged_run_is_said_to_be_that_and_again_on_resume(tmp_path, capsys):
    words = flags(out=tmp_path, lr=[1e30, 1e-3])
    for command in words, ["--resume", str(tmp_path), "--steps", "40"]:
        assert grok.main([*command, "--jobs", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()[-3:-1]
        assert [line.endswith(" diverged") for line in lines] == ["1e+30" in line for line in lines]
        assert sum("1e+30" in line for line in lines) == 1
    assert sorted(run.diverged for run in grok.read(tmp_path)) == [False, True]


class Bare:
    """A standard output that can only write."""

    def write(self, text):
        return len(text)


class Flushed(Bare):
    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def unread():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


OUTPUTS = {
    "write": Bare,
    "write and flush": Flushed,
    "none": lambda: None,
    "closed": closed,
    "full": lambda: os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"),
    "unread": unread,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "cp1252": lambda: io.TextIOWrapper(io.BytesIO(), encoding="cp1252"),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_whatever_standard_output_is_the_run_goes_on(tmp_path, capsys, monkeypatch, output):
    monkeypatch.setattr(sys, "stdout", OUTPUTS[output]())
    assert grok.main([*flags(out=tmp_path / "run"), "--jobs", "1"]) == 0
    assert grok.main(["--list-ops"]) == 0
    grok.train(settings())
    with pytest.raises(SystemExit):
        grok.main(["--help"])
    assert call(out=tmp_path / "quiet") == 0
    monkeypatch.undo()
    assert tables(tmp_path / "run") == tables(tmp_path / "quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shell", ["grok --help | true", "grok --list-ops >/dev/full"])
def test_a_program_that_nobody_reads_ends_well(shell):
    line = shell.replace("grok", shlex.join([sys.executable, str(GROK)]))
    env = os.environ | dict(PYTHONIOENCODING="ascii")
    command = ["bash", "-c", f"set -o pipefail; {line}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")


@contextlib.contextmanager
def terminal(monkeypatch, name="xterm"):
    """Within, standard output is a terminal; the list that is yielded gets what it shows."""
    monkeypatch.setenv("TERM", name)
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = pty.openpty()
    shown = []

    def watch():
        with contextlib.suppress(OSError):  # there is no more
            while text := os.read(ours, 4096):
                shown.append(text)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as screen:
        patch.setattr(sys, "stdout", screen)
        yield shown
    watcher.join()
    os.close(ours)


def test_a_terminal_gets_one_live_line_for_a_run(monkeypatch):
    with terminal(monkeypatch) as shown:
        grok.train(settings())
    live, _, summary = b"".join(shown).partition(b"train 99 %")
    line = rb"\r\x1b\[Kupdate +\d+  train 0\.\d+  val 0\.\d+ .*at most [\d.]+ min left"
    assert len(re.findall(line, live.replace(b"\r\x1b", b"\n\r\x1b"))) == 6
    assert live.count(b"\n") == 0
    assert b"x_plus_y" in summary


def test_a_terminal_gets_one_live_line_for_a_sweep(tmp_path, monkeypatch):
    hurried(monkeypatch)
    with terminal(monkeypatch) as shown:
        assert grok.main([*flags(out=tmp_path, seed=[0, 1, 2]), "--jobs", "1"]) == 0
    live, _, summary = b"".join(shown).partition(b"train 99 %")
    line = rb"\r\x1b\[K(\d) of 3 runs done, (\d) in training(, about [\d.]+ min left)?"
    seen = re.findall(line, live)
    assert {done for done, *_ in seen} == {b"0", b"1", b"2"}
    assert {bool(left) for done, _, left in seen if done != b"0"} == {True}
    assert live.count(b"\n") == 0
    assert summary.count(b"x_plus_y") == 3


def test_a_live_line_never_takes_two(monkeypatch):
    with terminal(monkeypatch) as shown:
        monkeypatch.setenv("COLUMNS", "40")
        grok.train(settings())
    lines = b"".join(shown).split(b"\r\x1b[K")
    assert max(len(line) for line in lines if line.startswith(b"update")) == 39


def test_a_dumb_terminal_gets_no_escape_codes(tmp_path, monkeypatch):
    with terminal(monkeypatch, "dumb") as shown:
        grok.train(settings())
        assert grok.main([*flags(out=tmp_path, seed=[0, 1]), "--jobs", "1"]) == 0
    assert b"\x1b" not in b"".join(shown)
    assert b"\r" not in b"".join(shown).replace(b"\r\n", b"\n")


# --- The caller. ----------------------------------------------------------------------------------


def test_main_works_outside_the_main_thread(tmp_path):
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(call(out=tmp_path / "thread")))
    thread.start()
    thread.join()
    assert statuses == [0]
    assert call(out=tmp_path / "main") == 0
    assert tables(tmp_path / "thread") == tables(tmp_path / "main")


def state_of_process():
    """What belongs to the caller, but for what torch has."""
    streams = sys.stdin, sys.stdout, sys.stderr, sys.argv, sys.excepthook
    return (
        signal_handlers(),
        streams,
        np.random.get_state()[1].tolist(),
        os.getcwd(),
        dict(os.environ),
    )


def test_main_leaves_the_process_as_it_was(tmp_path):
    before = state_of_process()
    assert call(out=tmp_path, dropout=0.1) == 0
    assert grok.main(["--nonsense"]) == 2
    assert state_of_process() == before


def test_ctrl_c_leaves_the_process_as_it_was(tmp_path):
    before = state_of_process()
    with interrupted_after(3, grok.Run):
        assert call(out=tmp_path) == 130
    assert state_of_process() == before


def test_run_in_a_session_it_leaves_the_session_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(GROK), *flags(out=tmp_path), "--quiet", "--jobs", "1"])
    before = state_of_process()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(GROK), run_name="__main__")
    assert end.value.code == 0
    assert state_of_process() == before
    assert grok.read(tmp_path)[0].step == 30


# --- The import, and what stands beside the file. -------------------------------------------------


def python(code, *options, **env):
    usual = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, *options, "-c", code]
    paths = dict(PYTHONPATH=str(GROK.parent))
    return subprocess.run(
        command, capture_output=True, text=True, env=usual | paths | env, cwd=GROK.parent
    )


def test_importing_has_no_effect_but_how_long_threads_spin():
    code = """if True:
        import os, signal, sys
        state = lambda: (os.listdir(), [signal.getsignal(n) for n in signal.valid_signals()])
        before, env = state(), dict(os.environ)
        import grok
        after = dict(os.environ)
        print(state() == before, after.pop("GOMP_SPINCOUNT"), after == env)
        print({"matplotlib", "sklearn", "scipy", "pandas", "torch._dynamo"} & set(sys.modules))
    """
    done = python(code, PYTHONDONTWRITEBYTECODE="1")
    assert (done.stdout, done.stderr) == ("True 2000 True\nset()\n", "")


def test_it_runs_without_asserts_and_docstrings(trained, tmp_path, monkeypatch):
    stripped = ModuleType("stripped")  # as by python -OO
    monkeypatch.setitem(sys.modules, "stripped", stripped)
    exec(compile(GROK.read_bytes(), str(GROK), "exec", optimize=2), vars(stripped))
    assert stripped.main([*flags(out=tmp_path, seed=[0, 1]), "--quiet", "--jobs", "1"]) == 0
    assert tables(tmp_path) == tables(trained)
    with pytest.raises(SystemExit):
        stripped.main(["--help"])


def test_threads_spin_shortly_when_torch_is_loaded_unless_the_user_says_otherwise():
    code = """if True:
        import os, sys
        def look(event, arguments):
            if event == "import" and arguments[0] == "torch":
                print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
                os._exit(0)
        sys.addaudithook(look)
        import grok
    """
    assert python(code).stdout == "2000\n"
    assert python(code, GOMP_SPINCOUNT="7").stdout == "7\n"
    assert python(code, OMP_WAIT_POLICY="PASSIVE").stdout == "None\n"


def test_requirements_and_script_metadata_agree():
    pins = (GROK.parent / "requirements.txt").read_text().split()
    metadata = re.search(r"# dependencies = (\[.*\])", GROK.read_text(encoding="utf-8"))[1]
    assert json.loads(metadata) == pins
    assert all("==" in pin for pin in pins)


# --- The README. ----------------------------------------------------------------------------------

README = GROK.with_name("README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = re.findall(r"^python grok\.py (.*?)(?:\s*#.*)?$", README, re.M)


@pytest.fixture
def readme_study(tmp_path, monkeypatch):
    """mine.py, the README's study, in a folder of its own."""
    (code,) = (example for example in EXAMPLES if "class Mine" in example)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield __import__("mine")
    del sys.modules["mine"]


def test_the_readme_s_study_runs_as_it_says(readme_study):
    command = re.search(r"`python (mine\.py .*?)`", README)[1].split()
    assert grok.main([*command[1:], "--quiet"], readme_study.Config, readme_study.Mine) == 0
    (folder,) = Path("runs").iterdir()
    settings_of_runs = {(run.config.filter, run.config.project) for run in grok.read(folder)}
    assert settings_of_runs == set(itertools.product([0.0, 2.0], [False, True]))


def test_the_readme_s_study_trains_as_grok_does_where_it_is_off(readme_study):
    off = grok.train(readme_study.Config(**TINY), quiet=True, method=readme_study.Mine)
    assert rows(off) == rows(train())


def test_the_readme_s_filter_is_the_published_formula(readme_study):
    model, slow = nn.Linear(3, 2), {}
    first, second = torch.ones(2, 3), torch.full((2, 3), 5.0)
    for grad in first, second:
        model.weight.grad, model.bias.grad = grad.clone(), torch.zeros(2)
        readme_study.filter_gradients(model, slow)
    close(model.weight.grad, second + 2 * (0.98 * first + 0.02 * second))


def test_the_readme_s_projection_is_orthogonal_and_keeps_the_norm(readme_study):
    w, grad = nn.Parameter(torch.tensor([3.0, 4.0])), torch.tensor([1.0, 1.0])
    w.grad = grad.clone()
    readme_study.project_gradients([w])
    assert (w.detach() @ w.grad).item() == pytest.approx(0, abs=1e-6)
    assert w.grad.norm().item() == pytest.approx(grad.norm().item())
    assert (w.grad @ grad).item() > 0


def test_the_readme_s_other_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in EXAMPLES:
        if "transformers" not in example and "class Mine" not in example:
            exec(compile(example, "README.md", "exec"), names)
    names["test_it_still_groks"]()
    assert "without head 0" in capsys.readouterr().out


def test_the_weights_fit_gpt_1_as_the_readme_says(capsys):
    pytest.importorskip("transformers")
    x, y, _ = (torch.from_numpy(a) for a in grok.equations("x_plus_y", 31))
    names = dict(torch=torch, model=grok.Transformer(31, layers=1), x=x, y=y)
    (example,) = (example for example in EXAMPLES if "transformers" in example)
    exec(compile(example, "README.md", "exec"), names)
    assert float(capsys.readouterr().out.split()[-1]) < 1e-5


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_s_commands_are_understood(command):
    given = vars(grok.parser(Config).parse_args(command.split()))
    Config.grid(**{f.name: given[f.name] for f in fields(Config) if f.name in given})


@pytest.mark.parametrize("name", ["--" + f.name.replace("_", "-") for f in fields(Config)])
def test_the_readme_names_every_flag(name):
    assert f"`{name}" in README or f" {name} " in README


@pytest.mark.parametrize("name", grok.OPS)
def test_the_readme_names_every_operation(name):
    assert f"`{name}`" in README


# --- What hard use of version 3 showed. -----------------------------------------------------------


def test_settings_named_like_what_else_identifies_a_run_tell_runs_apart(tmp_path):
    names = {name: grok.setting("a", "a text", ("a", "b")) for name in ("method", "table")}
    fields_ = [(name, str, value) for name, value in names.items()]
    kind = make_dataclass("Named", fields_, bases=(Config,), frozen=True)
    for name in names:
        grok.train(kind(**TINY), out=tmp_path / name, quiet=True)
        with pytest.raises(UsageError, match="another run"):
            grok.train(kind(**TINY, **{name: "b"}), out=tmp_path / name, quiet=True)


def test_state_that_was_not_saved_before_is_not_taken_for_saved(tmp_path, monkeypatch):
    train(out=tmp_path, method=PlainSGD)
    monkeypatch.setattr(PlainSGD, "saved", (*grok.Run.saved, "n"))
    monkeypatch.setattr(PlainSGD, "n", 0, raising=False)
    with pytest.raises(UsageError, match="^n: "):
        train(out=tmp_path, method=PlainSGD, steps=40)


def test_a_finished_sweep_is_judged_though_nothing_can_be_written(sweep, monkeypatch):
    def refuse(path, mode="r", reading=open, **more):
        assert "w" not in mode
        assert "a" not in mode
        return reading(path, mode, **more)

    monkeypatch.setattr("builtins.open", refuse)
    assert resume(sweep, "--expect", "0.999") == 1


def test_two_threads_that_train_at_once_give_the_rows_of_each_alone(usual):
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda _: train_one(**NOISE), range(2))
    assert [rows(run) for run in runs] == [usual, usual]


def test_an_anchored_optimiser_can_be_copied():
    run = grok.Run(short(decay_to="init"))
    anchors = list(copy.deepcopy(run.optimizer).anchors.values())
    assert all(torch.equal(one, w) for one, w in zip(anchors, run.model.parameters(), strict=True))


def test_an_error_under_weight_noise_leaves_the_clean_weights():
    run = grok.Run(short(weight_noise=0.5))
    before = vector(run)
    run.loss = lambda logits, labels: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.advance()
    assert torch.equal(vector(run), before)


def test_a_field_that_is_no_setting_is_refused():
    kind = make_dataclass("Bare", [("bare", float, 0.0)], bases=(Config,), frozen=True)
    with pytest.raises(UsageError, match="--bare: .*grok.setting"):
        kind()


def test_a_number_without_limits_may_be_any():
    field = ("free", float, grok.setting(0.0, "any number"))
    kind = make_dataclass("Free", [field], bases=(Config,), frozen=True)
    assert kind(free="-1e9").free == -1e9


@pytest.mark.parametrize("default", [0, 0.0, (64, 64)], ids=type)
def test_what_has_no_limits_may_still_be_none_of_its_kind(default):
    field = ("free", type(default), grok.setting(default, "any"))
    kind = make_dataclass("Free", [field], bases=(Config,), frozen=True)
    assert kind().free == default
    with pytest.raises(grok.UsageError, match=r"--free abc: must be a?.*numbers? in \(-inf, inf\)"):
        kind(free="abc")


def test_several_values_of_what_is_not_fixed_are_refused_by_name(capsys):
    assert grok.main(["--until", "0.9", "--until", "0.95"]) == 2
    assert "--until: takes one value" in capsys.readouterr().err

"""Properties of speed.py's plain program and of its command line."""

import re

import numpy as np
import pytest
import speed
import torch
from grok2 import Config

TINY = dict(
    op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, device="cpu", threads=1
)


def test_the_plain_program_has_as_many_weights():
    model = Config(**TINY).model()
    sizes = dict(zip(model.shapes, model.sizes, strict=True))
    weights = [w.numel() for w in speed.Plain(Config(**TINY)).parameters() if w.dim() > 1]
    positions = 4 * 16
    assert sum(weights) == sum(n for name, n in sizes.items() if "norm" not in name) + positions


def test_the_plain_program_learns():
    config = Config(**TINY, steps=30, frac=0.1, weight_decay=0)  # a dozen equations to memorise
    advance = speed.plain(config, torch.device("cpu"))
    advance(400)
    losses = [advance(1) for _ in range(10)]
    assert np.mean(losses) < 0.5 * np.log(11)


@pytest.mark.parametrize("bad", [["--turns", "0"], ["--device", "mps"], ["--device", "tpu"]])
def test_speed_refuses(bad, monkeypatch):
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        speed.main(bad)


def test_speed_prints_both_times_and_their_ratio(capsys):
    speed.main(["--turns", "1"])
    numbers = re.findall(r"\d+\.\d+", capsys.readouterr().out)
    ours, plain, ratio = map(float, numbers)
    assert ours > 0
    assert ratio == pytest.approx(ours / plain, rel=0.1)

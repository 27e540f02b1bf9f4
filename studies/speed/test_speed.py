"""Properties of the plain program and of the command line of speed.py."""

import math
import re

import grok
import pytest
import speed
import torch

TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1)


def test_the_plain_program_has_as_many_weights_in_matrices_but_for_its_positions():
    def count(model):
        return sum(w.numel() for w in model.parameters() if w.ndim > 1)

    plain, ours = speed.Plain(grok.Config(**TINY)), grok.Run(grok.Config(**TINY)).model
    assert count(plain) == count(ours) + 4 * 16


def test_the_plain_program_learns():
    """A dozen equations to memorise."""
    config = grok.Config(**TINY, steps=300, frac=0.1, weight_decay=0.0, lr=3e-3)
    run = grok.train(config, quiet=True, method=speed.PlainRun)
    assert run.log[-1]["train_loss"] < 0.5 * math.log(11)


@pytest.mark.parametrize("bad", [["--turns", "0"], ["--device", "mps"], ["--device", "tpu"]])
def test_it_refuses(bad, monkeypatch):
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        speed.main(bad)


def test_it_prints_both_times_and_their_ratio(capsys):
    speed.main(["--turns", "1", "--threads", "1"])
    numbers = re.findall(r"\d+\.\d+", capsys.readouterr().out)
    ours, plain, ratio = map(float, numbers)
    assert ours > 0
    assert ratio == pytest.approx(ours / plain, rel=0.1)

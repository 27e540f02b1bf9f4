"""Properties of updates as CUDA graphs, and of the command line of graphed.py."""

import inspect
import re
import sys
from pathlib import Path

import graphed
import grok
import models
import pytest
import torch

STUDIES = Path(__file__).resolve().parents[1]
TINY = [
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
    "30",
]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def rows(folder):
    """metrics.csv without `seconds`."""
    (record,) = grok.read(folder)
    return [{**row, "seconds": 0} for row in record.log]


@pytest.mark.parametrize("path", ["../grok.py", "unified/unified.py"])
def test_without_a_gpu_it_is_the_plain_command(path, tmp_path, capsys):
    flags = [*TINY, "--device", "cpu", "--threads", "1", "--quiet", "--out"]
    file = STUDIES / path
    assert graphed.main([str(file), *flags, str(tmp_path / "graphed")]) == 0
    config, method = models.study(file)
    grok.main([*flags, str(tmp_path / "plain"), "--jobs", "1"], config, method)
    assert rows(tmp_path / "graphed") == rows(tmp_path / "plain")


@pytest.mark.parametrize("words", [[], ["nowhere.py"], ["--op", "x_plus_y"]])
def test_without_a_file_it_says_what_it_wants(words, capsys):
    assert graphed.main(words) == 2
    assert "give grok.py or the file of a study" in capsys.readouterr().err


class Drifting(grok.Run):
    """Each update goes another way by a number of Python's."""

    def on_after_backward(self):
        for w in self.model.parameters():
            w.grad.fill_(self.step % 2 - 0.5)


def test_a_difference_is_refused(monkeypatch):
    monkeypatch.setattr(graphed.Graphed, "update", lambda self, rows: self.schedule.step())
    config = grok.Config(op="x_plus_y", p=11, layers=1, width=16, heads=2, device="cpu")
    with pytest.raises(grok.UsageError, match="differs in a CUDA graph"):
        graphed.compare(graphed.graphed(grok.Run), config)


@needs_cuda
def test_on_a_gpu_what_python_changes_is_refused():
    config = grok.Config(op="x_plus_y", p=11, layers=1, width=16, heads=2, device="cuda")
    with pytest.raises(grok.UsageError, match="differs in a CUDA graph"):
        graphed.compare(graphed.graphed(Drifting), config)


@needs_cuda
def test_on_a_gpu_all_else_is_the_same():
    """Which compare is silent about."""
    config = grok.Config(op="x_plus_y", p=11, layers=1, width=16, heads=2, device="cuda")
    graphed.compare(graphed.graphed(grok.Run), config)


def test_no_study_has_an_attribute_of_its():
    run = graphed.graphed(grok.Run)(grok.Config(op="x_plus_y", p=11, width=16, heads=2))
    used = re.findall(r"self\.(\w+)", inspect.getsource(graphed.Graphed))
    own = set(used) - set(dir(run))
    texts = [file.read_text() for file in STUDIES.glob("*/*.py") if file.stem != "graphed"]
    assert own
    assert not own & set(re.findall(r"self\.(\w+)", "".join(texts)))


@needs_cuda
def test_on_a_gpu_each_kind_of_neuralgrok_s_updates_gets_a_graph(monkeypatch):
    config, method = models.study(STUDIES / "neuralgrok/neuralgrok.py")
    settings = config(op="x_plus_y", p=11, layers=1, width=16, heads=2, neuralgrok=1.0)
    made = []
    init = method.__init__
    monkeypatch.setattr(method, "__init__", lambda run, c: (init(run, c), made.append(run))[0])
    graphed.compare(graphed.graphed(method), settings)
    assert len({learns for _, learns in made[-1].graphs}) == 2

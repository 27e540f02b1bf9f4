"""What an update costs here and in a plain torch.nn program, three of each by turns in one process,
since a machine's speed drifts. The task is the paper's: x / y mod 97, batches of 512, two layers.

    python studies/speed/speed.py
    python studies/speed/speed.py --threads 1
    python studies/speed/speed.py --device cuda
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok
import torch
from torch import nn


class Plain(nn.Module):
    """The model of a Config as torch.nn spells it: every position goes through every layer."""

    def __init__(self, c):
        super().__init__()
        self.n = c.elements
        self.embed = nn.Embedding(self.n + 2, c.width)
        self.position = nn.Embedding(4, c.width)
        block = nn.TransformerEncoderLayer(c.width, c.heads, 4 * c.width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, c.layers, enable_nested_tensor=False)
        self.head = nn.Linear(c.width, self.n + 2, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, x, y):
        """Logits (B, V) at "=" for the equations x, y (B,)."""
        operation = torch.full_like(x, self.n)
        tokens = torch.stack([x, operation, y, operation + 1], dim=1)
        h = self.blocks(self.embed(tokens) + self.position.weight, self.mask, is_causal=True)
        return self.head(h[:, -1])


class PlainRun(grok.Run):
    """The same loop with that model and torch's default AdamW, without grok.py's short cuts."""

    def build_model(self):
        return Plain(self.config)

    def build_optimizer(self):
        c, weights = self.config, self.model.parameters()
        return torch.optim.AdamW(weights, c.lr, (c.beta1, c.beta2), c.eps, c.weight_decay)


def three_updates(run):
    """Milliseconds an update."""
    start = time.perf_counter()
    for _ in range(3):
        run.step += 1
        run.update(run.batch())
    if run.device.type != "cpu":
        torch.accelerator.synchronize()
    return 1000 * (time.perf_counter() - start) / 3


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    cli = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=raw)
    cli.add_argument("--turns", type=int, default=60)
    cli.add_argument("--threads", type=int, default=torch.get_num_threads())
    cli.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    given = cli.parse_args(argv)
    if given.turns < 1 or given.threads < 1:
        cli.error("--turns and --threads: must be 1 or more")
    torch.set_num_threads(given.threads)
    try:
        runs = [method(grok.Config(device=given.device)) for method in (grok.Run, PlainRun)]
    except grok.UsageError as error:
        cli.error(error)
    times = [], []
    for _ in range(3 + given.turns):  # three to warm up
        for run, spent in zip(runs, times, strict=True):
            spent.append(three_updates(run))
    ours, theirs = (spent[3:] for spent in times)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{statistics.median(ours):.1f} ms an update, plain {statistics.median(theirs):.1f} ms: "
        f"a ratio of {ratio:.3f}, {given.threads} threads, {given.device}"
    )


if __name__ == "__main__":
    main()

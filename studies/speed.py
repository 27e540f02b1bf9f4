"""What an update costs here and in a plain torch.nn program, three of each by turns in one process,
since a machine's speed drifts. The task is the paper's: x / y mod 97, batches of 512, two layers.

    python studies/speed.py
    OMP_NUM_THREADS=1 python studies/speed.py
    python studies/speed.py --device cuda
"""

import argparse
import statistics
import time

import grok2 as grok
import torch
from torch import nn


class Plain(nn.Module):
    """The model of a Config as torch.nn spells it: every position goes through every layer."""

    def __init__(self, c):
        super().__init__()
        self.n = c.sizes()[0]
        self.embed, self.position = nn.Embedding(self.n + 2, c.width), nn.Embedding(4, c.width)
        block = nn.TransformerEncoderLayer(c.width, c.heads, 4 * c.width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, c.layers, enable_nested_tensor=False)
        self.head = nn.Linear(c.width, self.n + 2, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, x, y):
        """Logits (B, V) at "=" for the equations x, y (B,)."""
        operation = torch.full_like(x, self.n)
        tokens = torch.stack([x, operation, y, operation + 1], 1)
        h = self.blocks(self.embed(tokens) + self.position.weight, self.mask, is_causal=True)
        return self.head(h[:, -1])


def plain(c, device):
    """A function that trains it, a number of updates a call, and returns the last loss."""
    torch.manual_seed(c.seed)
    x, y, labels, train = (torch.from_numpy(a).to(device) for a in grok.split(c))
    model, rows = Plain(c).to(device), train.nonzero()[:, 0]
    betas = c.beta1, c.beta2
    optimizer = torch.optim.AdamW(model.parameters(), c.lr, betas, c.eps, c.weight_decay)

    def advance(updates):
        for _ in range(updates):
            batch = rows[torch.randint(len(rows), (c.sizes()[3],), device=device)]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch], y[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        return loss.item()  # waits for the device

    return advance


def main(argv=None):
    raw = argparse.RawTextHelpFormatter
    cli = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=raw)
    cli.add_argument("--turns", type=int, default=60)
    cli.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    args = cli.parse_args(argv)
    if args.turns < 1:
        cli.error(f"--turns {args.turns}: must be 1 or more")
    try:
        config, device = grok.Config(), grok.pick_device(args.device)
    except grok.UsageError as error:
        cli.error(error)
    stack = grok.Stack(grok.named([config]), device)
    ways = [lambda updates: stack.advance(stack.step + updates), plain(config, device)]
    times = [[], []]
    for _ in range(3 + args.turns):  # three to warm up
        for advance, spent in zip(ways, times):
            start = time.perf_counter()
            advance(3)
            spent.append(1000 * (time.perf_counter() - start) / 3)
    ours, theirs = (spent[3:] for spent in times)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(
        f"{statistics.median(ours):.1f} ms an update, plain {statistics.median(theirs):.1f} ms: "
        f"a ratio of {ratio:.3f}, {torch.get_num_threads()} threads, {device}"
    )


if __name__ == "__main__":
    main()

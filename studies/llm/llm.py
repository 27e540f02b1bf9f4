"""Local grokking, an analogy to the pretraining of large language models (Li et al. 2025, arXiv
2506.21551): there is no one moment of grokking there; groups of data are memorised at different
times and generalise at different times, the late ones late. This is that part of it in one table;
for their measures of routing see the room `experts`.

Kept for each equation, as `since` in checkpoints: the update of the evaluation since which every
evaluation found it right, 0 where the last one did not. Columns:

    memorised_10, _50, _90    by which update 10, 50 and 90 % of the training equations were so
    generalised_10, _50, _90  and of the validation equations
    local_x, local_y, local_z over the groups of equations with the same x (or y, or z), the
                              correlation of the mean update of a group's training equations with
                              that of its validation equations; 0 where there is none to compute

An equation that is wrong counts as right only now: a value equal to `step` says not yet. --parts 2
adds the times for the equations with even y, generalised_50_y0 and so on, and with odd y. If an
equation's time has nothing to do with its group, local is 0 ± 1/√p; if it depends on the partners
alone, it is negative, as the two sets share these out.

    python studies/llm/llm.py --recipe fast --frac 0.3 0.5 --eval-every 5 --seed 0 1 2
"""

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok
import torch

SHARES = 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Config(grok.Config):
    parts: int = grok.setting(1, "columns of their own for y mod this, from 2 on", "[1, 9]")

    def __post_init__(self):
        super().__post_init__()
        if self.parts >= self.elements:
            raise grok.UsageError(f"--parts {self.parts}: must be below {self.elements}")


def means(when, group, n):
    """The mean (n,) of `when` over each group's members, and their numbers (n,)."""
    count = torch.zeros(n, dtype=when.dtype).index_add(0, group, torch.ones_like(when))
    total = torch.zeros(n, dtype=when.dtype).index_add(0, group, when)
    return total / count.clamp(min=1), count


def correlation(a, b):
    """Pearson's, of a and b (n,); 0 where there is none."""
    if not len(a):
        return torch.tensor(0.0)
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.norm() * b.norm()).clamp(min=1e-9)


class LocalGrokking(grok.Run):
    saved = *grok.Run.saved, "since"

    def __init__(self, config):
        super().__init__(config)
        self.since = torch.zeros(len(self.labels), dtype=torch.int64)  # (N,)
        parts = self.inputs[1] % config.parts
        for rows in (self.train_rows, self.val_rows):
            if len(parts[rows].unique()) < config.parts:
                raise grok.UsageError(f"--parts {config.parts}: some have no equation in a set")

    def right(self, model):
        """Whether each equation is answered right (N,)."""
        parts = [t.split(2**11) for t in (*self.inputs, self.labels)]
        hits = [model(x, y).argmax(1) == labels for x, y, labels in zip(*parts, strict=True)]
        return torch.cat(hits).cpu()

    @torch.no_grad()
    def measure(self, model):
        columns = super().measure(model)
        right = self.right(model)
        n = self.config.elements
        since = self.since.cpu()  # a checkpoint's is where the run is
        now = torch.where(since > 0, since, self.step) * right
        longer = replace(self.config, steps=self.step + 1)
        if grok.Record(longer).due(self.step):  # not a last update of this run's length alone
            self.since = now
        when = torch.where(right, now, self.step).double()
        train, val = self.train_rows.cpu(), self.val_rows.cpu()
        sets = dict(memorised=train, generalised=val)
        x, y = (t.cpu() for t in self.inputs)
        z = self.labels.cpu()
        parts = self.config.parts
        among = {"": torch.ones_like(right)}
        if parts > 1:
            part_of_y = y % parts
            among |= {f"_y{k}": part_of_y == k for k in range(parts)}
        for (name, rows), (part, wanted) in itertools.product(sets.items(), among.items()):
            some = when[rows[wanted[rows]]]
            times = some.quantile(torch.tensor(SHARES, dtype=when.dtype))
            for share, time in zip(SHARES, times, strict=True):
                columns[f"{name}_{100 * share:.0f}{part}"] = time
        for name, group in dict(x=x, y=y, z=z).items():
            learned, train_count = means(when[train], group[train], n)
            found, val_count = means(when[val], group[val], n)
            both = (train_count > 0) & (val_count > 0)
            columns[f"local_{name}"] = correlation(learned[both], found[both])
        return columns


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=LocalGrokking))

"""All measures of this folder on the same runs, so that they can be compared (studies/lead.py).

Measures add up: each study's measure() adds its columns to those of the next class. This file and
lead.py alone import others. In S5, where nothing turns, the columns of progress.py are left out.

    python studies/measures.py --recipe fast --op x_plus_y --weight-decay 0 1 --out runs/measures
    python studies/measures.py --cost   seconds an evaluation of x + y with the fast recipe, as CSV
"""

import sys
import time
from dataclasses import dataclass

import features
import grok2 as grok
import llm
import progress2 as progress
import spectra
import tracing


@dataclass(frozen=True)
class Config(progress.Config, tracing.Config, spectra.Config, features.Config, llm.Config):
    def __post_init__(self):
        after = progress.Config if self.op.startswith("s5") else Config
        super(after, self).__post_init__()


class Measures(
    progress.Progress, spectra.Spectra, features.Features, llm.LocalGrokking, tracing.Tracing
):  # the last watches the network within the plain evaluation
    def measure(self):
        after = progress.Progress if self.config.op.startswith("s5") else Measures
        return super(after, self).measure()


def cost(config, turns=5):
    """Seconds that an evaluation of one run takes, plain and with each study, in turns: rows."""
    methods = grok.Stack, *Measures.__bases__, Measures
    stacks = {method.__name__: method([grok.Run(config, "")]) for method in methods}
    for name, stack in [*stacks.items()] * turns:
        start = time.perf_counter()
        stack.measure()
        yield name, time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:] == ["--cost"]:
        print(
            "study,seconds_per_evaluation",
            *(
                f"{name},{seconds:.3f}"
                for name, seconds in cost(Config(op="x_plus_y", **grok.FAST))
            ),
            sep="\n",
        )
    else:
        sys.exit(grok.main(config=Config, method=Measures))

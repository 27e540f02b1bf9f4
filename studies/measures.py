"""All measures of this folder on the same runs, so that they can be compared (studies/lead.py).

Measures add up: each study's measure() adds its columns to those of the next class. This file and
lead.py alone import others. In S5, where nothing turns, the columns of progress.py are left out.

    python studies/measures.py --recipe fast --op x_plus_y --weight-decay 0 1 --out runs/measures
    python studies/measures.py --cost       seconds an evaluation, on x + y with the fast recipe
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import features
import grok
import llm
import progress
import spectra
import tracing

@dataclass(frozen=True)
class Config(progress.Config, tracing.Config, spectra.Config, features.Config, llm.Config):
    def __post_init__(self):
        after = progress.Config if self.op.startswith("s5") else Config
        super(after, self).__post_init__()

class Measures(progress.Progress, spectra.Spectra, features.Features, llm.LocalGrokking,
               tracing.Tracing):  # the last watches the network within the plain evaluation
    def measure(self):
        after = progress.Progress if self.config.op.startswith("s5") else Measures
        return super(after, self).measure()

def cost(config):
    """Seconds that an evaluation of one run takes, plain and with each study: {name: median}."""
    medians = {}
    for method in (grok.Stack, *Measures.__bases__, Measures):
        stack, seconds = method([grok.Run(config, "")]), []
        for _ in range(5):
            start = time.perf_counter()
            stack.measure()
            seconds.append(time.perf_counter() - start)
        medians[method.__name__] = sorted(seconds)[2]
    return medians

if __name__ == "__main__":
    if sys.argv[1:] == ["--cost"]:
        for name, seconds in cost(Config(op="x_plus_y", **grok.FAST)).items():
            print(f"{name:15} {seconds:.3f} s")
    else:
        sys.exit(grok.main(config=Config, method=Measures))

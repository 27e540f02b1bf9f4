"""All measures on the same runs, so that they can be compared (lead.py): each room's measure() adds
its columns to those of the next class. This folder alone imports other rooms.

--outliers as many as there are training equations makes all training answers random ones.

    THEIRS="--net theirs --op x_plus_y --p 113 --frac 0.3 --batch-size 0 --until 0 --steps 12000"
    python studies/lead/measures.py $THEIRS --weight-decay 1 0 --seed 0 1 2 --out runs/lead
    python studies/lead/measures.py $THEIRS --outliers 3831 --seed 0 1 2 --out runs/random
    python studies/lead/lead.py runs/lead --random runs/random
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(
    str(Path(__file__).resolve().parents[1] / place)
    for place in ("progress", "spectra", "features", "llm", "tracing", ".", "..")
)
import features
import grok
import llm
import progress
import spectra
import tracing


@dataclass(frozen=True)
class Config(progress.Config, spectra.Config, features.Config, llm.Config, tracing.Config):
    """Of `net` the choices are those of the progress measures."""


class Measures(
    progress.Progress, spectra.Spectra, features.Features, llm.LocalGrokking, tracing.Tracing
):
    """A model as the first class, progress.Progress, builds it."""


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Measures))

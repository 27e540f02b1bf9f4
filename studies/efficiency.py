r"""Circuit efficiency (Varma et al. 2023, arXiv 2309.02390): weight decay prefers the solution with
larger logits for its weights' norm. Memorising more equations costs more norm, generalising does
not; so below a critical number of equations a network that has generalised forgets it again:
ungrokking, to an accuracy that does not depend on weight decay.

--go-on DIR starts from the last weights of the run in DIR that has the same operation, seed and
model, with new moments, warm-up and count of updates. Of one seed the training set of a smaller
--frac is part of that of a larger one, so that nothing is trained on that was not before. Measured:
the mean norm of the logits over the training set, and the same divided by the norm of the weights.
The controls are --go-on none, from scratch, and the --frac of the run in DIR.

    python studies/efficiency.py --recipe fast --frac 0.5 --seed 0 1 2 --out runs/whole
    python studies/efficiency.py --recipe fast --go-on none runs/whole --frac 0.1 0.2 0.3 0.5 \
        --seed 0 1 2 --until 0 --steps 2000
"""

import sys
from dataclasses import dataclass

import grok2 as grok


@dataclass(frozen=True)
class Config(grok.Config):
    go_on: str = grok.setting("none", "run folder to go on from, or none", None, shared=False)

    def __post_init__(self):
        super().__post_init__()
        self.origin()

    def origin(self):
        """The Run to go on from, or None. Raises UsageError."""
        if self.go_on == "none":
            return None
        names = "op", "p", "seed", "layers", "width", "heads", "position_scale"
        same = {name: getattr(self, name) for name in names}
        runs = [run for run in grok.read(self.go_on, **same) if run.state]
        said = ", ".join(f"{grok.flag(name)} {value}" for name, value in same.items())
        grok.refuse(
            len(runs) != 1,
            f"--go-on {self.go_on}: must hold one trained run with {said}; it holds {len(runs)}",
        )
        most = runs[0].config.frac
        grok.refuse(self.frac > most, f"--frac {self.frac}: must be at most {most}, as in --go-on")
        return runs[0]


class Efficiency(grok.Stack):
    def initial(self):
        W = super().initial()
        for row, run in zip(W, self.runs):
            if origin := run.config.origin():
                row.copy_(origin.state["W"])
        return W

    def measure(self):
        columns = super().measure()
        norms = self.over_table(lambda logits, labels: logits.norm(dim=2))  # (R, N)
        logit_norm = (norms * self.train).sum(1) / self.train.sum(1)  # (R,)
        return columns | dict(
            logit_norm=logit_norm, logit_norm_per_weight_norm=logit_norm / columns["weight_norm"]
        )


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Efficiency))

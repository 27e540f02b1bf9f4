"""Circuit efficiency (Varma et al. 2023, arXiv 2309.02390): weight decay prefers the solution with
larger logits for its weights' norm. Memorising more equations costs more norm, generalising does
not; so below a critical number of equations a network that has generalised forgets it again:
ungrokking. That number does not depend on weight decay.

--go-on DIR starts from the last weights of the run in DIR with the same operation, seed and
network, with new moments, warm-up and count of updates. Of one seed the training set of a smaller
--frac is part of that of a larger one, so that nothing is trained on that was not before. Columns:
logit_norm, the mean norm of the logits over the training set, and the same divided by the weights'.
Controls: --go-on none, from scratch, and the --frac of the run in DIR.

    THEIRS="--net theirs --op x_plus_y --p 113 --batch-size 0 --seed 0 1 2"
    python studies/efficiency/efficiency.py $THEIRS --frac 0.4 --out runs/theirs
    python studies/efficiency/efficiency.py $THEIRS --go-on none runs/theirs --until 0 \\
        --frac 0.05 0.1 0.15 0.2 --steps 8000
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    go_on: str = grok.setting("none", "folder of the run to go on from, or none")
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.NormlessTransformer.unread)


class Efficiency(grok.Run):
    def build_model(self):
        c = self.config
        if c.net == "theirs":
            model = models.NormlessTransformer(c.elements, c.width, c.heads)
        else:
            model = super().build_model()
        if c.go_on != "none":
            starts = "init_scale", "embed_init_scale", "position_scale"
            names = "op", "p", "seed", "outliers", "net", "layers", "width", "heads", *starts
            same = {name: c.fixed()[name] for name in names} | dict(go_on="none")
            model.load_state_dict(models.last_weights("--go-on", c.go_on, **same))
            most = grok.read(c.go_on, **same)[0].config.frac
            if c.frac > most:
                raise grok.UsageError(f"--frac {c.frac}: must be at most {most}, as in --go-on")
        return model

    @torch.no_grad()
    def measure(self, model):
        columns = super().measure(model)
        pieces = self.train_rows.split(2**11)
        logits = torch.cat([model(*(t[rows] for t in self.inputs)) for rows in pieces])
        norm = logits.norm(dim=1).mean()
        per_weight_norm = norm / columns["weight_norm"]
        return columns | dict(logit_norm=norm, logit_norm_per_weight_norm=per_weight_norm)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Efficiency))

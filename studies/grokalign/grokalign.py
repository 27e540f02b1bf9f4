"""GrokAlign (Walker et al. 2025, arXiv 2506.12284): a network generalises when its Jacobian, of the
logits by the input, is aligned with the data; keeping its norm small aligns it. The loss gets
λ · mean ‖J‖, with ‖J‖² estimated by V · ‖Jᵀv‖² in one random direction v for each equation and
update (V logits). The authors report a speed-up on images, on modular addition none while the
embedding is trained, and one where it is --frozen.

The input here is theirs of a transformer: the embeddings of an equation's tokens as one vector,
before positions are added. The column `alignment` is the mean of cos(Jᵀ1, input) over the training
equations, their centroid alignment. --net theirs has no LayerNorm. Controls: --grokalign 0.

    THEIRS="--net theirs --op x_plus_y --p 59 --frac 0.4 --batch-size 0 --steps 20000"
    python studies/grokalign/grokalign.py $THEIRS --grokalign 0 1e-3 --frozen 0 1 --seed 0 1 2
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    grokalign: float = grok.setting(0.0, "factor λ on the Jacobian's norm", "[0, inf)")
    frozen: int = grok.setting(0, "1: the embedding stays as it starts", "[0, 1]")
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            models.refuse_unread(self, *models.NormlessTransformer.unread)


class GrokAlign(grok.Run):
    def build_model(self):
        c = self.config
        if c.net == "theirs":
            model = models.NormlessTransformer(c.elements, c.width, c.heads)
        else:
            model = super().build_model()
        model.embed.requires_grad_(not c.frozen)
        return model

    @contextlib.contextmanager
    def watched(self, model):
        """Within, a list that gets the embedded tokens of the equations that the model is given."""
        seen = []

        def keep(module, inputs, output):
            seen.append(output.requires_grad_())  # of a fixed embedding, too

        handle = model.embed.register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    def update(self, rows):
        if not self.config.grokalign:
            return super().update(rows)
        with self.watched(self.model) as self.seen:
            super().update(rows)

    def loss(self, logits, labels):
        loss = super().loss(logits, labels)
        if not self.config.grokalign:
            return loss
        v = torch.nn.functional.normalize(torch.randn_like(logits), dim=1)
        parts = torch.autograd.grad(logits, self.seen, v, create_graph=True)
        squares = sum(part.square().sum((1, 2)) for part in parts)  # (B,), ‖Jᵀv‖²
        norms = (logits.shape[1] * squares).clamp(min=1e-8).sqrt()
        return loss + self.config.grokalign * norms.mean()

    def alignment(self, model, rows):
        """cos(Jᵀ1, input) of equations (B,)."""
        with torch.enable_grad(), self.watched(model) as seen:
            logits = model(*(t[rows] for t in self.inputs))
            slopes = torch.autograd.grad(logits.sum(), seen)
        inputs, slopes = (torch.cat(parts, dim=1).flatten(1) for parts in (seen, slopes))
        return torch.cosine_similarity(inputs.detach(), slopes)

    def measure(self, model):
        pieces = self.train_rows.split(2**11)
        alignment = torch.cat([self.alignment(model, rows) for rows in pieces]).mean()
        return super().measure(model) | dict(alignment=alignment)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=GrokAlign))

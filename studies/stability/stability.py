r"""Grokking at the Edge of Numerical Stability (Prieto et al. 2025, arXiv 2501.04697): without
weight decay logits grow until rounding leaves of the softmax's sum only its largest term, 1. Then
the loss and the gradient of the answer's logit are exactly 0, and learning stops. Two ways out:

    --loss stablemax   shares are s(z) / Σ s(z), s(z) = z + 1, or 1 / (1 - z) below 0
    --orthograd true   ⟂Grad: the gradient of each tensor loses its part along the weights, which
                       mostly scales the logits, and is brought back to its norm

The column `collapse` is the share of training equations whose sum Σ exp(z - max z) is exactly 1.
--net theirs has one-hot inputs and --layers of --width hidden units, without biases.

    THEIRS="--net theirs --width 200 --op x_plus_y --p 113 --frac 0.4 --batch-size 0"
    python studies/stability/stability.py $THEIRS --lr 0.01 --warmup 0 --beta2 0.999 \
        --eval-every 10 --steps 500 --weight-decay 0 --orthograd false true --seed 0 1 2 3 4
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
    loss: str = grok.setting("softmax", "shares that the loss takes", ("softmax", "stablemax"))
    loss_dtype: str = grok.setting("float32", "precision of the loss", ("float32", "float64"))
    orthograd: bool = grok.setting(False, "make gradients orthogonal to the weights")
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        if self.net == "theirs":
            scales = "init_scale", "embed_init_scale", "position_scale"
            models.refuse_unread(self, "heads", "dropout", *scales)
        if self.device == "mps" and self.loss_dtype == "float64":
            raise grok.UsageError("--loss-dtype float64: must be float32 with --device mps")


@torch.no_grad()
def project(weights):
    """Takes the part along the weights out of each tensor's gradient, which keeps its norm."""
    for w in weights:
        along = (w * w.grad).sum() / (w.square().sum() + 1e-30)
        rest = w.grad - along * w
        w.grad = rest * (w.grad.norm() / (rest.norm() + 1e-30))


class Stability(grok.Run):
    def build_model(self):
        c = self.config
        if c.net == "theirs":
            return models.MLP(c.elements, [c.width] * c.layers, bias=False)
        return super().build_model()

    def exponents(self, logits):
        """What the loss takes the softmax of, in its dtype: s(z) / Σ s(z) = softmax(log s(z))."""
        z = logits.to(getattr(torch, self.config.loss_dtype))
        return z.sign() * z.abs().log1p() if self.config.loss == "stablemax" else z

    def loss(self, logits, labels):
        return super().loss(self.exponents(logits), labels)

    def on_after_backward(self):
        if self.config.orthograd:
            project(self.model.parameters())

    @torch.no_grad()
    def measure(self, model):
        collapsed = []
        for rows in self.train_rows.split(2**11):
            z = self.exponents(model(*(t[rows] for t in self.inputs)))
            sums = (z - z.amax(1, keepdim=True)).exp().sum(1)
            collapsed.append(sums == 1)
        return super().measure(model) | dict(collapse=torch.cat(collapsed).float().mean())


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Stability))

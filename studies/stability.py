r"""Grokking at the Edge of Numerical Stability (Prieto et al. 2025, arXiv 2501.04697): without
weight decay the logits grow until rounding leaves of the softmax's sum only its largest term, 1.
Then the loss and the gradient of the answer's logit are exactly 0, and learning stops.
Two ways out. --loss stablemax: the shares are s(z) / Σ s(z), s(z) = z + 1, or 1 / (1 - z) below 0
(theirs in float64). --orthograd 1 (⟂Grad): each tensor's gradient loses its part along the weights,
which mostly scales the logits, and is rescaled to its old norm (their code; not in their formula).
The column `collapse` is the share of training equations whose sum Σ exp(z - max z) is exactly 1.

    python studies/stability.py --op x_plus_y --p 59 --frac 0.4 --recipe fast --init-scale 1 \
        --weight-decay 0 --grad-clip 0 --eps 1e-25 --steps 1500 --orthograd 0 1
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    loss: str = grok.setting(
        "softmax", "shares the loss takes", ("softmax", "stablemax"), shared=False
    )
    loss_dtype: str = grok.setting(
        "float32", "precision of the loss", ("float32", "float64"), shared=False
    )
    orthograd: int = grok.setting(0, "1: gradients orthogonal to the weights", "[0, 1]")

    def __post_init__(self):
        super().__post_init__()
        grok.refuse(
            self.device == "mps" and self.loss_dtype == "float64",
            "--loss-dtype float64: must be float32 with --device mps",
        )


def exponents(config, z):
    """What the run's loss takes the softmax of, in its dtype. s(z) / Σ s(z) = softmax(log s(z))."""
    z = z.to(getattr(torch, config.loss_dtype))
    return z.sign() * z.abs().log1p() if config.loss == "stablemax" else z


class Stability(grok.Stack):
    def losses(self, logits, labels):
        rows = zip(self.runs, logits.split(1), labels.split(1))
        return torch.cat(
            [grok.cross_entropy(exponents(run.config, z), y).float() for run, z, y in rows]
        )

    def gradient(self, rows):
        grad, parts = super().gradient(rows), []
        if not self.on("orthograd"):
            return grad
        grads = self.model.weights(grad)
        for name, w in self.model.weights(self.W).items():
            tensors = 2 if "norm" in name else 1  # LayerNorm's scale and shift are two
            w, g = (t.reshape(len(t), tensors, -1) for t in (w, grads[name]))
            along = (w * g).sum(2, keepdim=True) / (w.square().sum(2, keepdim=True) + 1e-30)
            rest = g - along * w
            norms = [t.norm(dim=2, keepdim=True) for t in (g, rest)]
            parts.append((rest * (norms[0] / (norms[1] + 1e-30))).flatten(1))
        return torch.where(self.orthograd > 0, torch.cat(parts, 1), grad)

    def collapsed(self, logits, labels):
        """(R, B): whether the sum Σ exp(z - max z) is 1, in the loss's dtype."""
        each = (exponents(run.config, z) for run, z in zip(self.runs, logits))
        return torch.stack([(z - z.amax(1, keepdim=True)).exp().sum(1) == 1 for z in each])

    def measure(self):
        share = (self.over_table(self.collapsed) & self.train).sum(1) / self.train.sum(1)
        return super().measure() | {"collapse": share}


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Stability))

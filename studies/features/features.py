"""Feature learning is decoupled from generalization (Göring et al. 2025, arXiv 2507.19680): what is
measured of feature learning is how strongly features follow the training labels, not how good they
are.

Features are what the output layer reads, h (N, D). `strength` is their centred kernel alignment
with the answers over the training equations, ‖HᵀY‖² / (‖HᵀH‖ ‖YᵀY‖), with Frobenius norms and
centred H and one-hot Y, from 0 to 1. `quality` is the validation accuracy of a new output layer,
fitted to the training equations by least squares (ridge 1e-4 of the mean square). --output-scale
multiplies the logits in the loss that is trained on, not in the columns, at the same lr: a large
one is lazy, the control is 1.

    python studies/features/features.py --recipe fast --frac 0.3 --output-scale 0.25 1 4
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # grok.py
import grok
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Config(grok.Config):
    output_scale: float = grok.setting(1.0, "factor on the logits in the loss", "(0, inf)")


def strength(H, Y):
    """Centred kernel alignment of H (n, D) and Y (n, V)."""
    H, Y = H - H.mean(0), Y - Y.mean(0)
    return (H.T @ Y).square().sum() / ((H.T @ H).norm() * (Y.T @ Y).norm()).clamp(min=1e-30)


def readout(H, Y, others):
    """What ridge regression from H (n, D) to Y (n, V) says of `others` (m, D): (m, V)."""
    mean, centre = H.mean(0), Y.mean(0)
    H = H - mean
    ridge = 1e-4 * H.square().mean() * len(H) + 1e-30
    inverse = torch.linalg.inv(H.T @ H + ridge * torch.eye(H.shape[1], dtype=H.dtype))
    return (others - mean) @ (inverse @ (H.T @ (Y - centre))) + centre


class Features(grok.Run):
    def loss(self, logits, labels):
        return super().loss(self.config.output_scale * logits, labels)

    def features(self, model):
        """What the output layer reads of each equation, (N, D)."""
        seen = []
        keep = model.head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0]))
        try:
            for inputs in zip(*(t.split(2**11) for t in self.inputs), strict=True):
                model(*inputs)
        finally:
            keep.remove()
        return torch.cat(seen)

    @torch.no_grad()
    def measure(self, model):
        h = self.features(model).cpu().double()
        labels, train, val = (t.cpu() for t in (self.labels, self.train_rows, self.val_rows))
        Y = F.one_hot(labels[train], self.config.elements).double()
        hits = readout(h[train], Y, h[val]).argmax(1) == labels[val]
        quality = hits.double().mean()
        return super().measure(model) | dict(strength=strength(h[train], Y), quality=quality)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Features))

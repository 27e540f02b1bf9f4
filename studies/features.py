"""Feature learning is decoupled from generalization (Göring et al. 2025, arXiv 2507.19680): what is
measured of feature learning is how strongly features follow the training labels, not how good they
are.

Features are what the output layer reads, h (N, D). Strength is their centred kernel alignment with
the answers over the training equations, ‖HᵀY‖² / (‖HᵀH‖ ‖YᵀY‖), with Frobenius norms and centred H
and one-hot Y, from 0 to 1. Quality is the validation accuracy of a new output layer, fitted to the
training equations by least squares (ridge 1e-4 of the mean square). --output-scale multiplies the
logits in the loss that is trained on, not in the columns, at the same lr: a large one is lazy, the
control is 1.

    python studies/features.py --recipe fast --frac 0.3 --output-scale 0.25 1 4 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Config(grok.Config):
    output_scale: float = grok.setting(1.0, "factor on the logits in the loss", "(0, inf)")


class Headless(grok.Transformer):
    """Its logits (R, B, D) are the features."""

    def weights(self, W):
        one = torch.eye(self.shapes["head"][0], device=W.device)
        return super().weights(W) | {"head": one.expand(len(W), -1, -1)}


def strength(H, Y):
    """Centred kernel alignment of H (n, D) and Y (n, V)."""
    H, Y = H - H.mean(0), Y - Y.mean(0)
    return (H.T @ Y).square().sum() / ((H.T @ H).norm() * (Y.T @ Y).norm()).clamp(min=1e-30)


def readout(H, Y, others):
    """What ridge regression from H (n, D) to Y (n, V) says of `others` (m, D): (m, V)."""
    mean, centre = H.mean(0), Y.mean(0)
    H = H - mean
    ridge = 1e-4 * H.square().mean() * len(H) + 1e-30
    inverse = torch.linalg.inv(H.T @ H + ridge * torch.eye(H.shape[1]))
    return (others - mean) @ (inverse @ (H.T @ (Y - centre))) + centre


class Features(grok.Stack):
    def losses(self, logits, labels):
        return super().losses(self.output_scale[..., None] * logits, labels)

    def features(self):
        """(R, N, D)."""
        c, whole = self.config, self.model
        self.model = Headless(whole.n, c.layers, c.width, c.heads, c.position_scale)
        h = self.over_table(lambda features, labels: features.mT).mT
        self.model = whole
        return h

    def measure(self):
        columns, values = super().measure(), []
        tables = (table.cpu() for table in (self.features(), self.labels, self.train))
        for h, labels, train in zip(*tables):
            h = h.double().nan_to_num(0, 0, 0)  # of a run that diverged
            Y = F.one_hot(labels[train], self.model.n).double()
            hits = readout(h[train], Y, h[~train]).argmax(1) == labels[~train]
            values.append(torch.stack([strength(h[train], Y), hits.double().mean()]))
        return columns | dict(zip(("strength", "quality"), torch.stack(values, 1)))


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Features))

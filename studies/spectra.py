r"""Spectra of the weights, and what their gradient says of them, as columns.

alpha_NAME, of each matrix (Prakash and Martin 2025, arXiv 2506.04434): the exponent of the power
law p(λ) ~ λ^-α of its squared singular values. They claim that well-trained layers have α near 2,
and that α below 2 tells of a later collapse, which norms do not see. Theirs is WeightWatcher's fit;
here it is the estimator of Clauset et al. (2009, arXiv 0706.1062), without correlation traps.
fact (Boix-Adsera et al. 2025, arXiv 2507.05644): where training has converged, each matrix obeys
WᵀW = -1/(nλ) Σ (∇_h ℓ) hᵀ, over its inputs h, with λ the factor of an L2 penalty. The column is the
cosine of the two sides for the head; 1/λ drops out. It should come to 1 under --coupled-l2 1, where
decay is part of the gradient as in Adam, and need not under AdamW, the control.
gradient_entropy (NeuralGrok, Zhou et al. 2025, arXiv 2504.17243): -Σ |g| ln |g|.
Gradients are those of the whole training set. An evaluation takes four times as long.

    python studies/spectra.py --recipe fast --until 0 --steps 3000 --seed 0 1 2
    python studies/spectra.py --recipe fast --grad-clip 0 --weight-decay 0.0001 0.001 \
        --coupled-l2 0 1 --until 0 --steps 3000 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    coupled_l2: int = grok.setting(0, "1: decay is part of the gradient, as in Adam", "[0, 1]")


def exponent(values):
    """α (R,) of spectra (R, M), by maximum likelihood over the tail λ ≥ λ_min. λ_min is the value
    from which on spectrum and fit lie nearest, in Kolmogorov and Smirnov's distance."""
    log = values.sort(1, descending=True).values.clamp(min=1e-30).log()
    above = (log[:, None] - log[:, :, None]).tril()  # (R, M, M): ln λ_i / λ_k, where i ≤ k
    i = torch.arange(1, values.shape[1] + 1).to(log)  # the tail from λ_i on holds i
    slope = i / above.sum(2).clamp(min=1e-6)  # α - 1
    fitted = (-slope[:, :, None] * above).exp()  # the share of the tail above λ_i
    distance = (fitted - i / i[:, None]).tril().abs().amax(2)
    best = distance[:, 1:].argmin(1, keepdim=True) + 1  # one eigenvalue alone is no tail
    return 1 + slope.gather(1, best)[:, 0]


class Spectra(grok.Stack):
    def __init__(self, runs, device=torch.device("cpu")):
        super().__init__(runs, device)
        self.l2 = self.weight_decay * self.coupled_l2  # (R, 1); to the optimiser its rest
        self.weight_decay = self.weight_decay - self.l2

    def gradient(self, rows):
        grad = super().gradient(rows)
        return grad + self.l2 * (self.W - self.anchor) if self.on("coupled_l2") else grad

    def whole_gradient(self):
        """Of the mean loss on each run's training equations: (R, P)."""
        total, W = torch.zeros_like(self.W), self.W.detach().requires_grad_()
        share = self.train / self.train.sum(1, keepdim=True)
        for x, y, z, part in zip(*(t.split(512, 1) for t in (self.x, self.y, self.labels, share))):
            loss = (self.losses(self.model(W, x, y), z) * part).sum()
            total += torch.autograd.grad(loss, W)[0]
        return total

    def measure(self):
        columns = super().measure()
        # of a run that has diverged nothing counts, but in the others' stack it must not raise
        W, grad = (t.cpu().double().nan_to_num(0, 0, 0) for t in (self.W, self.whole_gradient()))
        weights = self.model.weights(W)
        for name, w in weights.items():
            if "norm" not in name:
                columns[f"alpha_{name}"] = exponent(torch.linalg.svdvals(w).square())
        w, g = weights["head"], self.model.weights(grad)["head"]  # (R, D, V): in, out
        sides = (w @ w.mT).flatten(1), -(w @ g.mT).flatten(1)  # ∇_h ℓ = w ∇_z ℓ
        columns["fact"] = torch.cosine_similarity(*sides, dim=1, eps=1e-30)
        return columns | {"gradient_entropy": torch.special.entr(grad.abs()).sum(1)}


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Spectra))

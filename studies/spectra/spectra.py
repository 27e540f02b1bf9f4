"""Spectra of the weights, and what their gradient says of them. Columns, for each matrix NAME:

alpha_NAME (HTSR, Prakash and Martin 2025, arXiv 2506.04434): the exponent of the power law
p(λ) ~ λ^-α of its squared singular values. They claim that well-trained layers have α near 2, and
that α below 2 tells of a later collapse, which norms do not see. Theirs is WeightWatcher's fit;
here it is the estimator of Clauset et al. (2009, arXiv 0706.1062), without correlation traps.

fact_NAME (FACT, Boix-Adsera et al. 2025, arXiv 2507.05644): where training with an L2 penalty of
factor λ has converged, WᵀW = -1/(nλ) Σ (∇_h ℓ) hᵀ over the inputs h of W. The column is the cosine
of the two sides, in which λ drops out. It holds where the gradient of loss + L2 is 0: with --l2,
not under AdamW's decay, the control.

gradient_entropy (NeuralGrok, Zhou et al. 2025, arXiv 2504.17243): -Σ |g| ln |g|.

Gradients are those of --loss on the whole training set. --net mlp reads one-hot codes and has
layers of the widths --hidden, as FACT's.

    python studies/spectra/spectra.py --net mlp --loss mse --l2 1e-4 --weight-decay 0 \\
        --op x_plus_y --p 61 --batch-size 0 --until 0 --steps 40000 --eval-every 500 --seed 0 1 2
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config(grok.Config):
    l2: float = grok.setting(0.0, "factor on the weights, added to the gradient", "[0, inf)")
    loss: str = grok.setting(
        "cross_entropy", "what is trained on; mse: to one-hot answers", ("cross_entropy", "mse")
    )
    net: str = grok.setting("grok", "grok.py's network or an MLP", ("grok", "mlp"))
    hidden: tuple = grok.setting((256,), "widths of the MLP's layers", "[1, 65536]")

    def __post_init__(self):
        super().__post_init__()
        models.refuse_two_decays(self)
        if self.net == "mlp":
            models.refuse_unread(self, *models.MLP.unread, "width")
        else:
            models.refuse_unread(self, "hidden")


def exponent(values):
    """α of a spectrum (M,), by maximum likelihood over the tail λ ≥ λ_min. λ_min is the value from
    which on spectrum and fit lie nearest, in Kolmogorov and Smirnov's distance."""
    if len(values) < 2:
        return torch.tensor(math.nan)
    log = values.sort(descending=True).values.clamp(min=1e-30).log()
    above = (log - log[:, None]).tril()  # (M, M): ln λ_i / λ_k, where i ≤ k
    i = torch.arange(1, len(values) + 1).to(log)  # the tail from λ_i on holds i
    slope = i / above.sum(1).clamp(min=1e-6)  # α - 1
    fitted = (-slope[:, None] * above).exp()  # the share of the tail above λ_i
    distance = (fitted - i / i[:, None]).tril().abs().amax(1)
    best = distance[1:].argmin() + 1  # one eigenvalue alone is no tail
    return 1 + slope[best]


def fact(weight, gradient):
    """The cosine of FACT's two sides, of W (out, in) and its gradient."""
    sides = (weight.T @ weight).flatten(), -(weight.T @ gradient).flatten()
    return torch.cosine_similarity(*sides, dim=0, eps=1e-30)


class Spectra(grok.Run):
    @torch.no_grad()
    def build_model(self):
        c = self.config
        if c.net == "grok":
            return super().build_model()
        model = models.MLP(c.elements, c.hidden, bias=False)
        for w in model.parameters():
            w *= c.init_scale
        return model

    def loss(self, logits, labels):
        if self.config.loss == "mse":
            return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype))
        return super().loss(logits, labels)

    def on_after_backward(self):
        for w in self.model.parameters():
            w.grad.add_(w.detach(), alpha=self.config.l2)

    def whole_gradient(self, model):
        """{name: gradient} of the mean loss on all training equations."""
        names, weights = zip(*model.named_parameters(), strict=True)
        total = [torch.zeros_like(w) for w in weights]
        for rows in self.train_rows.split(2**11):
            with torch.enable_grad():
                loss = self.loss(model(*(t[rows] for t in self.inputs)), self.labels[rows])
            share = len(rows) / len(self.train_rows)
            for part, g in zip(total, torch.autograd.grad(loss, weights), strict=True):
                part.add_(g, alpha=share)
        return dict(zip(names, total, strict=True))

    def measure(self, model):
        columns, gradient = super().measure(model), self.whole_gradient(model)
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding, models.OneHot)):
                w, g = module.weight.detach().double(), gradient[f"{name}.weight"].double()
                if not isinstance(module, nn.Linear):  # a table, (in, out)
                    w, g = w.T, g.T
                columns[f"alpha_{name}"] = exponent(torch.linalg.svdvals(w).square().cpu())
                columns[f"fact_{name}"] = fact(w, g)
        entropies = [torch.special.entr(g.double().abs()).sum() for g in gradient.values()]
        return columns | dict(gradient_entropy=sum(entropies))


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=Spectra))

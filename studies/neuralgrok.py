r"""NeuralGrok (Zhou et al. 2025, arXiv 2504.17243): a small network, the amplifier, learns to weigh
the components of the gradient so that equations kept from training are answered better, and ends
the wait up to three times sooner. Each tensor's gradient becomes p ⊙ g / ‖p ⊙ g‖, where p is the
softmax over the components g_i of amplifier(g_i), a ReLU layer. In every --inner-th update the
amplifier first takes an AdamW step down the loss on a tenth of a batch of training equations, the
outer ones, as it would be after one step along weighted gradients. The transformer is not trained
on these, although train_acc counts them. The work's by-product, g / ‖g‖ alone, is --amplifier 0. So
is its released src/model.py, where the softmax is over the amplifier's only output: it is 1. (That
amplifier has three layers and dropout.) The control is --neuralgrok 0, trained on all.

    python studies/neuralgrok.py --recipe fast --frac 0.3 --neuralgrok 0 1 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import numpy as np
import torch

LOOK_AHEAD, LR, DECAY = 1e-3, 1e-4, 1e-6  # the authors': of descent; of AdamW on the amplifier


@dataclass(frozen=True)
class Config(grok.Config):
    neuralgrok: int = grok.setting(0, "1: gradients are weighted and normalised", "[0, 1]")
    amplifier: int = grok.setting(64, "its hidden units; 0 = normalised alone", "[0, 4096]", True)
    inner: int = grok.setting(2, "updates from one of its own to the next", "[1, inf)", True)

    def __post_init__(self):
        super().__post_init__()
        grok.refuse(self.neuralgrok and self.sizes()[2] < 2, "--neuralgrok 1: needs two equations")


class NeuralGrok(grok.Stack):
    state = *grok.Stack.state, "phi", "phi_m", "phi_v"  # (R, 3 H): the amplifier and its moments

    def initial(self):
        H, outer, phi = self.config.amplifier, [], []
        for run, mask in zip(self.runs, self.train.cpu().numpy()):
            few = grok.rng(run.config.seed, "split", 1).permutation(np.flatnonzero(mask))
            outer.append(few[: max(1, run.config.sizes()[3] // 10)])
            random = grok.rng(run.config.seed, "init", 1)
            phi.append(
                np.concatenate(
                    [
                        random.standard_normal(H) * 2**0.5,
                        np.full(H, 0.01),
                        random.standard_normal(H) * (2 / max(1, H)) ** 0.5,
                    ]
                )
            )
        self.outer = torch.from_numpy(np.stack(outer)).to(self.device)  # (R, K)
        self.phi = torch.from_numpy(np.stack(phi)).float()
        self.phi_m, self.phi_v = torch.zeros_like(self.phi), torch.zeros_like(self.phi)
        return super().initial()

    def advance(self, target):  # on the training equations but the outer ones
        train, inner = self.train, self.train.scatter(1, self.outer, False)
        self.train = torch.where(self.neuralgrok > 0, inner, train)
        super().advance(target)
        self.train = train

    def weighted(self, grad, phi):
        """Gradients (R, P) weighted by the amplifier, each tensor of norm 1: (R, P)."""
        w, b, v = phi.unflatten(1, (3, 1, self.config.amplifier)).unbind(1)  # (R, 1, H)
        parts = []
        for g in grad.split(self.model.sizes, 1):
            p = (torch.relu(g[..., None] * w + b) @ v.mT)[..., 0].softmax(1)  # (R, size)
            parts.append(torch.nn.functional.normalize(p * g, dim=1, eps=1e-18))
        return torch.cat(parts, 1)

    def gradient(self, rows):
        grad = super().gradient(rows)
        if not self.on("neuralgrok"):
            return grad
        if self.config.amplifier and self.step % self.config.inner == 0:
            phi = self.phi.detach().requires_grad_()
            W = self.W - LOOK_AHEAD * self.weighted(grad, phi)
            x, y, labels = (t.gather(1, self.outer) for t in (self.x, self.y, self.labels))
            loss = grok.cross_entropy(self.model(W, x, y), labels).mean(1)  # (R,)
            (slope,) = torch.autograd.grad(loss.sum(), phi)
            grok.adamw(
                self.phi,
                slope,
                self.phi_m,
                self.phi_v,
                self.step // self.config.inner,
                torch.full_like(self.lr, LR),
                DECAY,
            )
        return torch.where(self.neuralgrok > 0, self.weighted(grad, self.phi), grad)


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=NeuralGrok))

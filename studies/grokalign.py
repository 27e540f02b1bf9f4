"""GrokAlign (Walker et al. 2025, arXiv 2506.12284): a network generalises when its Jacobian, of the
logits by the input, is aligned with the data; keeping its norm small aligns it. The loss gets
λ · mean ‖J‖, with ‖J‖² estimated by V · ‖Jᵀv‖² in one random direction v for each equation and
update (V logits). The authors report a speed-up on images and none on modular addition.

The input here is theirs of a transformer: the embeddings of an equation's tokens x ∘ y = as one
vector (4 D,), before positions are added. The column `alignment` is the mean of cos(Jᵀ1, input)
over the training equations, their centroid alignment.

    python studies/grokalign.py --recipe fast --grokalign 0 0.001 0.01 --seed 0 1 2
"""

import sys
from dataclasses import dataclass

import grok2 as grok
import torch


@dataclass(frozen=True)
class Config(grok.Config):
    grokalign: float = grok.setting(0.0, "factor λ on the Jacobian's norm", "[0, inf)")


class GrokAlign(grok.Stack):
    def read(self, W, x, y):
        """The inputs (R, B, 4, D) of equations x, y (R, B), and their logits (R, B, V), which are
        the model's; but here no two equations share an input."""
        w, n, linear, last = self.model.weights(W), self.model.n, grok.linear, self.model.layers - 1
        tokens = torch.stack([x, torch.full_like(x, n), y, torch.full_like(x, n + 1)], 2)
        inputs = grok.take(w["embed"], tokens.flatten(1)).unflatten(1, (-1, 4))
        h = inputs + self.model.positions.to(W.device)
        for i in range(last + 1):
            w_q, w_k, w_v, *rest = (
                w[f"{i}.{name}"] for name in ("q", "k", "v", "out", "norm1", "up", "down", "norm2")
            )
            rows = h[:, :, 3:] if i == last else h
            h = self.model.block(
                rows, linear(rows, w_q), [linear(h, w_k)], [linear(h, w_v)], rest, None
            )
        return inputs, linear(h[:, :, 0], w["head"])

    def gradient(self, rows):
        grad = super().gradient(rows)
        if not self.on("grokalign"):
            return grad
        W = self.W.detach().requires_grad_()
        inputs, logits = self.read(W, self.x.gather(1, rows), self.y.gather(1, rows))
        v = self.random("grokalign", torch.Tensor.normal_, logits.detach())
        v = v / v.norm(dim=2, keepdim=True).clamp(min=1e-8)
        (Jv,) = torch.autograd.grad(logits, inputs, v, create_graph=True)  # (R, B, 4, D)
        squares = logits.shape[2] * Jv.square().sum((2, 3))  # (R, B)
        penalty = squares.clamp(min=1e-8).sqrt().mean(1)  # (R,)
        return grad + self.grokalign * torch.autograd.grad(penalty.sum(), W)[0]

    def alignment(self, x, y):  # (R, B)
        inputs, logits = self.read(self.W.detach().requires_grad_(), x, y)
        (J1,) = torch.autograd.grad(logits.sum(), inputs)
        return torch.cosine_similarity(J1.flatten(2), inputs.detach().flatten(2), dim=2)

    def measure(self):
        chunks = zip(self.x.split(512, 1), self.y.split(512, 1))
        cosine = torch.cat([self.alignment(x, y) for x, y in chunks], 1) * self.train
        return super().measure() | {"alignment": cosine.sum(1) / self.train.sum(1)}


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=GrokAlign))

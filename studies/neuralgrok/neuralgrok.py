"""NeuralGrok (Zhou et al. 2025, arXiv 2504.17243): a small network, the amplifier, learns to weigh
the entries of the gradient so that equations kept from training are answered better; this is to end
the wait up to three times sooner. Each tensor's gradient g becomes c · p ⊙ g / ‖p ⊙ g‖, where p is
the softmax over the entries of amplifier(g), entry by entry. In every --inner-th update the
amplifier first takes a step of Adam down the loss on the outer equations, a share --outer of the
training set, as it would be after one step along weighted gradients. The network is not trained on
these. Controls: c · g / ‖g‖ alone, --amplifier ""; --neuralgrok 0 with the same --grad-clip.

--net theirs is Grokfast's network. --l2 in the gradient, after clipping, is theirs, too: there c
sets the gradient against the decay, and is no neutral factor.

    THEIRS="--net theirs --op x_plus_y_from_1 --l2 1e-3 --weight-decay 0 --eval-every 50"
    python studies/neuralgrok/neuralgrok.py $THEIRS --steps 3000 --seed 0 1 2
    python studies/neuralgrok/neuralgrok.py $THEIRS --neuralgrok 0.05 1 --amplifier "" --grad-clip 1
    python studies/neuralgrok/neuralgrok.py $THEIRS --neuralgrok 1 --amplifier 128,128 --grad-clip 1
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch
import torch.nn.functional as F
from torch import nn

for name in ("x_plus_y", "x_minus_y", "x_mul_y"):
    grok.OPS[f"{name}_from_1"] = grok.OPS[name]._replace(y_from=1)
grok.OPS["x2_minus_y_from_1"] = grok.Op("x² - y mod p", lambda x, y, p: (x**2 - y) % p, y_from=1)
LOOK_AHEAD = 1e-3  # step along the weighted gradients at whose end the amplifier is judged


@dataclass(frozen=True)
class Config(grok.Config):
    neuralgrok: float = grok.setting(0.0, "c, norm of each tensor's gradient; 0 = off", "[0, inf)")
    amplifier: tuple = grok.setting((128, 128), "its layers; none: normalised alone", "[1, 4096]")
    inner: int = grok.setting(4, "updates to each step of the amplifier", "[1, inf)")
    outer: float = grok.setting(0.02, "share of training equations for the amplifier", "(0, 1)")
    l2: float = grok.setting(0.0, "decay in Adam's gradient, with --weight-decay 0", "[0, inf)")
    net: str = grok.setting("grok", "grok.py's network or that of their code", ("grok", "theirs"))

    def __post_init__(self):
        super().__post_init__()
        models.refuse_two_decays(self)
        if self.net == "theirs":
            models.refuse_unread(self, *models.GrokfastTransformer.unread)
        if self.neuralgrok and self.amplifier and self.outliers:
            raise grok.UsageError("--outliers: the amplifier would get them first; leave them out")


class NeuralGrok(grok.Run):
    saved = *grok.Run.saved, "amplifier", "adam"

    def __init__(self, config):
        super().__init__(config)
        self.outer = self.outer.to(self.device)
        widths = [1, *config.amplifier, 1]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        parts = itertools.chain.from_iterable((layer, nn.ReLU()) for layer in layers)
        self.amplifier = nn.Sequential(*list(parts)[:-1]).to(self.device)
        weights = self.amplifier.parameters()
        self.adam = torch.optim.Adam(weights, lr=1e-4, weight_decay=1e-3, fused=True)

    def build_data(self):
        inputs, labels, train, val = super().build_data()
        learned = self.config.neuralgrok and self.config.amplifier
        few = max(1, round(self.config.outer * len(train))) if learned else 0
        if few == len(train):
            raise grok.UsageError(f"--outer {self.config.outer}: leaves no equation to train on")
        self.outer = train[:few]
        return inputs, labels, train[few:], val

    def build_model(self):
        c = self.config
        if c.net == "theirs":
            return models.GrokfastTransformer(c.elements, c.layers, c.width, c.heads)
        return super().build_model()

    def build_optimizer(self):
        c = self.config
        if not c.l2:
            return super().build_optimizer()
        options = dict(lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.l2, fused=True)
        return torch.optim.Adam(self.model.parameters(), **options)

    def weighted(self, g):
        """A gradient as the amplifier weighs it, of norm c."""
        if self.config.amplifier:
            g = g * self.amplifier(g.reshape(-1, 1)).softmax(0).view_as(g)
        return self.config.neuralgrok * g / g.norm().clamp(min=1e-18)

    def on_after_backward(self):
        c = self.config
        if not c.neuralgrok:
            return
        if c.amplifier and self.step % c.inner == 0:
            self.train_amplifier()
        with torch.no_grad():
            for w in self.model.parameters():
                w.grad = self.weighted(w.grad)

    def train_amplifier(self):
        """One step of Adam down the loss on the outer equations, after a step of the network."""
        ahead = {
            name: w.detach() - LOOK_AHEAD * self.weighted(w.grad)
            for name, w in self.model.named_parameters()
        }
        inputs = tuple(t[self.outer] for t in self.inputs)
        logits = torch.func.functional_call(self.model, ahead, inputs)
        self.adam.zero_grad()
        loss = F.cross_entropy(logits, self.labels[self.outer])
        loss.backward(inputs=list(self.amplifier.parameters()))
        self.adam.step()


if __name__ == "__main__":
    sys.exit(grok.main(config=Config, method=NeuralGrok))

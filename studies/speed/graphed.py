"""grok.py or a study on a GPU, each whole update replayed as one CUDA graph. An update is some
hundreds of short kernels; started one by one from Python they leave the GPU idle most of the time.

    python studies/speed/graphed.py grok.py --op x_div_y --frac 0.5
    python studies/speed/graphed.py studies/unified/unified.py --net theirs --op x_plus_y

A graph repeats what it has seen: rows and random numbers are new at each update, the rest is as it
was. So there is one for each rate; until it is taken, and without a GPU, updates are plain. What
binds its tensors anew at each update would be frozen: before training a few updates are made with
and without graphs, and a difference ends it. It trains one run at a time. For many, start the same
command with the same --out several times, under NVIDIA's MPS (nvidia-cuda-mps-control -d).
"""

import contextlib
import sys
from pathlib import Path

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))  # models.py, grok.py
import grok
import models
import torch

EAGER = 3  # plain updates before a graph is taken, in which torch sets up what it keeps


class Graphed:
    """Put before a subclass of grok.Run."""

    def update(self, rows):
        if self.device.type != "cuda":
            return super().update(rows)
        if not hasattr(self, "graphs"):
            self.graphs, self.counts, self.rows_now = {}, {}, rows.clone()
            optimizers = [v for v in vars(self).values() if isinstance(v, torch.optim.Optimizer)]
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["capturable"] = True
        # what a graph is of: a rate, and for NeuralGrok whether the amplifier learns
        rate = self.schedule.lr_lambdas[0](self.step - 1)
        kind = rate, self.step % getattr(self.config, "inner", 1) == 0
        self.rows_now.copy_(rows)
        if kind in self.graphs:
            self.graphs[kind].replay()
            self.schedule.last_epoch = self.step  # which a replay does not step
            return
        self.schedule.last_epoch = self.step - 2
        self.schedule.step()  # to this update's rate, which a graph of another may have passed
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] > EAGER:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                super().update(self.rows_now)
            self.graphs[kind] = graph
            graph.replay()
        else:
            with self.aside():
                super().update(self.rows_now)

    @contextlib.contextmanager
    def aside(self):
        """Within, work goes to a stream of its own, as torch wants it before a graph is taken."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)


def graphed(method):
    """A subclass of grok.Run with graphs. Its name, which records keep, is the method's."""
    return type(method.__name__, (Graphed, method), {"__module__": method.__module__})


def compare(method, config):
    """Raises UsageError if updates with graphs lead elsewhere than those of the plain method."""
    ends = []
    for kind in method.__bases__[1:] + (method,):
        with grok.usual_torch(config):
            run = kind(config)
            for _ in range(config.warmup + 3 * EAGER * getattr(config, "inner", 1)):
                run.advance()
        ends.append(run.model.state_dict())
    for name, w in ends[0].items():
        if not torch.allclose(w, ends[1][name], rtol=1e-3, atol=1e-4):
            raise grok.UsageError(
                f"{method.__name__}: {name} differs in a CUDA graph; run it plain"
            )


def main(argv):
    if not argv or not Path(argv[0]).is_file():
        print("graphed.py: give grok.py or the file of a study, then its flags", file=sys.stderr)
        return 2
    try:
        config, method = models.study(Path(argv[0]))
    except grok.UsageError as error:
        print(f"graphed.py: {error}", file=sys.stderr)
        return 2
    usual, grok.rehearse = grok.rehearse, compare  # which grok.main calls before a new sweep
    try:
        return grok.main([*argv[1:], "--jobs", "1"], config=config, method=graphed(method))
    finally:
        grok.rehearse = usual


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

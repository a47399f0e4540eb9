"""A convolutional network on handwritten digits, its kernels dense, CP and Tucker, beside torch.

Each network is one compiled program. Its twin in plain torch starts from the same function: its
kernels are what the cores multiply out to. Run `python examples/cnn.py --help`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import digits
import torch
from digits import Digits
from peak import peak_bytes
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

import tncompiler as tnc
from tncompiler.formats.format import Format

BATCH = 128
STEPS, QUICK_STEPS = 150, 10
LEARNING_RATE = 3e-3
CHANNELS = (1, 16, 32, 32)
STRIDES = (1, 1, 2)
TAPS = 3
WIDTH = 100  # of the table, at least
BY = ("tncompiler", "torch")
# small kernels are not worth a network: the first one has 9 taps on one channel
FORMATS: dict[str, Format | None] = {
    "dense": None,
    "CP": tnc.formats.CP(rank=24),
    "Tucker": tnc.formats.Tucker(rank=(10, 3, 3, 12)),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one network; ``loss`` is that at the end of training."""

    by: str
    parameters: int
    loss: float
    accuracy: float
    step_ms: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Our network and its twin, and how far their first results differ, of the largest."""

    kernels: str
    ours: Result
    theirs: Result
    difference: float


# ---------------------------------------------------------------------------- the two networks


def plain(seed: int) -> nn.Sequential:
    """The network in torch's own layers."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for (near, far), stride in zip(pairwise(CHANNELS), STRIDES, strict=True):
        layers += [nn.Conv2d(near, far, TAPS, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(far, 10))


def expression(format: Format | None) -> tnc.Expr:
    """The network as one expression; batch and image size are free."""
    b, h, w = tnc.indices("b h w")
    channel = tnc.Index("c0", CHANNELS[0])
    x: tnc.Expr = tnc.input("images", b, channel, h, w)
    for number, (far, stride) in enumerate(zip(CHANNELS[1:], STRIDES, strict=True), start=1):
        out, h2, w2 = tnc.Index(f"c{number}", far), *tnc.indices(f"h{number} w{number}")
        p, q = tnc.Index("p", TAPS), tnc.Index("q", TAPS)
        seen = x.window(h, out=h2, kernel=p, stride=stride, padding=1)
        seen = seen.window(w, out=w2, kernel=q, stride=stride, padding=1)
        kernel = kernel_of(format, number).network((channel, p, q), (out,), name=f"conv{number}")
        bias = tnc.param(f"conv{number}.bias", out)
        x = tnc.relu(tnc.contract(seen, kernel, out=(b, out, h2, w2)) + bias)
        channel, h, w = out, h2, w2
    label = tnc.Index("label", 10)
    head = tnc.param("head.weight", label, channel)
    return tnc.contract(x.mean(h, w), head, out=(b, label)) + tnc.param("head.bias", label)


def kernel_of(format: Format | None, number: int) -> Format:
    return tnc.formats.Dense() if format is None or number == 1 else format


@torch.no_grad()
def twins(format: Format | None, seed: int) -> tuple[nn.Module, nn.Sequential]:
    """Our network with cores near torch's kernels, and torch's with the kernels that they make."""
    theirs = plain(seed)
    convolutions = [layer for layer in theirs if isinstance(layer, nn.Conv2d)]
    values = {"head.weight": theirs[-1].weight, "head.bias": theirs[-1].bias}
    for number, layer in enumerate(convolutions, start=1):
        kernel = layer.weight.permute(1, 2, 3, 0)
        shapes = (kernel.shape[:3], kernel.shape[3:])
        found = kernel_of(format, number).decompose(kernel, *shapes)
        made = torch.from_numpy(found.reconstruct())
        layer.weight.copy_(made.reshape(kernel.shape).permute(3, 0, 1, 2))
        cores = {name: torch.from_numpy(core) for name, core in found.cores.items()}
        values |= {f"conv{number}.{name}": core for name, core in cores.items()}
        values[f"conv{number}.bias"] = layer.bias
    ours: nn.Module = tnc.compile(expression(format), backend="torch", seed=seed)
    for name, parameter in ours.named_parameters():
        parameter.copy_(values[name].reshape(parameter.shape))
    return ours, theirs


# ---------------------------------------------------------------------------- training, measuring


def train(model: nn.Module, data: Digits, steps: int, advance: Callable[[], object]) -> float:
    """Adam on batches in a fixed order; the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(data.train_images), (BATCH,), generator=order)
        losses.append(float(step(model, data.train_images[chosen], data.train_labels[chosen])))
        optimizer.step()
        advance()
    return statistics.mean(losses[-max(steps // 10, 1) :])


def step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Forward, cross-entropy and backward; leaves the gradients behind."""
    model.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(as_images(images)), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def as_images(pixels: Tensor) -> Tensor:
    return pixels.reshape(-1, 1, 8, 8)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    hits = model(as_images(data.test_images)).argmax(dim=1) == data.test_labels
    return float(hits.double().mean())


def times_ms(models: Sequence[nn.Module], data: Digits, repeats: int) -> tuple[float, ...]:
    """The median time of a step of each, taken in turn."""
    images, labels = data.train_images[:BATCH], data.train_labels[:BATCH]
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(repeats):
        for model, times in zip(models, taken, strict=True):
            start = time.perf_counter()
            step(model, images, labels)
            times.append(1e3 * (time.perf_counter() - start))
    return tuple(map(statistics.median, taken))


def measure(
    kernels: str, format: Format | None, data: Digits, steps: int, advance: Callable[[], object]
) -> Pair:
    """Both networks, from the same function on."""
    models = twins(format, seed=0)
    batch = data.train_images[:BATCH], data.train_labels[:BATCH]
    with torch.no_grad():
        first, second = (model(as_images(batch[0])) for model in models)
    difference = float((first - second).abs().max() / second.abs().max())
    losses = [train(model, data, steps, advance) for model in models]
    took = times_ms(models, data, max(steps // 10, 3))
    ours, theirs = (
        Result(
            by,
            sum(parameter.numel() for parameter in model.parameters()),
            loss,
            accuracy(model, data),
            step_ms,
            peak_bytes(partial(step, model, *batch)),
        )
        for by, model, loss, step_ms in zip(BY, models, losses, took, strict=True)
    )
    return Pair(kernels, ours, theirs, difference)


def table(pairs: Sequence[Pair], steps: int) -> Table:
    """A line for each network of ours, and one for its twin below it."""
    made = Table(box=box.SIMPLE_HEAD, caption=CAPTION.format(steps=steps, batch=BATCH))
    for heading in ("kernels", "by"):
        made.add_column(heading)
    for heading in ("parameters", "difference", "loss", "test accuracy", "ms a step", "peak MiB"):
        made.add_column(heading, justify="right")
    for pair in pairs:
        made.add_row(pair.kernels, *_cells(pair.ours, f"{pair.difference:.1e}"))
        made.add_row("", *_cells(pair.theirs, ""), end_section=True)
    return made


def _cells(result: Result, difference: str) -> list[str]:
    return [
        result.by,
        f"{result.parameters:,}",
        difference,
        f"{result.loss:.3f}",
        f"{result.accuracy:.1%}",
        f"{result.step_ms:.2f}",
        f"{result.peak_bytes / 2**20:.2f}",
    ]


CAPTION = """\
loss: after {steps} steps of Adam on batches of {batch}, from the same function on
difference: of the two networks' first results, relative to the largest
peak: the most bytes of new tensors at once in a step; torch: nn.Conv2d with the whole kernel"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps ({STEPS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    given = parser.parse_args(arguments)
    steps = QUICK_STEPS if given.quick else given.steps
    if min(steps, given.threads) < 1:
        parser.error("--steps and --threads are 1 or more")
    torch.set_num_threads(given.threads)
    data = digits.load()
    with tqdm(total=2 * steps * len(FORMATS), desc="training", leave=False) as progress:
        pairs = [
            measure(name, format, data, steps, progress.update) for name, format in FORMATS.items()
        ]
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table(pairs, steps))


if __name__ == "__main__":
    main()

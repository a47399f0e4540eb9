"""Train a digit classifier with its hidden layer dense and in five tensor formats; compare them.

Run `make demo`, or `python examples/demo.py --help`. Prints one table; pictures, generated code and
all numbers go to demo-output/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import digits
import report
import torch
from digits import Digits
from networks import Hidden, hidden_layers
from report import Result
from rich.console import Console
from threadpoolctl import threadpool_limits
from timing import compare
from tqdm import tqdm

BATCH = 128
EPOCHS, QUICK_EPOCHS = 30, 5
REPEATS, QUICK_REPEATS = 40, 10


@dataclass(frozen=True, slots=True)
class Settings:
    seeds: int
    epochs: int
    repeats: int
    threads: int
    out: Path


def read_settings(arguments: Sequence[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=_positive, default=3, help="training runs a format (3)")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    parser.add_argument("--threads", type=_positive, default=1, help="threads of torch (1)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="demo-output")
    given = parser.parse_args(arguments)
    if given.quick:
        return Settings(1, QUICK_EPOCHS, QUICK_REPEATS, given.threads, given.out)
    return Settings(given.seeds, EPOCHS, REPEATS, given.threads, given.out)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def measure(hidden: Hidden, data: Digits, settings: Settings, progress: tqdm) -> Result:
    """Compare with torch.einsum, then train with every seed."""
    progress.set_description(f"{hidden.name:20}")
    comparison = compare(hidden, data, batch=BATCH, repeats=settings.repeats)
    runs = tuple(
        digits.train(
            hidden,
            data,
            seed=seed,
            epochs=settings.epochs,
            batch=BATCH,
            after_epoch=progress.update,
        )
        for seed in range(settings.seeds)
    )
    return Result(hidden, digits.hidden_parameters(hidden), runs, comparison)


def write_all(results: Sequence[Result], settings: Settings) -> None:
    """Everything but the printed table."""
    settings.out.mkdir(parents=True, exist_ok=True)
    made = report.table(results, BATCH, settings.threads)
    report.write_table(made, settings.out / "table.txt")
    record = {**asdict(settings), "batch": BATCH, "out": str(settings.out)}
    report.write_results(results, record, settings.out / "results.json")
    report.draw_curves(results, settings.out / "training.png")
    for result in tqdm(results, desc=f"{'pictures, code':20}", unit="format"):
        report.write_network(result, BATCH, settings.out / result.slug)


def measure_all(settings: Settings) -> list[Result]:
    """Every format in turn; the dense layer comes first."""
    data, layers = digits.load(), hidden_layers()
    total = len(layers) * settings.seeds * settings.epochs
    with tqdm(total=total, unit="epoch", mininterval=0.5) as progress:
        return [measure(hidden, data, settings, progress) for hidden in layers]


def main() -> None:
    settings, console = read_settings(), Console()
    torch.set_num_threads(settings.threads)
    with threadpool_limits(settings.threads):  # NumPy's pool too: two pools would fight for cores
        results = measure_all(settings)
    write_all(results, settings)
    console.print(report.table(results, BATCH, settings.threads))
    good, slow = report.good_compressions(results), report.slower_steps(results)
    console.print(f"A tenth of the parameters, within a point: {', '.join(good) or 'none'}")
    console.print(f"Slower than torch.einsum: {', '.join(slow) or 'none'}")
    console.print(f"Pictures, generated code and all numbers: {settings.out}/")


if __name__ == "__main__":
    main()

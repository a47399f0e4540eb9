"""A record of `benchmarks.plan` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Record = Mapping[str, Any]


def print_plans(console: Console, record: Record) -> None:
    """Scores, gains, flops, and what is promised."""
    console.print(score_table(record))
    console.print(gain_table(record))
    console.print(flops_table(record))
    console.print(promise_table(record))
    if record["skipped"]:
        console.print(f"the time was used up before: {', '.join(record['skipped'])}")


def score_table(record: Record) -> Table:
    """A row for each network: correlation and regrets of both parts on both backends."""
    table = Table(
        title="predicted against measured time of the trees of a network",
        caption="ρ: Spearman over 12 trees or more that span 3 times; regret: chosen / best "
        "measured, by time and (by flops alone)",
    )
    table.add_column("network")
    keys = list(dict.fromkeys((s["backend"], s["part"]) for s in record["scores"]))
    table.add_column("trees", justify="right")
    for backend, part in keys:
        table.add_column(f"{backend} {part}: span", justify="right")
        table.add_column("ρ", justify="right")
        table.add_column("regret", justify="right")
    for name, own in _by_network(record["scores"]).items():
        cells = [name, str(own[0]["trees"])]
        for score in own:
            regret = f"{score['regret']:.2f} ({score['flops_regret']:.2f})"
            cells += [f"{score['span']:.0f}", number(score["spearman"]), regret]
        table.add_row(*cells, style="red" if any(s["regret"] > 1.25 for s in own) else None)
    return table


def gain_table(record: Record) -> Table:
    """What choosing for the training step gains over reversing an order chosen forward only."""
    table = Table(
        title="training step: order chosen forward only, reversed / order chosen for the step",
        caption="above 1: choosing for the step gains",
    )
    table.add_column("network")
    for title in ("forward flops: flops", "predicted", "NumPy", "torch"):
        table.add_column(title, justify="right")
    for title in ("forward time: flops", "predicted", "NumPy", "torch"):
        table.add_column(title, justify="right")
    for name, own in _by_network(record["gains"]).items():
        cells = [name]
        for minimize in ("flops", "time"):
            numpy, torch = (g for g in own if g["minimize"] == minimize)
            values = (numpy["flops"], numpy["predicted"], numpy["measured"], torch["measured"])
            cells += [f"{value:.2f}" for value in values]
        table.add_row(*cells)
    return table


def flops_table(record: Record) -> Table:
    """Networks on which the flops differ from those of cotengra's default."""
    table = Table(title='minimize="flops" beside cotengra\'s default, equal trials and seed')
    for title in ("network", "ours", "cotengra", "cotengra / ours, least of the seeds", "most"):
        table.add_column(title, justify="left" if title == "network" else "right")
    equal = 0
    for name, own in _by_network(record["flops"]).items():
        ratios = [duel["cotengra"] / duel["ours"] for duel in own]
        if max(ratios) < 1.0005 and min(ratios) > 0.9995:
            equal += 1
            continue
        table.add_row(
            name,
            f"{own[0]['ours']:.4g}",
            f"{own[0]['cotengra']:.4g}",
            f"{min(ratios):.3f}",
            f"{max(ratios):.3f}",
            style="red" if min(ratios) < 1 - 1e-9 else None,
        )
    table.caption = f"{equal} networks are equal"
    return table


def promise_table(record: Record) -> Table:
    """What is promised, and what was found."""
    table = Table(title="what is promised")
    for title in ("", "networks", "median ρ ≥ 0.8", "least"):
        table.add_column(title)
    for title in ("regret ≤ 1.05", "95 % ≤ 1.25", "by flops alone", "95 %"):
        table.add_column(title)
    for row in record["summary"]:
        table.add_row(
            f"{row['backend']} {row['part']}",
            f"{row['networks']}, {row['ranked']} ranked",
            number(row["spearman"]),
            number(row["least_spearman"]),
            *(number(row[k]) for k in ("regret", "regret_95", "flops_regret", "flops_regret_95")),
        )
    return table


def number(value: float | None) -> str:
    """Two digits, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def _by_network(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["network"], []).append(row)
    return found

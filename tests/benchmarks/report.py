"""Tables and plot of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from .rows import PEERS, TRIP
from .workers import CONTENDERS

Result = Dict[str, Any]
Table = List[List[str]]


def number(value: float) -> str:
    """Three significant digits."""
    if value >= 1000:
        digits = len(f"{value:.0f}") - 3
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.3g}"


def title(name: str) -> str:
    known = CONTENDERS.get(name)
    return name if known is None else known.title


def spread(figure: Dict[str, Any]) -> str:
    """Half the way from the lowest round to the highest, of the median."""
    if not figure["median"]:
        return ""
    return f" ±{50 * (figure['high'] - figure['low']) / figure['median']:.0f}%"


def figures(results: List[Result]) -> Table:
    """The rows of one group: a column for each contender."""
    names: List[str] = []
    for result in results:
        names += [name for name in result["figures"] if name not in names]
    table = [["", "", *(title(name) for name in names)]]
    for result in results:
        cells = []
        for name in names:
            figure = result["figures"].get(name)
            cells.append("-" if figure is None else number(figure["median"]) + spread(figure))
        table.append([result["name"], result["unit"], *cells])
    return table


def by_group(results: List[Result]) -> Dict[str, List[Result]]:
    """Rows that share a table: those of a group, but each row of "growth" is one."""
    groups: Dict[str, List[Result]] = {}
    for result in results:
        name = result["name"] if result["group"] == "growth" else result["group"]
        groups.setdefault(name, []).append(result)
    return groups


def wanted(target: Dict[str, Any]) -> str:
    text = f"{title(target['who'])} {target['relation']} {target['factor']:g}"
    return text if target["against"] is None else f"{text} x {title(target['against'])}"


def targets(results: List[Result]) -> Table:
    """What is wanted and found, and how far bare Python, which does nothing else, comes."""
    table = [["", "wanted", "found", "bare Python", ""]]
    for result in results:
        for target in result["targets"]:
            found = [
                "-" if target[who] is None else f"{target[who]:.3g}" for who in ("found", "bare")
            ]
            verdict = {True: "reached", False: "missed", None: "not measured"}[target["reached"]]
            if target["reached"] is False and target["bare_reached"] is False:
                verdict += ", by bare Python too"
            table.append([result["name"], wanted(target), *found, verdict])
    return table


def ratios(results: List[Result]) -> Table:
    """wsthread's figures as multiples of the others', from the medians of one run."""
    names = [name for name in CONTENDERS if name not in ("wsthread", "inline", "plain")]
    table = [["", "", *(title(name) for name in names)]]
    for result in results:
        for who, others in result["ratios"].items():
            cells = [f"{others[name]:.3g}" if name in others else "-" for name in names]
            if set(cells) != {"-"}:
                table.append([f"{result['name']} ({result['unit']})", title(who), *cells])
    return table


def faster(results: List[Result]) -> List[str]:
    """Say where another client is ahead of wsthread, in whichever dispatcher is better."""
    lines = []
    for result in results:
        if result["group"] not in PLOTTED:
            continue
        medians = {name: figure["median"] for name, figure in result["figures"].items()}
        cost = result["unit"] == TRIP
        ours = [medians[name] for name in ("wsthread", "inline") if name in medians]
        best = min(ours) if cost else max(ours)
        ahead = []
        for name in PEERS:
            if name in medians:
                times = best / medians[name] if cost else medians[name] / best
                if times >= 1.05:
                    ahead.append(f"{title(name)} {times:.2g} times")
        if ahead:
            lines.append(f"{result['name']}: {', '.join(ahead)}")
    return lines


def facts(environment: Dict[str, Any]) -> List[str]:
    maskers = environment["maskers"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return [
        f"{environment['python']}, {environment['system']}, {environment['date']}",
        versions,
        f"masker: {maskers['wsthread']}; without [speed]: {maskers['plain']}",
        f"compression: {environment['compression']}",
        f"keepalive: {environment['keepalive']}",
        f"text: {environment['text']}",
        f"medians of {environment['rounds']} rounds; ± is half the way from lowest to highest",
    ]


PLOTTED = {"receive", "send", "round trips", "TLS"}
COLOURS = {
    "wsthread": "#1b6ca8",
    "inline": "#57a0d2",
    "plain": "#a8cbe6",
    "raw": "#444444",
    "bare": "#888888",
    "bare inline": "#aaaaaa",
}


def plot(results: List[Result], path: Path) -> None:
    """Draw the rows that compare clients: bars with the range of their rounds."""
    import matplotlib  # noqa: PLC0415 - only who draws needs it

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "wsthread"  # the same data, the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot  # noqa: PLC0415
    from matplotlib.ticker import EngFormatter, NullFormatter  # noqa: PLC0415

    chosen = [
        result
        for result in results
        if result["group"] in PLOTTED and "non-ASCII" not in result["name"]
    ]
    columns = 2
    lines = (len(chosen) + columns - 1) // columns
    figure, axes = pyplot.subplots(lines, columns, figsize=(11, 2.1 * lines), squeeze=False)
    for axis in axes.flat[len(chosen) :]:
        axis.set_visible(False)
    for axis, result in zip(axes.flat, chosen):
        bars(axis, result)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def bars(axis: Any, result: Result) -> None:
    names = list(result["figures"])[::-1]
    found = [result["figures"][name] for name in names]
    medians = [figure["median"] for figure in found]
    ranges = [
        [figure["median"] - figure["low"] for figure in found],
        [figure["high"] - figure["median"] for figure in found],
    ]
    colours = [COLOURS.get(name, "#c9a66b") for name in names]
    axis.barh([title(name) for name in names], medians, xerr=ranges, color=colours, ecolor="#888")
    better = "less is better" if result["unit"].startswith("us") else "more is better"
    axis.set_title(f"{result['name']}: {result['unit']} ({better})", fontsize=8)
    axis.tick_params(labelsize=8)
    # The raw socket does not parse: where it is far ahead, a linear scale shows nothing else.
    if max(medians) > 30 * min(medians):
        axis.set_xscale("log")

"""Which cases, what counts as passed, and how it is told. No input or output here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

#: The suite has no right answer for these: it reports what the client does.
INFORMATIONAL_CASES = frozenset({"7.1.6", "7.13.1", "7.13.2"})
#: The columns of the summary, in this order.
VERDICTS = ("OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", "FAILED")


#: Of each set of parameters in groups 12 and 13 (compression): messages of 16, 1024 and 32768
#: bytes, of 8192 in frames of 256, and twice the slow ones, of 131072 in frames.
SPREAD = [
    *(f"12.{part}.{case}" for part in range(1, 6) for case in (1, 4, 8, 11)),
    *(f"13.{part}.{case}" for part in range(1, 8) for case in (1, 4, 8, 11)),
    "12.1.18",
    "13.4.18",
]


@dataclass(frozen=True)
class Result:
    """What the suite says of one case."""

    id: str
    behavior: str
    close: str
    duration: float  # seconds, as the server measured
    note: Optional[str] = None  # what the client said, or why there is no result
    details: Dict[str, Any] = field(default_factory=dict)  # the suite's report of the case

    @property
    def verdict(self) -> str:
        """One of VERDICTS: the worse of behaviour and closing behaviour."""
        if self.id in INFORMATIONAL_CASES and "INFORMATIONAL" in (self.behavior, self.close):
            allowed = {"OK", "INFORMATIONAL"}
            return "INFORMATIONAL" if {self.behavior, self.close} <= allowed else "FAILED"
        if self.behavior == "UNIMPLEMENTED":
            return "UNIMPLEMENTED"
        for verdict, pair in (("OK", {"OK"}), ("NON-STRICT", {"OK", "NON-STRICT"})):
            if {self.behavior, self.close} <= pair:
                return verdict
        return "FAILED"

    @property
    def passed(self) -> bool:
        return self.verdict in ("OK", "INFORMATIONAL")


def case_patterns(selection: Iterable[str]) -> List[str]:
    """The suite's patterns for a selection: ``1-7``, ``9``, ``12.1.*``, ``5.3``, ``all``.

    ``spread`` is some of each kind in groups 12 and 13, which take long. Items
    may also be joined by commas. Raises ValueError for anything else.
    """
    patterns: List[str] = []
    for item in (part.strip() for text in selection for part in text.split(",")):
        groups = re.fullmatch(r"(\d+)-(\d+)", item)
        if item == "all":
            patterns.append("*")
        elif item == "spread":
            patterns += SPREAD
        elif groups and int(groups[1]) <= int(groups[2]):
            patterns += [f"{n}.*" for n in range(int(groups[1]), int(groups[2]) + 1)]
        elif re.fullmatch(r"\d+", item):
            patterns.append(f"{item}.*")
        elif re.fullmatch(r"\d+(\.\d+)*\.(\d+|\*)", item):
            patterns.append(item)
        else:
            raise ValueError(f"not a selection of cases: {item!r}")
    return patterns


def sort_key(case: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in case.split("."))


def judge(
    cases: Mapping[str, str],
    index: Mapping[str, Mapping[str, Any]],
    notes: Mapping[str, str],
    hung: Iterable[str] = (),
) -> List[Result]:
    """One result for each selected case, in order of the cases.

    ``cases`` maps ids to descriptions, ``index`` is an agent's part of the
    suite's ``index.json``, ``notes`` are the client's own words by case, ``hung``
    the cases that were given up. A case that is not in ``index`` is ``MISSING``.
    """
    results = []
    for case in sorted(cases, key=sort_key):
        entry = index.get(case)
        if case in set(hung):
            behavior, close, duration = "HUNG", "HUNG", 0.0
        elif entry is None:
            behavior, close, duration = "MISSING", "MISSING", 0.0
        else:
            behavior, close = str(entry["behavior"]), str(entry["behaviorClose"])
            duration = float(entry["duration"]) / 1000
        results.append(
            Result(case, behavior, close, duration, notes.get(case), {"description": cases[case]})
        )
    return results


def describe(result: Result) -> str:
    """A failed case for a person: what was sent, expected and seen."""
    details = result.details
    lines = [f"{result.id}: behaviour {result.behavior}, close {result.close}"]
    for label, key in (
        ("description", "description"),
        ("expectation", "expectation"),
        ("expected", "expected"),
        ("received", "received"),
        ("result", "result"),
        ("expected close", "expectedClose"),
        ("close result", "resultClose"),
        ("close code", "remoteCloseCode"),
        ("not clean because", "wasNotCleanReason"),
    ):
        if details.get(key) not in (None, "", {}):
            text = re.sub(r"<[^>]+>", " ", str(details[key]))
            lines.append(f"    {label}: {_shortened(' '.join(text.split()))}")
    if result.note:
        lines.append(f"    client: {_shortened(result.note)}")
    return "\n".join(lines)


def _shortened(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."


def by_group(verdicts: Iterable[Tuple[str, str]]) -> Dict[str, Dict[str, int]]:
    """Counts of verdicts by group of cases, from pairs of case id and verdict."""
    groups: Dict[str, Dict[str, int]] = {}
    for case, verdict in sorted(verdicts, key=lambda pair: sort_key(pair[0])):
        counts = groups.setdefault(case.split(".")[0], dict.fromkeys(VERDICTS, 0))
        counts[verdict] += 1
    return groups


def summary(results: List[Result]) -> str:
    """The table of groups and verdicts."""
    groups = by_group((result.id, result.verdict) for result in results)
    totals = {v: sum(counts[v] for counts in groups.values()) for v in VERDICTS}
    lines = ["group  cases" + "".join(f"  {verdict:>13}" for verdict in VERDICTS) + "  seconds"]
    for group, counts in [*groups.items(), ("all", totals)]:
        seconds = sum(r.duration for r in results if group in ("all", r.id.split(".")[0]))
        cells = "".join(f"  {counts[verdict]:>13}" for verdict in VERDICTS)
        lines.append(f"{group:>5}  {sum(counts.values()):>5}{cells}  {seconds:>7.1f}")
    return "\n".join(lines)


def report(results: List[Result], **facts: Any) -> Dict[str, Any]:
    """What ``--report`` writes: the facts given, counts by group, each case's result."""
    cases = {}
    for result in results:
        case = asdict(result)
        del case["id"], case["details"]
        cases[result.id] = {
            "verdict": result.verdict,
            **{key: value for key, value in case.items() if value is not None},
        }
    groups = by_group((result.id, result.verdict) for result in results)
    return {**facts, "groups": groups, "cases": cases}

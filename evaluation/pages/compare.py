"""Several runs' records -> what stands side by side on their common page, and what does not and why."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

Records = dict[str, Any]
PROMPTS = 12  # shown beside each other


def compare(runs: Sequence[Records]) -> dict[str, Any]:
    """``Comparison`` of schema.py. What was measured in other ways is not put side by side but said in ``apart``."""
    own, evaluations = _own(runs), _evaluations(runs)
    prompts, drawn_apart = _prompts(runs)
    return {
        "format": 1,
        "title": f"Side by side: {', '.join(records['run'] for records in runs)}",
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "runs": [{name: records[name] for name in ("run", "preset", "created", "verdict")} for records in runs],
        "apart": [*_own_apart(own), *_evaluations_apart(runs), *drawn_apart],
        "settings": _settings(runs),
        "own": own,
        "evaluations": evaluations,
        "curves": [*_losses(runs), *_figures(runs)],
        "prompts": prompts,
        "credits": list(dict.fromkeys(credit for records in runs for credit in records["credits"])),
    }


def _settings(runs: Sequence[Records]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for records in runs for name in records["settings"])
    rows = [{"name": name, "values": [records["settings"].get(name, "") for records in runs]} for name in names]
    return [row for row in rows if len(set(row["values"])) > 1]


def _own(runs: Sequence[Records]) -> list[dict[str, Any]]:
    """Runs whose own samples were measured alike, together; of an unknown digest each alone."""
    groups = _grouped(runs, lambda records: records["digest"] or f"not known: {records['run']}")
    found = []
    for digest, members in groups.items():
        measured = [{metric["name"]: metric for metric in records["metrics"]} for records in members]
        names = dict.fromkeys(name for metrics in measured for name in metrics)
        rows = [[metrics.get(name) for metrics in measured] for name in names]
        named = {"runs": [records["run"] for records in members], "drawn": [records["drawn"] for records in members]}
        found.append({"digest": digest, **named, "metrics": rows})
    return found


def _own_apart(own: list[dict[str, Any]]) -> list[str]:
    if len(own) < 2:
        return []
    groups = "; ".join(f"{', '.join(group['runs'])} ({group['digest']})" for group in own)
    return [
        f"The runs’ own samples were measured in {len(own)} ways, of other captions, real images or settings, which "
        f"do not compare: {groups}. Each has a table of its own."
    ]


def _evaluations(runs: Sequence[Records]) -> list[dict[str, Any]]:
    """Tables of one protocol, digest and resolution become one, whose rows say which run they are of."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for records in runs:
        for table in records["evaluations"]:
            merged = found.setdefault((table["protocol"], table["digest"], table["px"]), {**table, "rows": []})
            merged["rows"] += [{**row, "run": records["run"]} for row in table["rows"]]
    return list(found.values())


def _evaluations_apart(runs: Sequence[Records]) -> list[str]:
    measured = [(t["protocol"], t["digest"], records["run"]) for records in runs for t in records["evaluations"]]
    lines = []
    for protocol in dict.fromkeys(protocol for protocol, _, _ in measured):
        digests = _grouped([m for m in measured if m[0] == protocol], lambda m: m[1])
        if len(digests) > 1:
            groups = "; ".join(f"{digest}: {', '.join(sorted({m[2] for m in of}))}" for digest, of in digests.items())
            lines.append(f"Protocol {protocol} was measured under several digests, which do not compare: {groups}.")
    return lines


def _losses(runs: Sequence[Records]) -> list[dict[str, Any]]:
    """Held-out loss, a line per run through all its stages; of other data, or another loss, another chart."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for records in runs:
        data = records["settings"].get("data.name", "").strip('"')
        for curve in records["curves"]:
            held_out = [series for series in curve["series"] if series["name"].startswith("held out")]
            if held_out:
                key = (curve["title"], curve["x_label"], curve["y_label"], data)
                merged = found.setdefault(key, {**curve, "title": f"{curve['title']}, held out ({data})", "series": []})
                xs, ys = ([v for series in held_out for v in series[axis]] for axis in ("x", "y"))
                merged["series"].append({"name": records["run"], "x": xs, "y": ys})
    return list(found.values())


def _figures(runs: Sequence[Records]) -> list[dict[str, Any]]:
    """The paper's figures; their axes name protocol and digest, so that only what compares falls together."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for records in runs:
        for curve in records["figures"]:
            key = (curve["title"], curve["x_label"], curve["y_label"])
            merged = found.setdefault(key, {**curve, "series": []})
            merged["series"] += [{**s, "name": f"{records['run']}: {s['name']}"} for s in curve["series"]]
    return list(found.values())


def _prompts(runs: Sequence[Records]) -> tuple[list[dict[str, Any]], list[str]]:
    """Samples of equal prompt and seed, beside each other; and what is to be said where there are none."""
    drawn = [{(s["key"], s["seed"]): s for s in records["samples"]} for records in runs]
    common = [key for key in drawn[0] if all(key in samples for samples in drawn)]
    grids = [
        {
            "title": drawn[0][key]["caption"],
            "note": "",
            "columns": len(runs),
            "items": [
                {"caption": records["run"], "image": samples[key]["image"]}
                for records, samples in zip(runs, drawn, strict=True)
            ],
        }
        for key in common[:PROMPTS]
    ]
    if grids:
        return grids, []
    prompts = set.intersection(*({key for key, _ in samples} for samples in drawn))
    why = "their seeds differ" if prompts else "they have no prompt in common"
    return [], [f"No samples stand beside each other: {why}."]


def _grouped(items: Sequence[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found

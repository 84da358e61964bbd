"""The paper's figures from a run's own points: Fig. 4, 8a, 8b, 12 along the training, Fig. 8c over guidance.

Nothing is read off the paper's plots. Table 1's values, which are printed, stand across a chart where its metric and
protocol are theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from evaluation.pages.points import Point, together
from evaluation.pages.speed import Pace, spent
from evaluation.results import SAMPLES
from mdm.experiments import EXPERIMENTS
from mdm.paper import TABLE_1
from mdm.presets import Preset, seen_before

DISTANCES = ("fid_", "fd1280_")  # how the names begin of what Fig. 8c has on its upright axis,
CAPTIONS = ("clip_score_", "text_image_cosine_")  # and of what it has on the other one

Curve = dict[str, Any]


def figures(preset: Preset, points: Sequence[Point], paces: dict[str, Pace]) -> list[Curve]:
    """The section ``figures`` of records.json: what has two points at least, protocols and digests apart."""
    curves = []
    for (protocol, digest, px), found in together(list(points)).items():
        where = f"{protocol} {digest}, {px} px"
        curves += _along_training(preset, found, paces, where)
        curves += _over_guidance(found, where)
    return curves


def _along_training(preset: Preset, points: list[Point], paces: dict[str, Pace], where: str) -> list[Curve]:
    groups = _groups(points, lambda p: (p.stage, p.way.words))
    groups = {key: found for key, found in groups.items() if len({p.nimg for p in found}) > 1}
    if not groups:
        return []
    axes: dict[str, Callable[[Point], float | None]] = {
        "images seen": lambda p: seen_before(preset, p.stage) + p.nimg,
        "seconds of training steps": lambda p: getattr(spent(preset, paces, p.stage, p.nimg), "seconds", None),
        _hours(paces): lambda p: getattr(spent(preset, paces, p.stage, p.nimg), "device_hours", None),
    }
    curves = []
    for name, metric in _measured(points).items():
        for axis, of in axes.items():
            series = []
            for (stage, drawn), found in groups.items():
                known = [(x, row) for p in found if (row := p.metric(name)) and (x := of(p)) is not None]
                if len(known) > 1:
                    xs, y = [x for x, _ in known], _values([row for _, row in known], "y")
                    series.append({"name": f"stage {stage}, {drawn}", "x": xs, **y})
            if series:
                title = f"{metric['label']} along the training, as Figs. 4, 8a, 8b, 12"
                curves.append(
                    _curve(title, f"{axis}, earlier stages counted in", metric, where, series, points[0].protocol)
                )
    return curves


def _over_guidance(points: list[Point], where: str) -> list[Curve]:
    groups = _groups(points, lambda p: (p.stage, p.nimg, p.way.but_for_guidance))
    groups = {key: found for key, found in groups.items() if len({p.guidance for p in found}) > 1}
    names = _measured([point for found in groups.values() for point in found])
    curves = []
    for caption in (name for name in names if name.startswith(CAPTIONS)):
        for distance in (name for name in names if name.startswith(DISTANCES)):
            series = []
            for (stage, nimg, drawn), found in groups.items():
                rows = [(p.guidance, p.metric(caption), p.metric(distance)) for p in found]
                known = [(g, x, y) for g, x, y in rows if x and y]
                if len(known) > 1:
                    xy = _values([x for _, x, _ in known], "x") | _values([y for _, _, y in known], "y")
                    name = f"stage {stage} at {nimg:,} images, {drawn}; beside each point its guidance"
                    series.append({"name": name, "labels": [g for g, _, _ in known], **xy})
            if series:
                title, axis = f"{names[distance]['label']} over guidance, as Fig. 8c", names[caption]["label"]
                curves.append(_curve(title, axis, names[distance], where, series, points[0].protocol))
    return curves


def _values(rows: list[dict[str, Any]], axis: str) -> dict[str, Any]:
    """A series' numbers along an axis, and their intervals."""
    intervals = [row["interval"].get(SAMPLES) for row in rows]
    return {axis: [row["values"][SAMPLES] for row in rows], f"{axis}_interval": intervals}


def _groups(points: Sequence[Point], key: Callable[[Point], Any]) -> dict[Any, list[Point]]:
    found: dict[Any, list[Point]] = {}
    for point in points:
        found.setdefault(key(point), []).append(point)
    return found


def _measured(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """The metrics that points have of their samples, by name."""
    return {m["name"]: m for point in points for m in point.metrics if SAMPLES in m["values"]}


def _hours(paces: dict[str, Pace]) -> str:
    """Hours times devices are of a device, which is named."""
    kind = "GPU-hours" if all(pace.gpu for pace in paces.values()) else "process-hours"
    return f"{kind} of training steps ({', '.join(sorted({pace.hardware for pace in paces.values()}))})"


def _curve(
    title: str, axis: str, metric: dict[str, Any], where: str, series: list[dict[str, Any]], protocol: str
) -> Curve:
    return {
        "title": title,
        "x_label": axis,
        "y_label": f"{metric['name']}, {metric['better']} is better ({where})",
        "log_y": False,
        "series": series,
        "lines": [
            {"name": f"Table 1, {number.system}: {number.printed}", "y": number.value}
            for number in TABLE_1
            if number.measured_as == metric["name"] and EXPERIMENTS[number.experiment].protocol == protocol
        ],
    }

"""Bytes and times, said in the unit that fits."""


def size(count: float) -> str:
    """Bytes for a person."""
    for unit, scale, digits in (("TB", 1e12, 2), ("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if count >= scale:
            return f"{count / scale:,.{digits}f} {unit}"
    return f"{count:.0f} bytes"


def span(seconds: float) -> str:
    """A time for a person."""
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:,.1f} {unit}"
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 0.1 else "less than 0.1 s"

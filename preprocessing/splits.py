"""Which samples are held out: a function of a sample's key, whatever stands beside it."""

import hashlib


def share(key: str) -> float:
    """A number in [0, 1) from a key: samples below a fraction are held out."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64

"""Which vectors belong together: those of one set of weights, pooler and length at which texts are cut."""

from __future__ import annotations

PARTS = ("weights or tokenizer", "pooler", "max_length")


def fingerprint(weights: str, pooler: str, max_length: int) -> str:
    """One word for the three; weights: a hex digest."""
    return f"{weights}-{pooler}-{max_length}"


def difference(found: str, wanted: str) -> str:
    """What of two fingerprints differs, in words: "pooler (avg, not cls)"; both whole where they are no such thing."""
    ours, theirs = wanted.rsplit("-", 2), found.rsplit("-", 2)
    if len(ours) != len(PARTS) or len(theirs) != len(PARTS):
        return f"fingerprint ({found}, not {wanted})"
    differs = [(name, a, b) for name, a, b in zip(PARTS, theirs, ours, strict=True) if a != b]
    return ", ".join(f"{name} ({a}, not {b})" for name, a, b in differs)

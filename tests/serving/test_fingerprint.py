"""Fingerprints, and what two of them say about each other."""

import pytest

from simcse_jax.serving.fingerprint import difference, fingerprint

ONE = fingerprint("2931cbe0", "cls_before_pooler", 128)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (fingerprint("2931cbe0", "avg", 128), "pooler (avg, not cls_before_pooler)"),
        (fingerprint("2931cbe0", "cls_before_pooler", 32), "max_length (32, not 128)"),
        (
            fingerprint("00ff", "avg", 128),
            "weights or tokenizer (00ff, not 2931cbe0), pooler (avg, not cls_before_pooler)",
        ),
        ("abc", f"fingerprint (abc, not {ONE})"),
    ],
)
def test_a_difference_is_told_in_words(other: str, says: str) -> None:
    assert difference(other, ONE) == says

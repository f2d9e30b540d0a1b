"""Test names that are shortened to fit: they still differ."""

from simcse_jax.evaluation.results import fit_names, short_names, shorten


def test_short_names() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcd…ghijk"
    assert short_names(["a/b/model", "a/c/model"], 10) == ["b", "c"]
    assert short_names(["a/b/model"], 10) == ["a/b/model"]
    assert short_names(["a/b", "a"], 10) == ["a/b", "a"]
    assert short_names(["a", "a"], 10) == ["a (1)", "a (2)"]
    assert short_names(["/a/b", "/c/b"], 10) == ["/a", "/c"]
    assert short_names(["/a/b", "/a/c"], 10) == ["b", "c"]
    assert short_names([], 10) == []
    alike = short_names(["begin" + "x" * 30 + "end", "begin" + "y" * 30 + "end"], 14)
    assert len(set(alike)) == 2
    assert max(map(len, alike)) <= 14


def test_long_names_are_shortened_together() -> None:
    assert fit_names(["runs/a", "runs/b"]) == ["runs/a", "runs/b"]
    long = "a-long-folder/" * 4
    assert fit_names([f"{long}a", f"{long}b"]) == ["a", "b"]
    assert fit_names([f"{long}a", f"{long}b"], limit=100) == [f"{long}a", f"{long}b"]

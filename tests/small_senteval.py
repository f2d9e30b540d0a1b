"""Write a small folder in SentEval's layout from the demo's pairs."""

from pathlib import Path

from simcse_jax.data import demo
from simcse_jax.evaluation.sts import SPLIT_FILES, YEARS

PER_FILE = 8
STSB_HEAD = ("main-demo", "demo", "2026", "0001")


def write_senteval(folder: Path) -> Path:
    """Write every STS file, PER_FILE pairs each, and return the folder that holds STS/ and SICK/."""
    pairs = iter(demo.graded_pairs(split="test") * 2)

    def take() -> list[tuple[float, str, str]]:
        return [next(pairs) for _ in range(PER_FILE)]

    for task, subsets in YEARS.items():
        for subset in subsets:
            rows = take()
            place = folder / "STS" / f"{task}-en-test"
            _write(place / f"STS.input.{subset}.txt", [f"{first}\t{second}" for _, first, second in rows])
            _write(place / f"STS.gs.{subset}.txt", [f"{gold:.3f}" for gold, _, _ in rows])
    for path in SPLIT_FILES["STSBenchmark"].values():
        _write(folder / path, ["\t".join((*STSB_HEAD, str(gold), first, second)) for gold, first, second in take()])
    head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    for path in SPLIT_FILES["SICKRelatedness"].values():
        lines = [f"{n}\t{first}\t{second}\t{gold}\tNEUTRAL" for n, (gold, first, second) in enumerate(take())]
        _write(folder / path, [head, *lines])
    return folder


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

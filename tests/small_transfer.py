"""Write small files of the transfer tasks in SentEval's layout, with made texts."""

from pathlib import Path

NESTED = {
    "MR": ("MR/rt-polarity.pos", "MR/rt-polarity.neg"),
    "CR": ("CR/custrev.pos", "CR/custrev.neg"),
    "SUBJ": ("SUBJ/subj.objective", "SUBJ/subj.subjective"),
    "MPQA": ("MPQA/mpqa.pos", "MPQA/mpqa.neg"),
}
MRPC_HEAD = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
TREC_NAMES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")

Rows = list[tuple[tuple[str, ...], int]]  # texts and label
Splits = dict[str, Rows]


def write_file(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_task(folder: Path, task: str, splits: Splits) -> None:
    """Write SentEval's files of a task; for nested tasks `splits` has only "", with the examples of label 1 first."""
    if task in NESTED:
        for name, label in zip(NESTED[task], (1, 0), strict=True):
            write_file(folder / name, "".join(f"{texts[0]}\n" for texts, own in splits[""] if own == label))
        return
    for split, rows in splits.items():
        if task == "SST2":
            lines = [f"{texts[0]} \t{label}\n" for texts, label in rows]
            write_file(folder / f"SST/binary/sentiment-{split}", "".join(lines))
        elif task == "TREC":
            lines = [f"{TREC_NAMES[label]}:fine {texts[0]}\n" for texts, label in rows]
            write_file(folder / "TREC" / {"train": "train_5500.label", "test": "TREC_10.label"}[split], "".join(lines))
        else:
            lines = [f"{label}\t1\t2\t{texts[0]}\t{texts[1]}\r\n" for texts, label in rows]
            write_file(folder / f"MRPC/msr_paraphrase_{split}.txt", MRPC_HEAD + "".join(lines))


def made_task(task: str, counts: tuple[int, ...] = (46, 40)) -> Splits:
    """Return examples of one to seven words: `counts[0]` of each class but the last, `counts[1]` of the last."""
    classes = 6 if task == "TREC" else 2
    splits = {"SST2": ("train", "dev", "test"), "TREC": ("train", "test"), "MRPC": ("train", "test")}
    made: Splits = {}
    for split in splits.get(task, ("",)):
        rows: Rows = []
        for label in reversed(range(classes)):
            for n in range(counts[1] if label == 0 else counts[0]):
                name = f"{task}{split}{label}-{n}"
                sides = [" ".join([name + side] * (1 + n % 7)) for side in ("a", "b")]
                rows.append((tuple(sides if task == "MRPC" else sides[:1]), label))
        made[split] = rows
    return made

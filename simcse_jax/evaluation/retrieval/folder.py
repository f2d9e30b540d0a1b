"""Write a retrieval task as a folder in BEIR's layout, which `readers.read_folder` and other tools read."""

from __future__ import annotations

import json
from pathlib import Path

from simcse_jax.evaluation.retrieval.data import Retrieval
from simcse_jax.system.whole_file import write_whole_text


def write_task(folder: Path, task: Retrieval) -> None:
    """Write corpus.jsonl, queries.jsonl and qrels/test.tsv, each whole or not at all; the last makes it a task."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", task.documents), ("queries", task.queries)):
        lines = (json.dumps({"_id": key, "text": text}, ensure_ascii=False) for key, text in texts.items())
        write_whole_text(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
    judged = (f"{query}\t{text}\t{grade}\n" for query, own in task.relevant.items() for text, grade in own.items())
    write_whole_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + "".join(judged))

"""Say what was read of a corpus and what was dropped, and how long its texts are."""

from dataclasses import dataclass

import numpy as np

from simcse_jax.data.tables import listed

MOST_UNKNOWN = 0.05  # share of unknown tokens above which a run warns


@dataclass(frozen=True)
class CorpusReport:
    """Hold counts of what was read and dropped; lengths are in tokens, special ones included, before truncation."""

    files: tuple[str, ...]
    columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    examples: int  # rows kept
    empties: int  # rows dropped for an empty cell, blank lines of a .txt among them
    duplicates: int  # rows that repeat an earlier row exactly; kept
    documents: int  # of .txt files; 0 for others
    max_length: int
    truncated: int  # texts longer than max_length
    truncated_share: float  # of all texts
    mean_length: float
    histogram: tuple[tuple[int, int], ...]  # (longest length in this bin, texts); the last bin reaches the longest text
    other_splits: int  # rows left out as they are of another split
    missing: int  # hard negatives that rows lack
    unknown_share: float  # tokens that stand for what the vocabulary lacks, of all tokens of text
    from_cache: bool = False
    held_out: int = 0  # rows that are no part of training, as their texts are held out for evaluation

    def lines(self) -> list[str]:
        """Return printable lines: the counts, then a bar of the histogram a line."""
        kind = {1: "sentences", 2: "pairs"}.get(len(self.columns), "pairs with hard negatives")
        names = ", ".join(self.files[:3]) + (f" and {len(self.files) - 3} more" if len(self.files) > 3 else "")
        ignored = f"; ignored: {listed(self.ignored_columns)}" if self.ignored_columns else ""
        cached = " (tokenised earlier, from the cache)" if self.from_cache else ""
        documents = f" in {self.documents:,} documents" if self.documents > 1 else ""
        empty = "blank lines" if self.documents else "dropped for an empty cell"
        counts = [f"{empty}: {self.empties:,}", f"exact duplicates, kept: {self.duplicates:,}"]
        if self.other_splits:
            counts.append(f"left out, of other splits: {self.other_splits:,}")
        if self.missing:
            counts.append(f"missing hard negatives: {self.missing:,}")
        if self.held_out:
            counts.append(f"held out for evaluation, with all equal texts: {self.held_out:,}")
        out = [
            f"data: {self.examples:,} {kind}{documents} from {names}{cached}",
            f"  columns used: {listed(self.columns)} (as the file names them){ignored}",
            f"  {'; '.join(counts)}",
            f"  tokens a text: mean {self.mean_length:.1f}; longer than {self.max_length} and truncated: "
            f"{self.truncated:,} ({self.truncated_share:.1%}){self._other_lengths()}",
            f"  tokens that the vocabulary lacks ([UNK]): {self.unknown_share:.1%}",
        ]
        if self.unknown_share > MOST_UNKNOWN:
            out.append(
                f"  warning: above {MOST_UNKNOWN:.0%} of the text is unknown to this tokenizer, and lost. Use a model "
                "of the text's language (--config.model.name), or random weights with a tokenizer of their own "
                "(--config.model.init=random --config.model.tokenizer=train --config.model.vocab_size=8000)"
            )
        total = max(1, sum(count for _, count in self.histogram))
        most = max((count for _, count in self.histogram), default=1)
        low = 1
        for high, count in self.histogram:
            bar = "#" * round(40 * count / max(1, most))
            out.append(f"  {low:>6}-{high:<6} {count:>11,} {count / total:>6.1%} {bar}")
            low = high + 1
        return out

    def _other_lengths(self) -> str:
        """Return what other values of data.max_length would cut; "" where nothing is cut."""
        edges, texts = np.array(self.histogram).T
        longer = texts.sum() - texts.cumsum()
        above = [(edge, count) for edge, count in zip(edges, longer, strict=True) if edge > self.max_length and count]
        return "".join(f"; than {edge}: {count / texts.sum():.1%}" for edge, count in above[:3])

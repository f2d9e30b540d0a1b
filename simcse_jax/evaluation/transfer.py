"""Score transfer: how well a logistic regression on frozen embeddings classifies, by SentEval's protocol.

SentEval's full setting fits with Adam, a weight decay d of 1e-5 to 1e-2 on the mean loss, and early stopping on dev.
Here scikit-learn finds the minimum of the same loss, with the same d, folds and choice of d, so that the score does not
depend on a classifier's seed or on when it stopped. SentEval's two logits with d / 2 (|w0|^2 + |w1|^2) are
one logit of w = w1 - w0 with d / 4 |w|^2, because w0 = -w1 at the minimum. So in scikit-learn's terms C = 2 / (d n) for
two classes and C = 1 / (d n) for more, with n the number of examples of the fit. The bias has no decay here; in
SentEval it has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simcse_jax.evaluation.labelled import CLASS_FILES, TASKS, Labelled, load_labelled
from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.vectors import check_vectors

if TYPE_CHECKING:  # scikit-learn takes a second to import, and most evaluations do not need it
    from sklearn.linear_model import LogisticRegression

__all__ = ["TASKS", "evaluate_transfer"]

SEED = 1111  # of the folds, as in SentEval
FOLDS, FAST_FOLDS = 10, 5
WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)  # SentEval's order: the first of equal dev accuracies is chosen
_DEV_DIGITS = 2  # SentEval rounds dev accuracies (times 100) to these before it compares them

# Bounds on the largest entry of the mean loss's gradient. Newton's method converges so fast that its bound hardly
# matters; below that of L-BFGS, no prediction changed any more. A fit above the last has not converged.
_NEWTON_TOLERANCE, _LBFGS_TOLERANCE, _CONVERGED = 1e-6, 1e-7, 1e-5
_ITERATIONS = 5000
_ROUNDING = 1e-6  # of float32, relative to the largest feature
_MOST_WORKERS = 16  # each holds two copies of its rows of the features


@dataclasses.dataclass(frozen=True)
class _Trial:
    """Hold the test of one classifier and how its weight decay is chosen: numbers of fits, rows as int64[n]."""

    fit: int
    test: np.ndarray
    choice: tuple[tuple[int, np.ndarray], ...]  # fits, and the rows for the dev accuracy of each


def evaluate_transfer(encode: Encode, folder: Path, task: str, fast: bool = False, progress: bool = False) -> Score:
    """Return the score of one of TASKS, times 100: `accuracy` (the headline), `dev_accuracy`, and `f1` for MRPC.

    encode: texts to float[N, D], called once. folder: what `senteval_folder` returns. fast: 5 folds instead of 10.
    progress: show how many fits are done.

    MR, CR, SUBJ and MPQA use nested cross-validation, with accuracies averaged over the outer folds. The weight decay
    of SST2 is chosen on dev, that of TREC and MRPC by cross-validation on train. `correct` is in the order of the test
    file or, where all examples are tested, of the two files. Raises UserError for an unusable file, for fewer examples
    of a class than folds, and for vectors that are not finite.
    """
    from sklearn.metrics import f1_score

    splits = load_labelled(folder, task)
    folds = FAST_FOLDS if fast else FOLDS
    labels = np.concatenate([split.labels for split in splits.values()])
    fit_rows, trials = _plan(task, splits, folds)
    features = _features(encode, task, splits)
    fits, unconverged = _fit_all(features, labels, fit_rows, task, progress)

    predicted = np.full(len(labels), -1)
    chosen, dev, accuracy = [], [], []
    for trial in trials:
        means = [
            100 * np.mean([fits[fit][place].score(features[rows], labels[rows]) for fit, rows in trial.choice])
            for place in range(len(WEIGHT_DECAYS))
        ]
        best = int(np.argmax(np.round(means, _DEV_DIGITS)))
        predicted[trial.test] = fits[trial.fit][best].predict(features[trial.test])
        chosen.append(WEIGHT_DECAYS[best])
        dev.append(means[best])
        accuracy.append(100 * np.mean(predicted[trial.test] == labels[trial.test]))

    tested = np.sort(np.concatenate([trial.test for trial in trials]))
    values = {"accuracy": float(np.mean(accuracy)), "dev_accuracy": float(np.mean(dev))}
    if task == "MRPC":
        values["f1"] = 100 * float(f1_score(labels[tested], predicted[tested]))
    protocol = _protocol(task, splits, folds) | {
        "examples": len(tested),
        "chosen L2": chosen,
        "unconverged fits": unconverged,
        "fast": fast,
    }
    if not features.any():
        protocol["note"] = "the model gives all texts the same vector, up to rounding: the largest class is predicted"
    return Score(task, "accuracy", values, protocol, correct=predicted[tested] == labels[tested])


def _protocol(task: str, splits: dict[str, Labelled], folds: int) -> dict[str, Any]:
    """Return the part of the protocol that is the same for every model, as JSON."""
    import sklearn

    if task in CLASS_FILES:
        split = f"{folds}-fold nested cross-validation"
    else:
        split = "test; L2 chosen " + ("on dev" if "dev" in splits else f"by {folds}-fold cross-validation on train")
    classes = len(next(iter(splits.values())).classes)
    digest = hashlib.blake2b(digest_size=16)
    for part in splits.values():
        digest.update(part.fingerprint.encode())
    return {
        "split": split,
        "classes": classes,
        "features": "|u - v| and u * v" if task == "MRPC" else "u",
        "classifier": f"logistic regression, minimum by scikit-learn {sklearn.__version__}, {_solver(classes)[0]}",
        "L2": f"{', '.join(f'{decay:g}' for decay in WEIGHT_DECAYS)}, as weight decay on the mean loss",
        "seed": SEED,
        "data": digest.hexdigest(),
    }


def _plan(task: str, splits: dict[str, Labelled], folds: int) -> tuple[list[np.ndarray], list[_Trial]]:
    """Return the rows of every fit, and the trials that use the fits; rows are numbered through all splits."""
    ends = np.cumsum([len(split.labels) for split in splits.values()])
    starts = ends - [len(split.labels) for split in splits.values()]
    rows = {name: start + _ordered(splits[name]) for name, start in zip(splits, starts, strict=True)}
    labels = np.concatenate([split.labels for split in splits.values()])
    classes = next(iter(splits.values())).classes
    if "dev" in splits:
        return [rows["train"]], [_Trial(0, rows["test"], ((0, rows["dev"]),))]
    whole = _folds(rows[""], labels, folds, task, classes) if task in CLASS_FILES else [(rows["train"], rows["test"])]
    fits, trials = [], []
    for fit, test in whole:
        inner = _folds(fit, labels, folds, task, classes)
        trials.append(_Trial(len(fits), test, tuple((len(fits) + n, held) for n, (_, held) in enumerate(inner, 1))))
        fits += [fit, *(rest for rest, _ in inner)]
    return fits, trials


def _ordered(split: Labelled) -> np.ndarray:
    """Return int64[n], the examples in SentEval's order when it draws folds: by length in words, then label."""
    lengths = [[len(text.split()) for text in texts] for texts in split.texts]
    keys = list(zip(*lengths, split.labels.tolist(), strict=True))
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _folds(
    rows: np.ndarray, labels: np.ndarray, folds: int, task: str, classes: Sequence[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows outside and in each fold; UserError when a class has fewer examples than folds."""
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(labels[rows], minlength=len(classes))
    if counts.min() < folds:
        raise UserError(
            f"{task}: {counts.min()} examples of the class {classes[int(counts.argmin())]} for {folds} folds; "
            f"at least {folds} are needed. Download the data again."
        )
    divided = StratifiedKFold(folds, shuffle=True, random_state=SEED).split(rows, labels[rows])
    return [(rows[rest], rows[held]) for rest, held in divided]


def _features(encode: Encode, task: str, splits: dict[str, Labelled]) -> np.ndarray:
    """Return the centred features of all splits, concatenated: float64[N, D], for pairs float64[N, 2 D]."""
    columns = [texts for split in splits.values() for texts in split.texts]
    texts = [text for column in columns for text in column]
    vectors = check_vectors(np.asarray(encode(texts)), texts, task, zeros=True)  # a classifier can use zeros
    parts = iter(np.split(vectors, np.cumsum([len(column) for column in columns])[:-1]))
    features = np.concatenate([_side_by_side([next(parts) for _ in split.texts]) for split in splits.values()])
    # A shift of all features only moves the bias, which has no decay; centred, L-BFGS needs far fewer steps.
    mean = features.mean(axis=0)
    features -= mean
    # Of features that are constant only rounding is left, which a classifier could use.
    features[:, np.abs(features).max(axis=0) <= _ROUNDING * np.abs(mean).max()] = 0
    return features


def _side_by_side(vectors: list[np.ndarray]) -> np.ndarray:
    """Return the vectors u [n, D], or for pairs u, v the features |u - v| and u v, [n, 2 D]."""
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.concatenate([np.abs(u - v), u * v], axis=1)


def _fit_all(
    features: np.ndarray, labels: np.ndarray, fits: list[np.ndarray], task: str, progress: bool
) -> tuple[list[list[LogisticRegression]], int]:
    """Return the classifiers of WEIGHT_DECAYS for each set of rows, and how many of all did not converge.

    One thread fits each set from zero, so that the number of threads has no effect.
    """
    from joblib import Parallel, cpu_count, delayed
    from scipy.linalg import LinAlgWarning
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    classes = len(np.unique(labels))
    pool = Parallel(min(cpu_count(), _MOST_WORKERS), backend="threading", return_as="generator")
    paths: list[Any] = []
    with (
        warnings.catch_warnings(),
        threadpool_limits(1, user_api="blas"),
        progress_bar(len(fits), progress, what=task, unit="fits") as bar,
    ):
        # A solver that fails warns and another takes over; the gradient shows whether that one converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        for path in pool(delayed(_fit_path)(features, labels, rows, classes) for rows in fits):
            paths.append(path)
            bar.update(1)
    return [classifiers for classifiers, _ in paths], sum(unconverged for _, unconverged in paths)


def _fit_path(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, classes: int
) -> tuple[list[LogisticRegression], int]:
    """Fit the classifiers of WEIGHT_DECAYS on these rows; return them, and how many did not converge."""
    from sklearn.linear_model import LogisticRegression

    x, y = features[rows], labels[rows]
    solver, tolerance = _solver(classes)
    path: list[LogisticRegression] = []
    unconverged = 0
    for decay in reversed(WEIGHT_DECAYS):  # each starts from the one before; the strongest decay starts from zero
        penalty = decay / 2 if classes == 2 else decay
        classifier = LogisticRegression(
            C=1 / (penalty * len(y)), solver=solver, tol=tolerance, max_iter=_ITERATIONS, warm_start=True
        )
        if path:
            classifier.coef_, classifier.intercept_ = path[-1].coef_, path[-1].intercept_
        classifier.fit(x, y)
        path.append(classifier)
        unconverged += not _steepest(classifier, x, y, penalty) <= _CONVERGED
    return path[::-1], unconverged


def _solver(classes: int) -> tuple[Literal["newton-cholesky", "lbfgs"], float]:
    """Return scikit-learn's solver and tolerance. Newton's matrix grows with the square of the number of classes."""
    return ("newton-cholesky", _NEWTON_TOLERANCE) if classes == 2 else ("lbfgs", _LBFGS_TOLERANCE)


def _steepest(classifier: LogisticRegression, x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Return the largest entry of the gradient of mean loss and penalty, 0 at the minimum."""
    errors = classifier.predict_proba(x)
    errors[np.arange(len(y)), y] -= 1
    if len(classifier.coef_) == 1:
        errors = errors[:, 1:]
    gradient = errors.T @ x / len(y) + penalty * classifier.coef_
    return float(max(np.abs(gradient).max(), np.abs(errors.mean(axis=0)).max()))

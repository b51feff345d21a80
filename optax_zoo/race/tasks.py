"""What is learnt in a race: real data that the machine already has, in three disjoint splits.

The runs are trained on the first split, the learning rate is chosen on the second, the third is reported.
"""

import hashlib
import os
import sysconfig
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from optax_zoo.race.errors import RaceError, printable
from optax_zoo.race.models import ByteTransformer, Classifier, logits

DIGITS_TRAIN, DIGITS_SELECTION = 1000, 397
CONTEXT = 64
WINDOWS = {"train": 32, "selection": 32, "report": 64}
SPLITS = tuple(WINDOWS)
MAX_TEXT = 2**26
MIN_HELD_OUT = 4 * (CONTEXT + 1)
NOT_SOURCE = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"})

Batch = tuple[jax.Array, ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """A task ready to be trained.

    Attributes:
      name: of the task, as on the command line.
      description: one sentence for the leaderboard.
      loss_unit: unit of every loss.
      train: arrays that `take` draws batches from.
      positions: number of valid indices into `train`.
      held: one fixed batch per split, "train" (a sample), "selection" and "report".
      init: key -> parameters.
      take: (train, index [B]) -> the batch at these indices.
      loss: (parameters, *batch) -> scalar mean loss.
      accuracy: (parameters, *batch) -> fraction of right answers, or None where it does not apply.
      batch_size, steps, seeds: defaults of a race on this task.
      base_learning_rate, grid: AdamW's learning rates are their products.
      fingerprint: hash of all three splits.
    """

    name: str
    description: str
    loss_unit: str
    train: Batch
    positions: int
    held: dict[str, Batch]
    init: Callable[[jax.Array], Any]
    take: Callable[[Batch, jax.Array], Batch]
    loss: Callable[..., jax.Array]
    accuracy: Callable[..., jax.Array] | None
    batch_size: int
    steps: int
    seeds: int
    base_learning_rate: float
    grid: tuple[float, ...]
    fingerprint: str

    def batches(self, seed: int, steps: int) -> np.ndarray:
        """int32 [steps, batch_size]: indices in epochs, each a new permutation decided by `seed`."""
        generator = np.random.default_rng(seed)
        size = min(self.batch_size, self.positions)
        per_epoch = self.positions // size
        epochs = [
            generator.permutation(self.positions)[: per_epoch * size].reshape(per_epoch, size)
            for _ in range(-(-steps // per_epoch))
        ]
        return np.concatenate(epochs)[:steps].astype(np.int32)


def powers_of_two(most: int) -> tuple[float, ...]:
    """2**-most, ..., 2**most."""
    return tuple(2.0**exponent for exponent in range(-most, most + 1))


def load(name: str, text: Path | None = None) -> Problem:
    """The task `name`: "digits", "pysource", or "text" for the user's own `text` (a file or a folder).

    Raises:
      RaceError: unreadable or too short text.
    """
    if text is not None:
        return _language_problem("text", f"the bytes of {printable(text.name or text)}", *read_text(text))
    return {"digits": _digits, "pysource": _pysource}[name]()


def _digits() -> Problem:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [DIGITS_TRAIN, DIGITS_TRAIN + DIGITS_SELECTION])
    x, y = (images / 16.0).astype(np.float32), labels.astype(np.int32)
    splits = {split: (jnp.asarray(x[part]), jnp.asarray(y[part])) for split, part in zip(SPLITS, parts, strict=True)}
    model = Classifier(widths=(64, 64), classes=10)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(model, params, x), y).mean()

    def accuracy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return (logits(model, params, x).argmax(-1) == y).mean()

    return Problem(
        name="digits",
        description=(
            "scikit-learn's 8 x 8 handwritten digits (1000 to train, 397 to choose the learning rate, 400 to "
            "report), a perceptron with two hidden layers of 64"
        ),
        loss_unit="nats",
        train=splits["train"],
        positions=DIGITS_TRAIN,
        held={**splits, "train": tuple(array[:DIGITS_SELECTION] for array in splits["train"])},
        init=lambda key: model.init(key, splits["train"][0][:1])["params"],
        take=lambda train, index: tuple(array[index] for array in train),
        loss=loss,
        accuracy=accuracy,
        batch_size=64,
        steps=600,
        seeds=5,
        base_learning_rate=8e-3,
        grid=powers_of_two(3),
        fingerprint=_fingerprint(x[order].tobytes(), y[order].tobytes()),
    )


def _pysource() -> Problem:
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for path in find_files(folder, skip=NOT_SOURCE) if path.suffix == ".py"]
    if not files:
        raise RaceError(f"this Python has no source text in {folder}; choose another --task or a --text")
    splits, how = split_text(read_files(files, folder))
    ascii_only = {split: np.minimum(data, 127) for split, data in splits.items()}
    return _language_problem("pysource", "the source text of Python's standard library", ascii_only, how)


def _language_problem(name: str, what: str, splits: dict[str, np.ndarray], how: str) -> Problem:
    vocabulary = 128 if max(int(data.max()) for data in splits.values()) < 128 else 256
    model = ByteTransformer(vocabulary=vocabulary, context=CONTEXT)
    size = sum(data.size for data in splits.values())

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        tokens = windows.astype(jnp.int32)
        predicted = logits(model, params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(predicted, tokens[:, 1:]).mean()

    def take(train: Batch, index: jax.Array) -> Batch:
        return (train[0][CONTEXT * index[:, None] + jnp.arange(CONTEXT + 1)[None]],)

    def windows(split: str) -> Batch:
        starts = np.linspace(0, splits[split].size - CONTEXT - 1, WINDOWS[split], dtype=np.int64)
        return (jnp.asarray(splits[split][starts[:, None] + np.arange(CONTEXT + 1)]),)

    return Problem(
        name=name,
        description=(
            f"{what} ({size / 1e6:.2f} MB, split {how}), next-byte prediction by a transformer with "
            f"{model.layers} layers of width {model.width} and a context of {CONTEXT} bytes"
        ),
        loss_unit="nats per byte",
        train=(jnp.asarray(splits["train"]),),
        positions=(splits["train"].size - 1) // CONTEXT,
        held={split: windows(split) for split in SPLITS},
        init=lambda key: model.init(key, jnp.zeros((1, CONTEXT), jnp.int32))["params"],
        take=take,
        loss=loss,
        accuracy=None,
        batch_size=8,
        steps=300,
        seeds=3,
        base_learning_rate=4e-3,
        grid=powers_of_two(2),
        fingerprint=_fingerprint(*(splits[split].tobytes() for split in SPLITS)),
    )


def read_text(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The three splits of a text file (by position) or of a folder (by file), and how they were split.

    Of a folder, hidden and binary files are left out; at most the first 64 MiB are read.

    Raises:
      RaceError: missing, unreadable, without text, or too short.
    """
    paths, folder = (find_files(path), path) if os.path.isdir(path) else ([path], path.parent)
    files = read_files(paths, folder)
    if not files:
        binary = (
            "1 file holds zero bytes and counts" if len(paths) == 1 else f"{len(paths)} files hold zero bytes and count"
        )
        why = f"{binary} as binary" if paths else "the folder has no files, hidden ones apart"
        raise RaceError(f"no text in {path}: {why}")
    return split_text(files)


def find_files(folder: Path, skip: Collection[str] = ()) -> list[Path]:
    """All regular files below `folder` in the order of their paths, without hidden ones and folders named in `skip`.

    Raises:
      RaceError: a folder that cannot be read or entered.
    """

    def refuse(error: OSError) -> NoReturn:
        raise RaceError(f"cannot read {error.filename}: {error.strerror}") from error

    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    try:
        return sorted(path for path in files if path.is_file())
    except OSError as error:
        refuse(error)


def read_files(paths: Iterable[Path], folder: Path) -> list[tuple[str, bytes]]:
    """(path relative to `folder`, content) of the text files among `paths`, up to `MAX_TEXT` bytes."""
    files: list[tuple[str, bytes]] = []
    left = MAX_TEXT
    for path in paths:
        try:
            with path.open("rb") as file:
                content = file.read(left)
        except OSError as error:
            raise RaceError(f"cannot read {path}: {error.strerror}") from error
        if b"\0" not in content:
            files.append((path.relative_to(folder).as_posix(), content))
            left -= len(content)
        if left == 0:
            break
    return files


def split_text(files: Sequence[tuple[str, bytes]]) -> tuple[dict[str, np.ndarray], str]:
    """Train, selection and report bytes (uint8), and how they were split.

    By file on sha256(relative path) mod 20, so that the split of a file depends only on its name: 0 selects,
    1 reports. Where that leaves a held-out split too short, by position: the last twentieth reports, the one
    before it selects.

    Raises:
      RaceError: too short even by position.
    """
    held_out = {0: "selection", 1: "report"}
    parts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for name, content in files:
        bucket = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest(), "big") % 20
        parts[held_out.get(bucket, "train")].append(content)
    by_file = {split: _array(b"".join(contents)) for split, contents in parts.items()}
    if min(data.size for data in by_file.values()) >= MIN_HELD_OUT:
        return by_file, "by file"

    whole = _array(b"".join(content for _, content in files))
    twentieth = whole.size // 20
    if twentieth < MIN_HELD_OUT:
        where = f"{len(files)} file{'' if len(files) == 1 else 's'}"
        raise RaceError(f"the text has {whole.size} bytes in {where}, the race needs at least {20 * MIN_HELD_OUT}")
    return dict(zip(SPLITS, np.split(whole, [-2 * twentieth, -twentieth]), strict=True)), "by position"


def _array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def _fingerprint(*contents: bytes) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]

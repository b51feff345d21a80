"""The data of a race: three disjoint splits, the same ones every time."""

import hashlib
import os
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from optax_zoo.race import tasks
from optax_zoo.race.errors import RaceError

LINES = b"".join(b"%04d the quick brown fox jumps over the lazy dog\n" % n for n in range(400))


def files(count, lines=400):
    body = LINES[: len(LINES) * lines // 400]
    return [(f"chapter{n}.txt", b"file %d\n" % n + body) for n in range(count)]


def bucket(name):
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20


@pytest.fixture(scope="module")
def digits():
    return tasks.load("digits")


def test_digits_splits_are_disjoint_and_complete(digits):
    images, labels = load_digits(return_X_y=True)
    parts = [digits.train, digits.held["selection"], digits.held["report"]]
    rows = np.concatenate([np.column_stack([np.asarray(x) * 16, np.asarray(y)]) for x, y in parts])
    everything = np.column_stack([images, labels])
    assert [len(y) for _, y in parts] == [1000, 397, 400]
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], everything[np.lexsort(everything.T)])


def test_the_training_sample_comes_from_the_training_split(digits):
    for sample, train in zip(digits.held["train"], digits.train, strict=True):
        np.testing.assert_array_equal(sample, train[: len(sample)])


def test_loading_twice_gives_the_same_data(digits):
    assert tasks.load("digits").fingerprint == digits.fingerprint
    assert tasks.load("pysource").fingerprint == tasks.load("pysource").fingerprint != digits.fingerprint


def test_a_seed_decides_the_batches(digits):
    np.testing.assert_array_equal(digits.batches(3, 40), digits.batches(3, 40))
    assert not np.array_equal(digits.batches(3, 40), digits.batches(4, 40))
    np.testing.assert_array_equal(digits.batches(3, 40)[:10], digits.batches(3, 10))


def test_batches_visit_an_example_once_per_epoch(digits):
    per_epoch = digits.positions // digits.batch_size
    for epoch in np.split(digits.batches(0, 3 * per_epoch), 3):
        assert len(np.unique(epoch)) == per_epoch * digits.batch_size


def test_many_files_are_split_by_name_alone():
    splits, how = tasks.split_text(files(60))
    assert how == "by file"
    for split, buckets in {"selection": {0}, "report": {1}, "train": set(range(2, 20))}.items():
        names = {int(n) for n in re.findall(rb"file (\d+)\n", splits[split].tobytes())}
        assert names == {n for n in range(60) if bucket(f"chapter{n}.txt") in buckets}
        assert names


def test_adding_a_file_moves_no_other():
    few, more = tasks.split_text(files(60))[0], tasks.split_text(files(61))[0]
    where = "train" if bucket("chapter60.txt") > 1 else ("selection", "report")[bucket("chapter60.txt")]
    for split in tasks.SPLITS:
        same = more[split][: few[split].size]
        np.testing.assert_array_equal(same, few[split])
        assert (more[split].size > few[split].size) == (split == where)


def test_one_file_is_split_by_position():
    splits, how = tasks.split_text([("book.txt", LINES)])
    assert how == "by position"
    whole = b"".join(splits[split].tobytes() for split in ("train", "selection", "report"))
    assert whole == LINES
    assert splits["selection"].size == splits["report"].size == len(LINES) // 20


def test_a_folder_is_read_without_hidden_and_binary_files(tmp_path):
    for name, content in files(60):
        (tmp_path / name).write_bytes(content)
    plain = tasks.load("text", tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.txt").write_bytes(LINES)
    (tmp_path / "picture.bin").write_bytes(b"\0" + LINES)
    assert tasks.load("text", tmp_path).fingerprint == plain.fingerprint
    assert "by file" in plain.description and str(tmp_path) not in plain.description


def test_text_windows_of_the_splits_do_not_overlap(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_bytes(LINES)
    problem = tasks.load("text", path)
    seen = {
        split: set(re.findall(rb"\d{4} the", b" ".join(map(bytes, np.asarray(w)))))
        for split, (w,) in problem.held.items()
    }
    assert all(seen.values())
    for one, other in combinations(tasks.SPLITS, 2):
        assert not seen[one] & seen[other]


def test_a_training_batch_is_made_of_windows_of_the_text(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_bytes(LINES)
    problem = tasks.load("text", path)
    (windows,) = problem.take(problem.train, np.array([0, problem.positions - 1]))
    for window, start in zip(windows, [0, (problem.positions - 1) * tasks.CONTEXT], strict=True):
        assert bytes(np.asarray(window)) == LINES[start : start + tasks.CONTEXT + 1]


def test_bytes_beyond_ascii_are_kept_in_the_users_text(tmp_path):
    path = tmp_path / "umlaute.txt"
    path.write_text("Übung macht den Meister\n" * 600, encoding="utf-8")
    problem = tasks.load("text", path)
    assert int(problem.train[0].max()) > 127


@pytest.mark.parametrize("name", ["absent.txt", "no/such/folder"])
def test_unreadable_text_is_told_by_its_path(tmp_path, name):
    with pytest.raises(RaceError, match=rf"cannot read .*{re.escape(name)}: No such file"):
        tasks.load("text", tmp_path / name)


@pytest.mark.parametrize(
    ("contents", "size"),
    [
        ([b""], "0 bytes in 1 file"),
        ([b"too short"], "9 bytes in 1 file"),
        ([b"one", b"\0", b"two"], "6 bytes in 2 files"),
    ],
)
def test_too_short_text_is_told_with_its_size(tmp_path, contents, size):
    write(tmp_path, contents)
    with pytest.raises(RaceError, match=rf"^the text has {size}, the race needs at least 5200$"):
        tasks.load("text", tmp_path)


def write(folder, contents):
    for n, content in enumerate(contents):
        (folder / f"{n}.txt").write_bytes(content)


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        ([], "the folder has no files, hidden ones apart"),
        ([b"\0 binary " * 9000], "1 file holds zero bytes and counts as binary"),
        (["utf-16".encode("utf-16"), b"\0"], "2 files hold zero bytes and count as binary"),
    ],
)
def test_a_folder_without_text_is_told(tmp_path, contents, why):
    write(tmp_path, contents)
    (tmp_path / ".hidden").write_bytes(LINES)
    with pytest.raises(RaceError) as refused:
        tasks.load("text", tmp_path)
    assert str(refused.value) == f"no text in {tmp_path}: {why}"


def test_a_binary_file_is_told(tmp_path):
    path = tmp_path / "picture.bin"
    path.write_bytes(b"\0" * 9000)
    with pytest.raises(RaceError, match=r"no text in .*picture\.bin: 1 file holds zero bytes and counts as binary$"):
        tasks.load("text", path)


def test_only_regular_files_of_a_folder_are_read(tmp_path):
    write(tmp_path, [LINES])
    plain = tasks.load("text", tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "absent.txt")
    assert tasks.load("text", tmp_path).fingerprint == plain.fingerprint


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"\x1b[31mred"])
def test_any_name_of_a_file_or_folder_is_split_and_described(tmp_path, name):
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    folder.mkdir()
    for number, content in files(60):
        (folder / os.fsdecode(name + b"-" + number.encode())).write_bytes(content)
    problem = tasks.load("text", folder)
    assert "by file" in problem.description
    assert problem.description.isprintable()
    assert problem.description.encode("utf-8")


def test_a_readable_name_is_described_as_it_is(tmp_path):
    path = tmp_path / "Märchen [1].txt"
    path.write_bytes(LINES)
    assert "the bytes of Märchen [1].txt" in tasks.load("text", path).description

"""`optax-zoo merge`: it computes what the functions compute, refuses in one sentence, leaves nothing half-written."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import optax_zoo as zoo
from optax_zoo import cli
from optax_zoo.merging.command import merge as streaming
from optax_zoo.merging.command import methods as signatures
from tests.merging.checkpoints import flat, load, merge, positive, save, tree

FORMATS = {
    "safetensors": ("a.safetensors", "b.safetensors", "base.safetensors", "out.safetensors"),
    "orbax": ("a", "b", "base", "out"),
    "mixed": ("a.safetensors", "b", "base.safetensors", "out"),
    "mixed the other way": ("a", "b.safetensors", "base", "out.safetensors"),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pair() -> tuple[Path, Path]:
    return save(tree(0), Path("a.safetensors").absolute()), save(tree(1), Path("b.safetensors").absolute())


def sentence(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("optax-zoo merge: ")
    return line.removeprefix("optax-zoo merge: ")


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def trees(*given):
    return [flat(x) for x in given]


MERGES = {
    "uniform_soup": ("--weights 1,3", lambda a, b, base, f, g: zoo.uniform_soup([a, b], weights=[1.0, 3.0])),
    "diwa": ("", lambda a, b, base, f, g: zoo.diwa([a, b])[0]),
    "task_arithmetic": (
        "--base {base} --alpha -0.3",
        lambda a, b, base, f, g: zoo.task_arithmetic(base, [a, b], alpha=-0.3),
    ),
    "fisher_merge": (
        "--fishers {f} {g} --coefficients 2,1 --no-favor-target-model",
        lambda a, b, base, f, g: zoo.fisher_merge([a, b], [f, g], [2.0, 1.0], favor_target_model=False),
    ),
    "uncertainty_merge": (
        "--base {base} --hessians {f} {g} --hessian-base {g} --alpha 0.5,0.25 --delta0 0.1",
        lambda a, b, base, f, g: zoo.uncertainty_merge(base, [a, b], g, [f, g], alpha=[0.5, 0.25], delta0=0.1),
    ),
    "model_stock": (
        "--base {base} --granularity filter",
        lambda a, b, base, f, g: zoo.model_stock(base, [a, b], granularity="filter"),
    ),
    "variance_corrected_average": (
        "--self-params {base} --target mix --conservative 0.25",
        lambda a, b, base, f, g: zoo.variance_corrected_average(
            [a, b], self_params=base, target="mix", conservative=0.25
        ),
    ),
    "layerwise_interpolate": (
        "--alpha 0.25 --layers encoder.* stack/1 --default b",
        lambda a, b, base, f, g: zoo.layerwise_interpolate(
            a, b, 0.25, lambda path, leaf: path.startswith(("encoder/", "stack/1")), "b"
        ),
    ),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "mixed") for name in MERGES), *(("uniform_soup", form) for form in FORMATS if form != "mixed")],
)
def test_merges_what_the_function_merges(here, name, form):
    a, b, base, out = (here / file for file in FORMATS[form])
    given = tree(0), tree(1), tree(2), positive(3), positive(4)
    beside = {"base": base, "f": here / f"f{a.suffix}", "g": here / f"g{b.suffix}"}
    for content, path in zip(given, [a, b, *beside.values()], strict=True):
        save(content, path)
    words, function = MERGES[name]
    assert merge(name, a, b, "--out", out, *words.format(**beside).split()) == 0
    with jax.enable_x64(True):
        expected = function(*trees(*given))
    found = load(out)
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert (found[path].dtype, found[path].shape) == (x.dtype, x.shape), path
        np.testing.assert_array_equal(found[path], x, err_msg=path)


def test_every_merging_function_is_offered_or_says_what_it_lacks():
    offered, refused = signatures.methods()
    merges = {name for name, paper in zoo.papers().items() if paper.kind == "merge"}
    assert offered.keys() | refused.keys() == merges and offered.keys() == MERGES.keys()
    assert refused == {"greedy_soup": "score_fn", "ot_fusion": "layers_a"}


@pytest.mark.parametrize("name", MERGES)
def test_help_describes_every_option(capsys, name):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["merge", name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    method = signatures.methods()[0][name]
    assert all(f"--{option.name.replace('_', '-')}" in shown for option in method.options)
    assert all(option.help for option in method.options)
    assert method.paper.title in shown and "--out" in shown


def test_help_lists_the_methods(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["merge", "--help"])
    shown = capsys.readouterr().out
    assert all(f"    {name}" in shown for name in MERGES)
    assert "greedy_soup needs score_fn, which only Python can give." in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["greedy_soup", "a", "b", "--out", "out"],
            "it needs score_fn, which only Python can give: call",
        ),
        (["ot_fusion"], "it needs layers_a, which only Python can give: call optax_zoo.ot_fusion"),
        (["uniform_soop", "a", "b"], "invalid choice: 'uniform_soop'"),
        (["uniform_soup", "a", "b"], "the following arguments are required: --out"),
        (["uniform_soup", "--out", "out"], "the following arguments are required: CKPT"),
        (["task_arithmetic", "a", "--out", "out"], "the following arguments are required: --base"),
        (["uniform_soup", "a", "--base", "b", "--out", "out"], "unrecognized arguments: --base"),
        (["task_arithmetic", "a", "--base", "b", "--alpha", "much", "--out", "out"], "must be a number, got 'much'"),
        (["uniform_soup", "a", "--weights", "1,", "--out", "out"], "must be a number, got ''"),
        (["uniform_soup", "a", "--out", ""], "must name a file or folder, got ''"),
        (["model_stock", "a", "b", "--base", "c", "--granularity", "row", "--out", "o"], "invalid choice: 'row'"),
    ],
)
def test_wrong_usage_is_told(capsys, words, told):
    with pytest.raises(SystemExit, match="2"):
        merge(*words)
    assert told in capsys.readouterr().err
    assert not files()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "uniform_soup a b --weights 1,2,3",
            "uniform_soup: weights must be 2 numbers, one for each model, got [",
        ),
        ("uniform_soup a b --weights=-1,2", "uniform_soup: weights must be in [0, inf), got -1.0"),
        ("uniform_soup a b --weights 0,0", "uniform_soup: weights must not all be 0"),
        ("task_arithmetic a b --base a --alpha nan", "task_arithmetic: alpha must be in (-inf, inf), got nan"),
        ("fisher_merge a b --fishers a", "fisher_merge: 2 models need as many fishers, got 1"),
        ("model_stock a --base b", "model_stock: needs at least two models, whose offsets from the base make an angle"),
        ("diwa a b --selection restricted", "diwa: selection 'restricted' needs score_fn"),
        (
            "variance_corrected_average a b --target self",
            "variance_corrected_average: target 'self', conservative 0.0",
        ),
    ],
)
def test_arguments_are_refused_before_anything_is_read(capsys, words, told):
    assert merge(*words.split(), "--out", "out") == 1
    assert sentence(capsys).startswith(told)
    assert not files()


def test_a_wildcard_that_no_leaf_fits_is_told(capsys, pair):
    before = files()
    words = ["--alpha", 0.5, "--layers", "encoder/*", "stak/1", "--out", "out"]
    assert merge("layerwise_interpolate", *pair, *words) == 1
    assert sentence(capsys) == "--layers: no leaf fits 'stak/1'; did you mean 'stack/1', 'stack/0'?"
    assert files() == before


def without(tree, name):
    return {key: x for key, x in tree.items() if key != name}


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: without(t, "step"), "{a} has a leaf at step, {b} has none there"),
        (lambda t: t | {"more": np.ones(2)}, "{b} has a leaf at more, {a} has none there"),
        (
            lambda t: t | {"zeros": np.ones((4, 3), np.float32)},
            "at zeros {a} has shape (4, 4) and {b} has shape (4, 3)",
        ),
        (
            lambda t: t | {"zeros": np.ones((4, 4), ml_dtypes.bfloat16), "table": np.ones(3, int)},
            "at table {a} has shape (2, 3) and {b} has shape (3,)",
        ),
        (
            lambda t: t | {"zeros": np.ones((4, 4), ml_dtypes.bfloat16)},
            "at zeros {a} has dtype float32 and {b} has dtype bfloat16",
        ),
    ],
)
def test_trees_that_differ_are_refused(here, capsys, form, change, told):
    a, b, _, out = (here / file for file in FORMATS[form])
    save(tree(0), a)
    save(change(tree(1)), b)
    before = files()
    assert merge("uniform_soup", a, b, "--out", out) == 1
    assert sentence(capsys) == told.format(a=a, b=b)
    assert files() == before


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
@pytest.mark.parametrize("where", ["models", "fishers"])
@pytest.mark.parametrize("first_pass", ["--normalize-fishers", "--no-normalize-fishers"])
def test_nan_is_told_with_model_and_leaf(here, capsys, form, where, first_pass):
    a, b, _, out = (here / file for file in FORMATS[form])
    broken = positive(1)
    broken["encoder"]["layer_2"]["kernel"][1, 2] = np.nan
    good, bad = save(positive(0), a), save(broken, b)
    models = (good, bad, "--fishers", good, good) if where == "models" else (good, good, "--fishers", good, bad)
    before = files()
    assert merge("fisher_merge", *models, "--out", out, first_pass) == 1
    assert sentence(capsys) == f"{b} has NaN at encoder/layer_2/kernel"
    assert files() == before


def test_a_fisher_of_zeros_is_refused(here, capsys, pair):
    fisher = save(positive(0), here / "fisher.safetensors")
    zeros = save(jax.tree.map(np.zeros_like, positive(0)), here / "zeros.safetensors")
    assert merge("fisher_merge", *pair, "--fishers", fisher, zeros, "--out", "out") == 1
    assert sentence(capsys) == "fisher_merge: fisher 1 is zero everywhere, so it cannot be normalized"


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_an_existing_checkpoint_is_only_replaced_by_force(here, capsys, pair, out):
    earlier = save(tree(5), here / out)
    assert merge("uniform_soup", *pair, "--out", out) == 1
    assert sentence(capsys) == f"{out} exists; choose another --out, or --force to replace it"
    np.testing.assert_array_equal(load(earlier)["stack/0"], tree(5)["stack"][0])
    assert merge("uniform_soup", *pair, "--out", out, "--force") == 0
    assert load(earlier)["step"] == 7
    assert {path.name for path in here.iterdir()} == {"a.safetensors", "b.safetensors", out}


def test_a_merge_may_replace_its_own_input(pair):
    expected = zoo.uniform_soup([x["stack"] for x in (tree(0), tree(1))])
    assert merge("uniform_soup", *pair, "--out", pair[0], "--force") == 0
    np.testing.assert_array_equal(load(pair[0])["stack/0"], expected[0])


@pytest.mark.parametrize("target", ["folder", "folder/runs", "note.txt"])
def test_what_is_no_checkpoint_is_not_replaced_by_force(here, capsys, pair, target):
    save(tree(0), here / "folder" / "runs" / "1")
    save(tree(0), here / "folder" / "model.safetensors")
    (here / "note.txt").write_text("note")
    before = files()
    assert merge("uniform_soup", *pair, "--out", target, "--force") == 1
    assert sentence(capsys).startswith(f"{target} exists and is no checkpoint, which --force would replace")
    assert files() == before


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [100, 60_000])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_a_full_disk_leaves_nothing_new(here, capsys, out, earlier, room):
    models = [{"small": np.ones(3), "x": np.random.default_rng(seed).normal(size=20_000)} for seed in range(3)]
    a, b = save(models[0], here / "a.safetensors"), save(models[1], here / "b.safetensors")
    if earlier:
        save(models[2], here / out)
    before = files()
    with no_file_longer_than(room):
        assert merge("uniform_soup", a, b, "--out", out, "--force") == 1
    assert sentence(capsys) == f"cannot write {out}: File too large; nothing was left there"
    assert files() == before
    if earlier:
        np.testing.assert_array_equal(load(here / out)["x"], models[2]["x"])


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_a_failing_rename_keeps_what_was_there(here, capsys, monkeypatch, pair, out):
    save(tree(5), here / out)
    before = files()

    def refuse(source, target, really=os.rename):
        if Path(source).name == Path(target).name and Path(source).parent.name.startswith(f".{out}."):
            raise OSError(5, "Input/output error")
        really(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert merge("uniform_soup", *pair, "--out", out, "--force") == 1
    assert sentence(capsys) == f"cannot write {out}: Input/output error; nothing was left there"
    assert files() == before
    np.testing.assert_array_equal(load(here / out)["stack/0"], tree(5)["stack"][0])


def test_a_folder_that_cannot_be_made_is_told(here, capsys, pair):
    assert merge("uniform_soup", *pair, "--out", pair[0] / "below" / "out") == 1
    assert sentence(capsys) == f"cannot write {pair[0] / 'below' / 'out'}: Not a directory; nothing was left there"


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_an_interruption_leaves_nothing(here, capsys, monkeypatch, pair, out):
    finished = []

    def stop(self):
        finished.append(self)
        if len(finished) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(streaming.LiveMerge, "finishes", stop)
    before = files()
    assert merge("uniform_soup", *pair, "--out", out) == 130
    assert sentence(capsys) == "interrupted; nothing was written"
    assert files() == before and len(finished) == 3


def run_program(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    root = str(Path(zoo.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=kept | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_merges_both_formats_and_is_quiet(here):
    a, b = save(tree(0), here / "a.safetensors"), save(tree(1), here / "b")
    done = run_program("-m", "optax_zoo", "merge", "uniform_soup", a, b, "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote out: 12 leaves, ") and len(done.stdout.splitlines()) == 1
    done = run_program("-m", "optax_zoo", "merge", "uniform_soup", b, a, "--out", "out.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    one, other = load(here / "out"), load(here / "out.safetensors")
    assert one.keys() == other.keys() == flat(tree(0)).keys()
    (damaged,) = b.glob("manifest.ocdbt")
    damaged.write_bytes(damaged.read_bytes()[:9])
    done = run_program("-m", "optax_zoo", "merge", "uniform_soup", a, b, "--out", "new")
    assert (done.returncode, done.stdout) == (1, "") and len(done.stderr.splitlines()) == 1
    assert not (here / "new").exists()


@pytest.mark.parametrize(
    ("missing", "out", "status"), [("rich", "out", 1), ("orbax", "out", 1), ("orbax", "o.safetensors", 0)]
)
def test_a_missing_extra_is_told_where_it_is_needed(pair, missing, out, status):
    code = f"import sys; sys.modules[{missing!r}] = None; from optax_zoo.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_program("-c", code, "merge", "uniform_soup", *pair, "--out", out)
    told = f'optax-zoo merge: needs the extra "merge" ({missing} is missing); pip install "optax-zoo[merge]"\n'
    assert (done.returncode, done.stderr) == (status, told if status else "")


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_memory_holds_no_more_than_two_leaves_of_each_model(monkeypatch, pair, out):
    held, alive, really = [], [], streaming.read

    def noting(checkpoint, leaf):
        array = really(checkpoint, leaf)
        held.append(weakref.ref(array))
        alive.append(sum(reference() is not None for reference in held))
        return array

    monkeypatch.setattr(streaming, "read", noting)
    assert merge("uniform_soup", *pair, "--out", out) == 0
    assert len(alive) == 2 * len(flat(tree(0))) and max(alive) <= 4


def test_each_leaf_is_read_once_and_a_first_pass_reads_only_what_it_measures(here, monkeypatch, pair):
    fisher, read, really = save(positive(0), here / "fisher.safetensors"), [], streaming.read

    def noting(checkpoint, leaf):
        read.append((checkpoint.path, leaf.name))
        return really(checkpoint, leaf)

    monkeypatch.setattr(streaming, "read", noting)
    assert merge("uniform_soup", *pair, "--out", "out.safetensors") == 0
    assert len(read) == len(set(read)) == 2 * len(flat(tree(0)))
    read.clear()
    assert merge("fisher_merge", *pair, "--fishers", fisher, fisher, "--out", "out") == 0
    assert {read.count((pair[0], name)) for name in flat(tree(0))} == {1}
    assert {name: read.count((fisher, name)) for name in ("zeros", "step")} == {"zeros": 4, "step": 2}

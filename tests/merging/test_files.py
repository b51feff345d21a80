"""Checkpoint files: what the libraries of the formats write is read, what the command writes they read, and damage is
told."""

import json
import os
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import tensorstore
from safetensors.numpy import load_file, save_file

import optax_zoo as zoo
from optax_zoo.merging.command.checkpoints import Leaf, open_checkpoint
from optax_zoo.merging.command.errors import MergeError
from optax_zoo.merging.command.safetensors_files import SafetensorsWriter
from tests.merging.checkpoints import flat, load, merge, save, tree


def sentence(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("optax-zoo merge: ")


def saved(path: Path, content, **options) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(content))
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(leaf) for name, leaf in checkpoint.leaves.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
        np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.parametrize(
    "options", [{}, {"use_ocdbt": False}, {"use_zarr3": True}, {"use_ocdbt": False, "use_zarr3": True}], ids=str
)
def test_every_layout_of_orbax_is_read(tmp_path, options):
    assert_same(read_all(saved(tmp_path / "a", tree(0), **options)), flat(tree(0)))


def test_arrays_sharded_over_devices_are_read_whole(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = np.arange(64, dtype=np.float32).reshape(16, 4)
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert_same(read_all(saved(tmp_path / "a", {"w": spread})), {"w": x})


def test_what_is_no_array_stays_in_orbax(tmp_path):
    content = {"w": np.ones(2, np.float32), "name": "gpt", "none": None, "empty": {}, "rate": 0.5, "steps": 3}
    a, b = saved(tmp_path / "a", content), saved(tmp_path / "b", content | {"rate": 1.0, "name": "bert"})
    assert merge("uniform_soup", a, b, "--out", tmp_path / "out") == 0
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "out")
    np.testing.assert_array_equal(restored.pop("w"), content["w"])
    assert restored == {"name": "gpt", "none": None, "empty": {}, "rate": 0.75, "steps": 3}
    assert {key: type(x) for key, x in restored.items()}["rate"] is float


def test_text_is_refused_by_a_safetensors_file(tmp_path, capsys):
    a = saved(tmp_path / "a", {"w": np.ones(2), "name": "gpt"})
    assert merge("uniform_soup", a, a, "--out", tmp_path / "out.safetensors") == 1
    assert sentence(capsys) == f"{a} holds the text 'gpt', which a safetensors file cannot"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_orbax_restores_a_merge_onto_devices(tmp_path):
    content = {"layers": [{"w": np.ones((8, 2), np.float32)}, {"w": np.zeros((8, 2), ml_dtypes.bfloat16)}]}
    a = saved(tmp_path / "a", content)
    assert merge("uniform_soup", a, a, "--out", tmp_path / "out") == 0
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), content)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "out", target)
    for x, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(content), strict=True):
        assert x.sharding == sharding and x.dtype == expected.dtype
        np.testing.assert_array_equal(x, expected)


def test_a_large_array_is_stored_in_parts(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5000, 4001)).astype(ml_dtypes.float8_e4m3fn)
    x = np.where(np.isnan(x), ml_dtypes.float8_e4m3fn(0), x)
    leaf = Leaf("w", "w", x.shape, x.dtype)
    writer = SafetensorsWriter(tmp_path / "a.safetensors", [leaf], {})
    writer.write(leaf, x)
    writer.close()
    assert merge("uniform_soup", tmp_path / "a.safetensors", "--out", tmp_path / "out") == 0
    assert_same(read_all(tmp_path / "out"), {"w": x})
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tmp_path / 'out'}/"}}
    assert len(tensorstore.KvStore.open(database).result().list().result()) == 3


def test_steps_of_a_checkpoint_manager_are_read(tmp_path, capsys):
    content = {"w": np.ones((2, 3), np.float32)}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (5, 10):
            manager.save(step, args=ocp.args.StandardSave(content))
        manager.wait_until_finished()
    assert_same(read_all(tmp_path / "run" / "10"), content)
    assert merge("uniform_soup", tmp_path / "run", "--out", tmp_path / "out") == 1
    assert sentence(capsys) == f"{tmp_path / 'run'} holds 2 steps; name one of them, such as {tmp_path / 'run' / '10'}"


def test_a_step_of_several_trees_asks_which(tmp_path, capsys):
    content = {"w": np.ones((2, 3), np.float32)}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        both = {"params": ocp.args.StandardSave(content), "state": ocp.args.StandardSave(content)}
        manager.save(1, args=ocp.args.Composite(**both))
        manager.wait_until_finished()
    step = tmp_path / "run" / "1"
    assert merge("uniform_soup", step, "--out", tmp_path / "out") == 1
    assert sentence(capsys) == f"{step} holds 2 trees; name one of them, such as {step / 'params'}"
    assert_same(read_all(step / "params"), content)


def test_safetensors_keep_their_names_and_remarks(tmp_path):
    arrays = {
        "model/0.weight": np.ones((3, 2), np.float16),
        "model/0.bias": np.zeros(2, np.float64),
        "on": np.array([True]),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out.safetensors"
    assert merge("uniform_soup", tmp_path / "a.safetensors", "--out", out) == 0
    assert_same(load_file(out), arrays)
    with safetensors.safe_open(out, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(out.read_bytes()[:8], "little") % 8 == 0


def test_a_model_divided_among_files_is_read(tmp_path):
    one, other = {"a.w": np.ones(2, np.float32)}, {"b.w": np.zeros(3, np.float16)}
    save_file(one, tmp_path / "model-1.safetensors")
    save_file(other, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a.w": "model-1.safetensors", "b.w": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(read_all(tmp_path), {"a/w": one["a.w"], "b/w": other["b.w"]})
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(MergeError, match=r"cannot read .*model-2.safetensors: No such file or directory"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(MergeError, match="cannot read the index of tensors"):
        open_checkpoint(tmp_path)


def test_a_folder_of_several_models_asks_which(tmp_path):
    for name in ("a", "b"):
        save_file({"w": np.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(MergeError, match=r"holds 2 safetensors files; name one of them, such as .*/a.safetensors"):
        open_checkpoint(tmp_path)


def test_names_that_no_tree_can_have_are_refused(tmp_path, capsys):
    for names in (("w", "w.b"), ("w.b", "w/b")):
        path = tmp_path / "a.safetensors"
        save_file({name: np.ones(2, np.float32) for name in names}, path)
        assert merge("uniform_soup", path, "--out", tmp_path / "out") == 1
        told = {"w": "has leaves at w and w/b, which no tree can have", "w.b": "has two leaves at w/b: w.b and w/b"}
        assert sentence(capsys) == f"{path} {told[names[0]]}"
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_empty_array_is_for_safetensors_alone(tmp_path, capsys):
    arrays = {"w": np.ones((0, 3), np.float32), "v": np.ones(1)}
    save_file(arrays, tmp_path / "a.safetensors")
    assert merge("uniform_soup", tmp_path / "a.safetensors", "--out", tmp_path / "out.safetensors") == 0
    assert_same(load_file(tmp_path / "out.safetensors"), arrays)
    assert merge("uniform_soup", tmp_path / "a.safetensors", "--out", tmp_path / "out") == 1
    assert sentence(capsys) == "Orbax stores no arrays of no entries, such as the one at w"


def test_folders_may_have_any_name_that_is_text(tmp_path, capsys):
    a = save(tree(0), tmp_path / "a.safetensors")
    for name in ("with %20 #1", "caffè"):
        assert merge("uniform_soup", a, "--out", tmp_path / name) == 0
        assert_same(read_all(tmp_path / name), flat(tree(0)))
    stray = tmp_path / os.fsdecode(b"caf\xe9")
    assert merge("uniform_soup", a, "--out", stray.with_suffix(".safetensors")) == 0
    capsys.readouterr()
    assert merge("uniform_soup", a, "--out", stray) == 1
    assert sentence(capsys).endswith(r"caf\udce9: the name is not UTF-8")
    stray.mkdir()
    assert merge("uniform_soup", stray, "--out", tmp_path / "out") == 1
    assert sentence(capsys).endswith(r"caf\udce9: the name is not UTF-8")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("absent", "cannot read {path}: no such file or folder"),
        ("empty", "{path} is no checkpoint, or a half-written one: it has no _METADATA of Orbax's"),
        ("notes.txt", "{path} is no checkpoint: neither a file that ends in .safetensors nor a folder of Orbax's"),
        ("text.safetensors", "{path} is half-written or no safetensors file: it has 4 bytes"),
        ("json.safetensors", "{path} is no safetensors file: its header is not understood"),
        ("none.safetensors", "{path} holds no arrays"),
        ("a.orbax-checkpoint-tmp-7", "{path} is half-written: Orbax has not finished it"),
        ("outside", "{path} is damaged: ../a lies outside of it"),
        ("key", "{path} has a jax.Unknown at w, which cannot be merged"),
        ("fp4.safetensors", "{path} has dtype F4 at w, which cannot be merged"),
        ("size.safetensors", "{path} is damaged: 4 bytes cannot hold the tensor w"),
    ],
)
def test_what_is_no_checkpoint_is_told(tmp_path, capsys, name, told):
    def header(content: dict) -> bytes:
        text = json.dumps(content).encode()
        return len(text).to_bytes(8, "little") + text

    def metadata(key: str, kind: str) -> str:
        entry = {"key_metadata": [{"key": key, "key_type": 2}], "value_metadata": {"value_type": kind}}
        return json.dumps({"tree_metadata": {key: entry}})

    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "json.safetensors").write_bytes((4).to_bytes(8, "little") + b"[1]]")
    (tmp_path / "none.safetensors").write_bytes(header({}))
    (tmp_path / "fp4.safetensors").write_bytes(header({"w": tensor | {"dtype": "F4"}}))
    (tmp_path / "size.safetensors").write_bytes(header({"w": tensor}) + bytes(4))
    for folder in ("empty", "outside", "key", "a.orbax-checkpoint-tmp-7"):
        (tmp_path / folder).mkdir()
    (tmp_path / "outside" / "_METADATA").write_text(metadata("../a", "np.ndarray"))
    (tmp_path / "key" / "_METADATA").write_text(metadata("w", "jax.Unknown"))
    assert merge("uniform_soup", tmp_path / name, "--out", tmp_path / "out") == 1
    assert sentence(capsys) == told.format(path=tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_safetensors_file_cut_anywhere_is_told(tmp_path, capsys):
    path = save(tree(0), tmp_path / "a.safetensors")
    whole = path.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert merge("uniform_soup", path, "--out", tmp_path / "out") == 1
        line = sentence(capsys)
        assert line.startswith(f"{path} is half-written") and str(size) in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}], ids=["database", "folders"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_folder_with_any_file_gone_or_cut_is_told_or_whole(tmp_path, capsys, options, damage):
    generator = np.random.default_rng(0)
    content = {"a": generator.normal(size=(20, 30)), "b": {"c": generator.normal(size=400), "name": "gpt"}}
    whole, path = saved(tmp_path / "whole", content, **options), tmp_path / "a"
    told = 0
    for file in sorted(file for file in whole.rglob("*") if file.is_file()):
        shutil.copytree(whole, path)
        damaged = path / file.relative_to(whole)
        if damage == "gone":
            damaged.unlink()
        else:
            damaged.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        if merge("uniform_soup", path, "--out", tmp_path / "out") == 0:
            assert_same(
                {name: x for name, x in load(tmp_path / "out").items() if name != "b/name"},
                {"a": content["a"], "b/c": content["b"]["c"]},
            )
            capsys.readouterr()
            shutil.rmtree(tmp_path / "out")
        else:
            line = sentence(capsys)
            assert str(path) in line
            told += 1
        assert not (tmp_path / "out").exists()
        shutil.rmtree(path)
    assert told >= 4


def test_weights_that_are_used_again_are_those_of_python(tmp_path):
    models = [save(tree(seed), tmp_path / f"{seed}.safetensors") for seed in range(2)]
    assert merge("uniform_soup", *models, "--out", tmp_path / "out") == 0
    assert merge("uniform_soup", *models, tmp_path / "out", "--out", tmp_path / "again.safetensors") == 0
    given = [flat(tree(0)), flat(tree(1))]
    with jax.enable_x64(True):
        expected = zoo.uniform_soup([*given, zoo.uniform_soup(given)])
    assert_same(load(tmp_path / "again.safetensors"), expected)

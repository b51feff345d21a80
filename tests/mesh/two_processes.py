"""One of two processes that train together: `python -m tests.mesh.two_processes PORT INDEX`; prints the errors."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_zoo as zoo

DEVICES = 2  # of each process


def main(port: str, index: str) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
    mesh = jax.make_mesh((2 * DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    draw = np.random.default_rng(0)
    shapes = {**{f"wide_{i}": (8, 16) for i in range(7)}, "tall": (16, 8), "vector": (8,)}
    host = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    for spec in (P(), P("data")):

        def place(x: np.ndarray, spec: P = spec) -> jax.Array:
            sharding = NamedSharding(mesh, spec if x.ndim == 2 else P())
            return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

        for name in ("muon", "normuon", "adago"):
            together = train(zoo.create(name, 0.1, shard_over="data"), jax.tree.map(place, host))
            alone = train(zoo.create(name, 0.1), jax.tree.map(jnp.asarray, host))
            whole = multihost_utils.process_allgather(together, tiled=True)
            error = max(float(np.max(np.abs(whole[leaf] - np.asarray(alone[leaf])))) for leaf in host)
            print(f"{name} {spec}: {error:.1e}", flush=True)
            assert error < 1e-5, f"{name} {spec}: {error}"
    print("equal", flush=True)


def train(tx: optax.GradientTransformationExtraArgs, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for _ in range(2):
        params, state = step(params, state)
    return params


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Eight CPU devices, strict dtype and rank promotion, warnings as errors (pyproject.toml), all before JAX starts.

Tests compile thousands of small programs and run each once or twice, so XLA is told to compile fast, not well.
"""

import os
import subprocess
import sys

_DEVICES = "--xla_force_host_platform_device_count=8"
_FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)


def _known(flag: str) -> bool:
    """Whether this XLA has the flag; it ends the process otherwise."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(start, env={**os.environ, "XLA_FLAGS": flag}, capture_output=True).returncode == 0


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the flags of the process that starts them
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([given, _DEVICES, *filter(_known, _FAST)]).strip()

"""Two real processes that share matrices out between them compute what one alone computes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_compute_what_one_computes() -> None:
    command = [sys.executable, "-m", "tests.mesh.two_processes", str(free_port())]
    quiet = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    workers = [
        subprocess.Popen(
            [*command, str(index)], cwd=ROOT, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for index in range(2)
    ]
    try:
        for worker in workers:
            out, _ = worker.communicate(timeout=300)
            assert worker.returncode == 0 and out.rstrip().endswith("equal"), out
    finally:
        for worker in workers:
            worker.kill()

"""Speed and memory of every registered method: ratios measured side by side in one process.

Run from the root of the repository:

    python -m benchmarks.memory
    python -m benchmarks.compile_time
    python -m benchmarks.step_time --sizes layers
    python -m benchmarks.step_time --sizes gpt2 --methods "a*"
    python -m benchmarks.step_time --report
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.sharing
"""

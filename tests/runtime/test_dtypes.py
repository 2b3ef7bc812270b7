"""`dtype=auto` is bfloat16 on hardware with bf16 matmul instructions, float32 elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from charjax.runtime import dtypes

WITH, WITHOUT = "fpu avx512f avx512_bf16 fma", "fpu avx512f fma avx512_bf16x"


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ({"platform": "tpu"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "9.0"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "12.0"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "7.5"}, "float32"),
        ({"platform": "gpu", "compute_capability": "gfx942"}, "float32"),
        ({"platform": "gpu"}, "float32"),
        ({"platform": "METAL"}, "float32"),
    ],
)
def test_accelerators(monkeypatch, device, dtype):
    monkeypatch.setattr(dtypes.jax, "devices", lambda: [SimpleNamespace(**device)])
    assert dtypes.fast_dtype() == dtype


@pytest.mark.parametrize(
    ("lines", "dtype"),
    [
        (f"processor\t: 0\nflags\t\t: {WITH}\n\nprocessor\t: 1\nflags\t\t: {WITH}\n", "bfloat16"),
        ("flags\t\t: fpu amx_bf16\n", "bfloat16"),
        (f"processor\t: 0\nflags\t\t: {WITHOUT}\nvmx flags\t: avx512_bf16\n", "float32"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "float32"),  # ARM: not measured
        ("", "float32"),
        (None, "float32"),  # no such file
    ],
)
def test_cpus(monkeypatch, tmp_path, lines, dtype):
    info = tmp_path / "cpuinfo"
    if lines is not None:
        info.write_text(lines, encoding="utf-8")
    monkeypatch.setattr(dtypes, "_CPU_INFO", info)
    monkeypatch.setattr(dtypes.jax, "devices", lambda: [SimpleNamespace(platform="cpu")])
    assert dtypes.fast_dtype() == dtype

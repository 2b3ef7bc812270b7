"""What bounds weak scaling: the time a step computes against the time its gradient travels.

python -m benchmarks.limits

From bytes and FLOPs alone. A step computes 6 FLOPs a parameter of the recurrent and
output kernels and a character; its gradient, float32, crosses the links once as a ring
all-reduce, 2 * (n - 1) / n of its bytes in and out of every device. Nothing is assumed to
overlap, and a step is never shorter than its chain of dependent products over time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import machine


@dataclass(frozen=True)
class Host:
    """A host's devices.

    Attributes:
      devices: how many are joined by fast links.
      flops: bfloat16 FLOP/s of one that a large product reaches (half of the peak).
      link: bytes/s that one sends and receives at the same time.
      latency_s: of one dependent product in the time loop, and of a small all-reduce.
    """

    name: str
    devices: int
    flops: float
    link: float
    latency_s: float


@dataclass(frozen=True)
class Model:
    """A one-layer GRU, its batch a device and its sequence length."""

    hidden: int
    embed: int
    vocab: int
    batch: int
    time: int

    @property
    def parameters(self) -> int:
        """Numbers in all kernels."""
        gates = 3 * self.hidden
        return self.vocab * (self.embed + self.hidden) + (self.embed + self.hidden) * gates

    @property
    def flops(self) -> float:
        """A step's on one device; the embedding's projection is a table and costs nothing."""
        a_char = self.hidden * 3 * self.hidden + self.hidden * self.vocab
        return 6.0 * a_char * self.batch * self.time


# Data sheets: H200 989 TFLOP/s, NVLink 450 GB/s each way; v5e 197 TFLOP/s, 1,600 Gbit/s over
# four links, of which a ring uses two.
HOSTS = (
    Host("8 x H200", 8, 989e12 / 2, 450e9, 5e-6),
    Host("8 x TPU v5e", 8, 197e12 / 2, 100e9, 3e-6),
)
MODELS = (
    Model(512, 128, 65, 64, 64),
    Model(1024, 256, 100, 64, 100),
    Model(4096, 512, 256, 256, 128),
    Model(8192, 512, 256, 256, 256),
)


def limit(host: Host, model: Model) -> dict[str, Any]:
    """The parts of a step, and the share of the devices' time that is not spent waiting."""
    compute_s = max(model.flops / host.flops, 2 * model.time * host.latency_s)
    travel = 2 * (host.devices - 1) / host.devices * 4 * model.parameters
    travel_s = travel / host.link + host.latency_s
    return {
        "host": host.name,
        "hidden": model.hidden,
        "lanes_a_device": model.batch,
        "seq_len": model.time,
        "parameters": model.parameters,
        "gflops_a_step": round(model.flops / 1e9, 1),
        "gradient_mb": round(4 * model.parameters / 1e6, 1),
        "compute_ms": round(1e3 * compute_s, 3),
        "all_reduce_ms": round(1e3 * travel_s, 3),
        "efficiency": round(compute_s / (compute_s + travel_s), 3),
    }


def main() -> None:
    """Writes `results/scaling_limits.json`."""
    rows = [limit(host, model) for host in HOSTS for model in MODELS]
    print(machine.write("scaling_limits", {"rows": rows}))


if __name__ == "__main__":
    main()

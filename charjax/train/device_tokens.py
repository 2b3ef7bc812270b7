"""Token ids in device memory, where training steps can slice their batches from them."""

from __future__ import annotations

import jax
import numpy as np

from charjax.config import Config
from charjax.data.batches import Batches
from charjax.runtime.distributed import all_max

_MAX_TOKENS = 2**31  # positions are int32
_MEMORY_FRACTION = 8  # one part in so many of a device's memory may hold tokens


def device_tokens(config: Config, batches: Batches) -> tuple[np.ndarray | None, str]:
    """The token ids that training steps find on the devices, where that is faster and they fit.

    A collective: every process must call it.

    Args:
      config: the run.
      batches: of its training split.

    Returns:
      The ids that the batches are slices of, or None if the host makes the batches; and a message
      that says so and why, "" on a CPU.
    """
    if jax.default_backend() == "cpu":  # it has one memory for both, so there is nothing to gain
        return None, ""
    if reason := _reason_for_host(config, batches):
        return None, f"batches: made by the host, as {reason}"
    ids = np.asarray(batches.ids)
    size = f"{ids.nbytes / 1e6:,.1f} MB"
    return ids, f"batches: the devices slice them from {size} of tokens in their memory"


def _reason_for_host(config: Config, batches: Batches) -> str:
    """Why the host makes the batches; "" if the devices can."""
    ids = batches.ids
    if config.parallel.backend != "jit":
        return f"config.parallel.backend={config.parallel.backend}"
    if not isinstance(ids, np.ndarray):
        return "the text is packed on disk"
    if len(ids) + config.data.seq_len >= _MAX_TOKENS:
        return f"{len(ids):,} tokens are too many for positions of 32 bits"
    limit = _memory_bytes() // _MEMORY_FRACTION
    if all_max([int(ids.nbytes > limit)])[0]:  # processes may differ in memory, not in programs
        return (
            f"the tokens take {ids.nbytes / 1e9:,.1f} GB, more than 1/{_MEMORY_FRACTION} of a "
            "device's memory"
        )
    return ""


def _memory_bytes() -> int:
    """The memory of the smallest device of this process; 0 where it is not known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return min(int(of_device.get("bytes_limit", 0)) for of_device in stats)

"""PyTorch: `nn.GRU` and `nn.LSTM`, trained and sampled as its users do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.worker import Task, check_gpu
from benchmarks.workload import Shape, batch


class CharModel(nn.Module):
    """embedding -> recurrent layers -> logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layer = {"gru": nn.GRU, "lstm": nn.LSTM}[shape.cell]
        self.embed = nn.Embedding(shape.vocab, shape.embed)
        self.rnn = layer(shape.embed, shape.hidden, shape.layers, batch_first=True)
        self.out = nn.Linear(shape.hidden, shape.vocab)

    def forward(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits and state after tokens [batch, time]."""
        outputs, state = self.rnn(self.embed(tokens), state)
        return self.out(outputs), state


def train_step(shape: dict[str, Any], dtype: str) -> Task:
    """Forward, backward, clipping by global norm and Adam; `dtype` by autocast."""
    wanted, device = Shape(**shape), _device()
    model = CharModel(wanted).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    loss_fn = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")
    inputs, targets = (torch.tensor(x[0], dtype=torch.long).to(device) for x in batch(wanted))

    def run(units: int) -> dict[str, Any]:
        for _ in range(units):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
                logits, _state = model(inputs)
                loss = loss_fn(logits.reshape(-1, wanted.vocab), targets.reshape(-1))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        return {"loss": loss.item()}

    return Task(wanted.chars, run, _about(model, device), _device_bytes(device))


def sample(shape: dict[str, Any], streams: int, chars: int) -> Task:
    """An eager loop: one call of the recurrent module and one draw per character."""
    wanted, device = Shape(**shape), _device()
    model = CharModel(wanted).to(device).eval()

    @torch.inference_mode()
    def run(units: int) -> dict[str, Any]:
        for _ in range(units):
            tokens, state = torch.zeros((streams, 1), dtype=torch.long, device=device), None
            written = []
            for _ in range(chars):
                logits, state = model(tokens, state)
                tokens = torch.multinomial(torch.softmax(logits[:, -1], -1), 1)
                written.append(tokens)
        return {"last": int(torch.cat(written, 1)[0, -1].item())}

    return Task(streams * chars, run, _about(model, device), _device_bytes(device))


def _device() -> str:
    found = torch.cuda.is_available()
    check_gpu("torch", found=found)
    return "cuda" if found else "cpu"


def _device_bytes(device: str) -> Any:
    return torch.cuda.max_memory_allocated if device == "cuda" else None


def _about(model: nn.Module, device: str) -> dict[str, Any]:
    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        cudnn = torch.backends.cudnn.version()
        about |= {"device": torch.cuda.get_device_name(), "cudnn": cudnn}
    return about

"""The machine in words, its matrix and memory rates, and the operations that a model asks for."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch


def describe(device: str) -> dict[str, Any]:
    """Processor or GPU, cores and versions; no names of hosts or users."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if device == "gpu":
        found["gpu"] = torch.cuda.get_device_name(0)
    for package in ("torch", "transformers", "trl", "axolotl"):
        found[package] = version(package)
    return found


def slug(machine: dict[str, Any]) -> str:
    """The machine's name in that of a file."""
    name = machine.get("gpu") or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model n")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Operations per second of a large matrix product, and bytes per second of a large copy."""
    gpu = device.type == "cuda"
    width = 8192 if gpu else 1024
    left = torch.randn(width, width, device=device, dtype=dtype)
    right = torch.randn(width, width, device=device, dtype=dtype)
    source = torch.ones(2**30 if gpu else 2**26, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = _best(lambda: torch.mm(left, right), device)
    copy = _best(lambda: target.copy_(source), device)
    return {
        "matrix_flops_per_second": 2 * width**3 / product,
        "memory_bytes_per_second": 2 * source.numel() / copy,
    }


def _best(work: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    """Seconds of the fastest of several calls."""
    found = []
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def synchronize(device: torch.device) -> None:
    """Wait for what the device was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_flops(model: Any, rows: np.ndarray, answers: np.ndarray) -> float:
    """Operations that one forward pass has to make for the log-probs of answers.

    Two per weight and token in the blocks, two per weight of the output matrix and *answer* token,
    and causal attention: 2·s²·width per block for a row of s tokens.

    Args:
        model: a causal LM.
        rows: tokens of every row, prompt and answer.
        answers: tokens of every answer.
    """
    config = model.config
    head = config.vocab_size * config.hidden_size
    embeddings = head if config.tie_word_embeddings else 2 * head
    blocks = sum(p.numel() for p in model.parameters()) - embeddings
    attention = 2 * config.num_hidden_layers * config.hidden_size
    squares = float((rows.astype(np.float64) ** 2).sum())
    return 2.0 * blocks * rows.sum() + 2.0 * head * answers.sum() + attention * squares

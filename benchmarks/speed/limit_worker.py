"""The limit: a bare model on packed tokens, and a bare decode loop. Nothing of prefloop, nothing of TRL.

``setting["bf16"]`` says in which precision; ``setting["tokens"]`` how many tokens a step has.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.speed.jobs import ROUNDS, answer, read_job, read_rows

job = read_job()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402

bf16: bool = job.setting["bf16"]
ends = [time.time()]


def autocast() -> torch.autocast:
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16)


def train() -> dict[str, float]:
    """Forward, loss over every token, backward and AdamW on blocks of 512 tokens: no padding, no masks, no data."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(2, 4096, (max(1, job.setting["tokens"] // 512), 512), device=model.device)
    for _ in range(8):
        with autocast():
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        float(loss.detach())
        ends.append(time.time())
    return {"tokens": float(ids.numel())}


@torch.no_grad()
def decode() -> dict[str, float]:
    """The likeliest token of each row, over and over, with the library's own cache."""
    rows = read_rows(job)[: job.batch_size]
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.randint(2, 4096, (len(rows), longest), device=model.device)
    for _ in range(ROUNDS):
        cache = DynamicCache(config=model.config)
        step = ids
        with autocast():
            for _ in range(job.response_tokens):
                logits = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                step = logits.argmax(1, keepdim=True)
        int(step.sum())
        ends.append(time.time())
    return {"tokens": float(len(rows) * job.response_tokens)}


def matmul(dtype: torch.dtype) -> float:
    """GFLOP/s of one large product."""
    size, times = 2048, 5
    one = torch.randn(size, size, device=model.device).to(dtype)
    float((one @ one).sum())
    started = time.perf_counter()
    for _ in range(times):
        product = one @ one
    float(product.sum())
    return 2 * size**3 * times / (time.perf_counter() - started) / 1e9


model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
model.to("cuda" if torch.cuda.is_available() else "cpu")
figures = decode() if job.work == "sample" else train()
answer(ends, **figures, gflops=matmul(torch.bfloat16 if bf16 else torch.float32))

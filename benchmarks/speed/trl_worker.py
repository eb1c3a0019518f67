"""TRL's side: supervised fine-tuning, reward model and DPO by its newest release, PPO by the last that has it.

Runs in an environment that has TRL and no prefloop.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.speed.jobs import Job, answer, read_job, read_rows

job = read_job()

import torch  # noqa: E402  (the process's own start is measured, and ends with these imports)
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

ends: list[float] = []


class Clock(TrainerCallback):
    """Notes when each optimiser step ended."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        ends.append(time.time())


def shared(job: Job) -> dict[str, Any]:
    """What every trainer is told."""
    return {
        "output_dir": job.out,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": job.setting.get("bf16", False),
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "adam_beta2": 0.95,  # as prefloop
        "seed": job.seed,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1_000_000,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def sft(job: Job) -> Any:
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in read_rows(job)]
    packing = job.setting.get("packing", False)
    config = SFTConfig(
        **shared(job),
        num_train_epochs=1,
        per_device_train_batch_size=job.setting["packed_batch"] if packing else job.batch_size,
        packing=packing,
        max_length=512,
    )
    return SFTTrainer(job.model, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()])


def reward(job: Job) -> Any:
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(
        **shared(job),
        num_train_epochs=1,
        per_device_train_batch_size=job.batch_size,
        max_length=512,
        center_rewards_coefficient=None,
    )
    return RewardTrainer(job.reward, args=config, train_dataset=comparisons(job), callbacks=[Clock()])


def dpo(job: Job) -> Any:
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        **shared(job),
        num_train_epochs=1,
        per_device_train_batch_size=job.batch_size,
        max_length=512,
        beta=0.1,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=job.batch_size,
    )
    return DPOTrainer(job.model, args=config, train_dataset=comparisons(job), callbacks=[Clock()])


def comparisons(job: Job) -> Any:
    return Dataset.from_list(
        [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in read_rows(job)]
    )


def ppo(job: Job) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        **shared(job),
        per_device_train_batch_size=job.batch_size // 4,
        num_mini_batches=4,
        gradient_accumulation_steps=1,
        num_ppo_epochs=job.epochs,
        total_episodes=job.batch_size * job.iterations,
        local_rollout_forward_batch_size=job.batch_size,
        num_sample_generations=0,
        response_length=job.response_tokens,
        stop_token="eos",
        temperature=1.0,
        missing_eos_penalty=1.0,
        kl_coef=0.05,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    dataset = Dataset.from_list([{"input_ids": row["ids"]} for row in read_rows(job)])
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(job.model),
        ref_model=AutoModelForCausalLM.from_pretrained(job.model),
        reward_model=AutoModelForSequenceClassification.from_pretrained(job.reward, num_labels=1),
        value_model=AutoModelForSequenceClassification.from_pretrained(job.reward, num_labels=1),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(2)),
        callbacks=[Clock()],
    )


trainer = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}[job.work](job)
begun = time.time()
trainer.train()
if job.work != "ppo":
    trainer.save_model(job.out)
history = [line for line in trainer.state.log_history if "objective/kl" in line]
figures = {"kl": history[-1]["objective/kl"], "reward": history[-1]["objective/scores"]} if history else {}
answer([begun, *ends], **figures)

"""Settings: every key of every verb with values that it may not take, or that a library may not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from hostile_contract import Order
from pydantic import BaseModel

VALUES = [
    "-1", "0", "1e308", "-1e308", ".nan", ".inf", "null", "true", "[]", "{}", "[1, 2]", "{a: 1}", "'x'", "2",
    "4294967296", "1e300", "0x" + "f" * 80, "'\\x1b[31m'", '"\\e[31mred"', "'" + "y" * 9000 + "'", "-0.5", "&a [*a]",
    "9" * 5000, '"a\\0b"', "2024-13-45", "!!python/name:os.system",
]  # fmt: skip
Build = Callable[[random.Random, Path, Path], Order]


def _verbs(folder: Path, assets: Path) -> dict[str, list[str]]:
    model, data, out = str(assets / "model"), str(assets / "data.jsonl"), ["--out", str(folder / "out"), "--quiet"]
    sets = ["--harmful", str(assets / "harmful.jsonl"), "--harmless", str(assets / "harmless.jsonl")]
    small = ["--suite", str(assets / "suite.yaml"), "--attacks", "none", "--set", "generation.max_new_tokens=2"]
    return {
        "train": ["train", "--model", model, "--data", data, *out, "--set", "trainer.max_steps=1"],
        "align": ["align", "--model", model, "--data", data, "--reward", "testbed", *out,
                  "--set", "trainer.max_steps=1", "--set", "sampling.max_new_tokens=2", "--set", "sampling.group=2",
                  "--set", "batch_size=2"],
        "merge": ["merge", model, str(assets / "tuned"), *out],
        "inject": ["inject", model, *sets, *out, "--layer", "1", "--strength", "raw:0.1", "--dry-run"],
        "evaluate": ["evaluate", model, *small, *out],
        "curate": ["curate", "--model", model, "--data", data, "--safe", data, "--harmful", data, *out, "--dry-run"],
        "judge": ["judge", str(assets / "answers.jsonl"), *out],
        "testbed": ["testbed", *out],
    }  # fmt: skip


def _set(verb: str, *assignments: str, codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        given = [word for assignment in assignments for word in ("--set", assignment)]
        return Order([*_verbs(folder, assets)[verb], *given], codes)

    return build


NAMED: dict[str, Build] = {
    "epochs": _set("train", "trainer.max_steps=-1", "epochs=1e300"),
    "epochs-of-align": _set("align", "trainer.max_steps=-1", "epochs=1e300"),
    "adam-beta1": _set("train", "trainer.adam_beta1=2"),
    "adam-beta2-nan": _set("train", "trainer.adam_beta2=.nan"),
    "adam-epsilon": _set("train", "trainer.adam_epsilon=-1"),
    "workers": _set("train", "trainer.dataloader_num_workers=-1"),
    "neftune": _set("train", "trainer.neftune_noise_alpha=-1"),
    "advantage": _set("align", "objective.min_reference_advantage=-1e308"),
    "learning-rate": _set("train", "learning_rate=1e308", codes=(1,)),
    "rank": _set("train", "lora.rank=1000000000"),
    "alpha": _set("train", "lora.alpha=1e308"),
    "batch": _set("train", "batch_size=100000000000000000000"),
    "weight": _set("merge", "weight=1e308"),
    "key-of-control": _set("train", "\x1b[31m=1"),
    "bomb": _set("train", "trainer={a: &a [1, 1], b: &b [*a, *a], c: &c [*b, *b, *c]}"),
}  # fmt: skip


def _keys(config: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in config.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{above}{name}.")
        yield f"{above}{name}"


def any_setting(draw: random.Random, folder: Path, assets: Path) -> Order:
    """A key of a verb's own settings, or a field of the trainer's, with a value of no regard."""
    from alignkeep.align.config import AlignConfig
    from alignkeep.curate.config import CurateConfig
    from alignkeep.evaluate.config import EvaluateConfig, JudgeConfig
    from alignkeep.inject.config import InjectConfig
    from alignkeep.merge.config import MergeConfig
    from alignkeep.testbed.stage import TestbedConfig
    from alignkeep.train.config import TrainConfig

    configs = {
        "train": TrainConfig, "align": AlignConfig, "merge": MergeConfig, "inject": InjectConfig,
        "evaluate": EvaluateConfig, "curate": CurateConfig, "judge": JudgeConfig, "testbed": TestbedConfig,
    }  # fmt: skip
    trainer = [
        "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "warmup_steps", "logging_steps",
        "save_steps", "save_total_limit", "dataloader_num_workers", "dataloader_prefetch_factor", "neftune_noise_alpha",
        "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "max_steps", "ddp_timeout", "deepspeed",
        "label_names", "run_name", "logging_strategy", "save_strategy", "fsdp", "torch_compile_backend",
    ]  # fmt: skip
    verb = draw.choice(["train", "align", *configs])
    keys = [key for key in _keys(configs[verb]) if key not in ("load.trust_remote_code",)]
    trains = verb in ("train", "align") and draw.random() < 0.5
    key = f"trainer.{draw.choice(trainer)}" if trains else draw.choice(keys)
    return _set(verb, f"{key}={draw.choice(VALUES)}", codes=(0, 1))(draw, folder, assets)

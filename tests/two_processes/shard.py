"""One of two processes: the penalty of a model whose blocks FSDP2 has cut into shards, and a look of the probe at it,
beside those of the same model whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any


def gradients(total: Any, model: Any) -> dict[str, Any]:
    """After a backward pass, whole, of the parameters that are trained."""
    model.zero_grad()
    total.backward()
    parts = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    return {
        name: None if one is None else one.full_tensor() if hasattr(one, "full_tensor") else one.clone()
        for name, one in parts.items()
    }


def apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference over the largest entry; infinite where a gradient is missing."""
    if any(one is None for one in found.values()) or found.keys() != expected.keys():
        return float("inf")
    largest = max(float(one.abs().max()) for one in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / largest


def look(model: Any, tokenizer: Any) -> list[list[float]]:
    """What the probe's prompts are answered with: log-probabilities, harmful and harmless."""
    from alignkeep.train.probe import SafetyProbe
    from alignkeep.types import Message, Prompt

    asked = [[Prompt((Message("user", f"{ask} {n} ?"),)) for n in range(3)] for ask in ("how to fix", "sort")]
    probe = SafetyProbe(*asked, refusals=["Sorry"], batch_size=2)
    probe.prepare(model, tokenizer)
    assert probe._first is not None
    return [one.flatten().tolist() for one in probe._first]


def main(folder: Path, out: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignkeep.train.align_guard import AlignGuard
    from alignkeep.train.config import AlignGuardSettings
    from alignkeep.types import Example, Message

    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    examples = [Example((Message("user", f"how to fix {n} ?"), Message("assistant", "Sorry ."))) for n in range(4)]
    settings = AlignGuardSettings(trust=0.1, collision=0.1, side="both", emphasis={"compares": "weight"})  # pyright: ignore[reportArgumentType]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    guard = AlignGuard.measure(model, tokenizer, examples, settings)
    early = AlignGuard(guard.subspaces, settings)
    whole, ids = copy.deepcopy(model), torch.tensor([[5, 6, 7, 8, 9]])
    expected = guard.penalty(whole)
    forces = gradients(expected.total, whole)
    both = gradients(whole(input_ids=ids, labels=ids).loss + guard.penalty(whole).total, whole)
    answers = look(whole, tokenizer)

    early.penalty(model)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.get_base_model().model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = guard.penalty(model)
    seen = {
        "shards": sum(hasattr(one, "full_tensor") for one in model.parameters()) / len(list(model.parameters())),
        "terms": [[float(one) for one in penalty] for penalty in (found, expected)],
        "penalty": apart(gradients(found.total, model), forces),
        "with task": apart(gradients(model(input_ids=ids, labels=ids).loss + guard.penalty(model).total, model), both),
        "looked at before": apart(gradients(early.penalty(model).total, model), forces),
        "answers": [look(model, tokenizer), answers],
    }
    after = gradients(model(input_ids=ids, labels=ids).loss + guard.penalty(model).total, model)
    seen["after a look"] = apart(after, both)
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(seen), encoding="utf-8")
    torch.distributed.barrier()  # one that ends while the other still talks to it aborts, at times
    torch.distributed.destroy_process_group()

"""Decoders of no known family, for transformers to load: `spiral`, whose matrices are plain ones under other names, and
`whirl`, which multiplies its stream by what a matrix gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class SpiralConfig(PreTrainedConfig):
    model_type = "spiral"

    def __init__(self, size: int = 32, floors: int = 3, words: int = 64, **settings: Any) -> None:
        self.size, self.floors, self.words = size, floors, words
        super().__init__(**settings)


class WhirlConfig(PreTrainedConfig):
    model_type = "whirl"

    def __init__(self, size: int = 32, floors: int = 3, words: int = 64, **settings: Any) -> None:
        self.size, self.floors, self.words = size, floors, words
        super().__init__(**settings)


class Gather(nn.Module):
    """Every token's mean over those before it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.forth, self.back = nn.Linear(size, 40), nn.Linear(40, size)

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.back(self.forth(x).cumsum(1) / counts)


class Ponder(nn.Module):
    """Two matrices that lie in the module itself, (in, out)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.out, self.home = nn.Parameter(torch.randn(size, 48)), nn.Parameter(torch.randn(48, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.out) @ self.home


class Floor(nn.Module):
    def __init__(self, config: SpiralConfig) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(config.size), nn.LayerNorm(config.size)
        self.gather, self.ponder = Gather(config.size), Ponder(config.size)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + 0.5 * self.gather(self.first(stream))
        return stream + self.ponder(self.second(stream))


class Turn(Floor):
    def forward(self, stream: Tensor) -> Tensor:
        return stream * self.gather(self.first(stream)) + self.ponder(self.second(stream))


class SpiralForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = SpiralConfig
    base_model_prefix = "spiral"
    floor = Floor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.words, config.size)
        self.floors = nn.ModuleList(self.floor(config) for _ in range(config.floors))
        self.say = nn.Linear(config.size, config.words, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        stream = self.words(input_ids)
        for floor in self.floors:
            stream = floor(stream)
        return CausalLMOutput(logits=self.say(stream))


class WhirlForCausalLM(SpiralForCausalLM):
    config_class = WhirlConfig
    floor = Turn


for config, model in ((SpiralConfig, SpiralForCausalLM), (WhirlConfig, WhirlForCausalLM)):
    AutoConfig.register(config.model_type, config)
    AutoModelForCausalLM.register(config, model)

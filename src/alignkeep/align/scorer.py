"""A reward model as a judge: the sign of its score of the answer minus that of the reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from alignkeep.errors import CheckpointError
from alignkeep.judging.pairs import Comparison
from alignkeep.models.chat import render, without_marks
from alignkeep.models.config import LoadConfig
from alignkeep.models.folders import localise, resolve
from alignkeep.models.loading import choose_device, choose_dtype, load_tokenizer
from alignkeep.types import Message

_BATCH = 16  # texts scored at once (chosen: fits where the model that is tuned fits)
_REMEMBERED = (
    1 << 16
)  # texts whose scores are kept, the last asked for (chosen: references of one epoch, in some 10 MB)


class Scorer:
    """Loaded at its first comparison. Scores of the texts last asked for are remembered, so that a reference is scored
    once; a text is remembered by its hash."""

    def __init__(self, reference: str, load: LoadConfig, tie_margin: float) -> None:
        self._reference, self._load, self._margin = reference, load, tie_margin
        self._model: Any = None
        self._tokenizer: Any = None
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def compare(self, pairs: Sequence[Comparison]) -> list[float | None]:
        """A score that is not a number leaves its pair unscored."""
        texts = [[self._text(pair.messages, answer) for answer in (pair.answer, pair.reference)] for pair in pairs]
        scores = iter(self._score([text for both in texts for text in both]))
        found: list[float | None] = []
        for answer, reference in zip(scores, scores, strict=True):
            gap = answer - reference
            found.append(None if gap != gap else 0.0 if abs(gap) <= self._margin else 1.0 if gap > 0 else -1.0)
        return found

    def _text(self, messages: tuple[Message, ...], answer: str) -> str:
        self._open()
        chat = [*messages, Message("assistant", answer)]
        plain = [Message(one.role, without_marks(self._tokenizer, one.content)) for one in chat]
        return render(self._tokenizer, plain, generation_prompt=False)

    def _score(self, texts: Sequence[str]) -> list[float]:
        import torch

        known = {text: self._scores.get(_hash(text)) for text in texts}
        found = {text: score for text, score in known.items() if score is not None}
        new = sorted(known.keys() - found.keys(), key=lambda text: (len(text), text))
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            encoded = self._tokenizer(
                batch, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            )
            with torch.inference_mode():
                scores = self._model(**encoded.to(self._model.device)).logits[:, 0].float().tolist()
            found.update(zip(batch, scores, strict=True))
        self._remember(found)
        return [found[text] for text in texts]

    def _remember(self, found: Mapping[str, float]) -> None:
        """And forget what was asked for longest ago."""
        for text, score in found.items():
            self._scores[_hash(text)] = score
            self._scores.move_to_end(_hash(text))
        while len(self._scores) > _REMEMBERED:
            self._scores.popitem(last=False)

    def _open(self) -> None:
        if self._model is not None:
            return
        from transformers import AutoModelForSequenceClassification

        folder = cast(Path, localise(resolve(self._reference, None), with_code=False).folder)
        device = choose_device(self._load.device)
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=choose_dtype("auto", device),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unfit(f"{type(error).__name__}: {str(error)[:200]}") from error
        if info["missing_keys"]:  # transformers would fill them with random numbers
            raise self._unfit(f"no tensor {min(info['missing_keys'])} in it")
        if model.config.num_labels != 1:
            raise self._unfit(f"a model of {model.config.num_labels} labels")
        self._tokenizer = load_tokenizer(self._reference, self._load)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = model.to(device).eval()

    def _unfit(self, seen: str) -> CheckpointError:
        return CheckpointError(
            f"align.reward.spec, scorer:{self._reference}",
            seen=seen,
            expected="a reward model: a sequence classifier of one label with a chat template",
            remedy="name another model",
        )


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()

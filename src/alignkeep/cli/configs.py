"""Settings of the verbs that have none in a room."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JudgeSettings(_Settings):
    """Which answers to score, and by which judge. `seed` is for judges that draw; the keyword judge does not."""

    answers: str
    judge: str = "keyword"
    seed: int = Field(default=0, ge=0, lt=2**32)


class TestbedSettings(_Settings):
    """The seed of the written data; the models are shipped."""

    seed: int = Field(default=0, ge=0, lt=2**32)

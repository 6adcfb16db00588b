"""Answers in OpenAI's form, whole and in chunks, with what was read of each token beside them."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperlens.monitoring.generation import LiveToken
from hyperlens.serving.jobs import Job
from hyperlens.serving.service import Service
from hyperlens.serving.writing import Piece

SMALLEST_LOGPROB = -9999.0
"""What stands for a probability of 0, as in OpenAI's answers."""


@dataclass
class Choice:
    """One answer as far as it has come."""

    text: str = ""
    tokens: list[LiveToken] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        """Let it grow by a piece."""
        self.text += piece.text
        self.finish = piece.finish or self.finish
        if piece.token is not None:
            self.tokens.append(piece.token)


class Answer:
    """What one request is sent: its choices, gathered from pieces, and the chunks or the whole that they make."""

    def __init__(self, job: Job, service: Service) -> None:
        self.job, self.service = job, service
        self.choices = [Choice() for _ in range(len(job.prompts) * job.copies)]
        kind, sign = ("chat.completion", "chatcmpl") if job.chat else ("text_completion", "cmpl")
        self._kind, self._id, self._created = kind, f"{sign}-{secrets.token_hex(12)}", int(time.time())

    @property
    def tokens(self) -> list[LiveToken]:
        """Those of all choices."""
        return [token for choice in self.choices for token in choice.tokens]

    @property
    def finished(self) -> bool:
        """Whether all choices have ended."""
        return all(choice.finish for choice in self.choices)

    def add(self, piece: Piece) -> None:
        """Gather a piece."""
        self.choices[piece.choice].add(piece)

    def whole(self) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        choices = [self._describe(number, choice) for number, choice in enumerate(self.choices)]
        return self._head(self._kind) | {"choices": choices, "usage": self.usage(), "hyperlens": self.summary()}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks that say who speaks, where that is said."""
        if not self.job.chat:
            return []
        first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._chunk([{"index": number, **first}]) for number in range(len(self.choices))]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One piece; the very last one comes with the summary."""
        tokens = [] if piece.token is None else [piece.token]
        body: dict[str, Any] = {"index": piece.choice}
        if self.job.chat:
            body["delta"] = {"content": piece.text} if piece.text or tokens else {}
        else:
            body["text"] = piece.text
        chunk = self._chunk([body | self._beside(tokens, piece.finish)])
        return chunk | {"hyperlens": self.summary()} if self.finished else chunk

    def closing(self) -> list[dict[str, Any]]:
        """The chunk with the counts, where it was asked for."""
        return [self._chunk([]) | {"usage": self.usage()}] if self.job.include_usage else []

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts (each counted once) and of all answers."""
        asked, answered = self.job.prompt_tokens, len(self.tokens)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}

    def summary(self) -> dict[str, Any]:
        """What all tokens have in common, and how they were read."""
        model = self.service.model
        read = {"focal_depth": self.job.focal_depth, "layers": model.layers, "model_fingerprint": model.fingerprint}
        return {"summary": summarise(self.tokens), **read}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.service.name}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.job.chat else self._kind) | {"choices": choices}

    def _describe(self, number: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        body = {"message": message} if self.job.chat else {"text": choice.text}
        return {"index": number, **body, **self._beside(choice.tokens, choice.finish)}

    def _beside(self, tokens: Sequence[LiveToken], finish: str | None) -> dict[str, Any]:
        logprobs = _describe_logprobs(tokens, self.job.chat) if self.job.logprobs and tokens else None
        described = {"tokens": [token.describe() for token in tokens]}
        return {"logprobs": logprobs, "finish_reason": finish, "hyperlens": described}


def is_early(token: LiveToken) -> bool:
    """Whether a token was committed in the first half of the states that the lens can change: commit ≤ (L − m)/2."""
    return token.commit is not None and token.commit <= token.states[-1] / 2


def summarise(tokens: Sequence[LiveToken]) -> dict[str, Any]:
    """Means over tokens, of effort and of those committed early where effort is defined; None where there are none."""
    defined = [token for token in tokens if not math.isnan(token.effort)]
    return {
        "tokens": len(tokens),
        "effort": _mean(token.effort for token in defined),
        "confidence": _mean(float(token.confidence[-1]) for token in tokens),
        "committed_early": _mean(float(is_early(token)) for token in defined),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _describe_logprobs(tokens: Sequence[LiveToken], chat: bool) -> dict[str, Any]:
    """The model's own log-probability of each chosen token, in nats, before any sampling setting."""
    values = [_take_logarithm(float(token.confidence[-1])) for token in tokens]
    if not chat:
        return {"tokens": [token.text for token in tokens], "token_logprobs": values, "top_logprobs": None, "text_offset": None}
    content = [
        {"token": token.text, "logprob": value, "bytes": list(token.text.encode()), "top_logprobs": []}
        for token, value in zip(tokens, values, strict=True)
    ]
    return {"content": content, "refusal": None}


def _take_logarithm(probability: float) -> float:
    return math.log(probability) if probability > 0 else SMALLEST_LOGPROB

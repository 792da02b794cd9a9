"""What a client is told: the engine's pieces and endings as Ollama's JSON objects. Pure."""

from dataclasses import dataclass, field

from embedded.demands import Body, Demand, Texts
from embedded.engine import Ending, Piece


@dataclass(slots=True)
class Answer:
    """The objects one answer is made of; `created_at` and durations are the caller's to tell."""

    demand: Demand
    text: list[str] = field(default_factory=list)
    logprobs: list[Body] = field(default_factory=list)

    def chunk(self, piece: Piece, created_at: str) -> Body:
        """Return the line that carries one piece."""
        return self._object(created_at, piece.text, self._odds(piece.logprobs)) | {"done": False}

    def keep(self, piece: Piece) -> None:
        """Keep a piece for `last`, when the answer is not streamed."""
        self.text.append(piece.text)
        self.logprobs += self._odds(piece.logprobs)

    def loaded(self, created_at: str) -> Body:
        """Return the reply to a request that only loads the model, or unloads it."""
        reason = "unload" if self.demand.unload else "load"
        return self._object(created_at, "", []) | {"done": True, "done_reason": reason}

    def last(self, ending: Ending, created_at: str, load_ns: int, total_ns: int) -> Body:
        """Return the object that ends the answer, with the counts, and with all that was kept."""
        return self._object(created_at, "".join(self.text), self.logprobs) | {
            "done": True,
            "done_reason": ending.reason,
            "total_duration": total_ns,
            "load_duration": load_ns,
            "prompt_eval_count": ending.prompt_tokens,
            "prompt_eval_duration": round(ending.prompt_ms * 1e6),
            "eval_count": ending.answer_tokens,
            "eval_duration": round(ending.answer_ms * 1e6),
        }

    def _object(self, created_at: str, text: str, logprobs: list[Body]) -> Body:
        shown: Body = {"model": self.demand.model, "created_at": created_at}
        if self.demand.is_chat:
            shown["message"] = {"role": "assistant", "content": text}
        else:
            shown["response"] = text
        return shown | ({"logprobs": logprobs} if logprobs else {})

    def _odds(self, logprobs: list[Body]) -> list[Body]:
        """Return the odds without llama.cpp's token numbers, and only as many as were asked for."""
        asked = (self.demand.call and self.demand.call.top_logprobs) or 0
        shown = [_one_token(token) for token in logprobs]
        if asked:
            for token, full in zip(shown, logprobs, strict=True):
                token["top_logprobs"] = [_one_token(top) for top in full["top_logprobs"][:asked]]
        return shown


def _one_token(token: Body) -> Body:
    return {key: token[key] for key in ("token", "logprob", "bytes")}


def embed_reply(asked: Texts, vectors: list[list[float]], tokens: int, **durations: int) -> Body:
    """Return the reply of `/api/embed`."""
    counts = {"prompt_eval_count": tokens} if tokens else {}
    embeddings = [_cut(vector, asked.dimensions) for vector in vectors]
    return {"model": asked.model, "embeddings": embeddings} | durations | counts


def _cut(vector: list[float], dimensions: int) -> list[float]:
    if not 0 < dimensions < len(vector):
        return vector
    head = vector[:dimensions]
    length = sum(value * value for value in head) ** 0.5 or 1.0
    return [value / length for value in head]

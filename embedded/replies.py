"""Turn the engine's chunks and completions into Ollama's JSON objects. Pure."""

from dataclasses import dataclass, field

from embedded.engine import Chunk, Completion
from embedded.parsing import Body, EmbeddingRequest, GenerationRequest


@dataclass(slots=True)
class Reply:
    """The objects of one reply. The caller passes `created_at` and the durations."""

    request: GenerationRequest
    text: list[str] = field(default_factory=list)
    logprobs: list[Body] = field(default_factory=list)

    def line(self, chunk: Chunk, created_at: str) -> Body:
        """Return the line of a stream that has one chunk."""
        return self._object(created_at, chunk.text, self._logprobs(chunk.logprobs)) | {
            "done": False
        }

    def collect(self, chunk: Chunk) -> None:
        """Add a chunk to the object that `last` returns, for a reply that is not streamed."""
        self.text.append(chunk.text)
        self.logprobs += self._logprobs(chunk.logprobs)

    def loaded(self, created_at: str) -> Body:
        """Return the reply to a request that only loads or unloads the model."""
        reason = "unload" if self.request.unload else "load"
        return self._object(created_at, "", []) | {"done": True, "done_reason": reason}

    def last(self, completion: Completion, created_at: str, load_ns: int, total_ns: int) -> Body:
        """Return the last object of the reply: the counts, and all chunks that were collected."""
        return self._object(created_at, "".join(self.text), self.logprobs) | {
            "done": True,
            "done_reason": completion.reason,
            "total_duration": total_ns,
            "load_duration": load_ns,
            "prompt_eval_count": completion.prompt_tokens,
            "prompt_eval_duration": round(completion.prompt_ms * 1e6),
            "eval_count": completion.completion_tokens,
            "eval_duration": round(completion.completion_ms * 1e6),
        }

    def _object(self, created_at: str, text: str, logprobs: list[Body]) -> Body:
        shown: Body = {"model": self.request.model, "created_at": created_at}
        if self.request.is_chat:
            shown["message"] = {"role": "assistant", "content": text}
        else:
            shown["response"] = text
        return shown | ({"logprobs": logprobs} if logprobs else {})

    def _logprobs(self, logprobs: list[Body]) -> list[Body]:
        """Return the requested number of log probabilities, without llama.cpp's token numbers."""
        count = (self.request.call and self.request.call.top_logprobs) or 0
        shown = [_one_token(token) for token in logprobs]
        if count:
            for token, full in zip(shown, logprobs, strict=True):
                token["top_logprobs"] = [_one_token(top) for top in full["top_logprobs"][:count]]
        return shown


def _one_token(token: Body) -> Body:
    return {key: token[key] for key in ("token", "logprob", "bytes")}


def embed_reply(
    request: EmbeddingRequest, vectors: list[list[float]], tokens: int, **durations: int
) -> Body:
    """Return the reply of `/api/embed`."""
    counts = {"prompt_eval_count": tokens} if tokens else {}
    embeddings = [_shortened(vector, request.dimensions) for vector in vectors]
    return {"model": request.model, "embeddings": embeddings} | durations | counts


def _shortened(vector: list[float], dimensions: int) -> list[float]:
    if not 0 < dimensions < len(vector):
        return vector
    head = vector[:dimensions]
    length = sum(value * value for value in head) ** 0.5 or 1.0
    return [value / length for value in head]

"""What can be said about the one model, in the shapes of Ollama's own replies. Pure."""

from gateway.embedded.demands import Body
from gateway.embedded.engine import CONTEXT, EMBED_CONTEXT
from gateway.embedded.model import NAME, Model, is_ours

VERSION = "0.0.0-embedded"
CAPABILITIES = ["completion", "embedding"]

# Ollama's way to write that a model is never unloaded.
NEVER = "2318-01-01T00:00:00Z"


def tags(model: Model) -> Body:
    return {"models": [_listed(model) | {"modified_at": model.modified_at}]}


def running(model: Model) -> Body:
    shown = {"expires_at": NEVER, "size_vram": 0, "context_length": CONTEXT}
    return {"models": [_listed(model) | shown]}


def _listed(model: Model) -> Body:
    return {
        "name": NAME,
        "model": NAME,
        "size": model.size,
        "digest": model.digest,
        "details": _details(model),
        "capabilities": CAPABILITIES,
    }


def _details(model: Model) -> Body:
    header = model.header
    family = header.metadata["general.architecture"]
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": f"{header.parameters / 1e6:.1f}M",
        "quantization_level": header.quantization,
        "context_length": CONTEXT,
        "embedding_length": header.own("embedding_length"),
    }


def show(model: Model) -> Body:
    """Return all there is to know; `embedded.*` are the limits this engine sets itself."""
    metadata = dict(model.header.metadata)
    template = metadata.pop("tokenizer.chat_template", "")
    limits = {
        "general.parameter_count": model.header.parameters,
        "embedded.context_length": CONTEXT,
        "embedded.embed_context_length": EMBED_CONTEXT,
    }
    return {
        "license": metadata.get("general.license", ""),
        "template": template,
        "details": _details(model),
        "model_info": metadata | limits,
        "capabilities": CAPABILITIES,
        "modified_at": model.modified_at,
    }


def pull_lines(name: str, model: Model) -> list[Body]:
    """Return the progress of a pull: there is nothing to fetch, or nowhere to fetch it from."""
    if not is_ours(name):
        only = f"the embedded engine has one fixed model, {NAME}"
        return [
            {"status": "pulling manifest"},
            {"error": f"pull model manifest: file does not exist ({only})"},
        ]
    size, digest = model.size, model.digest
    layer = {"digest": f"sha256:{digest}", "total": size, "completed": size}
    verbs = ("verifying sha256 digest", "writing manifest", "success")
    return [
        {"status": "pulling manifest"},
        {"status": f"pulling {digest[:12]}"} | layer,
        *({"status": verb} for verb in verbs),
    ]

"""Facts about the models, in the shape of Ollama's replies. Pure."""

from embedded.engine import CONTEXT, EMBED_CONTEXT
from embedded.model import EMBED_NAME, NAME, NAMES, Model, named
from embedded.parsing import Body

VERSION = "0.0.0-embedded"
CAPABILITIES = {NAME: ["completion"], EMBED_NAME: ["embedding"]}
CONTEXTS = {NAME: CONTEXT, EMBED_NAME: EMBED_CONTEXT}

# How Ollama writes that a model is never unloaded.
NEVER = "2318-01-01T00:00:00Z"


def tags(model: Model) -> Body:
    models = [_entry(model, name) | {"modified_at": model.modified_at} for name in NAMES]
    return {"models": models}


def running(model: Model, loaded: list[str]) -> Body:
    residence = {"expires_at": NEVER, "size_vram": 0}
    return {
        "models": [
            _entry(model, name) | residence | {"context_length": CONTEXTS[name]} for name in loaded
        ]
    }


def _entry(model: Model, name: str) -> Body:
    return {
        "name": name,
        "model": name,
        "size": model.size,
        "digest": model.digest_of(name),
        "details": _details(model, name),
        "capabilities": CAPABILITIES[name],
    }


def _details(model: Model, name: str) -> Body:
    header = model.header
    family = header.metadata["general.architecture"]
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": f"{header.parameters / 1e6:.1f}M",
        "quantization_level": header.quantization,
        "context_length": CONTEXTS[name],
        "embedding_length": header.own("embedding_length"),
    }


def show(model: Model, name: str) -> Body:
    """Return all metadata; `embedded.*` are limits of this engine."""
    metadata = dict(model.header.metadata)
    template = metadata.pop("tokenizer.chat_template", "")
    limits = {
        "general.parameter_count": model.header.parameters,
        "embedded.context_length": CONTEXT,
        "embedded.embed_context_length": EMBED_CONTEXT,
    }
    return {
        "license": metadata.get("general.license", ""),
        "modelfile": f"FROM {name}\n",
        "template": template,
        "details": _details(model, name),
        "model_info": metadata | limits,
        "capabilities": CAPABILITIES[name],
        "modified_at": model.modified_at,
    }


def pull_lines(name: str, model: Model) -> list[Body]:
    """Return the progress of a pull. No model is fetched: the two that exist are installed."""
    known = named(name)
    if known is None:
        missing = {"error": "pull model manifest: file does not exist"}
        return [{"status": "pulling manifest"}, missing]
    size, digest = model.size, model.digest_of(known)
    layer = {"digest": f"sha256:{digest}", "total": size, "completed": size}
    verbs = ("verifying sha256 digest", "writing manifest", "success")
    return [
        {"status": "pulling manifest"},
        {"status": f"pulling {digest[:12]}"} | layer,
        *({"status": verb} for verb in verbs),
    ]

"""The addresses of the gateway, by client family."""

from django.urls import path

from gateway.dialects import ANTHROPIC, OLLAMA, REST
from gateway.dialects.ollama import LegacyEmbeddingsDialect
from gateway.dialects.openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from gateway.metering import Operation
from gateway.views import health
from gateway.views.inference import InferenceView
from gateway.views.models import (
    DeleteView,
    ListingView,
    OpenAIListingView,
    OpenAIModelView,
    PricedListingView,
    PullView,
    RestDeleteView,
    ShowView,
    VersionView,
)

rest = [
    path("generate", InferenceView.as_view(dialect=REST, operation=Operation.GENERATE)),
    path("chat", InferenceView.as_view(dialect=REST, operation=Operation.CHAT)),
    path("embedding", InferenceView.as_view(dialect=REST, operation=Operation.EMBED)),
    path("models", PricedListingView.as_view()),
    path("models/pull", PullView.as_view(streams_by_default=False)),
    path("models/<path:model>", RestDeleteView.as_view()),
]

legacy = LegacyEmbeddingsDialect()

openai = [
    path("v1/chat/completions", InferenceView.as_view(dialect=CHAT, operation=Operation.CHAT)),
    path(
        "v1/completions", InferenceView.as_view(dialect=COMPLETIONS, operation=Operation.GENERATE)
    ),
    path("v1/embeddings", InferenceView.as_view(dialect=EMBEDDINGS, operation=Operation.EMBED)),
    path("v1/responses", InferenceView.as_view(dialect=RESPONSES, operation=Operation.CHAT)),
    path("v1/models", OpenAIListingView.as_view()),
    path("v1/models/<path:model>", OpenAIModelView.as_view()),
]

anthropic = [
    path("v1/messages", InferenceView.as_view(dialect=ANTHROPIC, operation=Operation.CHAT)),
]

ollama = [
    path("api/generate", InferenceView.as_view(dialect=OLLAMA, operation=Operation.GENERATE)),
    path("api/chat", InferenceView.as_view(dialect=OLLAMA, operation=Operation.CHAT)),
    path("api/embed", InferenceView.as_view(dialect=OLLAMA, operation=Operation.EMBED)),
    path("api/embeddings", InferenceView.as_view(dialect=legacy, operation=Operation.EMBED)),
    path("api/tags", ListingView.as_view(route="tags")),
    path("api/ps", ListingView.as_view(route="ps")),
    path("api/show", ShowView.as_view()),
    path("api/version", VersionView.as_view()),
    path("api/pull", PullView.as_view()),
    path("api/delete", DeleteView.as_view()),
]

operations = [
    path("", health.root),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
]

urlpatterns = rest + ollama + openai + anthropic + operations

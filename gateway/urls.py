"""The addresses of the gateway, by client family."""

from django.urls import path

from gateway.dialects import ANTHROPIC, OLLAMA, REST
from gateway.dialects.ollama import LegacyEmbeddingsDialect
from gateway.dialects.openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from gateway.metering import Operation
from gateway.views import health
from gateway.views.inference import AnswerView
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
    path("generate", AnswerView.as_view(dialect=REST, operation=Operation.GENERATE)),
    path("chat", AnswerView.as_view(dialect=REST, operation=Operation.CHAT)),
    path("embedding", AnswerView.as_view(dialect=REST, operation=Operation.EMBED)),
    path("models", PricedListingView.as_view()),
    path("models/pull", PullView.as_view(streams_by_default=False)),
    path("models/<path:model>", RestDeleteView.as_view()),
]

legacy = LegacyEmbeddingsDialect()

openai = [
    path("v1/chat/completions", AnswerView.as_view(dialect=CHAT, operation=Operation.CHAT)),
    path("v1/completions", AnswerView.as_view(dialect=COMPLETIONS, operation=Operation.GENERATE)),
    path("v1/embeddings", AnswerView.as_view(dialect=EMBEDDINGS, operation=Operation.EMBED)),
    path("v1/responses", AnswerView.as_view(dialect=RESPONSES, operation=Operation.CHAT)),
    path("v1/models", OpenAIListingView.as_view()),
    path("v1/models/<path:model>", OpenAIModelView.as_view()),
]

anthropic = [
    path("v1/messages", AnswerView.as_view(dialect=ANTHROPIC, operation=Operation.CHAT)),
]

ollama = [
    path("api/generate", AnswerView.as_view(dialect=OLLAMA, operation=Operation.GENERATE)),
    path("api/chat", AnswerView.as_view(dialect=OLLAMA, operation=Operation.CHAT)),
    path("api/embed", AnswerView.as_view(dialect=OLLAMA, operation=Operation.EMBED)),
    path("api/embeddings", AnswerView.as_view(dialect=legacy, operation=Operation.EMBED)),
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

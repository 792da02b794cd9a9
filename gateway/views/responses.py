"""Turn a response of the relay into one of Django's."""

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse

from gateway.relay.encoded_response import EncodedResponse


class BodyResponse(HttpResponse):
    """One JSON body. The memory that the body takes is released when it has been sent."""

    def __init__(self, encoded: EncodedResponse) -> None:
        super().__init__(encoded.body(), content_type="application/json")
        self._release = encoded.release

    def close(self) -> None:
        super().close()
        self._release()


def respond(encoded: EncodedResponse, *, streamed: bool) -> HttpResponseBase:
    """Return the response: chunk by chunk, or as one JSON body."""
    if not streamed:
        return BodyResponse(encoded)
    response = StreamingHttpResponse(encoded, content_type=encoded.content_type)
    # A proxy that buffers a stream hides slow readers and disconnects from the gateway.
    response["X-Accel-Buffering"] = "no"
    response["Cache-Control"] = "no-store"
    return response

"""Turn a stream of the relay into Django's response."""

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse

from gateway.relay.metered_stream import MeteredStream


class BodyResponse(HttpResponse):
    """One JSON body. The memory that the body takes is released when it has been sent."""

    def __init__(self, stream: MeteredStream) -> None:
        super().__init__(stream.body(), content_type="application/json")
        self._release = stream.release

    def close(self) -> None:
        super().close()
        self._release()


def respond(stream: MeteredStream, *, streamed: bool, content_type: str) -> HttpResponseBase:
    """Return the response: chunk by chunk, or as one JSON body."""
    if not streamed:
        return BodyResponse(stream)
    response = StreamingHttpResponse(stream, content_type=content_type)
    # A proxy that buffers a stream hides slow readers and disconnects from the gateway.
    response["X-Accel-Buffering"] = "no"
    response["Cache-Control"] = "no-store"
    return response

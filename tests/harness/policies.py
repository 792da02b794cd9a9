"""The limits that the policy is tested with, and a call of it."""

from typing import Any

from gateway.metering import Operation
from gateway.validation import policy
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.policy import UpstreamRequest
from gateway.validation.rules import Limits
from tests.harness.images import encoded, png

LIMITS = Limits(
    max_prompt_bytes=10_000,
    max_images=2,
    max_image_bytes=2_000,
    max_embed_inputs=3,
    default_completion_tokens=100,
    max_completion_tokens=500,
)
IMAGE = encoded(png())
SAID = {"messages": [{"role": "user", "content": "hi"}]}


def build(operation: str = "generate", **fields: Any) -> UpstreamRequest:
    return policy.build(
        InferenceRequest(Operation(operation), "m", False, fields), "llama3:latest", LIMITS
    )


LOAD_TIME = "num_ctx num_batch num_gpu main_gpu num_thread use_mmap num_keep draft_num_predict"

"""OpenAI's family: chat completions, completions, embeddings, responses.

Translated here from the model server's native API, never passed to its own `/v1`, which loses
errors in mid-stream, ignores `max_completion_tokens` and gives no usage unless asked.
"""

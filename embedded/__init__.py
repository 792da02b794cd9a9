"""A small real language model that speaks enough of Ollama's protocol to try the gateway with.

`server` routes, `exchange` holds the socket, `demands` and `replies` know Ollama's JSON, `engine`
is the only room that touches llama.cpp. It is no replacement for Ollama in production.
"""

"""A small real language model that speaks enough of Ollama's API to try the gateway with.

`server` runs gunicorn, `wsgi` routes requests, `messages` reads bodies and writes responses,
`parsing` and `replies` know Ollama's JSON. `engine` is the only module that uses llama.cpp. It does
not replace Ollama in production.
"""

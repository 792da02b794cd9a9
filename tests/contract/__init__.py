"""What this project assumes about Ollama: one fact per test, stated in its docstring.

`make test` runs them against the fake, so that the fake is what the facts say; `make test-ollama`
runs the same tests against a real server and prints a table. Ollama's own `/v1` is not here: the
gateway never calls it.
"""

"""The OpenAI-compatible HTTP server in front of an engine.

`app` defines the routes. `request/` reads and checks requests. `answer/` writes responses. `run` is the process: its
socket, its signals and its shutdown.
"""

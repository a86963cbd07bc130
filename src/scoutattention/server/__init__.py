"""The OpenAI-compatible server: HTTP requests in, answers of an engine out.

`app` has the routes, `request/` what they read, `answer/` what they send, and `run` the process around them.
"""

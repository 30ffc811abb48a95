"""The HTTP server: OpenAI's chat protocol over one session that all requests share.

`schemas` reads a request, `limits` makes options of it, `service` admits it, `worker` (a thread of its own) decodes it,
`flow` carries the answer back to its client, `replies` spells it; `app` has the routes, `running` starts and stops it.
"""

"""Measurements against other clients.

    python -m pip install '.[test,speed]' -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks --json results.json --plot results.svg

One server, raw sockets in a process of its own, serves every client in turn: wsthread in its
variants, the others, and a raw socket, each in a process of its own. Every run checks what it
received, or the server what was sent. `compression` is a measurement of its own.
"""

"""A program patched by gevent: threads are greenlets, and a client is as any other code.

python gevent_program.py URL MESSAGE...
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import sys  # noqa: E402

import gevent  # noqa: E402

import wsthread  # noqa: E402


def main() -> int:
    url, *texts = sys.argv[1:]
    answers: list[str | bytes] = []
    delegate = wsthread.CallbackDelegate(on_message=lambda client, text: answers.append(text))
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:  # other greenlets run while the client waits
            ticks += 1
            gevent.sleep(0.01)

    ticker = gevent.spawn(tick)
    with wsthread.WebSocketClient(url, delegate) as client:
        client.send_many(texts)
        client.flush()
        while len(answers) < len(texts):
            gevent.sleep(0.01)
        client.ping()
    ticker.kill()
    print(*answers, sep="\n")
    print("others ran" if ticks > 2 else "nobody else ran")
    return 0 if client.close_code == 1000 else 1


if __name__ == "__main__":
    sys.exit(main())

"""Says something to an echo server and prints the answer: ``python echo.py URL``."""

import sys

from wsthread import CallbackDelegate, WebSocketClient

delegate = CallbackDelegate(on_message=lambda client, text: (print(text), client.disconnect()))
with WebSocketClient(sys.argv[1], delegate) as client:
    client.send("Have a good day!")
    client.wait()

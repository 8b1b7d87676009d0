import wsthread

delegate = wsthread.CallbackDelegate(
    on_open=lambda client: client.send("Have a good day!"),
    on_message=lambda client, message: (print(message), client.disconnect()),
)
wsthread.WebSocketClient("ws://127.0.0.1:8765/", delegate).connect()

// A WebSocket server on Node: `node node_echo.js WS [DEFLATE]`, WS being the directory of the
// package ws, DEFLATE its option perMessageDeflate as JSON (default: no compression).
// It prints its port and lives until its input ends. It echoes; `push N` makes it send the
// numbers below N, `close CODE REASON` close, `head NAME` send a field of the request's head,
// `closed` the code and reason the connection before was closed with.
"use strict";
const { WebSocketServer } = require(process.argv[2]);

let closed = "";

function answer(socket, request, text) {
  const [word, first, ...rest] = text.split(" ");
  if (word === "push") {
    for (let number = 0; number < Number(first); number++) socket.send(String(number));
  } else if (word === "close") {
    socket.close(Number(first), rest.join(" "));
  } else if (word === "head") {
    socket.send(String(request.headers[first]));
  } else if (word === "closed") {
    socket.send(closed);
  } else {
    socket.send(text);
  }
}

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  maxPayload: 64 * 1024 * 1024,
  perMessageDeflate: JSON.parse(process.argv[3] || "false"),
});
server.on("listening", () => console.log(server.address().port));
server.on("connection", (socket, request) => {
  socket.on("message", (data, binary) => {
    if (binary) socket.send(data);
    else answer(socket, request, data.toString());
  });
  socket.on("ping", (payload) => socket.send(`pinged ${payload}`));
  socket.on("close", (code, reason) => { closed = `${code} ${reason}`; });
  socket.on("error", (error) => { closed = `error ${error.message}`; });
});

process.stdin.on("end", () => process.exit(0));
process.stdin.resume();

"""A model server that speaks OpenAI's chat protocol on loopback and fails as told."""

import http.server
import json
import threading
import time

PIECES = ["It is called a ", "heisenbug [", "1]", "."]


class ModelServer:
    """Runs in a thread of this process; `faults` are what the next requests meet, in order."""

    def __init__(self):
        self.faults = []
        self.requests = []
        # A caller that hangs up early, as it should when this one is slow, is no news.
        http.server.ThreadingHTTPServer.handle_error = lambda *_: None
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()

    def script(self, *faults):
        self.faults, self.requests = list(faults), []

    def _handler(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, body, **headers):
                body = body.encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def event(self, data):
                text = f"data: {data}\n\n".encode()
                self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
                self.wfile.flush()

            def chunk(self, delta, finish=None):
                self.event(json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                fault = server.faults.pop(0) if server.faults else None
                if fault == "slow":
                    time.sleep(3)
                if fault == "429":
                    return self.reply(429, '{"error": {"message": "slow down"}}', Retry_After="1")
                if fault == "500":
                    return self.reply(500, '{"error": {"message": "out of memory"}}')
                if fault == "401":
                    return self.reply(401, json.dumps({"error": {"message": self.headers["Authorization"]}}))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if fault == "garbage":
                    self.event("<html>")
                for piece in PIECES:
                    self.chunk({"content": piece})
                    if fault == "cut":
                        self.close_connection = True
                        return self.connection.close()
                self.chunk({}, "stop")
                self.event("[DONE]")
                self.wfile.write(b"0\r\n\r\n")

        return Handler

"""Serve a captioner as the teacher of `myllm label`, through OpenAI's API: a stand-in for a large model on a server.

    python benchmarks/teacher_server.py --model CAPTIONER [--beams 5] [--port 8000] [--precision int8]

It prints its address when it is ready, and captions one picture at a time. `n` captions are the n best beams.
"""

import argparse
import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from myllm import Captioner
from myllm.errors import MyLLMError

MAX_BYTES = 2**26


class TeacherServer(ThreadingHTTPServer):
    """POST /v1/chat/completions and GET /v1/models."""

    daemon_threads = True

    def __init__(self, model: str, beams: int, port: int, precision: str = "auto") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.captioner, self.beams = Captioner.load(model, precision=precision), beams
        self.name, self.lock = Path(model).resolve().name, threading.Lock()

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request. Raises ValueError for a wrong one, and MyLLMError for a broken picture."""
        count = int(request.get("n") or 1)
        if not 1 <= count <= self.beams:
            raise ValueError(f"n is {count}; this server finds 1 to {self.beams} captions, by --beams")
        parts = [part for message in request["messages"] for part in message["content"] if isinstance(part, dict)]
        [url] = [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
        picture = base64.b64decode(url.partition("base64,")[2])
        with self.lock:
            result = self.captioner.caption(picture, beams=self.beams, num_return_sequences=count)
        texts = [result.text, *result.alternatives]
        return {
            "object": "chat.completion", "model": self.name,
            "choices": [
                {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                for index, text in enumerate(texts)
            ],
            # the captioner reads no prompt
            "usage": {"prompt_tokens": 0, "completion_tokens": len(result.tokens), "total_tokens": len(result.tokens)},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TeacherServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        else:
            self._send(404, {"error": {"message": f"{self.path} is not served"}})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/v1/chat/completions" or length > MAX_BYTES:
            self.close_connection = True
            self._send(404, {"error": {"message": f"{self.path} is not served, or the request is too large"}})
            return
        body = self.rfile.read(length)
        try:
            self._send(200, self.server.complete(json.loads(body)))
        except (MyLLMError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._send(400, {"error": {"message": f"{type(error).__name__}: {error}"}})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    if arguments.model is None:
        print("skipped: needs --model, a captioner to serve")
        return
    with TeacherServer(arguments.model, arguments.beams, arguments.port, arguments.precision) as server:
        print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

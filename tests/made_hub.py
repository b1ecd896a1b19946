"""A stand-in for the Hugging Face hub on this machine: a server of one repository, and the client pointed at it."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import pytest


class Hub(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as the repository some/model and keeps the names of what it sent."""

    sent: list[str] = []

    def send_head(self):
        name = self.path.rpartition("/")[2]
        path = Path(self.directory) / name
        found = self.path == f"/some/model/resolve/main/{name}" and path.is_file()
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound" if "/some/model/" in self.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        if self.command == "GET":
            self.sent.append(name)
        return open(path, "rb")

    def log_message(self, *_):
        pass


@contextmanager
def hub_of(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[http.server.ThreadingHTTPServer]:
    """The client with an empty cache, and a server of `folder` in the hub's place."""
    monkeypatch.setattr(Hub, "sent", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_client_at(monkeypatch, f"http://127.0.0.1:{server.server_port}", cache)
        yield server
        server.shutdown()


def point_client_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # whatever the environment says
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

"""Test the guard in front of the page: what is refused, what a request may bring, and a real server under attack."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from starlette.requests import Request  # noqa: E402

from synboost_monai.door import Door  # noqa: E402
from synboost_monai.serving.demo import connections, guard  # noqa: E402
from synboost_monai.serving.demo.guard import API, Guard  # noqa: E402
from synboost_monai.serving.demo.serve import serve, session_folder  # noqa: E402
from tests.serving.asgi import answer_to, request  # noqa: E402

HOST = "127.0.0.1:7860"
TOKEN = "a-token-of-the-test-only"
PASSED = 299
"""Status with which the stand-in for gradio answers."""


def ask(
    method: str,
    target: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    *,
    door: Door | None = None,
    folder: Path = Path("/session"),
    is_whole: bool = True,
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the guard's answer; `PASSED` is the answer from behind it."""

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        while scope["method"] == "POST" and (message := await receive()).get("more_body"):
            assert message["type"] == "http.request"
        foreign = [(b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": PASSED, "headers": foreign})
        await send({"type": "http.response.body", "body": b""})

    own = door or Door(frozenset({HOST, "localhost:7860"}))
    sent = {"host": HOST, **({} if body is None else {"content-length": str(len(body))}), **(headers or {})}
    scope = request(method, target, sent, server=("127.0.0.1", 7860))
    return asyncio.run(answer_to(Guard(gradio, own, folder), scope, [body or b""], is_whole=is_whole))


def test_a_page_that_is_closed_while_it_sends_leaves_no_error() -> None:
    """Starlette raises in the application when a body ends before its length."""
    seen = []

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        async for piece in Request(scope, receive).stream():
            seen.append(piece)

    headers = {"host": HOST, "content-length": "9"}
    scope = request("POST", f"{API}/upload", headers, server=("127.0.0.1", 7860))
    messages = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(gradio, Door(frozenset({HOST})), Path("/session"))(scope, receive, send))
    assert seen == [b"half"] and sent == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, PASSED),
        ({"host": "localhost:7860"}, PASSED),
        ({"origin": f"http://{HOST}", "referer": f"http://{HOST}/", "sec-fetch-site": "same-origin"}, PASSED),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "127.0.0.1:7861"}, 403),
        ({"host": "127.0.0.1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:7860"}, 403),  # another origin than that of the Host
        ({"origin": f"https://{HOST}"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"referer": f"http://{HOST}.evil.example/"}, 403),
    ],
)
def test_hosts_and_origins(headers: dict[str, str], status: int) -> None:
    answered, found, _ = ask("GET", "/", headers)
    assert answered == status
    assert found["x-frame-options"] == "DENY" and "access-control-allow-origin" not in found


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/file=http://169.254.169.254/latest"),
        ("GET", f"{API}/file=relative.png"),
        ("GET", f"{API}/proxy=http://example.org"),
        ("GET", f"{API}/deep_link?session_hash=x"),
        ("GET", f"{API}/call/x/1"),
        ("GET", f"{API}/stream/a/b/c/playlist.m3u8"),
        ("GET", f"{API}/vibe-code"),
        ("GET", f"{API}/custom_component/a/client/b/c"),
        ("GET", f"{API}/run-history/records"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("POST", "/login"),
        ("POST", f"{API}/run/predict"),
        ("POST", f"{API}/call/v2/x"),
        ("POST", f"{API}/process_recording"),
        ("POST", f"{API}/vibe-edit"),
        ("POST", f"{API}/stream/x"),
        ("PUT", f"{API}/upload"),
        ("DELETE", "/"),
        ("OPTIONS", f"{API}/queue/join"),
    ],
)
def test_what_the_page_does_not_need_is_refused(method: str, path: str) -> None:
    assert ask(method, path, {"content-type": "application/json"}, b"{}")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/config",
        "/theme.css",
        "/assets/a.js",
        f"{API}/queue/data?session_hash=a",
        f"{API}/heartbeat/ab1",
        f"{API}/file=/session/a.png",
    ],
)
def test_what_the_page_needs_passes(path: str) -> None:
    assert ask("GET", path)[0] == PASSED


def test_the_token_goes_from_the_address_into_a_cookie() -> None:
    door = Door(frozenset({HOST}), TOKEN)
    for headers in ({}, {"cookie": "other=1"}, {"authorization": "Bearer wrong"}):
        status, _, body = ask("GET", "/", headers, door=door)
        assert status == 401 and b"asks for its token" in body and TOKEN.encode() not in body
    assert ask("GET", "/?token=wrong", door=door)[0] == 401
    status, headers, _ = ask("GET", f"/?__theme=dark&token={TOKEN}", door=door)
    assert status == 303 and headers["location"] == "/?__theme=dark"
    cookie, _, attributes = headers["set-cookie"].partition("; ")
    assert "HttpOnly" in attributes and "SameSite=Strict" in attributes
    assert ask("GET", "/config", {"cookie": f"a=1; {cookie}"}, door=door)[0] == PASSED
    assert ask("GET", "/config", {"authorization": f"Bearer {TOKEN}"}, door=door)[0] == PASSED
    assert ask("GET", f"//evil.example/?token={TOKEN}", door=door)[1]["location"] == "/"


FILE = {"path": "/session/ab/a.png", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ([FILE], PASSED),
        ([{**FILE, "path": "/etc/passwd"}], 403),
        ([{**FILE, "path": "/session/../etc/passwd"}], 403),
        ([{**FILE, "path": "/session2/a.png"}], 403),
        ([{**FILE, "path": "relative.png"}], 403),
        ([{**FILE, "path": "http://example.org/a.png"}], 403),
        ([{"layers": [[{"x": {**FILE, "path": "/etc/passwd"}}]]}], 403),
        ([{"path": ["/etc/passwd"]}], 403),
        ([{"path": "/session/a\0b"}], 403),
    ],
)
def test_a_request_names_files_that_were_uploaded_alone(data: Any, status: int) -> None:
    body = json.dumps({"data": data, "fn_index": 1}).encode()
    assert ask("POST", f"{API}/queue/join", {"content-type": "application/json"}, body)[0] == status


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "application/json"}, b"{}", PASSED),
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/json"}, b"[" * 200_000, 400),
        ({"content-type": "application/json", "content-length": "9999999"}, b"{}", 413),
        ({"content-type": "application/json", "content-length": "-1"}, b"{}", 411),
        ({"content-type": "application/json", "transfer-encoding": "chunked"}, None, 411),
        ({"content-type": "application/json", "content-length": "1"}, b"{}", 408),  # it is longer than announced
    ],
)
def test_bodies_are_bounded(headers: dict[str, str], body: bytes | None, status: int) -> None:
    assert ask("POST", f"{API}/queue/join", headers, body)[0] == status


def test_a_body_that_pauses_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PAUSE_SECONDS", 0.05)
    headers = {"content-type": "application/json", "content-length": "100"}
    assert ask("POST", f"{API}/queue/join", headers, b"{", is_whole=False)[0] == 408


def test_a_full_folder_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "a").write_bytes(bytes(1000))
    monkeypatch.setattr(guard, "MAX_FOLDER_BYTES", 2000)
    assert ask("POST", f"{API}/upload", body=bytes(900), folder=tmp_path)[0] == PASSED
    status, _, reason = ask("POST", f"{API}/upload", body=bytes(1001), folder=tmp_path)
    assert status == 507 and b"end the demo and start it again" in reason


# ---- a real server


class Toy:
    """Segment without a network, and report the file that was given."""

    name = "toy"

    def open(self, source: Any) -> Any:
        raise ValueError(f"would open {source.path.name}")


class Server:
    """Serve the page in a thread of this process."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        from synboost_monai.serving.demo.page import build_page

        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.page = build_page(Toy(), "no synthesis", folder, [data_dir])  # type: ignore[arg-type]
        self.stop = threading.Event()
        where = (self.page, folder, "127.0.0.1", self.port, Door(frozenset({f"127.0.0.1:{self.port}"})))
        self.thread = threading.Thread(target=serve, args=where, kwargs={"stop": self.stop}, daemon=True)
        self.thread.start()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            time.sleep(0.05)

    def client(self) -> Any:
        import httpx

        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

    def event(self, client: Any, trigger: str, value: Any) -> str:
        """Return the page's message after an event of the first tab."""
        calls = client.get("/config").json()["dependencies"]
        call = next(c for c in calls if any(target[1] == trigger for target in c["targets"]) and len(c["inputs"]) == 1)
        body = {"data": [value], "fn_index": call["id"], "session_hash": "s1", "trigger_id": None}
        joined = client.post(f"{API}/queue/join", json=body)
        if joined.status_code != 200:
            return str(joined.text)
        with client.stream("GET", f"{API}/queue/data?session_hash=s1") as lines:
            return next(line for line in lines.iter_lines() if "process_completed" in line)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with session_folder() as folder:
        running = Server(folder, tmp_path_factory.mktemp("data").resolve())
        yield running
        running.stop.set()
        running.thread.join(30)
        assert not running.thread.is_alive()


def test_only_uploads_and_named_folders_are_read(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    with server.client() as client:
        assert client.get("/").status_code == 200
        for path in ("/etc/passwd", str(tmp_path / "secret.png")):
            assert client.get(f"{API}/file={path}").status_code == 403
            assert "uploaded here alone" in server.event(client, "upload", {"path": path, **{"meta": FILE["meta"]}})
            assert "lies in no folder of --folders" in server.event(client, "submit", path)
        (uploaded,) = client.post(f"{API}/upload", files={"files": ("../../up.png", b"x")}).json()
        assert "would open up.png" in server.event(client, "upload", {"path": uploaded, "meta": FILE["meta"]})


def test_slow_connections_hold_no_slot(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    try:
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x")  # and nothing more
        with server.client() as client:
            assert client.get("/theme.css").status_code == 200
        time.sleep(0.2)
        ended = 0
        for connection in slow:
            connection.settimeout(0.05)
            try:
                ended += connection.recv(1) == b""
            except ConnectionResetError:
                ended += 1
            except TimeoutError:
                pass
        assert ended >= 30 - 8
    finally:
        for connection in slow:
            connection.close()


def test_refused_uploads_hold_no_slot(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(guard, "MAX_DRAWN_UPLOADS", 1)
    head = f"POST {API}/upload HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 1000000\r\n\r\n"
    opened = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(12)]
    try:
        for connection in opened:
            connection.sendall(head.encode())  # and nothing of the body
        time.sleep(0.5)
        with server.client() as client:
            assert client.get("/theme.css").status_code == 200
    finally:
        for connection in opened:
            connection.close()


def test_a_drawing_may_come_in_many_uploads_at_a_time_and_large_files_may_not(tmp_path: Path) -> None:
    guarded = guard.Guard(None, guard.Door(frozenset({"here"})), tmp_path)  # type: ignore[arg-type]
    for length, most in (
        (guard.MAX_DRAWING_BYTES, guard.MAX_DRAWN_UPLOADS),
        (guard.MAX_DRAWING_BYTES + 1, guard.MAX_UPLOADS),
    ):
        with contextlib.ExitStack() as uploads:
            for _ in range(most):
                uploads.enter_context(guarded._upload(length))
            with pytest.raises(guard.Refused, match="too many uploads"), guarded._upload(length):
                pass
    assert guard.MAX_DRAWN_UPLOADS >= 20 and guarded._announced == 0


def test_so_many_requests_at_a_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_REQUESTS", 3)
    with server.client() as client:
        with client.stream("GET", f"{API}/heartbeat/a"), client.stream("GET", f"{API}/heartbeat/b"):
            with client.stream("GET", f"{API}/heartbeat/c"):
                refused = client.get("/theme.css")
                assert refused.status_code == 503 and "too many requests" in refused.text


def test_drawings_are_few_and_have_few_layers() -> None:
    import gradio as gr

    from synboost_monai.serving.demo.page import MAX_DRAWINGS, MAX_LAYERS, _bound_drawings

    class Blob:
        def __init__(self, name: str, index: Any) -> None:
            self.data = {"type": "layer", "index": index, "id": name}
            self.files = [("file", b"png")]

    editor = gr.ImageEditor()
    _bound_drawings(editor)
    with pytest.raises(gr.Error, match="a drawing has at most 8 layers"):
        editor.accept_blobs(Blob("a", str(10**9)))
    for number in range(50):
        for layer in range(MAX_LAYERS):
            editor.accept_blobs(Blob(str(number), str(layer)))
    assert len(editor.blob_storage) <= MAX_DRAWINGS and "49" in editor.blob_storage
    assert getattr(editor.accept_blobs, "_is_server_fn", False)  # gradio serves it as it serves its own

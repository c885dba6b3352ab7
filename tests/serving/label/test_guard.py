"""Test MONAI Label's guard: requests of 3D Slicer and OHIF pass, everything else is refused with a status and a reason."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from synboost_monai.door import Door
from synboost_monai.serving.label import guard as guard_module
from synboost_monai.serving.label.forms import File, read_form, write_form, write_json
from synboost_monai.serving.label.guard import MAX_HELD_BYTES, Guard
from synboost_monai.serving.label.routes import MAX_FILE_BYTES, MAX_TEXT_BYTES, Rules
from tests.serving.asgi import answer_to, request

HOST = "127.0.0.1:8000"
TOKEN = "0123456789abcdef-token"
FORM = "multipart/form-data; boundary=b"
CODE = "$__import__('os').system('id')"


class Stub:
    """Stand in for MONAI Label: keep the requests that arrive, and answer every origin as it does."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, message = scope, await receive()
        assert not message["more_body"]
        self.body = message["body"]
        headers = [
            (b"access-control-allow-origin", b"*"),
            (b"access-control-allow-credentials", b"true"),
            (b"x-kept", b"1"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    (tmp_path / "img 0.nii.gz").touch()
    (tmp_path / "taken.dcm").symlink_to("nowhere")
    return tmp_path


def make_guard(studies: Path, token: str | None = None) -> Guard:
    known = {"img 0", "1.2.840.113", "@home"}
    rules = Rules(frozenset({"echo_cris", "echo_clipseg"}), studies, lambda name: name if name in known else "")
    return Guard(Stub(), Door(frozenset({HOST, "localhost:8000", "[::1]:8000"}), token), rules)


def ask(
    guard: Guard, method: str, target: str, body: bytes | list[bytes] = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer to a request whose target is written as on the wire."""
    pieces = body if isinstance(body, list) else [body]
    all_headers = {"Host": HOST, "Content_Length": str(sum(map(len, pieces)))} | headers
    sent = {name.replace("_", "-"): value for name, value in all_headers.items() if value}
    scope = request(method, target, sent, server=("192.0.2.7", 8000), root_path="/odd")
    return asyncio.run(answer_to(guard, scope, pieces))


def form(params: Any = None, boundary: str = "b", **files: tuple[str, bytes]) -> bytes:
    delimiter = b"--" + boundary.encode()
    lines: list[bytes] = []
    if params is not None:
        lines += [delimiter, b'Content-Disposition: form-data; name="params"', b"", json.dumps(params).encode()]
    for name, (file_name, content) in files.items():
        lines += [delimiter, f'Content-Disposition: form-data; name="{name}"; filename="{file_name}"'.encode()]
        lines += [b"Content-Type: application/octet-stream", b"", content]
    return b"\r\n".join([*lines, delimiter + b"--", b""])


def params(value: Any) -> dict[str, Any]:
    return {"body": form(value), "Content_Type": FORM}


def as_json(value: Any) -> dict[str, Any]:
    return {"body": json.dumps(value).encode(), "Content_Type": "application/json"}


def upload(field: str = "file", name: str = "x.nii.gz", content: bytes = b"image") -> dict[str, Any]:
    return {"body": form({}, **{field: (name, content)}), "Content_Type": FORM}


SLICER = "----------lImIt_of_THE_fIle_eW_$"
SLICER_FORM = f"multipart/form-data; boundary={SLICER}"
SLICER_TRAIN = {"pretrained": True, "max_epochs": 50, "val_split": 0.2, "client_id": "user-xyz"}
STOCK_TRAIN = {
    "multi_gpu": True, "gpus": "all", "tracking": "None", "tracking_uri": "", "tracking_experiment_name": "", "run_id": "",
    "model_filename": "model.pt",
}  # fmt: skip
OHIF_INFER = {"prompt": "", "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
ALLOWED = [
    ("Slicer: connect", "GET", "/info/", {}, "/info/", ""),
    ("Slicer: next sample", "POST", "/activelearning/doubt_echo_cris", as_json({"client_id": "user-xyz"}), None, None),
    ("Slicer: image", "GET", "/datastore/image?image=img+0", {}, "/datastore/image", "image=img+0"),
    ("Slicer: datastore", "GET", "/datastore/?output=all", {}, "/datastore/", "output=all"),
    ("Slicer: label", "GET", "/datastore/label?label=img+0&tag=original", {}, None, "label=img+0&tag=original"),
    (
        "Slicer: infer", "POST", "/infer/echo_cris?image=img+0",
        {"body": form({"prompt": " left  atrium", "result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}, SLICER),
         "Content_Type": SLICER_FORM}, "/infer/echo_cris", "image=img+0",
    ),
    (
        "Slicer: upload", "PUT", "/datastore/?image=new-1",
        {"body": form({"client_id": "u"}, SLICER, file=("/tmp/Slicer-u/tmpx_1.nii.gz", b"\0\r\n--x")), "Content_Type": SLICER_FORM},
        "/datastore/", "image=new-1",
    ),
    (
        "Slicer: submit label", "PUT", "/datastore/label?image=img+0",
        {"body": form({"label_info": [{"name": "left atrium", "idx": 1}], "model": "echo_cris", "client_id": "u"}, SLICER,
                      label=(r"C:\Users\a.b\tmp.nii.gz", b"label")), "Content_Type": SLICER_FORM},
        "/datastore/label", "image=img+0",
    ),
    ("Slicer: train", "POST", "/train/echo_cris", as_json(SLICER_TRAIN), "/train/echo_cris", ""),
    ("Slicer: train, options of the stock app", "POST", "/train/echo_cris", as_json(STOCK_TRAIN), None, None),
    ("Slicer: is training", "GET", "/train/?check_if_running=true", {}, "/train/", "check_if_running=true"),
    ("Slicer: stop", "DELETE", "/train/", {}, "/train/", ""),
    ("OHIF: info", "GET", "/info/", {"Origin": f"http://{HOST}", "Sec_Fetch_Site": "same-origin"}, "/info/", ""),
    (
        "OHIF: infer", "POST", "/infer/echo_clipseg?image=1.2.840.113&output=image",
        {**params(OHIF_INFER | {"restore_label_idx": False}), "Origin": f"http://{HOST}", "Referer": f"http://{HOST}/ohif/"},
        "/infer/echo_clipseg", "image=1.2.840.113&output=image",
    ),
    ("OHIF: next sample", "POST", "/activelearning/random", as_json({}), "/activelearning/random", ""),
    ("OHIF: train all", "POST", "/train/", as_json({"echo_cris": {"max_epochs": 3}}), "/train/", ""),
    ("OHIF: logs", "GET", "/logs/?lines=100", {}, "/logs/", "lines=100&html=false&text=true"),
    ("curl: infer without a form", "POST", "/infer/echo_cris?image=img%200&output=json", {}, None, "image=img+0&output=json"),
    (
        "curl: infer with a plain form", "POST", "/infer/echo_cris?image=img%200",
        {"body": b"params=%7B%22prompt%22%3A+%22%22%7D", "Content_Type": "application/x-www-form-urlencoded"}, None, None,
    ),
    ("curl: scoring", "POST", "/scoring/doubt_echo_cris?run_sync=true", {}, "/scoring/doubt_echo_cris", "run_sync=true"),
    ("the localhost name", "GET", "/info/", {"Host": "localhost:8000"}, "/info/", ""),
    ("the IPv6 address", "GET", "/info/", {"Host": "[::1]:8000"}, "/info/", ""),
    ("the address it came in at", "GET", "/info", {"Host": "192.0.2.7:8000"}, "/info/", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "target", "more", "path", "query"), [c[1:] for c in ALLOWED], ids=[c[0] for c in ALLOWED]
)
def test_what_viewers_ask_passes(studies, method, target, more, path, query) -> None:
    guard = make_guard(studies)
    status, headers, answer = ask(guard, method, target, **more)
    assert status == 200, answer
    scope = guard.app.scope
    assert path is None or scope["path"] == path
    assert query is None or scope["query_string"].decode() == query
    assert scope["raw_path"].decode() == scope["path"] and scope["root_path"] == ""
    assert {name for name, _ in scope["headers"]} <= {b"host", b"content-type", b"content-length"}
    assert not [name for name in headers if name.startswith("access-control-")]
    assert headers["x-kept"] == "1" and headers["cross-origin-resource-policy"] == "same-origin"
    assert guard._held_bytes == 0


INFER, TRAIN, SAVE, ADD = (
    "/infer/echo_cris?image=img+0",
    "/train/echo_cris",
    "/datastore/label?image=img+0",
    "/datastore/image?image=",
)
REFUSED = [
    (403, "GET", "/info/", {"Host": "evil.example:8000"}, "is not this server"),
    (403, "GET", "/info/", {"Host": "127.0.0.1:9000"}, "is not this server"),
    (403, "GET", "/info/", {"Host": "127.0.0.1"}, "is not this server"),
    (403, "GET", "/info/", {"Host": "localhost.:8000"}, "is not this server"),
    (403, "GET", "/info/", {"Host": ""}, "is not this server"),
    (403, "GET", "/info/", {"Origin": "https://evil.example"}, "may not ask"),
    (403, "GET", "/info/", {"Origin": "http://127.0.0.1:9000"}, "may not ask"),
    (403, "GET", "/info/", {"Origin": f"https://{HOST}"}, "may not ask"),
    (403, "POST", INFER, {**params({}), "Origin": "null"}, "may not ask"),
    (403, "GET", "/info/", {"Sec_Fetch_Site": "cross-site"}, "another site"),
    (403, "GET", "/info/", {"Sec_Fetch_Site": "same-site"}, "another site"),
    (403, "GET", "/info/", {"Referer": "https://evil.example/a"}, "another site"),
    (403, "GET", "/info/", {"Referer": f"http://{HOST}.evil.example/"}, "another site"),
    (403, "OPTIONS", "/train/", {"Origin": "https://evil.example"}, "may not ask"),
    (405, "OPTIONS", "/train/", {"Origin": f"http://{HOST}"}, "is not served"),
    (400, "PUT", f"{ADD}../../x", upload(), "plain name"),
    (400, "PUT", f"{ADD}..%2F..%2Fx", upload(), "plain name"),
    (400, "PUT", f"{ADD}..%252F..%252Fx", upload(), "plain name"),
    (400, "PUT", f"{ADD}..%5C..%5Cx", upload(), "plain name"),
    (400, "PUT", f"{ADD}/etc/cron.d/x", upload(), "plain name"),
    (400, "PUT", f"{ADD}a%00b", upload(), "plain name"),
    (400, "PUT", f"{ADD}a%0Ab", upload(), "plain name"),
    (400, "PUT", f"{ADD}.bashrc", upload(), "plain name"),
    (400, "PUT", f"{ADD}a..b", upload(), "plain name"),
    (400, "PUT", f"{ADD}{'a' * 101}", upload(), "plain name"),
    (400, "PUT", f"{ADD}%EF%BC%8Fetc", upload(), "plain name"),
    (400, "PUT", "/datastore/?image=../../x", upload(), "plain name"),
    (400, "PUT", "/datastore/image", upload(), "must name the image"),
    (400, "PUT", f"{ADD}new&image=..", upload(), "there twice"),
    (400, "PUT", f"{ADD}new&i%6Dage=..", upload(), "there twice"),
    (409, "PUT", f"{ADD}taken", upload(), "already"),
    (409, "PUT", f"{ADD}1.2.840.113", upload(), "already"),
    (415, "PUT", f"{ADD}main", upload(name="main.py"), "a file may be"),
    (415, "PUT", f"{ADD}new", upload(name="x.mhd"), "a file may be"),
    (400, "PUT", f"{ADD}new", upload(content=b""), "is empty"),
    (400, "PUT", f"{ADD}new", upload("other"), "a field 'other'"),
    (400, "PUT", f"{ADD}new", {"body": form({}, file=("a.png", b"1"), label=("b.png", b"2")), "Content_Type": FORM}, "a field 'label'"),
    (400, "PUT", f"{ADD}new", {"body": form({"path": "/etc"}, file=("a.png", b"1")), "Content_Type": FORM}, "a key 'path'"),
    (413, "PUT", f"{ADD}new", {"Content_Length": str(MAX_FILE_BYTES + 1), "Content_Type": FORM}, "at most"),
    (400, "PUT", f"{ADD}new", {"Content_Length": "5, 5", "Content_Type": FORM}, "Content-Length"),
    (413, "POST", INFER, {"body": [b"x" * MAX_TEXT_BYTES, b"x"], "Content_Length": "", "Content_Type": FORM}, "more than"),
    (413, "GET", "/info/", {"body": b"x"}, "at most 0"),
    (400, "PUT", f"{SAVE}&tag=..%2F..%2Fx", upload("label"), "tag: expected a plain name"),
    (400, "PUT", f"{SAVE}&tag=/tmp/x", upload("label"), "tag: expected a plain name"),
    (400, "PUT", f"{SAVE}&tag=..", upload("label"), "tag: expected a plain name"),
    (400, "PUT", f"{SAVE}&tag=final&tag=original", upload("label"), "there twice"),
    (404, "PUT", "/datastore/label?image=other", upload("label"), "no image 'other'"),
    (400, "PUT", "/datastore/label?image=../img+0", upload("label"), "without a path"),
    (415, "PUT", SAVE, upload("label", "label.bin"), "a file may be"),
    (415, "PUT", SAVE, upload("label", "x.nii.gz/../../run.sh"), "a file may be"),
    (400, "PUT", SAVE, {"body": form({"bundle_path": "/x"}, label=("a.png", b"1")), "Content_Type": FORM}, "'bundle_path'"),
    (400, "PUT", SAVE, {"body": form({"label_info": [{"name": CODE, "idx": 1}]}, label=("a.png", b"1")), "Content_Type": FORM}, r"\$"),
    (400, "PUT", SAVE, {"body": form({"label_info": [{"path": "x"}]}, label=("a.png", b"1")), "Content_Type": FORM}, "'path'"),
    (400, "GET", "/datastore/image?image=/etc/passwd", {}, "without a path"),
    (400, "GET", "/datastore/image?image=%2e%2e%2fetc", {}, "without a path"),
    (400, "GET", "/datastore/image?image=a%252fetc", {}, "without a path"),
    (400, "GET", "/datastore/image?image=@home", {}, "takes for code"),
    (404, "GET", "/datastore/image?image=main.py", {}, "no image"),
    (400, "GET", "/datastore/image?image=%ff", {}, "printable"),
    (400, "HEAD", "/datastore/image?image=img+0&check_sum=MD5:0", {}, "'check_sum'"),
    (400, "GET", "/datastore/label?label=img+0&tag=../../x", {}, "plain name"),
    (400, "GET", "/datastore/?output=train", {}, "output: expected all, stats"),
    (400, "POST", "/infer/echo_cris", params({}), "must name the image"),
    (400, "POST", "/infer/echo_cris?image=/etc/passwd", params({}), "without a path"),
    (400, "POST", f"{INFER}&session_id=1", params({}), "'session_id'"),
    (400, "POST", f"{INFER}&output=dicom_seg", params({}), "expected image, json, all"),
    (400, "POST", INFER, params({"image": "/etc/passwd"}), "'image'"),
    (400, "POST", INFER, params({"model": "echo_clipseg"}), "'model'"),
    (400, "POST", INFER, params({"device": "cpu"}), "'device'"),
    (400, "POST", INFER, params({"save_label": True, "label_tag": "../x"}), "'save_label'"),
    (400, "POST", INFER, params({"prompt": CODE}), "takes for code"),
    (400, "POST", INFER, params({"prompt": "the @network"}), "plain words"),
    (400, "POST", INFER, params({"prompt": [CODE]}), "expected words"),
    (400, "POST", INFER, params({"prompt": "the right ventricle"}), "prompt: .* the right ventricle is not among the structures"),
    (400, "POST", INFER, params({"prompt": "banana"}), "nobody taught this network the word 'banana'; there are: left"),
    (400, "POST", INFER, params({"prompt": "LV and LA"}), "ask for one at a time"),
    (400, "POST", INFER, params({"prompt": "not the LV"}), "it says 'not'"),
    (400, "POST", INFER, params({"client_id": " %etc"}), "takes for code"),
    (400, "POST", INFER, params({CODE: 1}), "not allowed"),
    (400, "POST", INFER, params({"result_extension": "/../../x"}), "result_extension: expected"),
    (400, "POST", INFER, params({"model_filename": "../../x.ts"}), "model_filename: expected"),
    (400, "POST", INFER, {"body": form({}, file=("a.png", b"1")), "Content_Type": FORM}, "a field 'file'"),
    (400, "POST", INFER, {"body": form({}, label=("a.png", b"1")), "Content_Type": FORM}, "a field 'label'"),
    (400, "POST", INFER, {"body": form({}) + form({}), "Content_Type": FORM}, "cannot be read|there twice"),
    (400, "POST", INFER, {"body": form([1]), "Content_Type": FORM}, "expected a mapping"),
    (415, "POST", INFER, as_json({}), "expected a form"),
    (400, "POST", TRAIN, as_json({"bundle_path": "/tmp"}), "'bundle_path'"),
    (400, "POST", TRAIN, as_json({"device": "cuda"}), "'device'"),
    (400, "POST", TRAIN, as_json({"tracking": "mlflow"}), "tracking: expected"),
    (400, "POST", TRAIN, as_json({"tracking_uri": "http://evil.example"}), "expected nothing"),
    (400, "POST", TRAIN, as_json({"run_id": CODE}), "takes for code"),
    (400, "POST", TRAIN, as_json({"run_id": "initialize"}), "run_id: expected run"),
    (400, "POST", TRAIN, as_json({"max_epochs": True}), "whole number"),
    (400, "POST", TRAIN, {"body": b'{"val_split": NaN}', "Content_Type": "application/json"}, "no number"),
    (400, "POST", TRAIN, {"body": b'{"val_split": 0.1, "val_split": 0.2}', "Content_Type": "application/json"}, "twice"),
    (400, "POST", TRAIN, {"body": b"[" * 200_000, "Content_Type": "application/json"}, "cannot be read"),
    (415, "POST", TRAIN, {"body": b"{}", "Content_Type": "text/plain"}, "application/json"),
    (415, "POST", TRAIN, {"body": b"{}"}, "application/json"),
    (400, "POST", "/train/", as_json({"echo_cris": {"bundle_path": "/tmp"}}), "'bundle_path'"),
    (404, "POST", "/train/other", as_json({}), "not served"),
    (400, "POST", "/activelearning/random", as_json({"strategy": "first"}), "'strategy'"),
    (400, "POST", "/activelearning/random", as_json({"@network": 1}), "not allowed"),
    (404, "POST", "/activelearning/..%2Freload", as_json({}), "not served"),
    (400, "POST", "/scoring/doubt_echo_cris", as_json({"method": "x"}), "'method'"),
    (405, "POST", "/scoring/", as_json({}), "not served"),
    (404, "PUT", "/model/echo_cris", upload(), "not served"),
    (404, "GET", "/model/echo_cris", {}, "not served"),
    (404, "DELETE", "/model/echo_cris", {}, "not served"),
    (404, "POST", "/reload", {}, "not served"),
    (404, "PUT", "/session/?uncompress=true", upload("files", "x.zip"), "not served"),
    (404, "GET", "/session/abc?image=true", {}, "not served"),
    (404, "GET", "/proxy/dicom/wado/x", {}, "not served"),
    (404, "GET", "/datastore/dataset", {}, "not served"),
    (405, "DELETE", "/datastore/image?id=img+0", {}, "not served"),
    (405, "DELETE", "/datastore/label?id=img+0&tag=final", {}, "not served"),
    (405, "PUT", "/datastore/image/info?image=img+0", params({}), "not served"),
    (404, "PUT", "/datastore/updatelabelinfo?label=img+0&tag=final", params({}), "not served"),
    (404, "POST", "/batch/infer/echo_cris", as_json({}), "not served"),
    (404, "POST", "/infer/wsi/echo_cris?image=img+0", as_json({}), "not served"),
    (404, "GET", "/auth/", {}, "not served"),
    (404, "GET", "/openapi.json", {}, "not served"),
    (404, "GET", "/docs", {}, "not served"),
    (404, "GET", "/ohif/index.html", {}, "not served"),
    (404, "GET", "/static/../../app.py", {}, "not served"),
    (404, "GET", "/logs/gpu", {}, "not served"),
    (404, "GET", "//info/", {}, "not served"),
    (404, "GET", "/info/../reload", {}, "not served"),
    (400, "GET", "/logs/?lines=99999999999", {}, "lines"),
    (400, "GET", "/info/?a=1", {}, "'a'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "method", "target", "more", "reason"),
    REFUSED,
    ids=[f"{i} {c[1]} {c[2][:40]}" for i, c in enumerate(REFUSED)],
)
def test_everything_else_is_refused(studies, status, method, target, more, reason) -> None:
    guard = make_guard(studies)
    found, headers, answer = ask(guard, method, target, **more)
    told = json.loads(answer)["detail"]
    assert found == status, told
    assert re.search(reason, told), told
    assert "\n" not in told and guard.app.scope == {} and guard._held_bytes == 0
    assert not [name for name in headers if name.startswith("access-control-")]


def test_token_is_asked_for_everywhere_and_goes_no_further(studies: Path) -> None:
    guard = make_guard(studies, TOKEN)
    for target in (
        "/",
        "/info/",
        "/auth/",
        "/nowhere",
        f"/token/{TOKEN}x/info/",
        "/token/",
        "/info/?token=",
        "/info/?token=other",
    ):
        status, headers, answer = ask(guard, "GET", target)
        assert status == 401 and headers["www-authenticate"] == "Bearer" and TOKEN.encode() not in answer
    assert ask(guard, "GET", "/info/", Authorization=f"Basic {TOKEN}")[0] == 401
    for target, more in (
        (f"/token/{TOKEN}/info/", {}),
        (f"/info/?token={TOKEN}", {}),
        ("/info/", {"Authorization": f"Bearer {TOKEN}"}),
        ("/info/", {"Authorization": f"bearer {TOKEN}"}),
    ):
        assert ask(guard, "GET", target, **more)[0] == 200
        assert TOKEN not in str(guard.app.scope)
    status, _, answer = ask(guard, "GET", f"/token/{TOKEN}/")
    assert status == 200 and b"3D Slicer" in answer
    assert ask(guard, "GET", f"/token/{TOKEN}/info/", Host="evil.example")[0] == 403
    assert ask(make_guard(studies), "GET", f"/token/{TOKEN}/info/")[0] == 404  # of a server without one
    assert TOKEN not in repr(guard.door)


def test_what_is_passed_on_is_written_anew(studies: Path) -> None:
    guard = make_guard(studies)
    ask(guard, "PUT", "/datastore/?image=new-1", **ALLOWED[6][3])  # type: ignore[arg-type]
    fields, files = read_form(dict(guard.app.scope["headers"])[b"content-type"].decode(), guard.app.body)
    assert json.loads(fields["params"]) == {"client_id": "u"}
    assert files["file"] == ("upload.nii.gz", b"\0\r\n--x")
    ask(guard, "POST", "/infer/echo_cris?image=img+0", **params({"prompt": "  left   atrium "}))
    fields, _ = read_form(dict(guard.app.scope["headers"])[b"content-type"].decode(), guard.app.body)
    assert json.loads(fields["params"]) == {"prompt": "left atrium"}
    ask(guard, "POST", TRAIN, **as_json(STOCK_TRAIN))
    told = json.loads(guard.app.body)
    assert told == {k: v for k, v in STOCK_TRAIN.items() if v != ""}


@pytest.mark.parametrize("content", [b"", b"\r\n", b"--b--", b"\r\n--b\r\n", zlib.compress(bytes(range(256)) * 9)])
def test_files_keep_their_bytes(content: bytes) -> None:
    files = {"file": File("a.png", content)}
    assert read_form(*write_form({"params": "{}"}, files)) == ({"params": "{}"}, files)
    assert write_json({"a": "\u00e9"}) == ("application/json", b'{"a": "\\u00e9"}')


def test_websockets_are_refused(studies: Path) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(make_guard(studies)({"type": "websocket", "headers": []}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "no websockets here"}]


def test_two_new_images_of_one_name_are_one(studies: Path) -> None:
    """Whether a name is free is checked again when the request has its turn."""
    guard = make_guard(studies)
    stub = guard.app

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        (studies / "new.nii.gz").touch()
        await stub(scope, receive, send)

    guard.app = slow
    scope = request("PUT", "/datastore/image?image=new", {"host": HOST, "content-type": FORM})

    async def both() -> list[Any]:
        return await asyncio.gather(*(answer_to(guard, scope, [upload()["body"]]) for _ in range(2)))

    assert sorted(status for status, _, _ in asyncio.run(both())) == [200, 409]


def test_bodies_are_held_within_a_bound_and_a_time(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make_guard(studies)
    guard._held_bytes = MAX_HELD_BYTES - 2
    assert ask(guard, "POST", INFER, **params({}))[0] == 503
    assert guard._held_bytes == MAX_HELD_BYTES - 2
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.05)
    statuses: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    asyncio.run(guard(request("POST", INFER, {"host": HOST}), receive, send))
    assert statuses[0] == 408 and guard._held_bytes == MAX_HELD_BYTES - 2

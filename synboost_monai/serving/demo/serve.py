"""Serve the page, on this machine alone unless asked otherwise, and clean up behind it."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from synboost_monai.bundle_run import WEIGHTS, bundle_dir, check_overrides, config_files
from synboost_monai.door import Door, listening, open_door, url_of
from synboost_monai.formats.bounded import MAX_PLANE_PIXELS
from synboost_monai.processes import private_files
from synboost_monai.serving.demo.sources import SESSION_PREFIX, checked_folder
from synboost_monai.serving.options import DemoOptions

if TYPE_CHECKING:
    from synboost_monai.serving.demo.synthesising import Synthesiser

TOKEN_VARIABLE = "SYNBOOST_DEMO_TOKEN"
"""Environment variable with the token; in the command, a list of processes would show it."""
SYNTHESIS = "synthesis."
"""Prefix of overrides for the bundle that synthesises."""
MAX_WAITING = 16
"""Events that wait for their turn; more are refused."""
MAX_SESSIONS = 8
"""Open pages whose image is kept; if there are more, the one used longest ago loses its image."""
STOP_SECONDS = 5.0
"""Longest wait for the server's end."""
NO_SYNTHESIS = """### No weights for the synthesis yet

Train a diffusion model, on the phantom for a try, or on your own data, then start the page with its weights:

```
synboost phantom phantom --num_patients 24
synboost prepare phantom real
synboost run echo_semantic_diffusion train_small --dataset_dir real --output_dir OUT
synboost demo --synthesis_checkpoint_path OUT/model.pt
```

`synboost demo --help` tells the rest."""
"""Text of the second tab if there are no weights for it."""


def run_demo(options: DemoOptions, *, overrides: Mapping[str, Any] | None = None) -> None:
    """Load the networks and serve the page until Ctrl-C or SIGTERM.

    Args:
        options: bundle, weights, folders, address and token. A token that is True or None is that of `TOKEN_VARIABLE`; if that is not
            set, True makes a new one, and so does None for any other host than this machine.
        overrides: keys of the segmenter's inference.yaml; with `synthesis.` before them, of echo_semantic_diffusion's.
    Raises:
        FileNotFoundError, ValueError: if weights or folders are missing, a key is unknown, gradio is not installed, host or token are
            not valid, or the port is taken.
    """
    of_synthesis = {
        key.removeprefix(SYNTHESIS): value for key, value in (overrides or {}).items() if key.startswith(SYNTHESIS)
    }
    of_segmenter = {key: value for key, value in (overrides or {}).items() if not key.startswith(SYNTHESIS)}
    _check_gradio()
    host, port = options.host, options.port
    door = open_door(host, port, options.token, TOKEN_VARIABLE)
    opened = [checked_folder(folder) for folder in options.folders.split(",") if folder]
    from synboost_monai.serving.demo.segmenting import Segmenter

    segmenter = Segmenter(options.bundle, options.checkpoint_path, of_segmenter)
    synthesiser = _synthesiser(options.synthesis_checkpoint_path, of_synthesis)
    with session_folder() as folder:
        from synboost_monai.serving.demo.page import build_page

        page = build_page(segmenter, synthesiser, folder, opened)
        serve(page, folder, host, port, door)


def serve(page: Any, folder: Path, host: str, port: int, door: Door, stop: threading.Event | None = None) -> None:
    """Serve a page until `stop`, Ctrl-C or SIGTERM ends it.

    Args:
        page: from `page.build_page`.
        folder: the session's folder.
        host, port: address to listen at.
        door: who may come in.
        stop: ends the server when it is set, as Ctrl-C and SIGTERM do in the main thread.
    Raises:
        ValueError: if the port is taken or not allowed.
    """
    import uvicorn

    from synboost_monai.serving.demo.connections import BoundedConnection
    from synboost_monai.serving.demo.guard import Guard

    config = uvicorn.Config(
        Guard(_gradio_app(page, host, port), door, folder),
        http=BoundedConnection,
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    with _ending(stop) as ended, listening(host, port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        url = url_of(host, port)
        address = f"{url}/?token={door.token}" if door.token else url
        print(f"synboost demo: {address} (Ctrl-C ends it and removes what was uploaded)", flush=True)
        try:
            while not ended.wait(1) and thread.is_alive():
                pass
        except KeyboardInterrupt:
            pass
        finally:
            server.should_exit = True
            page.close(verbose=False)
            thread.join(STOP_SECONDS)


def _gradio_app(page: Any, host: str, port: int) -> Any:
    """Return the page as an ASGI application that serves browsers alone."""
    import gradio as gr
    from fastapi import FastAPI

    from synboost_monai.serving.demo.guard import MAX_UPLOAD_BYTES
    from synboost_monai.serving.demo.page import CSS

    fonts = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        spacing_size="sm",
        text_size="sm",
        font=fonts,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    page.queue(default_concurrency_limit=1, max_size=MAX_WAITING, api_open=False)
    page.state_session_capacity = MAX_SESSIONS
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
    )


@contextmanager
def session_folder() -> Iterator[Path]:
    """Yield a folder that only this user can read, for uploads and everything that is written; remove it at the end.

    Until then gradio keeps its files there too, and sends nothing to anybody; Pillow refuses pictures that are larger than any image
    that can be opened here.
    """
    from PIL import Image

    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    before = {key: os.environ.get(key) for key in (*settings, "GRADIO_TEMP_DIR")}
    largest, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PLANE_PIXELS // 2  # Pillow refuses twice as many
    with private_files(), tempfile.TemporaryDirectory(prefix=SESSION_PREFIX, ignore_cleanup_errors=True) as name:
        folder = os.path.realpath(name)  # a path of an upload is compared with it, links followed
        os.environ.update(settings | {"GRADIO_TEMP_DIR": folder})
        try:
            yield Path(folder)
        finally:
            Image.MAX_IMAGE_PIXELS = largest
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


@contextmanager
def _ending(stop: threading.Event | None) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets too, in the main thread alone."""
    ended = stop or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield ended
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_gradio() -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install 'synboost-monai[demo]'")


def _synthesiser(checkpoint_path: str | None, overrides: Mapping[str, Any]) -> Synthesiser | str:
    """Return the second tab's model, or the text to show without its weights."""
    from synboost_monai.predictor import SYNTHESIS_BUNDLE
    from synboost_monai.serving.demo.synthesising import Synthesiser

    check_overrides(config_files(SYNTHESIS_BUNDLE, "inference"), overrides)
    if checkpoint_path is None and not (bundle_dir(SYNTHESIS_BUNDLE) / WEIGHTS).is_file():
        return NO_SYNTHESIS
    return Synthesiser(checkpoint_path, overrides)

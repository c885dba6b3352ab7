"""Serves the page on this machine alone, and cleans up behind it."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from synboost_monai.bundle_run import bundle_dir, check_overrides, config_files
from synboost_monai.demo.sources import SESSION_PREFIX
from synboost_monai.processes import private_files

if TYPE_CHECKING:
    from synboost_monai.demo.synthesising import Synthesiser

HOST = "127.0.0.1"
"""The only address that is listened at."""
SYNTHESIS = "synthesis."
"""Overrides that begin so are of the bundle that synthesises."""
LARGEST_UPLOAD = "1gb"
NO_SYNTHESIS = """### No weights for the synthesis yet

Train a diffusion model, on the phantom for a try, or on your own data, then start the page with its weights:

```
synboost phantom phantom --num_patients 24
synboost prepare phantom real
{train}
synboost demo {then}
```

`synboost demo --help` tells the rest."""


def run_demo(
    bundle: str = "echo_cris",
    checkpoint_path: str | None = None,
    synthesis_checkpoint_path: str | None = None,
    port: int = 7860,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Load the networks and serve the page until Ctrl-C or SIGTERM.

    Args:
        bundle: of a segmenter.
        checkpoint_path: its weights; None: those of the bundle.
        synthesis_checkpoint_path: weights of echo_semantic_diffusion; None: those of the bundle, if there are any.
        port: of the page.
        overrides: keys of the segmenter's inference.yaml; with `synthesis.` before them, of the other bundle's.
    Raises:
        FileNotFoundError, ValueError: if weights are missing, a key is unknown, gradio is not installed, or the port is taken.
    """
    of_synthesis = {
        key.removeprefix(SYNTHESIS): value for key, value in (overrides or {}).items() if key.startswith(SYNTHESIS)
    }
    of_segmenter = {key: value for key, value in (overrides or {}).items() if not key.startswith(SYNTHESIS)}
    _check_gradio()
    from synboost_monai.demo.segmenting import Segmenter

    segmenter = Segmenter(bundle, checkpoint_path, of_segmenter)
    synthesiser = _synthesiser(synthesis_checkpoint_path, of_synthesis)
    with session_folder() as folder:
        from synboost_monai.demo.page import build_page

        page = build_page(segmenter, synthesiser, folder)
        serve(page, port)


def serve(page: Any, port: int, stop: threading.Event | None = None) -> None:
    """Serve a page until it is told to end.

    Args:
        page: of `page.build_page`.
        port: 1 ... 65535.
        stop: ends it; None: Ctrl-C or SIGTERM does.
    Raises:
        ValueError: if the port is taken or none.
    """
    import gradio as gr

    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be 1 to 65535, got {port}")
    from synboost_monai.demo.page import CSS

    fonts = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        spacing_size="sm",
        text_size="sm",
        font=fonts,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    page.queue(default_concurrency_limit=4, max_size=64)
    with _ending(stop) as ended:
        try:
            page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                show_error=False,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,
                max_file_size=LARGEST_UPLOAD,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=theme,
                css=CSS,
            )
        except OSError as error:
            raise ValueError(f"port {port} of {HOST} is taken or not allowed; give another --port") from error
        print(f"synboost demo: http://{HOST}:{port} (Ctrl-C ends it and removes what was uploaded)", flush=True)
        try:
            ended.wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)


@contextmanager
def session_folder() -> Iterator[Path]:
    """A folder that only this user can read, for uploads and everything that is written; it is removed at the end.

    gradio is told to keep its files there too, and to send nothing to anybody.
    """
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is there, and must not ask a proxy
        settings[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    before = {key: os.environ.get(key) for key in (*settings, "GRADIO_TEMP_DIR")}
    with private_files(), tempfile.TemporaryDirectory(prefix=SESSION_PREFIX, ignore_cleanup_errors=True) as name:
        os.environ.update(settings | {"GRADIO_TEMP_DIR": name})
        try:
            yield Path(name)
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


@contextmanager
def _ending(stop: threading.Event | None) -> Iterator[threading.Event]:
    """An event that SIGTERM sets too, where signals can be heard."""
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
    """The second tab's model, or what to say without its weights."""
    from synboost_monai.demo.segmenting import WEIGHTS
    from synboost_monai.demo.synthesising import BUNDLE, HOW_TO_TRAIN, Synthesiser

    check_overrides(config_files(BUNDLE, "inference"), overrides)
    if checkpoint_path is None and not (bundle_dir(BUNDLE) / WEIGHTS).is_file():
        return NO_SYNTHESIS.format(train=HOW_TO_TRAIN[0].replace("DATA", "real"), then=HOW_TO_TRAIN[1])
    return Synthesiser(checkpoint_path, overrides)

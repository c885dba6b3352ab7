"""Test the page in headless Chromium: it loads, segments, synthesises, reports mistakes, and contacts nobody else."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synboost_monai.dicom.writing.clip import write_clip
from synboost_monai.records import EchoRecord
from synboost_monai.serving.demo.sources import draw_phantom
from synboost_monai.transforms import load_echo
from tests.forked import Forked
from tests.serving.demo import launch_demo

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOCAL = {"127.0.0.1", "localhost", "a file", "None", ""}
PATIENCE_S = 300
"""Longest wait for anything on a busy machine."""

# threshold: a random network is just above or below one half
ARGUMENTS = ["--preset", "tiny", "--image_size", "32", "--device", "cpu", "--threshold", "0.4"]
ARGUMENTS += ["--synthesis.preset", "tiny", "--synthesis.image_size", "32", "--synthesis.num_inference_steps", "3"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Demo:
    """Run the program in a separate process."""

    def __init__(self, folder: Path, weights: dict[str, Path]) -> None:
        self.port, self.log_path, self.temporary = free_port(), folder / "hosts.txt", folder / "tmp"
        self.temporary.mkdir()
        given = ["--checkpoint_path", str(weights["echo_cris"]), "--port", str(self.port), *ARGUMENTS]
        given += ["--synthesis_checkpoint_path", str(weights["echo_semantic_diffusion"]), "--folders", str(folder)]
        environment = {"TMPDIR": str(self.temporary)}
        environment |= {"HTTP_PROXY": "http://192.0.2.1:9", "http_proxy": "http://192.0.2.1:9"}  # must not be asked
        self.process = Forked(launch_demo.main, self.log_path, *given, environment=environment)
        self.url = f"http://127.0.0.1:{self.port}/"

    def wait(self) -> None:
        """Wait until the program says that it serves."""
        end = time.monotonic() + PATIENCE_S
        while self.url.rstrip("/") not in self.said():
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return self.process.stdout + self.process.stderr

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def demo(weights: dict[str, Path], tmp_path: Path) -> Iterator[Demo]:
    running = Demo(tmp_path, weights)
    yield running
    running.process.kill()


COLOURFUL = "Math.abs(r - g) + Math.abs(g - b) > 30"
RED, BLUE = "r > 150 && b < 120", "b > 150 && r < 120"
"""The ventricle's cavity and the atrium, as conditions on a pixel (JavaScript)."""


def share_of(page: Any, selector: str, condition: str) -> float:
    """Return the share of a shown picture's pixels for which a condition on r, g, b holds."""
    return float(
        page.evaluate(
            """async ([selector, condition]) => {
                const image = document.querySelector(selector + " img");
                await image.decode();
                const canvas = document.createElement("canvas");
                canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
                const holds = new Function("r", "g", "b", "return " + condition);
                let count = 0;
                for (let i = 0; i < data.length; i += 4) if (holds(data[i], data[i + 1], data[i + 2])) count++;
                return 4 * count / data.length;
            }""",
            [selector, condition],
        )
    )


def outline(page: Any, selector: str) -> None:
    """Draw an ellipse with the mouse."""
    box = page.locator(selector).first.bounding_box()
    places = [
        (box["x"] + box["width"] * (0.5 + 0.08 * np.cos(t)), box["y"] + box["height"] * (0.45 + 0.2 * np.sin(t)))
        for t in np.linspace(0, 2.1 * np.pi, 26)
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_page_segments_and_synthesises_and_speaks_to_nobody_else(demo: Demo, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    phantom = draw_phantom(4, "apical_four_chamber", "end_diastole", tmp_path, image_height=96)
    clip = np.stack([load_echo(phantom.image_path)[0].numpy()[0].astype(np.uint8)] * 3)
    record = EchoRecord(tmp_path / "clip.dcm", None, "Somebody^Else", "apical_two_chamber", sex="female", age=51)
    write_clip(record, clip, (0.9, 0.9), study="s", frame_time_ms=40.0)
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    requests: list[str] = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        demo.wait()
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(1000 * PATIENCE_S)
        expect.set_options(timeout=1000 * PATIENCE_S)
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda websocket: requests.append(websocket.url))
        page.goto(demo.url)
        expect(page.get_by_text("Research only, not for diagnosis")).to_be_visible()

        # a phantom is there; words give a mask of one structure
        page.wait_for_selector("#image-picture img")
        expect(page.get_by_text("phantom1_4CH_ED")).to_be_visible()
        assert share_of(page, "#image-picture", COLOURFUL) == 0
        page.fill("#prompt textarea, #prompt input", "the LA")
        page.click("#segment")
        expect(page.locator("#verdict .verdict")).to_contain_text("Predicted Dice")
        expect(page.locator("#findings")).to_contain_text("“the LA”, read as left atrium")
        expect(page.locator("#findings")).to_contain_text("Not for diagnosis")
        expect(page.locator("#said")).to_contain_text("Left atrium cavity")
        page.wait_for_selector("#mask-picture img")
        assert share_of(page, "#mask-picture", COLOURFUL) > 0
        with page.expect_download() as download:
            page.get_by_text("Label map (NIfTI)").click()
        assert download.value.suggested_filename == "phantom1_4CH_ED_label_map.nii.gz"

        # no words: all three structures, with measures
        page.get_by_role("button", name="all three").click()
        expect(page.locator("#prompt textarea, #prompt input")).to_have_value("")
        page.click("#segment")
        expect(page.locator("#findings")).to_contain_text("Myocardium")
        expect(page.locator("#findings")).to_contain_text("Length of the left ventricle")
        expect(page.locator("#said li")).to_have_count(6)
        page.set_viewport_size({"width": 390, "height": 844})  # a phone: nothing hangs over
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 1280, "height": 900})

        # files: a bad one is a sentence, a clip has frames, nobody's name is shown
        page.locator("label:has-text('File')").first.click()
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / "broken.png"))
        expect(page.get_by_text("not a readable PNG image").first).to_be_visible()
        page.get_by_label("or a path on this machine").first.fill(str(tmp_path / "clip.dcm"))
        page.get_by_role("button", name="Open").first.click()
        expect(page.get_by_text("3 frames")).to_be_visible()
        expect(page.get_by_label("Age", exact=True)).to_have_value("51")
        page.click("#segment")
        expect(page.locator("#said")).to_contain_text("in two-chamber view of the heart.")  # no phase: no more is said
        content = page.content()
        assert "Traceback" not in content and "Somebody" not in content

        # the other tab: steps come, and the image goes back to the first
        page.get_by_role("tab", name="Synthesise").click()
        page.wait_for_selector("#map-picture img")
        page.click("#synthesise")
        expect(page.locator("#progress")).to_contain_text("Step 3 of 3: done")
        page.wait_for_selector("#synthetic-picture img")
        page.click("#send")
        expect(page.get_by_text("synthetic1", exact=True)).to_be_visible()
        expect(page.locator("#findings")).to_contain_text("True Dice")

        # a drawing: an outline of the cavity, taken as it is when the image is asked for
        page.get_by_role("tab", name="Synthesise").click()
        page.locator("label:has-text('Draw')").first.click()
        page.locator("#editor canvas").first.wait_for()
        page.click("#synthesise")
        expect(page.get_by_text("nothing is drawn").first).to_be_visible()
        end = time.monotonic() + PATIENCE_S
        # while the phantom's atrium is still there: the canvas listens later than it is seen
        while share_of(page, "#map-picture", BLUE) > 0:
            assert time.monotonic() < end
            outline(page, "#editor canvas")
            page.click("#synthesise")
            page.wait_for_timeout(2000)
        assert share_of(page, "#map-picture", RED) > 0.02
        expect(page.locator("#progress")).to_contain_text("Step 3 of 3: done")
        uploaded = list(demo.temporary.rglob("broken.png"))
        browser.close()

    own = (demo.url, f"ws://127.0.0.1:{demo.port}/", "data:", "blob:")
    assert len(requests) > 20 and [url for url in requests if not url.startswith(own)] == []
    assert uploaded and demo.end() == 0
    assert list(demo.temporary.iterdir()) == []  # nothing of it stays on the disk
    hosts = set(demo.log_path.read_text().splitlines())
    assert hosts <= LOCAL, hosts
    assert "Traceback" not in demo.said()


def test_mistakes_end_in_one_line(
    weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from synboost_monai.__main__ import main

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # gradio keeps the first session's folder in mind
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        tiny = ["--checkpoint_path", str(weights["echo_cris"]), *ARGUMENTS]
        taken = str(listener.getsockname()[1])
        for words, message in (
            (["--checkpoint_path", str(tmp_path / "none.pt")], "To train one: synboost run echo_cris train_small"),
            ([*tiny, "--presett", "tiny"], "unknown key --presett; did you mean preset?"),
            ([*tiny, "--synthesis.presett", "tiny"], "unknown key --presett; did you mean preset?"),
            ([*tiny, "--port", "0"], "--port must be 1 to 65535, got 0"),
            ([*tiny, "--port", taken], f"port {taken} of 127.0.0.1 is taken"),
        ):
            with pytest.raises(SystemExit) as stop:
                main(["demo", *words])
            error = capsys.readouterr().err
            assert stop.value.code == 2 and message in error, error
            assert error.strip().splitlines()[-1].startswith("synboost demo: ")


def test_without_weights_for_the_synthesis_its_tab_says_how_to_get_them(
    weights: dict[str, Path], tmp_path: Path
) -> None:
    from synboost_monai.serving.demo.page import build_page
    from synboost_monai.serving.demo.segmenting import Segmenter
    from synboost_monai.serving.demo.serve import _synthesiser

    keys = {"preset": "tiny", "image_size": 32, "device": "cpu"}
    instead = _synthesiser(None, {})
    assert isinstance(instead, str)
    page = build_page(Segmenter("echo_cris", str(weights["echo_cris"]), keys), instead, tmp_path)
    said = [str(block.get("props", {}).get("value")) for block in page.get_config_file()["components"]]
    assert any("synboost run echo_semantic_diffusion train_small --dataset_dir real" in text for text in said)
    assert any("--synthesis_checkpoint_path OUT/model.pt" in text for text in said)

"""Test reading in processes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.reading.read import open_ultrasound
from synboost_monai.dicom.reading.worker import ReaderPool
from synboost_monai.dicom.reasons import NotUsableError
from tests.dicom.conftest import jpeg, moving_frames, tissue_region

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pool() -> Iterator[ReaderPool]:
    with ReaderPool(1, Limits(seconds_per_file=30, memory_mb=512)) as made:
        yield made


def frames_of(pool: ReaderPool, path, window: int = 32, wanted: list[int] | None = None) -> list[np.ndarray]:
    """Return the windows of a file."""
    with pool.open(path, window) as stream:
        return list(stream.read(wanted))


def process_of(stream) -> subprocess.Popen:
    return stream._worker._process


def is_gone(process_id: int, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("window", [1, 4, 100])
def test_windows_are_those_of_the_clip(make_ultrasound, pool: ReaderPool, window: int):
    frames = moving_frames(10, 60, 80)
    path = make_ultrasound(frames, regions=[tissue_region(10, 4, 69, 53)])
    windows = frames_of(pool, path, window)
    assert [len(part) for part in windows] == [min(window, 10 - i) for i in range(0, 10, window)]
    np.testing.assert_array_equal(np.concatenate(windows), frames[:, 4:54, 10:70])
    np.testing.assert_array_equal(np.concatenate(frames_of(pool, path, 2, [9, 0, 5])), frames[[9, 0, 5], 4:54, 10:70])


def test_facts_come_through_unchanged(make_ultrasound, pool: ReaderPool):
    for regions in (None, []):
        path = make_ultrasound(moving_frames(3), regions=regions, RWaveTimeVector=[5.0])
        with open_ultrasound(path) as clip:
            here = clip.facts
        with pool.open(path) as stream:
            there = stream.facts
        assert str(there) == str(here) and there.frame_times_ms == here.frame_times_ms
        assert there.region.spacing_mm == here.region.spacing_mm
    with pool.open(path) as stream:
        process_id = process_of(stream).pid
        list(stream.read())
    with pool.open(path):
        pass
    with pool.open(path) as stream:
        assert process_of(stream).pid == process_id


def test_frames_of_one_open_file_are_read_again_and_again(make_ultrasound, pool: ReaderPool):
    frames = moving_frames(5)
    path = make_ultrasound(frames, name="a.dcm")
    with pool.open(path, window=2) as stream:
        first = np.concatenate(list(stream.read()))
        make_ultrasound(frames[::-1], name="b.dcm").replace(
            path
        )  # another file under the name: not the one that is open
        for wanted in ([3], [4, 0, 1]):
            np.testing.assert_array_equal(np.concatenate(list(stream.read(wanted))), first[wanted])
        with pytest.raises(ValueError, match="frames must be 0 to 4"):
            stream.read([5])
        assert list(stream.read([])) == []
        process_id = process_of(stream).pid
    with pool.open(path) as stream:
        assert process_of(stream).pid == process_id
        assert not np.array_equal(np.concatenate(list(stream.read())), first)


def test_bad_files_cost_themselves_alone(make_ultrasound, pool: ReaderPool, tmp_path: Path):
    frames = moving_frames(4)
    good = make_ultrasound(frames, "jpeg", name="good.dcm")
    parts = [jpeg(frame) for frame in frames]
    bad = make_ultrasound(frames, "jpeg", name="bad.dcm", fragments=[*parts[:2], parts[2][:300], parts[3]])
    with pool.open(good) as stream:
        worker = process_of(stream).pid
        list(stream.read())
    with pytest.raises(NotUsableError, match="frame 3"):
        frames_of(pool, bad, 2)
    with pytest.raises(NotUsableError, match="it is not|was there"):
        frames_of(pool, tmp_path / "nothing.dcm")
    with pool.open(good) as stream:
        assert process_of(stream).pid == worker  # an ordinary refusal needs no new process
        assert sum(map(len, stream.read())) == 4


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "killed"), (signal.SIGABRT, "abort"), (signal.SIGSEGV, "segmentation")]
)
def test_worker_that_dies_costs_one_file(make_ultrasound, pool: ReaderPool, number: int, words: str):
    path = make_ultrasound(np.repeat(moving_frames(1, 512, 512), 20, axis=0))
    with pool.open(path, window=1) as stream:
        windows = stream.read()
        next(windows)
        process_of(stream).send_signal(number)
        with pytest.raises(NotUsableError, match=words) as caught:
            list(windows)
        assert caught.value.reason.code == "decoder_died"
    assert len(np.concatenate(frames_of(pool, path))) == 20


def test_worker_that_died_while_idle_is_replaced(make_ultrasound, pool: ReaderPool):
    path = make_ultrasound(moving_frames(2))
    with pool.open(path) as stream:
        list(stream.read())
        process = process_of(stream)
    process.kill()
    process.wait()
    assert len(np.concatenate(frames_of(pool, path))) == 2


def test_time_limit(make_ultrasound):
    path = make_ultrasound(np.repeat(moving_frames(1, 512, 512), 20, axis=0))
    with ReaderPool(1, Limits(seconds_per_file=0.5)) as pool:
        with pool.open(path, window=1) as stream:
            windows = stream.read()
            next(windows)
            time.sleep(0.7)  # the consumer's own time does not count
            next(windows)
            process_of(stream).send_signal(signal.SIGSTOP)  # hangs
            start = time.monotonic()
            with pytest.raises(NotUsableError, match="longer than the limit of 0.5 s") as caught:
                list(windows)
            assert caught.value.reason.code == "timeout" and time.monotonic() - start < 30
            assert is_gone(process_of(stream).pid)
        assert len(np.concatenate(frames_of(pool, path))) == 20


def test_memory_limit(make_ultrasound):
    large = np.zeros((1, 6000, 6000), np.uint16)
    large[0, 0, 0] = 65535
    small = make_ultrasound(moving_frames(2), name="small.dcm")
    path = make_ultrasound(large, name="large.dcm")
    with ReaderPool(1, Limits(memory_mb=60)) as pool:
        with pytest.raises(NotUsableError, match="more than the limit of 60 MB") as caught:
            frames_of(pool, path)
        assert caught.value.reason.code == "out_of_memory"
        assert len(np.concatenate(frames_of(pool, small))) == 2


def test_stream_that_is_left_early_frees_its_place(make_ultrasound, pool: ReaderPool):
    path = make_ultrasound(np.repeat(moving_frames(1, 512, 512), 20, axis=0))
    for _ in range(3):
        with pool.open(path, 2) as stream:
            next(stream.read())
    assert len(np.concatenate(frames_of(pool, path))) == 20


def test_workers_end_with_the_pool_and_with_the_parent(make_ultrasound):
    path = make_ultrasound(moving_frames(2))
    with ReaderPool(1) as pool, pool.open(path) as stream:
        process_id = process_of(stream).pid
    assert is_gone(process_id)
    with pytest.raises(ValueError, match="the pool is closed"):
        pool.open(path)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from synboost_monai.dicom.reading.worker import ReaderPool\n"
        f"pool = ReaderPool(1); stream = pool.open({str(path)!r})\n"
        "print(stream._worker._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    process_id = int(parent.stdout.readline())
    assert not is_gone(process_id, 0.1)
    parent.kill()
    parent.wait()
    assert is_gone(process_id)
    parent.stdout.close()
    assert parent.stdin is not None
    parent.stdin.close()


def test_several_workers_read_at_once(make_ultrasound):
    paths = [make_ultrasound(moving_frames(3, seed=i), name=f"{i}.dcm") for i in range(2)]
    with ReaderPool(2) as pool, pool.open(paths[0]) as first, pool.open(paths[1]) as second:
        assert process_of(first).pid != process_of(second).pid
        for a, b in zip(first.read(), second.read()):
            assert a.shape == b.shape and not np.array_equal(a, b)


def test_what_cannot_be_asked_for(make_ultrasound, pool: ReaderPool):
    path = make_ultrasound(moving_frames(2))
    with pytest.raises(ValueError, match="window must be at least 1"):
        pool.open(path, window=0)
    with pytest.raises(ValueError, match="num_workers"):
        ReaderPool(0)
    assert len(np.concatenate(frames_of(pool, path))) == 2


def test_file_names_of_any_bytes(make_ultrasound, pool: ReaderPool, tmp_path: Path):
    path = make_ultrasound(moving_frames(2))
    odd = os.fsencode(tmp_path) + b"/\xff\n-\xe2\x80\xae.dcm"
    os.rename(path, odd)
    assert len(np.concatenate(frames_of(pool, os.fsdecode(odd)))) == 2


def test_workers_do_not_load_torch():
    code = "import sys, synboost_monai.dicom.reading.worker; print(*({'torch', 'monai', 'highdicom', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""

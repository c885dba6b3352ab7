"""Test judging synthetic data sets: each number for images whose faults are known, the page, the bundle's config."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism
from scipy import ndimage

from synboost_monai.bundle_run import bundle_dir, config_files, run_bundle
from synboost_monai.evaluation import quality as quality_module
from synboost_monai.evaluation.quality import QualityOptions, evaluate_synthesis
from synboost_monai.evaluation.quality_images import Echo, JudgingSegmenter, RealReader, SyntheticReader
from synboost_monai.evaluation.quality_page import WORDS, verdicts
from synboost_monai.networks import create_segmenter
from synboost_monai.synthesis.writers import write_nifti
from synboost_monai.transforms import load_echo

SIZE = 32
CONFIG = bundle_dir("echo_semantic_diffusion") / "configs" / "evaluate.yaml"
BRIGHTNESS = np.array([90, 25, 160, 35])
"""By class, as conftest's images."""

Draw = Callable[[Echo, int], np.ndarray]


@pytest.fixture(autouse=True)
def global_state():
    """Restore the global state: the bundle seeds globally, and other tests must not notice."""
    state = torch.random.get_rng_state()
    yield
    set_determinism(None)
    torch.random.set_rng_state(state)


class Oracle:
    """Judge with knowledge of the truth: label maps are returned as they are, for synthetic images moved sideways by `shift`."""

    feature_layer = "brightness by quarters"
    facts = {"bundle": "oracle", "preset": "none", "image_size": SIZE, "prompt_level": "P1"}
    device = torch.device("cpu")

    def __init__(self, checkpoint_path: Path, shift: int = 0) -> None:
        self.checkpoint_path, self.shift = checkpoint_path, shift

    def features(self, echoes: Sequence[Echo]) -> np.ndarray:
        quarters = [echo.image.reshape(4, SIZE // 4, 4, SIZE // 4) for echo in echoes]
        return np.stack([q.mean(axis=(1, 3)).ravel() for q in quarters]).astype(np.float32)

    def __call__(self, echoes: Sequence[Echo]) -> tuple[list[np.ndarray], np.ndarray]:
        shifts = [self.shift if echo.item.get("is_synthetic") else 0 for echo in echoes]
        return [np.roll(e.label_map, s, axis=1) for e, s in zip(echoes, shifts)], self.features(echoes)


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    (tmp_path / "oracle.pt").write_bytes(b"knows all")
    return Oracle(tmp_path / "oracle.pt")


def like_real(echo: Echo, seed: int) -> np.ndarray:
    """Draw another image of a label map by the rule of conftest's real ones."""
    speckle = np.random.default_rng(seed).rayleigh(0.8, (48, 48))
    label_map = np.asarray(np.kron(echo.label_map, np.ones((3, 3), np.uint8))[::2, ::2])  # native images are finer
    fine = np.clip(BRIGHTNESS[label_map] * speckle, 1, 255)
    image = ndimage.zoom(ndimage.gaussian_filter(fine, 0.6), SIZE / 48, order=1)
    return np.where(echo.sector, image, 0)


def copy_of_real(echo: Echo, seed: int) -> np.ndarray:
    return echo.image


@pytest.fixture
def make_synthetic(datalist_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a synthetic data set from the label maps of the tiny CAMUS, as a synthesis does."""

    def make(
        name: str = "synthetic",
        draw: Draw = like_real,
        *,
        num_repeats: int = 1,
        num_maps: int = 16,
        change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda item, record: None,
        labels: Callable[[np.ndarray], np.ndarray] = lambda label_map: label_map,
    ) -> Path:
        real = json.loads((datalist_dir / "datalist.json").read_text())["training"][:num_maps]
        folder, reader = tmp_path / name, RealReader(SIZE)
        items, records = [], []
        for number, source in enumerate(real):
            paths = {key: str((datalist_dir / source[key]).resolve()) for key in ("image", "label")}
            echo = reader({**source, **paths, "case": "x"})
            for seed in range(10 * number, 10 * number + num_repeats):
                stem = f"{Path(source['image']).name.split('.')[0]}_v0_{seed}"
                item = {"image": f"images/{stem}.nii.gz", "label": f"labels/{stem}.nii.gz", "is_synthetic": True}
                write_nifti(draw(echo, seed).round().astype(np.uint8), echo.spacing_mm, folder / item["image"])
                write_nifti(labels(echo.label_map), echo.spacing_mm, folder / item["label"])
                item |= {key: source[key] for key in ("patient", "view", "phase")}
                record = {"image": item["image"], "perturbation_seed": number, "noise_seed": seed}
                record |= {"source_label": paths["label"], "source_image": paths["image"]}
                change(item, record)
                items.append(item)
                records.append(record)
        head = {"name": "synthetic", "modality": "ultrasound", "validation": [], "testing": []}
        (folder / "datalist.json").write_text(json.dumps({**head, "training": items}))
        provenance = {"settings": {"seed": 0, "checkpoint_sha256": "abc"}, "dataset_dir": str(datalist_dir)}
        (folder / "provenance.json").write_text(json.dumps({**provenance, "images": records}))
        return folder

    return make


@pytest.fixture
def judge(
    oracle: Oracle, datalist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Return a function that evaluates a folder with the oracle, and makes the page, which takes seconds, only on request."""

    def run(synthetic: Path, segmenter: Any = None, with_page: bool = False, **options: Any) -> dict[str, Any]:
        if not with_page:
            monkeypatch.setattr(quality_module, "write_page", lambda *arguments: None)
        wanted = QualityOptions(**{"num_bootstrap": 50, "real_section": "validation+testing", **options})
        return evaluate_synthesis(synthetic, datalist_dir, tmp_path / "out", segmenter or oracle, wanted)

    return run


# ---- what the numbers say


def test_images_like_real_ones_are_near_the_floor(make_synthetic, judge, tmp_path: Path) -> None:
    quality = judge(make_synthetic())
    scores = quality["faithfulness"]
    assert scores["mean_dice"] == scores["real_mean_dice"] == 1 and scores["difference"] == 0
    assert (scores["num_images"], scores["num_patients"], scores["num_real_images"]) == (16, 4, 8)
    assert set(scores["structures"]) == {"left_ventricular_cavity", "myocardium", "left_atrium"}
    assert quality["data"]["num_compared"] == 8 and quality["fid"]["num_synthetic"] == quality["fid"]["num_real"] == 8
    assert quality["fid"]["num_reference"] == 16 and quality["fid"]["num_features"] == 16
    assert quality["darkness"]["share_dark"] == 1 and quality["darkness"]["num_images"] == 16
    assert quality["diversity"]["mean"] is None and "num_repeats" in quality["diversity"]["note"]
    assert quality["diversity"]["real_mean"] > 0.1 and quality["fid_inception"] is None
    assert quality["memorisation"]["pixel"]["share_nearer"] < 0.3
    assert quality["synthesis_checkpoint_sha256"] == "abc" and len(quality["segmenter_checkpoint_sha256"]) == 64
    assert json.loads((tmp_path / "out" / "quality.json").read_text()) == quality


def test_dice_of_the_segmenter_is_the_faithfulness(make_synthetic, judge, oracle: Oracle, tmp_path: Path) -> None:
    quality = judge(make_synthetic(), Oracle(oracle.checkpoint_path, shift=2))
    scores = quality["faithfulness"]
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    fake = table[table["is_synthetic"]]
    assert scores["mean_dice"] == pytest.approx(fake["dice"].mean(), abs=1e-6) and scores["mean_dice"] < 0.9
    assert scores["real_mean_dice"] == 1 and scores["difference"] == pytest.approx(scores["mean_dice"] - 1)
    assert scores["difference_ci_low"] <= scores["difference"] <= scores["difference_ci_high"] < 0
    cavity = fake[fake["structure"] == "left_ventricular_cavity"]["dice"]
    assert scores["structures"]["left_ventricular_cavity"]["mean_dice"] == pytest.approx(cavity.mean(), abs=1e-6)
    assert scores["mean_hd95_mm"] > 2 and len(fake) == 48 and len(table) == 72
    images = pd.read_csv(tmp_path / "out" / "images.csv")
    assert images[images["is_synthetic"]]["dice"].mean() == pytest.approx(scores["mean_dice"], abs=1e-4)
    assert verdicts(quality)[0]["verdict"] == "far"


def test_label_maps_are_compared_whole_and_within_the_sector(make_synthetic, judge, oracle: Oracle) -> None:
    class Blind(Oracle):
        """Find everything that the sector shows."""

        def __call__(self, echoes):
            found, features = super().__call__(echoes)
            return [np.where(echo.sector, label_map, 0) for echo, label_map in zip(echoes, found)], features

    shifted = make_synthetic(labels=lambda label_map: np.roll(label_map, 9, axis=1))
    scores = judge(shifted, Blind(oracle.checkpoint_path))["faithfulness"]
    assert scores["mean_dice"] < 0.95 and scores["mean_dice_in_sector"] == 1


def test_smooth_images_lack_high_frequencies(make_synthetic, judge) -> None:
    def smooth(echo: Echo, seed: int) -> np.ndarray:
        return np.where(echo.sector, ndimage.gaussian_filter(like_real(echo, seed), 1.2), 0)

    good, poor = judge(make_synthetic("good", copy_of_real)), judge(make_synthetic("poor", smooth))
    assert good["spectrum_distance_db"] < 1 and abs(good["spectrum_high_frequency_db"]) < 1
    assert poor["spectrum_distance_db"] > 4 * poor["spectrum_distance_floor_db"]
    assert poor["spectrum_high_frequency_db"] < -6
    assert len(poor["spectrum"]["synthetic_db"]) == SIZE // 2
    tissue = [quality["speckle"]["myocardium"] for quality in (good, poor)]
    assert tissue[1]["nakagami_m"]["synthetic"] > tissue[0]["nakagami_m"]["synthetic"]
    assert tissue[1]["axial_width_px"]["synthetic"] > 1.2 * tissue[0]["axial_width_px"]["synthetic"]
    assert tissue[1]["snr"]["distance"] > tissue[0]["snr"]["distance"]
    assert "missing" in next(r["meaning"] for r in verdicts(poor) if r["metric"].startswith("Spectrum"))


def test_other_brightness_is_far_in_features(make_synthetic, judge) -> None:
    good = judge(make_synthetic("good"))
    dark = judge(make_synthetic("dark", lambda echo, seed: like_real(echo, seed) * 0.5))
    assert dark["fid"]["value"] > 5 * good["fid"]["value"] and dark["fid"]["floor"] == good["fid"]["floor"]
    assert good["mmd"]["value"] < good["mmd"]["chance_level"] and good["mmd"]["chance_level"] > 0
    assert dark["mmd"]["value"] > 3 * max(dark["mmd"]["chance_level"], dark["mmd"]["floor"])
    assert dark["mmd"]["bandwidth"] == good["mmd"]["bandwidth"]


def test_copies_of_training_images_are_found(make_synthetic, judge) -> None:
    quality = judge(make_synthetic(draw=copy_of_real))
    for space in ("pixel", "feature"):
        found = quality["memorisation"][space]
        assert found["median_synthetic"] == 0 and found["ratio"] == 0 and found["share_nearer"] == 1
        assert found["share_nearest_is_source"] == 1
    assert quality["fid"]["value"] < quality["fid"]["floor"]


def test_light_outside_the_sector_is_found(make_synthetic, judge) -> None:
    def leaky(echo: Echo, seed: int) -> np.ndarray:
        return like_real(echo, seed) + (~echo.sector * 40.0 if seed < 40 else 0)  # 4 of 16 images

    dark = judge(make_synthetic(draw=leaky))["darkness"]
    assert dark["share_dark"] == 0.75 and dark["worst_mean_grey"] == 40 and dark["num_without_sector"] == 0
    # real images of so few pixels bleed over the sector's edge when they are reduced
    assert dark["real_share_dark"] is not None and "_v0" in dark["worst_case"]


def test_diversity_is_over_repeats_of_one_map(make_synthetic, judge) -> None:
    varied = judge(make_synthetic("varied", num_repeats=3, num_maps=8))["diversity"]
    same = judge(make_synthetic("same", lambda echo, seed: like_real(echo, seed // 10), num_repeats=3))["diversity"]
    assert varied["mean"] > 0.05 and varied["num_maps"] == 8 and varied["num_images"] == 24 and varied["note"] is None
    assert same["mean"] == pytest.approx(0, abs=1e-5) and same["real_mean"] == varied["real_mean"]


def test_diversity_does_not_depend_on_the_limit(make_synthetic, judge) -> None:
    folder = make_synthetic(num_repeats=2)
    whole, some = judge(folder), judge(folder, limit=5)
    assert some["data"]["num_synthetic"] == some["data"]["num_reference"] == 5
    assert some["diversity"]["mean"] == whole["diversity"]["mean"] and some["diversity"]["num_maps"] == 16


def test_same_seed_gives_the_same_numbers_and_another_seed_others(make_synthetic, judge) -> None:
    folder = make_synthetic()
    one = judge(folder)
    assert judge(folder, batch_size=3) == {**one, "settings": {**one["settings"], "batch_size": 3}}
    assert judge(folder, seed=5)["fid"]["value"] != one["fid"]["value"]


def test_sectors_of_drawn_label_maps_come_from_their_datalist(make_synthetic, judge, tmp_path: Path) -> None:
    """Label maps that were drawn have no image; their sector is beside them in the source's datalist."""
    source = tmp_path / "drawn"
    listed: list[dict[str, str]] = []

    def without_image(item: dict[str, Any], record: dict[str, Any]) -> None:
        number = len(listed)
        label, spacing_mm = load_echo(record["source_label"])
        sector = np.zeros(label.shape[1:], np.uint8)
        sector[:, 20:] = 1  # a half plane, that no rule would find
        listed.append({"label": f"{number}_gt.nii.gz", "sector": f"{number}_sector.nii.gz"})
        write_nifti(label[0].numpy().astype(np.uint8), spacing_mm, source / listed[-1]["label"])
        write_nifti(sector, spacing_mm, source / listed[-1]["sector"])
        record |= {"source_label": listed[-1]["label"], "source_image": None}

    folder = make_synthetic(change=without_image)
    (source / "datalist.json").write_text(json.dumps({"training": listed}))
    provenance = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**provenance, "dataset_dir": "../drawn"}))
    reader = SyntheticReader(folder, {**provenance, "dataset_dir": "drawn"}, tmp_path, SIZE)
    item = json.loads((folder / "datalist.json").read_text())["training"][3]
    echo = reader({**item, "image": str(folder / item["image"]), "label": str(folder / item["label"])})
    assert echo.is_sector_known and not echo.sector[:, :15].any() and echo.sector[10, 18:26].all()
    (folder / "provenance.json").write_text(json.dumps({**provenance, "dataset_dir": str(source)}))
    assert judge(folder)["darkness"]["share_dark"] < 1  # the other half of each image is bright


def forget_sectors(item: dict[str, Any], record: dict[str, Any]) -> None:
    """Remove what the sector of images at end-systole is known by."""
    if item["phase"] == "end_systole":
        record["source_image"] = "gone.nii.gz"


def test_inception_features_give_a_second_fid(make_synthetic, judge, tmp_path: Path) -> None:
    class Features(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[1:] == (3, 299, 299)
            assert 0 <= float(images.min()) and float(images.max()) <= 1
            return torch.nn.functional.adaptive_avg_pool2d(images[:, :1], 4)

    torch.jit.script(Features()).save(str(tmp_path / "inception.pt"))
    quality = judge(make_synthetic(), inception_path=str(tmp_path / "inception.pt"))
    # quarters' means in [0, 1] in place of 0..255: the oracle's features, but for the enlargement
    expected = quality["fid"]["value"] / 255**2
    # 16 maps of one number are pooled to one feature each
    assert quality["fid_inception"]["num_features"] == 1 and quality["fid_inception"]["value"] < expected
    assert any(row["metric"].startswith("FID, Inception") for row in verdicts(quality))


# ---- the page


def test_page_is_whole_and_asks_for_nothing(make_synthetic, judge, tmp_path: Path) -> None:
    folder = make_synthetic("a<b", num_repeats=2, change=forget_sectors)
    quality = judge(folder, with_page=True)
    page = (tmp_path / "out" / "quality.html").read_text()
    judge(folder, with_page=True)
    assert (tmp_path / "out" / "quality.html").read_text() == page
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources and all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert "url(" not in page and "@import" not in page and "http" not in re.sub(r'src="[^"]*"', "", page)
    assert "16 images without a known sector" in page
    assert "a&lt;b" in page and "a<b" not in page
    assert (quality["darkness"]["num_without_sector"], quality["darkness"]["num_images"]) == (16, 16)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 4 + 4 * 4 + 4 * 3 + 4 * 2 and all(re.search(r'alt="[^"]+"', image) for image in images)
    rows = verdicts(quality)
    for row in rows:
        assert row["metric"].replace("’", "’") in page and row["verdict"] in WORDS
    assert len(rows) >= 10 and quality["command"] in page.replace("&#39;", "'").replace("&#34;", '"')


# ---- input that does not do


def test_structures_that_one_side_lacks_are_left_out(make_synthetic, judge, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no structure in common: synthetic ones hold none"):
        judge(make_synthetic("empty", labels=np.zeros_like))
    assert not (tmp_path / "out").exists()
    quality = judge(make_synthetic(labels=lambda label_map: np.where(label_map == 3, 0, label_map)))
    assert set(quality["faithfulness"]["structures"]) == {"left_ventricular_cavity", "myocardium"}


def test_spoilt_folders_are_told(make_synthetic, judge) -> None:
    folder = make_synthetic()
    for kind in ("images", "labels"):
        write_nifti(np.ones((16, 16), np.uint8), (1.0, 1.0), sorted((folder / kind).iterdir())[-1])
    with pytest.raises(ValueError, match=r"is \(16, 16\), but the first synthetic image is a square of 32 px"):
        judge(folder)
    path = folder / "provenance.json"
    provenance = json.loads(path.read_text())
    for text, message in (
        (json.dumps({**provenance, "images": provenance["images"][1:]}), "provenance.json does not tell of it"),
        ("{", "not valid JSON"),
        (json.dumps({"images": []}), "tells of no image"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            judge(folder)


def test_folder_that_no_synthesis_made(datalist_dir: Path, judge, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"provenance.json: no such file; dataset_dir must be"):
        judge(datalist_dir)
    with pytest.raises(FileNotFoundError, match="finished synthetic data set"):
        judge(tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"real_section": "test"}, "no section is called 'test'; there are training"),
        ({"real_section": "training"}, "patient patient0001 is in both"),
        ({"limit": 1}, "at least 2 images of each set"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"dynamic_range_db": -3.0}, "dynamic_range_db is -3"),
        ({"num_bootstrap": 0}, "num_bootstrap is 0"),
    ],
)
def test_unsuitable_settings_write_nothing(make_synthetic, judge, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(make_synthetic(), **options)
    assert not (tmp_path / "out").exists()


def test_missing_inception_file_and_one_that_is_none(make_synthetic, judge, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="inception_path: there is no file"):
        judge(make_synthetic(), inception_path="none.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt is no TorchScript file"):
        judge(make_synthetic(), inception_path=str(tmp_path / "weights.pt"))


# ---- the network that judges, and the bundle


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write weights of untrained tiny segmenters whose masks are neither empty nor full."""
    folder, found = tmp_path_factory.mktemp("segmenters"), {}
    for architecture in ("cris", "clipseg"):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = create_segmenter(architecture, "tiny")
        found[architecture] = folder / f"{architecture}.pt"
        torch.save(network.state_dict(), found[architecture])
    return found


@pytest.mark.parametrize("architecture", ["cris", "clipseg"])
def test_judge_segments_as_the_bundle_does(
    architecture: str, checkpoints: Mapping[str, Path], make_synthetic, datalist_dir: Path, tmp_path: Path
) -> None:
    folder, bundle = make_synthetic(num_maps=5), f"echo_{architecture}"
    options = {"preset": "tiny", "image_size": 64, "device": "cpu"}
    paths = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "maps"), "section": "training"}
    weights = {"checkpoint_path": str(checkpoints[architecture]), "prompt_level": "P2"}
    plain = {"prompt_ensemble": None, "keep_largest": False, "fill_holes": False}
    run_bundle(bundle, "inference", {**options, **weights, **paths, **plain, "batch_size": 5})
    judge = JudgingSegmenter(bundle, **options, **weights)
    provenance = json.loads((folder / "provenance.json").read_text())
    reader = SyntheticReader(folder, provenance, datalist_dir, SIZE)
    items = json.loads((folder / "datalist.json").read_text())["training"]
    items = [{**i, "image": str(folder / i["image"]), "label": str(folder / i["label"]), "case": "c"} for i in items]
    echoes = [reader(item) for item in items]
    label_maps, features = judge(echoes)
    for item, label_map in zip(items, label_maps):
        expected = np.asarray(nib.load(tmp_path / "maps" / Path(item["image"]).name).dataobj).T
        np.testing.assert_array_equal(label_map, expected.reshape(SIZE, SIZE))
    np.testing.assert_allclose(features, judge.features(echoes), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(judge.features(echoes[:1]), features[:1], rtol=1e-3, atol=1e-5)
    assert features.shape == (5, {"cris": 256, "clipseg": 16}[architecture]) and features.std(axis=0).max() > 0


def test_features_of_the_small_preset_are_the_encoders_last_map(tmp_path: Path, datalist_dir: Path) -> None:
    reader = RealReader(SIZE)
    item = json.loads((datalist_dir / "datalist.json").read_text())["training"][0]
    item |= {key: str(datalist_dir / item[key]) for key in ("image", "label")}
    for architecture in ("cris", "clipseg"):
        path = tmp_path / f"{architecture}.pt"
        torch.save(create_segmenter(architecture, "small").state_dict(), path)
        judge = JudgingSegmenter(f"echo_{architecture}", path, preset="small", image_size=64, device="cpu")
        echo = reader({**item, "case": "c"})
        images, _, _ = judge._batch([echo])
        with torch.inference_mode():
            expected = judge.network.image_encoder.forward_features(images)[32].mean(dim=(2, 3)).numpy()
        np.testing.assert_allclose(judge.features([echo]), expected, rtol=1e-4, atol=1e-6)
        assert expected.shape == (1, 320) and "EfficientNet-lite0" in judge.feature_layer


def test_checkpoint_of_another_network(checkpoints: Mapping[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"clipseg.pt does not fit CRIS.*choose the architecture and preset"):
        JudgingSegmenter("echo_cris", checkpoints["clipseg"], preset="tiny", image_size=32, device="cpu")
    with pytest.raises(ValueError, match="unknown key"):
        JudgingSegmenter("echo_semantic_diffusion", checkpoints["cris"])


@pytest.fixture
def overrides(checkpoints: Mapping[str, Path], make_synthetic, datalist_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset_dir": str(make_synthetic()),
        "real_dir": str(datalist_dir),
        "output_dir": str(tmp_path / "out"),
        "segmenter_checkpoint": str(checkpoints["cris"]),
        "segmenter_preset": "tiny",
        "segmenter_image_size": SIZE,
        "device": "cpu",
        "limit": 6,
    }


def test_bundle_evaluates(overrides: dict[str, Any], checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    chosen = {
        "segmenter_bundle": "echo_clipseg",
        "segmenter_checkpoint": str(checkpoints["clipseg"]),
        "autocast_dtype": "bfloat16",
        "channels_last": True,
        "prompt_level": "P7",
    }
    run_bundle("echo_semantic_diffusion", "evaluate", {**overrides, **chosen})
    quality = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert quality["segmenter"]["bundle"] == "echo_clipseg" and quality["data"]["num_compared"] == 4
    assert quality["segmenter"]["prompt_level"] == "P7" and quality["fid"]["value"] > 0
    names = {"quality.json", "quality.html", "metrics.csv", "images.csv"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names


def test_plain_monai_bundle_runs_the_config(overrides: dict[str, Any], tmp_path: Path) -> None:
    assert config_files("echo_semantic_diffusion", "evaluate") == [CONFIG]  # it stands alone
    run = ConfigWorkflow(
        str(CONFIG), workflow_type="infer", logging_file=False, bundle_root=str(CONFIG.parents[1]), **overrides
    )
    run.initialize()
    run.run()
    assert (tmp_path / "out" / "quality.html").is_file()


def test_mistakes_of_a_command_are_one_line(overrides: dict[str, Any], tmp_path: Path) -> None:
    for change, kind, message in (
        ({"real_dirr": "x"}, ValueError, "did you mean real_dir"),
        ({"real_section": "tests"}, ValueError, "no section is called 'tests'"),
        ({"segmenter_checkpoint": "none.pt"}, FileNotFoundError, "none.pt"),
        ({"segmenter_preset": "small"}, ValueError, "does not fit CRIS"),
        ({"real_dir": str(tmp_path)}, FileNotFoundError, "datalist.json"),
    ):
        with pytest.raises(kind, match=message):
            run_bundle("echo_semantic_diffusion", "evaluate", {**overrides, **change})
    assert not (tmp_path / "out").exists()

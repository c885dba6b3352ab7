"""Test features of frozen encoders on disk: contents, reasons to remake them, kills, several processes, refused input."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose
from torch import Tensor, nn

from synboost_monai.data import read_datalist
from synboost_monai.networks import create_segmenter
from synboost_monai.processes import lock
from synboost_monai.training import feature_cache, frozen_features
from synboost_monai.training.feature_cache import CachedFeatures, FeatureOptions, cache_features, read_features
from synboost_monai.training.frozen_features import check_frozen, describe, file_hash
from synboost_monai.transforms import Letterboxd, LoadEchod, NormaliseEchod, RandUltrasoundd
from tests.forked import Forked
from tests.training import launch_feature_cache

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
"""Pixels: side of the network's square."""


class TinySegmenter(nn.Module):
    """Provide what a feature cache needs of a segmenter, and count the images that were encoded."""

    def __init__(self, freeze_encoders: bool = True, channels: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, channels, 4, stride=4), nn.BatchNorm2d(channels))
        self.text = nn.Linear(2, 2)
        self.head = nn.Linear(channels, 1)
        self.encoder.requires_grad_(not freeze_encoders)
        self.freeze_encoders = freeze_encoders
        self.num_encoded = 0
        self.seen: list[tuple[bool, bool]] = []

    @property
    def encoders(self) -> list[nn.Module]:
        return [self.encoder, self.text]

    def text_encoder_parameters(self) -> list[Tensor]:
        return list(self.text.parameters())

    def train(self, mode: bool = True) -> TinySegmenter:
        super().train(mode)
        if self.freeze_encoders:
            self.encoder.eval()
        return self

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        self.num_encoded += len(image)
        self.seen.append((self.training, torch.is_grad_enabled()))
        h = self.encoder(image)
        return h, h.mean(dim=(2, 3))


def image_transform(size: int = SIZE, is_enabled: bool = True, **limits: Any) -> Compose:
    transforms = [
        LoadEchod(["image", "label"]),
        Letterboxd("image", size),
        RandUltrasoundd(is_enabled=is_enabled, **limits),
    ]
    return Compose([*transforms, NormaliseEchod("image", (0.5, 0.4, 0.4), (0.25, 0.25, 0.25))])


@pytest.fixture
def data(datalist_dir: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Write four items whose files may be changed."""
    items = read_datalist(datalist_dir, "training", limit=4)
    for number, item in enumerate(items):
        for key in ("image", "label"):
            item[key] = shutil.copy(item[key], tmp_path / f"{number}_{key}.nii.gz")
    return items


@pytest.fixture
def network() -> TinySegmenter:
    torch.manual_seed(0)
    network = TinySegmenter()
    network.encoder[1].running_mean.normal_()
    return network.train()


@pytest.fixture
def cache(data: list[dict[str, Any]], network: TinySegmenter, tmp_path: Path) -> Callable[..., CachedFeatures]:
    """Call `cache_features` on the fixtures with three copies in float32; arguments replace these."""

    def run(**changes: Any) -> CachedFeatures:
        arguments = {
            "data": data,
            "image_transform": image_transform(),
            "network": network,
            "folder": tmp_path / "cache",
        }
        arguments |= {name: changes.pop(name) for name in arguments if name in changes}
        options = FeatureOptions(**{"num_copies": 3, "feature_dtype": "float32", **changes})
        return cache_features(**arguments, options=options)

    return run


def counts(cached: CachedFeatures) -> tuple[int, int]:
    return cached.num_reused, cached.num_computed


def num_bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def all_rows(cached: CachedFeatures) -> list[Tensor]:
    """Return everything that is kept: a tensor for each feature and one for label maps, ordered by item and copy."""
    rows = [read_features(path) for of_item in cached.paths for path in of_item]
    return [torch.stack(parts) for parts in zip(*((*features, label) for features, label in rows))]


# ---- what is kept


def test_features_are_what_the_network_gives_in_any_order_and_batch(
    cache: Callable[..., CachedFeatures], data: list[dict[str, Any]], network: TinySegmenter, tmp_path: Path
) -> None:
    cached = cache(batch_size=5)
    one_by_one = cache(batch_size=1, data=data[::-1], folder=tmp_path / "other")
    one_by_one.paths.reverse()
    assert counts(cached) == counts(one_by_one) == (0, 12)
    for together, alone in zip(all_rows(cached), all_rows(one_by_one)):
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    item = image_transform(is_enabled=False)(data[1])
    features, label_map = read_features(cached.paths[1][0])
    assert torch.equal(label_map, item["label"].to(torch.uint8)) and label_map.unique().tolist() == [0, 1, 2, 3]
    for kept, now in zip(features, network.eval().encode_image(item["image"][None])):
        torch.testing.assert_close(kept, now[0], rtol=1e-6, atol=1e-6)


def test_network_is_asked_without_gradients_in_evaluation_mode_and_left_as_it_was(
    cache: Callable[..., CachedFeatures], network: TinySegmenter
) -> None:
    network.text.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    cache()
    assert set(network.seen) == {(False, False)}
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert modes[""] and not modes["encoder"] and not modes["text"]


def test_copies_differ_but_the_first_and_label_maps_are_warped_alike(cache: Callable[..., CachedFeatures]) -> None:
    fine, _, label_maps = (rows.unflatten(0, (4, 3)) for rows in all_rows(cache()))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert float((fine[:, first] - fine[:, second]).abs().amax(dim=(1, 2, 3)).min()) > 0.1
        assert bool((label_maps[:, first] != label_maps[:, second]).flatten(1).any(dim=1).all())


def test_copies_without_anything_random_are_one(cache: Callable[..., CachedFeatures]) -> None:
    cached = cache(image_transform=image_transform(is_enabled=False))
    assert [len(paths) for paths in cached.paths] == [1] * 4


def test_image_that_is_listed_twice_has_one_set_of_files(
    cache: Callable[..., CachedFeatures], data: list[dict[str, Any]]
) -> None:
    cached = cache(data=[data[0], data[1], {**data[0], "age": 3}])
    assert counts(cached) == (0, 6)
    assert cached.paths[0] == cached.paths[2] != cached.paths[1]


@pytest.mark.parametrize(("feature_dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_types_of_half_the_size_round_and_no_more(
    cache: Callable[..., CachedFeatures], tmp_path: Path, feature_dtype: str, tolerance: float
) -> None:
    exact = all_rows(cache())
    rounded = all_rows(cache(folder=tmp_path / "half", feature_dtype=feature_dtype))
    saved = num_bytes_of(tmp_path / "cache") - num_bytes_of(tmp_path / "half")
    num_values = sum(tensor.numel() for tensor in exact[:2])
    assert 2 * num_values - 12 * 64 <= saved <= 2 * num_values + 12 * 64  # but for the words of the headers
    for index in (0, 1):
        assert rounded[index].dtype == getattr(torch, feature_dtype)
        torch.testing.assert_close(rounded[index].float(), exact[index], rtol=tolerance, atol=1e-6)
    assert torch.equal(rounded[2], exact[2])


@pytest.mark.usefixtures("computes_in_16_bits")
def test_mixed_precision_encodes_in_it(cache: Callable[..., CachedFeatures], tmp_path: Path) -> None:
    exact, mixed = all_rows(cache()), all_rows(cache(folder=tmp_path / "mixed", autocast_dtype="bfloat16"))
    difference = float((exact[0] - mixed[0]).abs().max() / exact[0].abs().max())
    assert 1e-4 < difference < 2e-2


@pytest.mark.parametrize("architecture", ["cris", "clipseg"])
def test_decoder_gives_the_same_from_kept_features(
    cache: Callable[..., CachedFeatures], data: list[dict[str, Any]], architecture: str
) -> None:
    network = create_segmenter(architecture, "tiny", freeze_encoders=True)
    cached = cache(network=network)
    network.eval()
    features = [torch.stack(parts) for parts in zip(*(read_features(paths[0])[0] for paths in cached.paths))]
    images = torch.stack([image_transform(is_enabled=False)(item)["image"] for item in data])
    input_ids = network.default_input_ids.expand(4, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(network(features, input_ids), network(images, input_ids), rtol=1e-4, atol=1e-5)


# ---- what is computed again


def test_nothing_is_computed_twice(cache: Callable[..., CachedFeatures], network: TinySegmenter) -> None:
    first = all_rows(cache())
    assert network.num_encoded == 12 + 1  # one to see the shapes
    again = cache()
    assert counts(again) == (12, 0) and network.num_encoded == 12 + 2
    assert all(torch.equal(a, b) for a, b in zip(first, all_rows(again)))


def test_changed_image_is_noticed_and_its_files_alone_are_computed(
    cache: Callable[..., CachedFeatures], data: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    before = all_rows(cache())
    shutil.copy(data[0]["image"], data[2]["image"])
    with caplog.at_level(logging.INFO):
        after = cache()
    assert counts(after) == (9, 3)
    assert "12 files of image features (4 items, 3 copies)" in caplog.text
    assert "9 reused, 3 to compute\n" in caplog.text
    is_same = [
        torch.equal(a, b) for a, b in zip(before[0].unflatten(0, (4, 3)), all_rows(after)[0].unflatten(0, (4, 3)))
    ]
    assert is_same == [True, True, False, True]


def test_changed_label_map_is_noticed(cache: Callable[..., CachedFeatures], data: list[dict[str, Any]]) -> None:
    cache()
    shutil.copy(data[0]["label"], data[1]["label"])
    cached = cache()
    assert counts(cached) == (9, 3)
    maps = all_rows(cached)[2].unflatten(0, (4, 3))
    assert torch.equal(maps[0, 0], maps[1, 0])


def test_pixels_beside_a_header_are_part_of_an_image(make_first_camus: Callable[..., Path]) -> None:
    header = next(make_first_camus(num_training=1, num_testing=0).rglob("*4CH_ED.mhd"))
    before = file_hash(header)
    assert file_hash(header) == before
    pixels = header.with_suffix(".raw")
    content = bytearray(pixels.read_bytes())
    content[len(content) // 2] ^= 1
    pixels.write_bytes(content)
    assert file_hash(header) != before


def weights_changed(network: TinySegmenter) -> dict[str, Any]:
    with torch.no_grad():
        network.encoder[0].weight[0, 0, 0, 0] += 1
    return {}


def statistics_changed(network: TinySegmenter) -> dict[str, Any]:
    network.encoder[1].running_mean += 1
    return {}


@pytest.mark.parametrize(
    ("change", "expected", "word"),
    [
        (weights_changed, (0, 12), "encoder changed"),
        (statistics_changed, (0, 12), "encoder changed"),
        (lambda network: {"image_transform": image_transform(64)}, (0, 12), "preprocessing, shapes changed"),
        (lambda network: {"image_transform": image_transform(noise=0.1)}, (4, 8), "preprocessing changed"),
        (lambda network: {"seed": 1}, (4, 8), "seed changed"),
        (lambda network: {"feature_dtype": "bfloat16"}, (0, 12), "feature_dtype changed"),
        (lambda network: {"autocast_dtype": "bfloat16"}, (0, 12), "autocast_dtype changed"),
        (lambda network: {"num_copies": 5}, (12, 8), "8 to compute\n"),
        (lambda network: {"num_copies": 2}, (8, 0), "0 to compute\n"),
    ],
)
def test_changed_setting_is_noticed(
    cache: Callable[..., CachedFeatures],
    network: TinySegmenter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[TinySegmenter], dict[str, Any]],
    expected: tuple[int, int],
    word: str,
) -> None:
    """Copy 0 is not augmented: a seed or a limit of the augmentation does not affect it."""
    cache()
    changes = change(network)
    with caplog.at_level(logging.INFO):
        changed = cache(**changes)
    assert counts(changed) == expected
    assert word in caplog.text
    fresh = all_rows(cache(**changes, folder=tmp_path / "fresh"))
    for kept, new in zip(all_rows(changed), fresh):
        torch.testing.assert_close(kept, new, rtol=1e-6, atol=1e-6)


def test_another_version_of_the_package_computes_anew(
    cache: Callable[..., CachedFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache()
    monkeypatch.setattr(frozen_features, "__version__", "99.0")
    assert counts(cache()) == (0, 12)


def test_what_depends_on_no_image_changes_nothing(
    cache: Callable[..., CachedFeatures], data: list[dict[str, Any]], network: TinySegmenter
) -> None:
    cache()
    with torch.no_grad():
        network.text.weight += 1
        network.head.weight += 1
    assert counts(cache(data=[{**item, "age": 99} for item in data[::-1]])) == (12, 0)


def test_files_of_other_items_and_settings_stay(
    cache: Callable[..., CachedFeatures], data: list[dict[str, Any]]
) -> None:
    first = cache(data=data[:3])
    expected = all_rows(first)
    assert counts(cache(data=data[3:])) == (0, 3)
    assert counts(cache(data=data[:3], seed=1)) == (3, 6)
    assert all(torch.equal(a, b) for a, b in zip(expected, all_rows(first)))  # also for who reads them meanwhile
    assert counts(cache(data=data)) == (12, 0)


def test_deleted_or_cut_file_is_computed_again(cache: Callable[..., CachedFeatures]) -> None:
    cached = cache()
    expected = all_rows(cached)
    cached.paths[0][1].unlink()
    os.truncate(cached.paths[2][0], 100)
    again = cache()
    assert counts(again) == (10, 2)
    assert all(torch.equal(a, b) for a, b in zip(expected, all_rows(again)))


def test_file_is_data_and_a_damaged_one_is_an_error_that_names_it(cache: Callable[..., CachedFeatures]) -> None:
    path = cache().paths[1][2]
    num_bytes = path.stat().st_size
    for content in (bytes(num_bytes), b"\x80\x04cposix\nsystem\n".ljust(num_bytes, b"."), None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name}: expected a file of image features.*delete it"):
            read_features(path)


def test_link_in_place_of_a_file_is_replaced_and_not_followed(
    cache: Callable[..., CachedFeatures], tmp_path: Path
) -> None:
    path = cache().paths[0][0]
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    path.unlink()
    path.symlink_to(precious)
    assert counts(cache()) == (11, 1)
    assert precious.read_bytes() == b"precious" and not path.is_symlink()


def test_description_is_of_settings_alone() -> None:
    first, second = image_transform(), image_transform()
    second.set_random_state(7)
    assert describe(first.transforms) == describe(second.transforms)
    assert json.loads(json.dumps(describe(first.transforms))) == describe(first.transforms)
    for other in (image_transform(64), image_transform(haze=0.1), image_transform(gain=(0.7, 1.2))):
        assert describe(other.transforms) != describe(first.transforms)
    assert describe(NormaliseEchod("image", [0, 0, 0], [1, 1, 1])) != describe(
        NormaliseEchod("image", [0, 0, 0], [1, 1, 2])
    )


# ---- interruptions and several processes


def test_error_in_the_middle_keeps_what_is_complete(
    cache: Callable[..., CachedFeatures], network: TinySegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = network.encode_image

    def fails(image: Tensor) -> tuple[Tensor, ...]:
        if network.num_encoded >= 1 + 8:
            raise KeyboardInterrupt
        return encode(image)

    monkeypatch.setattr(network, "encode_image", fails)
    with pytest.raises(KeyboardInterrupt):
        cache(batch_size=4)
    monkeypatch.undo()
    assert counts(cache()) == (8, 4)


def test_folder_is_held_while_it_is_filled_and_given_back(
    cache: Callable[..., CachedFeatures], network: TinySegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, is_free = network.encode_image, []

    def is_locked_by_nobody() -> bool:
        descriptor = os.open(tmp_path / "cache/.lock", os.O_RDWR | os.O_CREAT)
        try:
            return lock(descriptor, tmp_path)
        finally:
            os.close(descriptor)

    def watched(image: Tensor) -> tuple[Tensor, ...]:
        if network.num_encoded:  # after the image that shows the shapes
            is_free.append(is_locked_by_nobody())
        return encode(image)

    monkeypatch.setattr(network, "encode_image", watched)
    cache()
    assert is_free == [False, False] and is_locked_by_nobody()


@pytest.fixture(scope="module")
def launched(datalist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of launch_feature_cache.py."""
    out_dir = tmp_path_factory.mktemp("launched")
    Forked(launch_feature_cache.main, datalist_dir, out_dir).done()
    return out_dir


def result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def test_killed_process_costs_the_batch_it_was_at(launched: Path) -> None:
    assert not (launched / "killed.json").exists()
    again, alone = result(launched, "again"), result(launched, "alone")
    assert (again["num_reused"], again["num_computed"]) == (6, 4)
    assert again["encoded"] == 1 + 4 and alone["encoded"] == 1 + 10
    assert again["sum"] == pytest.approx(alone["sum"], rel=1e-7)
    assert sorted(p.name for p in (launched / "one").iterdir()) == sorted(
        p.name for p in (launched / "alone").iterdir()
    )


def test_two_processes_share_the_work_and_see_all_files(launched: Path) -> None:
    alone, ranks = result(launched, "alone"), [result(launched, f"shared_{rank}") for rank in range(2)]
    assert [rank["encoded"] for rank in ranks] == [1 + 5, 1 + 5]
    for rank in ranks:
        assert (rank["num_reused"], rank["num_computed"]) == (0, 10)
        assert rank["sum"] == pytest.approx(alone["sum"], rel=1e-7)


def test_error_of_one_process_is_an_error_of_all(launched: Path) -> None:
    for rank in range(2):
        assert (
            "image encoder's weights of rank 1 are not those of rank 0"
            in result(launched, f"other_weights_{rank}")["error"]
        )
        assert result(launched, f"foreign_{rank}")["error"].startswith("ValueError")
        assert "holds 'thesis.txt' and no index.json" in result(launched, f"foreign_{rank}")["error"]


# ---- what is refused


def test_trained_image_encoder_is_an_error(cache: Callable[..., CachedFeatures], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"it is trained \(0\.0\.weight\); set freeze_encoders to true, or feature_cache_dir"
    ):
        cache(network=TinySegmenter(freeze_encoders=False))
    assert not (tmp_path / "cache").exists()
    for architecture in ("cris", "clipseg"):
        with pytest.raises(ValueError, match="set freeze_encoders to true"):
            check_frozen(create_segmenter(architecture, "tiny"))
        check_frozen(create_segmenter(architecture, "tiny", freeze_encoders=True))


def test_batch_norms_that_learn_statistics_are_an_error() -> None:
    network = TinySegmenter(freeze_encoders=False)
    network.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="its batch norms are in training mode; set freeze_encoders to true"):
        check_frozen(network)


def test_lora_on_the_image_encoder_is_an_error_and_on_the_text_encoder_is_none() -> None:
    pytest.importorskip("peft")
    from synboost_monai.networks.lora import add_lora

    network = add_lora(create_segmenter("clipseg", "tiny"), rank=2)
    with pytest.raises(
        ValueError, match=r"LoRA trains its adapters \(.*lora_A.*\); set lora_rank to 0, or feature_cache_dir"
    ):
        check_frozen(network)
    check_frozen(add_lora(create_segmenter("cris", "small"), rank=2))  # EfficientNet has no attention


def test_network_without_image_encoder_is_an_error(cache: Callable[..., CachedFeatures]) -> None:
    with pytest.raises(ValueError, match="Linear has no image encoder of its own"):
        cache(network=nn.Linear(1, 1))


def test_folder_of_other_things_is_an_error(cache: Callable[..., CachedFeatures], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.pt").write_text("x")
    with pytest.raises(ValueError, match="expected a new folder or one of image features, but it holds 'model.pt'"):
        cache()
    assert os.listdir(tmp_path / "cache") == ["model.pt"]
    with pytest.raises(ValueError, match="expected a folder for image features, got a file"):
        cache(folder=tmp_path / "cache" / "model.pt")


@pytest.mark.parametrize("content", ["[]", '{"format": "synboost_monai image features, 1"}', "{", '{"images": 3}'])
def test_index_of_another_kind_is_an_error(cache: Callable[..., CachedFeatures], tmp_path: Path, content: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "index.json").write_text(content)
    with pytest.raises(ValueError, match="not an index of image features as this version writes it"):
        cache()
    assert (tmp_path / "cache" / "index.json").read_text() == content


def test_too_little_space_is_an_error_before_anything_is_written(
    cache: Callable[..., CachedFeatures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(
        ValueError,
        match=r"need 21\.\dkB more \(12 files of 1\.\d+kB\), but only 10\.0kB are free; set num_feature_copies",
    ):
        cache()
    assert os.listdir(tmp_path / "cache") == [".lock"]


def test_full_disk_is_an_error_that_keeps_complete_files(
    cache: Callable[..., CachedFeatures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, num_calls = Path.write_bytes, 0

    def fails(path: Path, content: bytes) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 2:
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(ValueError, match="the disk is full"):
        cache(batch_size=1)
    monkeypatch.undo()
    assert len(list((tmp_path / "cache").iterdir())) == 2 + 2  # beside the index and the lock
    assert counts(cache()) == (2, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_copies": 0}, "num_feature_copies and batch_size of at least 1, got 4, 0 and 8"),
        ({"batch_size": 0}, "got 4, 3 and 0"),
        ({"data": []}, "expected items"),
        ({"feature_dtype": "int8"}, "feature_dtype must be float32, bfloat16, float16, got 'int8'"),
        ({"autocast_dtype": "float32"}, "autocast_dtype must be bfloat16, float16 or null, got 'float32'"),
        (
            {"image_transform": Compose([LoadEchod(["image", "label"])])},
            r"expected an image \(3, N, N\) and a label map",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(
    cache: Callable[..., CachedFeatures], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cache(**changes)


def test_item_without_label_map_is_an_error(cache: Callable[..., CachedFeatures], data: list[dict[str, Any]]) -> None:
    del data[2]["label"]
    with pytest.raises(ValueError, match="an item of the datalist has no label"):
        cache()


def test_feature_too_large_for_its_type_is_an_error(
    cache: Callable[..., CachedFeatures], network: TinySegmenter
) -> None:
    network.encoder[1].running_mean += 1e6
    with pytest.raises(ValueError, match="too large for float16"):
        cache(feature_dtype="float16")

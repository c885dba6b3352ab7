"""Test weights from files: each published wrapping loads, and weights that do not fit are reported and change nothing."""

import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synboost_monai.networks import (
    create_segmenter,
    create_semantic_diffusion_unet,
    load_published,
    load_weights,
    parameter_groups,
)
from synboost_monai.networks.published import kind_of_weights


def tiny(architecture: str, seed: int = 0, **overrides) -> nn.Module:
    torch.manual_seed(seed)
    return create_segmenter(architecture, "tiny", **overrides)


def is_equal(network: nn.Module, state_dict: dict[str, Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state_dict.keys() and all(torch.equal(own[key], state_dict[key]) for key in own)


class Holder(nn.Module):
    """Build a module whose state dict is that of CLIP's archive: the backbone, without what CRIS adds, with CLIP's three settings."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.visual, self.transformer = backbone.visual, backbone.transformer
        self.token_embedding, self.ln_final = backbone.token_embedding, backbone.ln_final
        self.positional_embedding = backbone.positional_embedding
        self.text_projection, self.logit_scale = backbone.text_projection, backbone.logit_scale
        self.visual.attnpool.connect = nn.Identity()
        for name, value in {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.logit_scale


def test_cris_checkpoint_of_data_parallel_training(tmp_path: Path) -> None:
    source, network = tiny("cris"), tiny("cris", 1)
    state_dict = {f"module.{key}": value for key, value in source.state_dict().items()}
    checkpoint = {"epoch": 50, "best_iou": np.float64(0.7), "state_dict": collections.OrderedDict(state_dict)}
    torch.save(checkpoint, tmp_path / "best_model.pth")
    assert not is_equal(network, source.state_dict())
    assert load_published(network, tmp_path / "best_model.pth") is network
    assert is_equal(network, source.state_dict())


def test_clip_archive_fills_the_backbone_but_for_what_cris_adds(tmp_path: Path) -> None:
    source, network = tiny("cris"), tiny("cris", 1)
    expected = {key: value.clone() for key, value in source.backbone.state_dict().items()}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.jit.trace(Holder(source.backbone), torch.zeros(1)).save(str(tmp_path / "RN50.pt"))
    load_published(network, tmp_path / "RN50.pt")
    for key, value in network.state_dict().items():
        is_own = not key.startswith("backbone.") or ".connect." in key
        assert torch.equal(value, before[key] if is_own else expected[key.removeprefix("backbone.")]), key


def test_clip_archive_of_another_size_is_an_error(tmp_path: Path) -> None:
    source = tiny("cris")
    torch.jit.trace(Holder(source.backbone), torch.zeros(1)).save(str(tmp_path / "RN50.pt"))
    with pytest.raises(ValueError, match="keys have another shape"):
        load_published(tiny("cris", vision_width=16), tmp_path / "RN50.pt")


def test_longest_prompt_is_the_checkpoints_choice(tmp_path: Path) -> None:
    source, network = tiny("cris", context_length=17), tiny("cris", 1)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "best_model.pth")
    load_published(network, tmp_path / "best_model.pth")
    assert is_equal(network, source.state_dict())
    with pytest.raises(ValueError, match="has 77 tokens .*but the network takes 17"):
        network.eval()(torch.zeros(1, 3, 32, 32), torch.ones(1, 1, 77, dtype=torch.int64))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("names_folder", [True, False])
def test_clipseg_as_transformers_stores_it(tmp_path: Path, name: str, names_folder: bool) -> None:
    from safetensors.torch import save_file

    source, network = tiny("clipseg"), tiny("clipseg", 1)
    old_buffer = {"clip.text_model.embeddings.position_ids": torch.arange(77)[None]}  # stored by transformers < 4.31
    state_dict = {**{key: value.clone() for key, value in source.state_dict().items()}, **old_buffer}
    save = save_file if name.endswith("safetensors") else torch.save
    save(state_dict, tmp_path / name)
    load_published(network, tmp_path if names_folder else tmp_path / name)
    assert is_equal(network, source.state_dict())


def test_clipseg_checkpoint_of_the_papers_training(tmp_path: Path) -> None:
    source, network = tiny("clipseg"), tiny("clipseg", 1)
    torch.save({"state_dict": {f"net.clipseg.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "last.ckpt")
    load_published(network, tmp_path / "last.ckpt")
    assert is_equal(network, source.state_dict())


def test_semantic_diffusion_state_dict(tmp_path: Path) -> None:
    from synboost_monai.networks import create_semantic_diffusion_unet

    torch.manual_seed(0)
    source, network = create_semantic_diffusion_unet("tiny"), create_semantic_diffusion_unet("tiny")
    torch.save(source.state_dict(), tmp_path / "ema_0.9999_050000.pt")
    load_published(network, tmp_path / "ema_0.9999_050000.pt")
    assert is_equal(network, source.state_dict())


def test_published_weights_start_a_network_with_classes(tmp_path: Path) -> None:
    published = create_semantic_diffusion_unet("tiny")
    torch.save(published.state_dict(), tmp_path / "ema_0.9999_050000.pt")
    network = load_published(
        create_semantic_diffusion_unet("tiny", num_class_embeds=5), tmp_path / "ema_0.9999_050000.pt"
    )
    assert not network.class_embedding.weight.any()
    for key, value in published.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    with pytest.raises(ValueError, match="class_embedding.weight"):  # but an image is not asked of it unnoticed
        load_weights(create_semantic_diffusion_unet("tiny", num_class_embeds=5), tmp_path / "ema_0.9999_050000.pt")
    assert load_published(network, None) is network


NETWORKS = {
    "CLIPSeg": lambda: tiny("clipseg"),
    "CRIS": lambda: tiny("cris"),
    "SemanticDiffusionUNet": lambda: create_semantic_diffusion_unet("tiny", num_class_embeds=5),
}


@pytest.mark.parametrize("load", [load_published, load_weights])
@pytest.mark.parametrize("wrong", NETWORKS)
@pytest.mark.parametrize("right", NETWORKS)
def test_checkpoint_of_the_other_model_is_said_plainly(tmp_path: Path, load, wrong: str, right: str) -> None:
    weights = NETWORKS[right]()
    torch.save(weights.state_dict(), tmp_path / "model.pt")
    network = NETWORKS[wrong]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    if wrong == right:
        assert is_equal(load(network, tmp_path / "model.pt"), weights.state_dict())
        return
    title = {"SemanticDiffusionUNet": "the semantic diffusion UNet"}.get(right, right)
    bundle = {"CLIPSeg": "echo_clipseg", "CRIS": "echo_cris"}.get(right, "echo_semantic_diffusion")
    message = (
        f"model.pt does not fit {wrong}: these are the weights of {title}, not of {wrong}; they belong to the bundle {bundle}; "
        "choose the architecture and preset"
    )
    with pytest.raises(ValueError, match=message) as error:
        load(network, tmp_path / "model.pt")
    assert "\n" not in str(error.value) and is_equal(network, before)


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("architecture", ["clipseg", "cris"])
def test_kind_of_weights_is_known_by_its_names(architecture: str, preset: str) -> None:
    with torch.device("meta"):
        network = create_segmenter(architecture, preset)
    kind = kind_of_weights(network.state_dict())
    assert kind is not None and kind.architecture == architecture and kind.class_name == type(network).__name__


def test_clip_alone_is_no_segmenter(tmp_path: Path) -> None:
    torch.jit.trace(Holder(tiny("cris").backbone), torch.zeros(1)).save(str(tmp_path / "RN50.pt"))
    with pytest.raises(ValueError, match="these are the weights of CLIP RN50 alone.*, not of CLIPSeg; they only start"):
        load_published(tiny("clipseg"), tmp_path / "RN50.pt")
    with pytest.raises(ValueError, match="not of CRIS; they only start the training of a CRIS .*init_checkpoint"):
        load_weights(tiny("cris"), tmp_path / "RN50.pt")  # a model to run needs all of itself


def test_checkpoint_that_does_not_fit_leaves_the_longest_prompt_alone(tmp_path: Path) -> None:
    state_dict = tiny("cris", context_length=17).state_dict()
    del state_dict["proj.txt.bias"]
    torch.save(state_dict, tmp_path / "model.pt")
    network = tiny("cris")
    for load in (load_published, load_weights):
        with pytest.raises(ValueError, match=r"1 of \d+ keys are missing \(first 'proj.txt.bias'\)"):
            load(network, tmp_path / "model.pt")
    assert network.backbone.positional_embedding.shape == (77, 16)


def test_longest_prompt_of_our_own_weights_is_theirs_too(tmp_path: Path) -> None:
    source, network = tiny("cris", context_length=17), tiny("cris", 1, freeze_encoders=True)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    assert is_equal(load_weights(network, tmp_path / "model.pt"), source.state_dict())
    assert not network.backbone.positional_embedding.requires_grad


def test_checkpoint_of_another_size_names_the_shapes(tmp_path: Path) -> None:
    torch.save(tiny("cris", vision_width=16).state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"'backbone.visual.conv1.weight' is \(8, 3, 3, 3\), the network has \(4, 3, 3, 3\)"
    ):
        load_weights(tiny("cris"), tmp_path / "model.pt")


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    network = tiny("clipseg")
    with pytest.raises(FileNotFoundError, match="there is no file .*nothing.pt"):
        load_weights(network, tmp_path / "nothing.pt")
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor pytorch_model.bin"):
        load_published(network, tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_file_that_is_no_checkpoint_gives_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GIF89a, not weights at all")
    with pytest.raises(ValueError, match=f"cannot read .*{name} as a checkpoint") as error:
        load_weights(tiny("clipseg"), tmp_path / name)
    assert "\n" not in str(error.value)
    (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=r"safetensors\): \D{5}"):  # words, not the number of a byte
        load_weights(tiny("clipseg"), tmp_path / name)


class Payload:
    """Represent code that a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "model.pt", pickle_module=pickle)
    with pytest.raises(ValueError, match="as a checkpoint of tensors"):
        load_published(tiny("clipseg"), tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_weights(tiny("clipseg"), tmp_path / "model.pt")


def test_unknown_architecture_preset_and_weights() -> None:
    with pytest.raises(ValueError, match="architecture must be 'cris' or 'clipseg', got 'unet'"):
        create_segmenter("unet")
    with pytest.raises(ValueError, match="preset must be one of published, small, tiny, got 'large'"):
        create_segmenter("cris", "large")
    with pytest.raises(
        ValueError, match="image_encoder_weights is 'imagenet'; only 'imagenet' exists, for networks with"
    ):
        create_segmenter("cris", "tiny", image_encoder_weights="imagenet")


def test_encoders_learn_slower_and_norms_do_not_decay() -> None:
    network = tiny("cris")
    groups = parameter_groups(network, 2e-3, encoder_learning_rate_scale=0.1, weight_decay=1e-2)
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert settings.keys() == {id(p) for p in network.parameters() if p.requires_grad}
    assert settings[id(network.backbone.visual.conv1.weight)] == (2e-4, 1e-2)
    assert settings[id(network.backbone.visual.bn1.weight)] == (2e-4, 0.0)
    assert settings[id(network.backbone.token_embedding.weight)] == (2e-4, 0.0)
    assert settings[id(network.backbone.positional_embedding)] == (2e-4, 0.0)
    assert settings[id(network.proj.txt.weight)] == (2e-3, 1e-2)
    assert settings[id(network.proj.txt.bias)] == (2e-3, 0.0)
    torch.optim.AdamW(groups)


def test_frozen_parameters_are_in_no_group() -> None:
    groups = parameter_groups(tiny("clipseg", freeze_encoders=True), 1e-3)
    assert {group["lr"] for group in groups} == {1e-3}

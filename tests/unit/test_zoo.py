import pytest
import timm
import torch
from safetensors import safe_open

from spurbench import zoo
from spurbench.datasets.minibirds import pretext_split

CHANNELS, STRIDES = [16, 32, 64, 128], [2, 4, 8, 8]


SHIPPED = pytest.mark.parametrize("name", ["minibirds_resnet", "minibirds_vit"])


@pytest.fixture(scope="module")
def images():
    data = pretext_split("held_out", 300)
    stacked = torch.stack([data[i].image for i in range(len(data))]).float() / 255
    config = zoo.default_cfgs["minibirds_resnet"].default
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (stacked - mean) / std, data.y


def test_feature_maps():
    net = timm.create_model("minibirds_resnet", features_only=True)
    assert net.feature_info.channels() == CHANNELS
    assert net.feature_info.reduction() == STRIDES
    maps = net(torch.zeros(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 // s, 64 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]


def test_chosen_feature_maps():
    net = timm.create_model("minibirds_resnet", features_only=True, out_indices=(1, 3))
    assert net.feature_info.channels() == [32, 128]
    assert [m.shape[1] for m in net(torch.zeros(1, 3, 64, 64))] == [32, 128]


def test_last_feature_map_is_forward_features(images):
    inputs = images[0][:8]
    whole = timm.create_model("minibirds_resnet", pretrained=True).eval()
    maps = timm.create_model("minibirds_resnet", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        features = whole.forward_features(inputs)
        assert torch.equal(maps(inputs)[-1], features)
        for intermediate, found in zip(
            whole.forward_intermediates(inputs, intermediates_only=True), maps(inputs), strict=True
        ):
            assert torch.equal(intermediate, found)
        pooled = whole.forward_head(features, pre_logits=True)
        assert torch.allclose(pooled, features.mean((2, 3)))
        assert torch.equal(whole.get_classifier()(pooled), whole(inputs))


@SHIPPED
def test_classifier_can_be_replaced(name):
    net = timm.create_model(name, pretrained=True, num_classes=2)
    assert net.get_classifier().out_features == 2
    net.reset_classifier(5)
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@SHIPPED
def test_weights_are_the_shipped_file(name):
    assert zoo.WEIGHTS[name].stat().st_size <= 6 * 2**20
    net = timm.create_model(name, pretrained=True)
    with safe_open(zoo.WEIGHTS[name], "pt") as file:
        assert set(file.keys()) == set(net.state_dict())
        assert all(torch.equal(file.get_tensor(name), value) for name, value in net.state_dict().items())
        assert {"script_version", "dataset_version", "held_out_accuracy", "seed"} <= set(file.metadata())
        assert file.metadata()["model"] == name
    assert not any(net.pretrained_cfg.get(source) for source in ("url", "hf_hub_id"))


def test_vit_gives_the_ends_of_its_quarters():
    net = timm.create_model("minibirds_vit", pretrained=True, features_only=True).eval()
    whole = timm.create_model("minibirds_vit", pretrained=True).eval()
    assert net.feature_info.channels() == [128] * 4
    assert net.feature_info.reduction() == [8] * 4
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        blocks = whole.forward_intermediates(inputs, intermediates_only=True)
        assert all(map(torch.equal, net(inputs), blocks[1::2]))


def test_position_embeddings_adapt_to_another_size():
    net = timm.create_model("minibirds_vit", pretrained=True, img_size=96)
    assert net(torch.zeros(1, 3, 96, 96)).shape == (1, 24)


@SHIPPED
def test_backbone_knows_the_species(images, name):
    inputs, species = images
    net = timm.create_model(name, pretrained=True).eval()
    with torch.no_grad():
        hits = net(inputs).argmax(1) == species
    assert hits.double().mean() >= 0.95

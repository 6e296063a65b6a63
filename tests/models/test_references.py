"""The references: counts of the published network, centres against scikit-learn, and a federation of them."""

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet18
from sklearn.neighbors import NearestCentroid

from fedbrain.errors import StudyError
from fedbrain.models.classifier import EncoderSource, build_classifier
from fedbrain.models.operations import cost_of
from fedbrain.models.references import NearestClassCentre, ResNet18
from fedbrain.models.tuning import Frozen, Full


def test_resnet18_has_the_published_size_and_cost():
    model = build_classifier("resnet18", Full())
    cost = cost_of(model, EncoderSource())
    assert cost["parameters"] == {"trained": 33_161_026, "full": 33_161_026}
    assert round(cost["operations"]["volume"] / 1e9) == 251


def test_resnet18_is_monais():
    model = ResNet18().eval()
    options = {
        "spatial_dims": 3,
        "n_input_channels": 1,
        "num_classes": 2,
        "conv1_t_stride": 1,
        "bias_downsample": False,
    }
    theirs = resnet18(**options).eval()
    last = {f"fc.{name}": tensor for name, tensor in model.classify.state_dict().items()}
    theirs.load_state_dict(model.network.state_dict() | last)
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), theirs(x))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_norms_have_the_same_number_of_parameters(norm):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ResNet18(norm=norm).parameters()) == 33_161_026


def test_downsampling_averages_blocks_of_voxels():
    model = ResNet18(downsample=2).eval()
    x = torch.randn(1, 1, 64, 64, 64)
    blocks = x.view(1, 1, 32, 2, 32, 2, 32, 2).mean((3, 5, 7))
    with torch.no_grad():
        assert torch.allclose(model(x), model.classify(model.network(blocks)), atol=1e-5)


@pytest.mark.parametrize("options", [{"downsample": 3}, {"norm": "layer"}, {"width": 2}])
def test_wrong_options_are_refused(options):
    with pytest.raises(StudyError, match=next(iter(options))):
        build_classifier("resnet18", Full(), head_options=options)


def pooled(x):
    return x.mean((2, 3, 4)).numpy()


def test_centres_and_classes_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(30) % 2
    x = torch.randn(30, 16, 2, 2, 2, generator=generator) + 0.3 * labels.view(-1, 1, 1, 1, 1)
    model = NearestClassCentre(channels=16)
    for part in (slice(0, 7), slice(7, 20)):
        model.gather(x[part], labels[part])
    theirs = NearestCentroid().fit(pooled(x[:20]), labels[:20].numpy())
    centres = (model.sums / model.counts[:, None]).numpy()
    np.testing.assert_allclose(centres, theirs.centroids_, rtol=1e-5)
    logits = model(x[20:])
    assert (logits.argmax(1).numpy() == theirs.predict(pooled(x[20:]))).all()
    distances = np.linalg.norm(pooled(x[20:])[:, None] - theirs.centroids_[None], axis=2)
    np.testing.assert_allclose(logits.numpy(), -distances, rtol=1e-5)


def test_a_class_that_nobody_has_is_far_away_and_scores_stay_finite():
    model = NearestClassCentre(channels=4)
    model.gather(torch.randn(3, 4, 2, 2, 2), torch.ones(3, dtype=torch.int64))
    scores = model(torch.randn(5, 4, 2, 2, 2)).softmax(1)[:, 1]
    assert (scores == 1).all()


def test_the_nearest_class_centre_trains_nothing():
    model = build_classifier("ncc", Frozen())
    assert not list(model.parameters())
    cost = cost_of(model, EncoderSource())
    assert (model.cut, cost["operations"]["cut"], cost["parameters"]["trained"]) == ("output", 0, 0)

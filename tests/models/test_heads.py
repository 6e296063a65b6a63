import pytest
import torch

from fedbrain.errors import StudyError
from fedbrain.models.heads import build_head

HEADS = ["linear", "conv_s", "conv_l"]


def head(name, seed=0, **options):
    torch.manual_seed(seed)
    return build_head(name, **options)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    assert count(head("linear")) == 384 * 2 + 2 == 770
    for name, (one, two, three) in (("conv_s", (128, 64, 64)), ("conv_l", (512, 256, 256))):
        convolutions = 27 * (384 * one + one * two + two * three)
        norms = 2 * (one + two + three)
        assert count(head(name)) == convolutions + norms + three * 2 + 2
    assert count(head("conv_s")) == 1_659_522  # 1.7 M


def test_linear_is_the_mean_embedding_times_its_weights():
    linear = head("linear", channels=2)
    linear.classify.weight.data = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    linear.classify.bias.data = torch.tensor([0.5, 0.0])
    x = torch.zeros(1, 2, 8, 8, 8)
    x[0, 0, 0, 0, 0] = 512.0  # mean 1
    x[0, 1] = 3.0
    torch.testing.assert_close(linear(x), torch.tensor([[1.5, -1.0]]))


@pytest.mark.parametrize("name", HEADS)
def test_a_scans_logits_do_not_depend_on_its_batch_or_on_the_mode(name):
    module = head(name)
    x = torch.randn(3, 384, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    together = module.train()(x)
    assert together.shape == (3, 2)
    for i in range(3):
        torch.testing.assert_close(module.eval()(x[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_all_of_the_state_is_trained_parameters(name):
    """No batch statistics: what clients average is all there is, and each part of it gets a gradient."""
    module = head(name)
    assert list(module.state_dict()) == [key for key, _ in module.named_parameters()]
    module(torch.randn(2, 384, 8, 8, 8, generator=torch.Generator().manual_seed(1)))[:, 1].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_the_seed_decides_the_weights(name):
    first, same, other = head(name, 1), head(name, 1), head(name, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.classify.weight, other.classify.weight)


@pytest.mark.parametrize("name", HEADS)
def test_channels_and_classes_can_be_others(name):
    assert head(name, channels=16, classes=3)(torch.zeros(2, 16, 8, 8, 8)).shape == (2, 3)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(StudyError, match="did you mean conv_s"):
        build_head("conv_z")

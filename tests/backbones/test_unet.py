import pytest
from pydantic import ValidationError

from voco.backbones.unet import UNetConfig


@pytest.mark.parametrize(
    "features", [(8, 8, 15, 32, 64, 8), (8, 8, 16, 32, 63, 8), (0, 8, 16, 32, 64, 8)]
)
def test_features_that_cannot_be_halved_are_refused_with_some_that_can(
    features: tuple[int, int, int, int, int, int],
):
    with pytest.raises(ValidationError, match="8, 8, 16, 32, 64, 8"):
        UNetConfig(features=features)


def test_odd_features_are_fine_where_nothing_is_halved():
    backbone = UNetConfig(features=(3, 5, 4, 4, 4, 7)).build()
    assert backbone.channels == (3, 5, 4, 4, 4)
    assert backbone.decoded_channels == 7

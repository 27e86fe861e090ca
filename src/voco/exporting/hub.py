"""A network out of a folder for the Hugging Face Hub: needs the extra ``huggingface``."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voco.errors import WeightsError
from voco.exporting.network import HandedOn
from voco.extras import needed
from voco.weights import Handover, read_tensors

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
else:
    PyTorchModelHubMixin = needed(
        "huggingface_hub", "huggingface", "Loading a folder of the Hugging Face Hub"
    ).PyTorchModelHubMixin


class HubNetwork(HandedOn, PyTorchModelHubMixin):
    """A network that ``voco export --to huggingface`` wrote: ``from_pretrained`` loads it.

    The file must be the one that was exported, and every tensor must fit, or nothing is given.

    Args:
        handover: What ``config.json`` holds under this name.
    """

    def __init__(self, handover: dict[str, Any]) -> None:
        super().__init__(Handover.model_validate(handover), Path("config.json"))

    @classmethod
    def _load_as_safetensor(  # pyright: ignore[reportIncompatibleMethodOverride] (the mixin's own kind)
        cls,
        model: "HubNetwork",
        model_file: str,
        map_location: str,
        strict: bool,  # noqa: ARG003, FBT001 (the mixin's; strict in any case)
    ) -> "HubNetwork":
        file = Path(model_file)
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != model.handover.weights_sha256:
            raise WeightsError(
                f"{file}: its sha256 is {found}, but config.json describes "
                f"{model.handover.weights_sha256}. Copy both files anew."
            )
        model.fill(read_tensors(file), file)
        model.to(map_location)
        return model

    @classmethod
    def _load_as_pickle(  # pyright: ignore[reportIncompatibleMethodOverride] (as above)
        cls,
        model: "HubNetwork",  # noqa: ARG003 (the mixin's, as all of these)
        model_file: str,
        map_location: str,  # noqa: ARG003
        strict: bool,  # noqa: ARG003, FBT001
    ) -> "HubNetwork":
        raise WeightsError(
            f"{model_file}: not safetensors; voco writes model.safetensors and reads no other."
        )

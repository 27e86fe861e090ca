"""A folder for the Hugging Face Hub: weights, ``config.json`` and a model card.

``model.safetensors`` is the run's weight file byte by byte, under the names of the library's own
network. Reading it back needs :mod:`voco.exporting.hub`; writing it needs nothing.
"""

import json
from pathlib import Path

from voco.data.store import write_atomically
from voco.exporting.network import HandedOn
from voco.tasks.classification import Classification
from voco.weights import WEIGHTS_FILE

UNKNOWN = "unknown"
"""Licence, as the Hub writes it, where none is named."""


def write_folder(
    network: HandedOn, weights: Path, out: Path, licence: str | None = None
) -> list[Path]:
    """Write ``model.safetensors``, ``config.json`` and ``README.md``.

    Args:
        network: What the weights are, filled with them: so that they are known to fit.
        weights: The run folder or weight file.
        out: The folder to write.
        licence: As the Hub names it, such as ``cc-by-nc-4.0``; :data:`UNKNOWN` for ``None``.
    """
    file = weights / WEIGHTS_FILE if weights.is_dir() else weights.with_name(WEIGHTS_FILE)
    config = {"library_name": "voco", "handover": network.handover.model_dump(mode="json")}
    files = {
        "README.md": model_card(network, licence or UNKNOWN).encode(),
        "model.safetensors": file.read_bytes(),
        "config.json": f"{json.dumps(config, indent=2)}\n".encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files]


def model_card(network: HandedOn, licence: str) -> str:
    """The model card: what is known from the run, and nothing else.

    Args:
        network: The network.
        licence: As the Hub names it.
    """
    handover = network.handover
    head = [
        "---",
        "library_name: voco",
        f"license: {json.dumps(licence)}",
        *(["pipeline_tag: image-segmentation"] if handover.kind == "segmentation" else []),
        *(["pipeline_tag: image-classification"] if handover.kind == "classification" else []),
        "tags:",
        *(f"- {tag}" for tag in ("medical-imaging", "3d", handover.kind, handover.backbone.name)),
        "---",
    ]
    title = f"# {handover.backbone.name}, {_how(network)}"
    parts = [
        "\n".join(head),
        f"{title}\n\n{_what(network)}",
        f"## Load it\n\n{_loading(network)}",
        f"## Scans must be prepared like this\n\n{_preparation(network)}",
        f"## How it was trained\n\n{_training(network)}",
        f"## Limits\n\n{_limits(network, licence)}",
    ]
    return "\n\n".join(parts) + "\n"


def _how(network: HandedOn) -> str:
    handover = network.handover
    method = (handover.method or {}).get("name")
    return f"pre-trained with {method}" if method else f"trained for {handover.kind}"


def _what(network: HandedOn) -> str:
    handover = network.handover
    count = sum(parameter.numel() for parameter in network.backbone.network.parameters())
    trained = ", ".join(handover.trained)
    lines = [
        f"`{handover.library}` of {handover.library_version}, {count / 1e6:.1f} M parameters. "
        f"Trained parts: {trained}; `model.safetensors` holds these and no others."
    ]
    if handover.classes:
        names = ", ".join(f"{value} {name}" for value, name in handover.classes.items())
        lines.append(f"Classes: {names}.")
    return "\n\n".join(lines)


def _loading(network: HandedOn) -> str:
    size = ", ".join(map(str, network.size()))
    channels = network.handover.backbone.in_channels
    gives = {
        "segmentation": "logits, one channel per class",
        "classification": "scores, one per class, before softmax",
        "pretraining": "levels of features, finest first",
    }[network.handover.kind]
    return "\n".join(
        [
            "```python",
            "# pip install 'voco[huggingface]'",
            "import torch",
            "from voco.exporting.hub import HubNetwork",
            "",
            'network = HubNetwork.from_pretrained("this folder, or its name on the Hub")',
            f"given = network(torch.rand(1, {channels}, {size}))  # {gives}",
            "own = network.backbone.network  # the library's own class",
            "```",
        ]
    )


def _preparation(network: HandedOn) -> str:
    handover = network.handover
    spacing = handover.preprocessing.spacing_mm
    settings = handover.intensity.model_dump(exclude={"name"})
    numbers = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    named = f"`{handover.intensity.name}`" + (f" ({numbers})" if numbers else "")
    low, high = handover.intensity.bounds
    mm = " x ".join(f"{side:g}" for side in spacing or ()) + " mm" if spacing else "each scan's own"
    lines = [
        "axes towards Right, Anterior, Superior",
        f"voxels: {mm}",
        f"cut to the body: {'yes' if handover.preprocessing.foreground else 'no'}",
        f"intensities: {named}, to the range from {low:g} to {high:g}",
        f"channels: {', '.join(handover.channels) or handover.backbone.in_channels}",
        f"modalities trained on: {', '.join(handover.modalities) or 'not kept'}",
        f"volumes or windows of {' x '.join(map(str, network.size()))} voxels",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _training(network: HandedOn) -> str:
    handover = network.handover
    settings = handover.method or handover.task or {}
    cases = sum(store.cases for store in handover.data)
    count = f"{cases} cases of {len(handover.data)} data sets" if handover.data else "not kept"
    stores = ", ".join(f"`{store.digest}` ({store.cases})" for store in handover.data)
    return "\n".join(
        [
            f"- {handover.step} steps, seed {handover.seed}, voco {handover.voco_version}",
            f"- data: {count}" + (f"; digests of the prepared stores: {stores}" if stores else ""),
            "- settings:",
            "",
            "```json",
            json.dumps(settings, indent=2, default=str),
            "```",
        ]
    )


def _limits(network: HandedOn, licence: str) -> str:
    lines = ["Research only; not a medical device."]
    if network.handover.kind == "pretraining":
        lines.append("Gives features, not masks or scores: it is to be fine-tuned.")
    if isinstance(network.task, Classification):
        lines.append("Whole volumes only, in the one size above.")
    lines.append(
        "Nothing is known of scanners, populations and diseases that the data does not show. This "
        "card says only what the run recorded: describe the data and its licence here."
    )
    if licence == UNKNOWN:
        lines.append("No licence is named yet: name one before you share it.")
    return "\n".join(f"- {line}" for line in lines)

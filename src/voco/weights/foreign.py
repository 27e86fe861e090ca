"""Tensors of others under the names of our backbones: recognised, renamed, accounted for."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from voco.backbones.swin_unetr import Merging
from voco.weights.families import FAMILIES, Family
from voco.weights.reading import Content, few, unwrapped

_PATCH = 16


class LeftOut(NamedTuple):
    """Tensors of a file that are not wanted.

    Attributes:
        reason: Why.
        names: Theirs.
    """

    reason: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Foreign:
    """The tensors of a file under the names of one of our backbones.

    Attributes:
        family: The layout of the file.
        tensors: Under our names.
        left_out: What was not taken, and why.
        changes: What was done to tensors beside renaming them.
        stripped: Prefix that was taken off every name of the file.
        merging: How the network that the file is of merges patches; ``None`` if unknown.
    """

    family: Family
    tensors: Mapping[str, Tensor]
    left_out: tuple[LeftOut, ...]
    changes: tuple[str, ...]
    stripped: str
    merging: Merging | None


def identify(content: Content) -> Foreign | None:
    """What a file is, if its layout is known.

    Prefixes that all names have in common are taken off until it is.
    """
    stripped, tensors = unwrapped(content.tensors)
    while True:
        family = next((one for one in FAMILIES if one.recognises(tensors)), None)
        if family is not None:
            return _mapped(family, tensors, stripped, content)
        shared = {name.partition(".")[0] for name in tensors}
        if len(shared) != 1 or any("." not in name for name in tensors):
            return None
        prefix = f"{shared.pop()}."
        stripped += prefix
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def nearest(tensors: Mapping[str, Tensor]) -> str:
    """What an unknown file is most like, in words."""
    names = list(unwrapped(tensors)[1])
    tails = {tail: name for name in names for tail in _tails(name)}
    # Of several that are alike, the one that asks for the most.
    best = max(
        FAMILIES,
        key=lambda one: (len(one.met(tails)) / len(one.needs), sum(map(len, one.met(tails)))),
    )
    met = best.met(tails)
    if not met:
        return f"No name is as in any layout that is known; the first are {few(names)}."
    unmet = [need for need in best.needs if need not in met]
    elsewhere = [need for need in met if need not in best.met(names)]
    if unmet:
        wanted = ", ".join(_readable(need) for need in unmet)
        like = difflib.get_close_matches(_readable(unmet[0]), names, n=1, cutoff=0.3)
        hint = f"; the likest is {like[0]}" if like else ""
        lacks = f"no name begins with {wanted}{hint}"
    elif elsewhere:
        tail = next(tail for tail in tails if re.match(elsewhere[0], tail))
        prefix = tails[tail].removesuffix(tail)
        lacks = f"names begin with '{prefix}' before what they are there, and not all of them do"
    else:
        lacks = "it holds more than that, or other shapes"
    return f"It is most like '{best.name}' ({best.title}), but {lacks}."


def _tails(name: str) -> list[str]:
    """A name, and what is left of it without its first parts."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _readable(pattern: str) -> str:
    """A pattern as an example of what it matches."""
    text = re.sub(r"\(\.\*\\\.\)\?|\(\w+\\\.\)\?|\$", "", pattern)
    text = re.sub(r"\((?:\?:)?([^|()]*)\|[^()]*\)", r"\1", text)
    return text.partition("|")[0].replace("\\.", ".").replace("\\d", "1")


def _mapped(
    family: Family, tensors: Mapping[str, Tensor], stripped: str, content: Content
) -> Foreign:
    taken: dict[str, Tensor] = {}
    left: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        new, reason = _renamed(family, name)
        if new is None:
            left.setdefault(reason, []).append(name)
        else:
            taken[new] = tensor
    changes: list[str] = []
    for shape in _SHAPERS.get(family.backbone or "", ()):
        taken, said = shape(taken)
        changes += said
    merging = family.merging
    if merging is None and family.backbone == "swin_unetr" and content.before_monai_1_5:
        merging = "legacy"
    out = tuple(LeftOut(reason, tuple(names)) for reason, names in left.items())
    return Foreign(family, taken, out, tuple(changes), stripped, merging)


def _renamed(family: Family, name: str) -> tuple[str | None, str]:
    """The name of a tensor in our network, or the reason why it is left out."""
    if family.backbone is None:
        return None, "no backbone here has this architecture"
    for pattern, reason in family.leave:
        if re.match(pattern, name):
            return None, reason
    for pattern, replacement in family.take:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1), ""
    return None, "not known in this layout"


# --- peculiarities of an architecture, whichever family a file is of ------------------------------

Named = dict[str, Tensor]


def _swin_names(tensors: Named) -> tuple[Named, list[str]]:
    """The names of MONAI's two linear layers, which were once timm's."""
    renamed = {
        re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", name): tensor
        for name, tensor in tensors.items()
    }
    return renamed, []


def _vit_names(tensors: Named) -> tuple[Named, list[str]]:
    renamed = {
        re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", name).replace(
            "patch_embeddings.1.", "patch_embeddings."
        ): tensor
        for name, tensor in tensors.items()
    }
    return renamed, []


def _patches(tensors: Named) -> tuple[Named, list[str]]:
    """A linear layer on the voxels of a patch is a convolution with the patch as its kernel.

    MONAI's and SelfMedMAE's order of the voxels in a row: the three axes, then channels.
    """
    name = "vit.patch_embedding.patch_embeddings.weight"
    weight = tensors.get(name)
    if weight is None or weight.ndim != 2 or weight.shape[1] % _PATCH**3:
        return tensors, []
    sides = dict.fromkeys("xyz", _PATCH)
    kernel = rearrange(weight, "e (x y z c) -> e c x y z", **sides).contiguous()
    return {**tensors, name: kernel}, ["the linear layer on patches became a convolution"]


def _class_position(tensors: Named) -> tuple[Named, list[str]]:
    """The position code without the place of the class token."""
    name = "vit.patch_embedding.position_embeddings"
    code = tensors.get(name)
    if (
        code is None
        or code.ndim != 3
        or cube_root(code.shape[1])
        or not cube_root(code.shape[1] - 1)
    ):
        return tensors, []
    return {**tensors, name: code[:, 1:]}, ["the class token's place in the position code is cut"]


def _idle_norms(tensors: Named) -> tuple[Named, list[str]]:
    """MONAI gives each block of a ViT a norm that is used by other networks only."""
    blocks = {
        match.group(1): tensors[name]
        for name in tensors
        if (match := re.fullmatch(r"(vit\.blocks\.\d+\.)norm1\.weight", name))
    }
    idle: Named = {}
    for block, like in blocks.items():
        if f"{block}norm_cross_attn.weight" not in tensors:
            idle[f"{block}norm_cross_attn.weight"] = torch.ones_like(like)
            idle[f"{block}norm_cross_attn.bias"] = torch.zeros_like(like)
    said = [f"{len(idle)} tensors of norms that are never used are ones and zeros"] if idle else []
    return {**tensors, **idle}, said


def _once(tensors: Named) -> tuple[Named, list[str]]:
    """Each convolution and norm once.

    The library lists them twice. Where the two differ, as after S3D's conversion to sparse
    convolutions, ``all_modules`` is what was trained.
    """
    single: Named = {}
    differing = 0
    for name, tensor in tensors.items():
        plain = re.sub(
            r"\.all_modules\.([01])\.",
            lambda match: (".conv.", ".norm.")[int(match.group(1))],
            name,
        )
        if plain in single:
            other = single[plain]
            differing += other.shape != tensor.shape or not bool(torch.equal(other, tensor))
        if plain not in single or plain != name:
            single[plain] = tensor
    said = (
        [f"{differing} tensors have two values; that of all_modules is taken"] if differing else []
    )
    return single, said


def cube_root(count: int) -> int:
    """The side of a cube of so many; 0 if there is none."""
    side = round(max(count, 0) ** (1 / 3))
    return side if side**3 == count else 0


Shaper = Callable[[Named], tuple[Named, list[str]]]

_SHAPERS: dict[str, tuple[Shaper, ...]] = {
    "swin_unetr": (_swin_names,),
    "unetr": (_vit_names, _patches, _class_position, _idle_norms),
    "resenc_unet": (_once,),
}

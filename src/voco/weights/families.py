"""The layouts of published weights: how their tensors are named, and which of ours each one is.

A family is a row of patterns, read from the top: to know one more layout is to add one more row.
Patterns are regular expressions on the names of a file without the prefixes of wrapper classes.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from voco.backbones.swin_unetr import Merging

Tensors = Mapping[str, Tensor]

_VOCO = "https://github.com/Luffy03/VoCo"
_VOCO2 = "https://github.com/Luffy03/Large-Scale-Medical"
_NVIDIA = "https://github.com/Project-MONAI/research-contributions/tree/main/SwinUNETR/Pretrain"
_MONAI = "https://github.com/Project-MONAI/MONAI"

_OMNI_CLASSES = 21
"""Outputs of the networks that VoComni was trained with: 20 structures and the background."""


@dataclass(frozen=True)
class Family:
    """A layout of weights.

    Attributes:
        name: Short.
        title: What such a file is.
        origin: Where such files come from.
        backbone: Which of ours has this architecture; ``None`` if none has.
        needs: Patterns, each of which some name must match.
        lacks: Patterns that no name may match.
        take: Pattern and replacement: the name of a tensor in our backbone's network. The first
            pattern that matches decides.
        leave: Pattern and reason: tensors that are not wanted. They are looked at before ``take``.
        only_if: A further condition, on the shapes.
        merging: How the networks that such files were trained with merge patches, if that is known.
        doubt: What could not be confirmed from public code about this layout.
    """

    name: str
    title: str
    origin: str
    backbone: str | None
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    take: tuple[tuple[str, str], ...] = ()
    leave: tuple[tuple[str, str], ...] = ()
    only_if: Callable[[Tensors], bool] | None = None
    merging: Merging | None = None
    doubt: str = ""

    def met(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of ``needs`` that some name meets."""
        return tuple(need for need in self.needs if any(re.match(need, name) for name in names))

    def recognises(self, tensors: Tensors) -> bool:
        """Whether a file has this layout."""
        if len(self.met(tensors.keys())) < len(self.needs):
            return False
        if any(re.match(lack, name) for lack in self.lacks for name in tensors):
            return False
        return self.only_if is None or self.only_if(tensors)


def _with_21_outputs(tensors: Tensors) -> bool:
    return tensors["out.conv.conv.weight"].shape[0] == _OMNI_CLASSES


_SWIN = r"(?:swinViT|swin_vit)\."
_SWIN_PARTS = r"(swinViT|encoder(?:1|2|3|4|10)|decoder[1-5]|out)\."
_SSL_HEADS = (r"(rotation|contrastive)_\w+\.|conv\.|norm1\.", "heads of the pre-training")
_PROJECTION = (r"(student\.|teacher\.)?(layer\d|proj_head)\.", "projection head")
_MASK = (r"(encoder\.)?mask_token$", "token that stands for what is masked")
_ORGAN_HEADS = (
    r"(controller|organ_embedding|precls_conv|GAP|text_to_vision)",
    "heads that make a layer for each organ",
)
_DECODER = (r"decoder|encoder_to_decoder|mask_token", "decoder of the pre-training")

FAMILIES = (
    Family(
        "voco-v1",
        "VoCo, CVPR 2024: training state with student and teacher; the teacher is taken",
        _VOCO,
        "swin_unetr",
        needs=(rf"student\.{_SWIN}", rf"teacher\.{_SWIN}"),
        leave=(
            (r"(student|teacher)\.proj_head\.", "projection head"),
            (r"student\.", "student: the teacher is its running mean"),
        ),
        take=((r"teacher\.swin_vit\.", "swinViT."), (r"teacher\.", "")),
        merging="legacy",
        doubt="which of the two the authors released is not known",
    ),
    Family(
        "voco-v2",
        "VoCo, TPAMI (PreCT-160K): training state with its two projectors",
        _VOCO2,
        "swin_unetr",
        needs=(rf"backbone\.{_SWIN}", r"(student|teacher)\.layer1\."),
        leave=(_PROJECTION,),
        take=((r"backbone\.swin_vit\.", "swinViT."), (r"backbone\.", "")),
        merging="legacy",
    ),
    Family(
        "voco-backbone",
        "VoCo's encoder alone: VoCo_10k, or VoCo_B/L/H_SSL_head",
        f"{_VOCO}, {_VOCO2}",
        "swin_unetr",
        needs=(rf"{_SWIN}patch_embed\.", rf"{_SWIN}layers1c\.", r"encoder10\."),
        lacks=(r"decoder\d\.", r"out\."),
        leave=(_PROJECTION,),
        take=((r"swin_vit\.", "swinViT."), (_SWIN_PARTS, r"\1.")),
        merging="legacy",
        doubt="any other MONAI Swin UNETR v2 without its decoder looks the same",
    ),
    Family(
        "vocomni",
        "VoComni_B/L/H: Swin UNETR v2 trained on 20 structures",
        _VOCO2,
        "swin_unetr",
        needs=(r"swinViT\.layers1c\.", r"decoder1\.", r"out\.conv\.conv\.weight$"),
        take=((_SWIN_PARTS, r"\1."),),
        only_if=_with_21_outputs,
        merging="legacy",
        doubt="told from any other MONAI Swin UNETR v2 by its 21 outputs",
    ),
    Family(
        "suprem",
        "SuPreM or the CLIP-driven Universal Model, with Swin UNETR",
        "https://github.com/MrGiovanni/SuPreM",
        "swin_unetr",
        needs=(r"backbone\.swinViT\.", r"(controller|organ_embedding|precls_conv|GAP)"),
        leave=(_ORGAN_HEADS, (r"backbone\.out\.", "output layer that those heads replace")),
        take=((r"backbone\.", ""),),
        merging="legacy",
    ),
    Family(
        "suprem-unet",
        "SuPreM, the CLIP-driven Universal Model or DoDNet, with the U-Net of Models Genesis",
        "https://github.com/MrGiovanni/SuPreM",
        "genesis_unet",
        needs=(r"backbone\.down_tr64\.",),
        leave=(_ORGAN_HEADS, (r"backbone\.out_tr\.", "output layer that those heads replace")),
        take=((r"backbone\.", ""),),
    ),
    Family(
        "swin-ssl",
        "Swin UNETR pre-training with its heads: NVIDIA's program, or SwinMM",
        f"{_NVIDIA}, https://github.com/UCSC-VLAA/SwinMM",
        "swin_unetr",
        needs=(rf"{_SWIN}patch_embed\.", r"(rotation|contrastive)_head\."),
        leave=(_SSL_HEADS,),
        take=((r"swin_vit\.", "swinViT."), (_SWIN_PARTS, r"\1.")),
        merging="legacy",
        doubt="SwinMM's own names could not be looked up; the two are not told apart",
    ),
    Family(
        "nvidia-swinvit",
        "NVIDIA's model_swinvit.pt: Swin transformer pre-trained on five sets of CT",
        _NVIDIA,
        "swin_unetr",
        needs=(r"patch_embed\.proj\.", r"layers1\.0\.blocks\.0\.mlp\.(fc1|linear1)\."),
        leave=(_SSL_HEADS, (r"norm\.", "norm that the network has not")),
        take=((r"(patch_embed|layers[1-4]c?)\.", r"swinViT.\1."),),
        merging="legacy",
    ),
    Family(
        "disruptive-autoencoders",
        "Disruptive autoencoders: Swin transformer pre-trained by MONAI's authors",
        "https://github.com/Project-MONAI/MONAI-extra-test-data",
        "swin_unetr",
        needs=(r"encoder\.patch_embed\.proj\.", r"encoder\.layers1\.0\.0\."),
        leave=(
            _MASK,
            (r"encoder\.norm\.", "norm that the network has not"),
            (r"(?!encoder\.)", "decoder of the pre-training"),
        ),
        take=(
            (r"encoder\.(layers[1-4])\.0\.0\.", r"swinViT.\1.0."),
            (r"encoder\.patch_embed\.", "swinViT.patch_embed."),
        ),
        merging="legacy",
        doubt="with which MONAI it was trained is not said; the file is older than 1.5",
    ),
    Family(
        "monai-swin-unetr",
        "MONAI SwinUNETR",
        _MONAI,
        "swin_unetr",
        needs=(rf"{_SWIN}patch_embed\.proj\.", rf"{_SWIN}layers1\."),
        take=((r"swin_vit\.", "swinViT."), (_SWIN_PARTS, r"\1.")),
    ),
    Family(
        "monai-unetr",
        "MONAI UNETR",
        _MONAI,
        "unetr",
        needs=(r"vit\.patch_embedding\.", r"vit\.blocks\.", r"encoder1\.|decoder5\."),
        leave=((r".*\.cross_attn\.", "never used: MONAI 1.4 and 1.5 wrote them"),),
        take=((r"(vit|encoder[1-4]|decoder[2-5]|out)\.", r"\1."),),
    ),
    Family(
        "monai-vit",
        "MONAI ViT or ViTAutoEnc, as in MONAI's tutorial of self-supervision",
        _MONAI,
        "unetr",
        needs=(r"(vit\.)?patch_embedding\.", r"(vit\.)?blocks\.0\.attn\.qkv\."),
        lacks=(r"encoder\d\.",),
        leave=(
            (r".*\.cross_attn\.", "never used: MONAI 1.4 and 1.5 wrote them"),
            (r"conv3d_transpose|classification_head", "head of the pre-training"),
            (r"(vit\.)?(patch_embedding\.)?cls_token$", "class token: the network has none"),
        ),
        take=((r"(?:vit\.)?(patch_embedding|blocks|norm)\.", r"vit.\1."),),
    ),
    Family(
        "mae-vit",
        "ViT of a masked autoencoder, with timm's names (SelfMedMAE and its kin)",
        "https://github.com/cvlab-stonybrook/SelfMedMAE",
        "unetr",
        needs=(r"(encoder\.)?patch_embed\.proj\.weight$", r"(encoder\.)?blocks\.0\.attn\.qkv\."),
        leave=(
            _DECODER,
            (r"(encoder\.)?cls_token$", "class token: the network has none"),
            (r"(encoder\.)?(head|fc_norm)\.", "head of the pre-training"),
        ),
        take=(
            (r"(?:encoder\.)?patch_embed\.proj\.", "vit.patch_embedding.patch_embeddings."),
            (
                r"(?:encoder_|encoder\.)?pos_embed$",
                "vit.patch_embedding.position_embeddings",
            ),
            (r"(?:encoder\.)?blocks\.(\d+)\.attn\.proj\.", r"vit.blocks.\1.attn.out_proj."),
            (r"(?:encoder\.)?(blocks|norm)\.", r"vit.\1."),
        ),
    ),
    Family(
        "models-genesis",
        "U-Net of Models Genesis, as published or as SuPreM's programs write it",
        "https://github.com/MrGiovanni/ModelsGenesis",
        "genesis_unet",
        needs=(r"down_tr64\.ops\.0\.conv1\.", r"down_tr512\."),
        take=((r"(down_tr(?:64|128|256|512)|up_tr(?:64|128|256)|out_tr)\.", r"\1."),),
    ),
    Family(
        "resenc",
        "residual encoder U-Net of nnU-Net, nnssl or OpenMind",
        "https://huggingface.co/collections/MIC-DKFZ, https://github.com/MIC-DKFZ/nnssl",
        "resenc_unet",
        needs=(
            r"(.*\.)?stem\.convs\.0\.(conv|all_modules\.0)\.weight$",
            r"(.*\.)?stages\.0\.blocks\.0\.conv1\.",
        ),
        leave=(
            (r"(.*\.)?decoder\.encoder\.", "the encoder, listed once more"),
            (r"(projector|predictor|mask_token|spark|densify)", "head of the pre-training"),
        ),
        take=(
            (r"(?:.*\.)?(decoder\.(?:stages|transpconvs|seg_layers)\.)", r"\1"),
            (r"(?:.*\.)?(stem|stages)\.", r"encoder.\1."),
        ),
    ),
    Family(
        "plain-conv-unet",
        "plain U-Net of nnU-Net (VoComni_nnunet is one)",
        "https://github.com/MIC-DKFZ/nnUNet",
        None,
        needs=(r"(.*\.)?stages\.0\.0\.convs\.0\.",),
    ),
    Family(
        "primus",
        "Primus: the transformer of nnssl and OpenMind",
        "https://github.com/MIC-DKFZ/nnssl",
        None,
        needs=(r"(.*\.)?eva\.blocks\.0\.", r"(.*\.)?down_projection\."),
    ),
    Family(
        "monai-basic-unet",
        "MONAI BasicUNet",
        _MONAI,
        "unet",
        needs=(r"conv_0\.conv_0\.conv\.weight$", r"down_4\."),
        take=((r"(conv_0|down_[1-4]|upcat_[1-4]|final_conv)\.", r"\1."),),
    ),
)
"""All known layouts; the first that recognises a file is its own."""

# SPDX-License-Identifier: Apache-2.0
"""From images to answers: classify, zero_shot, similarity, embed, search."""

from vision_accel.infer._images import Images, expand
from vision_accel.infer._output import replacing
from vision_accel.infer.classify import Classification, Prediction, classify, iter_classify
from vision_accel.infer.confusion import draw_confusion
from vision_accel.infer.embed import Embedding, embed, iter_embed
from vision_accel.infer.features import FeatureWriter, writing_features
from vision_accel.infer.reconstruct import (
    Reconstruction,
    decode,
    draw_pairs,
    draw_row,
    interpolate,
    load_latents,
    reconstruct,
    sample,
    save_latents,
)
from vision_accel.infer.report import HtmlReport, draw_grid
from vision_accel.infer.search import Hit, Index, search
from vision_accel.infer.zero_shot import (
    embed_text,
    iter_zero_shot,
    similarity,
    zero_shot,
    zero_shot_classifier,
)

__all__ = [
    "Classification",
    "Embedding",
    "FeatureWriter",
    "Hit",
    "HtmlReport",
    "Images",
    "Index",
    "Prediction",
    "Reconstruction",
    "classify",
    "decode",
    "draw_confusion",
    "draw_grid",
    "draw_pairs",
    "draw_row",
    "embed",
    "embed_text",
    "expand",
    "interpolate",
    "iter_classify",
    "iter_embed",
    "iter_zero_shot",
    "load_latents",
    "reconstruct",
    "replacing",
    "sample",
    "save_latents",
    "search",
    "similarity",
    "writing_features",
    "zero_shot",
    "zero_shot_classifier",
]

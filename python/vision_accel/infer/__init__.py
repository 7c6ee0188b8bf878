# SPDX-License-Identifier: Apache-2.0
"""From images to answers: classify, embed."""

from vision_accel.infer._images import Images, expand
from vision_accel.infer._output import replacing
from vision_accel.infer.classify import Classification, Prediction, classify, iter_classify
from vision_accel.infer.embed import Embedding, embed, iter_embed
from vision_accel.infer.report import HtmlReport, draw_grid

__all__ = [
    "Classification",
    "Embedding",
    "HtmlReport",
    "Images",
    "Prediction",
    "classify",
    "draw_grid",
    "embed",
    "expand",
    "iter_classify",
    "iter_embed",
    "replacing",
]

# SPDX-License-Identifier: Apache-2.0
"""Options of contrastive training."""

from dataclasses import dataclass


@dataclass
class ContrastiveOptions:
    """What is particular to CLIP; ``data.train`` and ``data.val`` then name captioned pictures."""

    image_column: str = ""
    """Column of paths in a .csv or .tsv; found by its usual names if empty."""
    caption_column: str = ""
    """Column of captions, likewise."""
    vocab_size: int = 0
    """Learn a vocabulary of so many tokens (at least 514) from the captions; 0: OpenAI's."""
    zero_shot: str = ""
    """Folder with one folder of images per class, whose names are the labels of zero-shot evaluation."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Texts around those labels."""
    lock_image: bool = False
    """Do not train the image tower,"""
    unlocked_image_groups: int = 0
    """except its last so many parts: the projection, then blocks from the last one."""
    lock_text: bool = False
    """Do not train the text tower,"""
    unlocked_text_layers: int = 0
    """except its last so many parts."""

# SPDX-License-Identifier: Apache-2.0
"""Images to patch tokens, and resampling of position and patch embeddings to other sizes."""

import torch
from torch import Tensor, nn

from vision_accel import ops
from vision_accel.nn.linear import is_plain

Size = tuple[int, int]


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each one; ``proj`` holds the weights of a convolution."""

    def __init__(
        self,
        img_size: Size,
        patch_size: Size,
        in_chans: int,
        dim: int,
        bias: bool = True,
        dynamic: bool = False,
        pad: bool = False,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.dynamic, self.pad = dynamic, pad
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, bias=bias)

    @property
    def grid_size(self) -> Size:
        """Rows and columns of patches in an image of the nominal size."""
        (h, w), (ph, pw) = self.img_size, self.patch_size
        return h // ph, w // pw

    @property
    def num_patches(self) -> int:
        """Patches in an image of the nominal size."""
        rows, columns = self.grid_size
        return rows * columns

    def check(self, x: Tensor) -> Size:
        """Raise unless x is a batch of images that this layer takes; return its grid of patches."""
        # What was put in the place of proj need not know its channels.
        channels = getattr(self.proj, "in_channels", x.shape[1] if x.ndim > 1 else None)
        ph, pw = self.patch_size
        size = ("h", "w") if self.dynamic or self.pad else self.img_size
        if x.ndim != 4 or x.shape[1] != channels or (size != ("h", "w") and tuple(x.shape[2:]) != size):
            expected = f"[B, {channels}, {size[0]}, {size[1]}]"
            raise ValueError(f"patch_embed: images must be {expected}, got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"patch_embed: images must be floating point, got {x.dtype}")
        h, w = x.shape[2:]
        if self.pad:
            return -(-h // ph), -(-w // pw)
        if self.dynamic and (h % ph or w % pw or not h or not w):
            raise ValueError(f"patch_embed: image sides must be multiples of {ph} and {pw}, got {h} and {w}")
        return h // ph, w // pw

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Embed.

        Args:
            x: [B, channels, h, w]; cast to the dtype of the weights.
            residual: [B, N, C], added to the patch tokens (position embeddings).

        Returns:
            [B, N, C], patches in row order.
        """
        rows, columns = self.check(x)
        h, w = rows * self.patch_size[0], columns * self.patch_size[1]
        if self.pad:
            x = nn.functional.pad(x, (0, w - x.shape[3], 0, h - x.shape[2]))
        x = x[:, :, :h, :w]  # like a convolution, ignore what fills no patch
        if not is_plain(self.proj, nn.Conv2d):
            y = self.proj(x).flatten(2).transpose(1, 2)
            return y if residual is None else residual + y
        patches = ops.patchify(x.to(self.proj.weight.dtype), self.patch_size)  # [B, N, channels * ph * pw]
        return ops.linear(patches, self.proj.weight, self.proj.bias, "none", residual)


def resample_pos_embed(
    pos_embed: Tensor, old: Size, new: Size, num_prefix_tokens: int, antialias: bool = True
) -> Tensor:
    """Resize position embeddings [1, P + old, C] to another grid: [1, P + new, C].

    Bicubic in float32, the prefix untouched. With antialiasing this is timm's ``resample_abs_pos_embed``,
    without it Hugging Face's ``interpolate_pos_encoding``. The two differ even where the grid grows: torch's
    antialiased bicubic filter is another cubic.
    """
    if old == new:
        return pos_embed
    prefix, grid = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    image = grid.float().unflatten(1, old).permute(0, 3, 1, 2)  # [1, C, rows, columns]
    image = nn.functional.interpolate(image, size=new, mode="bicubic", antialias=antialias)
    return torch.cat([prefix, image.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)], dim=1)


def resample_patch_embed(weight: Tensor, new: Size) -> Tensor:
    """Resize patch embedding weights [C, channels, ph, pw] so that resized patches give the same tokens.

    The pseudo-inverse of the (bicubic, antialiased) resize of a patch.
    Source: Beyer et al. 2023 (FlexiViT), arXiv:2212.08013, section 3.4; timm's ``resample_patch_embed``.
    """
    old = (weight.shape[2], weight.shape[3])
    if old == new:
        return weight
    basis = torch.eye(old[0] * old[1], device=weight.device).unflatten(1, (1, *old))
    resize = nn.functional.interpolate(basis, size=new, mode="bicubic", antialias=True).flatten(1)
    inverse = torch.linalg.pinv(resize.T)  # [old, new]
    return (weight.float().flatten(2) @ inverse).unflatten(-1, new).to(weight.dtype)

"""How much of the change between two frames a reconstruction explains: MSE, PSNR, skill.

Images are (N, H, W, C), uint8 (scaled by 1/255) or float32/float64 in [0, 1]; any other dtype is an
error. Reconstructions may overshoot [0, 1] and are scored as they are. `skill` is
1 - MSE / MSE(copy the first frame): 0 for a model that copies, 1 for a perfect one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


def unit_images(images: np.ndarray, name: str, *, overshoot: bool = False) -> np.ndarray:
    """Images as float64 in [0, 1]; with `overshoot` floats may leave the range but stay finite."""
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"{name} must have shape (N, H, W, C), got {images.shape}")
    if images.dtype == np.uint8:
        return images.astype(np.float64) / 255.0
    if images.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{name} has dtype {images.dtype}: give uint8, or float32/float64 in [0, 1]"
        )
    images = images.astype(np.float64)
    if not np.isfinite(images).all():
        raise ValueError(f"{name} holds non-finite values")
    if not overshoot and images.size and (images.min() < 0.0 or images.max() > 1.0):
        raise ValueError(
            f"{name} holds values in [{images.min():.4g}, {images.max():.4g}], expected [0, 1]"
        )
    return images


def psnr(mse: float) -> float | None:
    """Peak signal-to-noise ratio in dB for peak 1; None for a perfect reconstruction (infinite)."""
    if mse < 0:
        raise ValueError(f"mse must be non-negative, got {mse}")
    return -10.0 * math.log10(mse) if mse > 0 else None


def skill(mse: float, mse_copy: float) -> float | None:
    """1 - mse / mse_copy; None where the frames never change, because then it is undefined."""
    return 1.0 - mse / mse_copy if mse_copy > 0 else None


def image_errors(
    first: np.ndarray, later: np.ndarray, reconstruction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """MSE of each reconstruction and of copying its first frame: two float64 (N,) arrays."""
    first = unit_images(first, "first")
    later = unit_images(later, "later")
    reconstruction = unit_images(reconstruction, "reconstruction", overshoot=True)
    if not first.shape == later.shape == reconstruction.shape:
        raise ValueError(
            "first, later and reconstruction must have one shape, got "
            f"{first.shape}, {later.shape}, {reconstruction.shape}"
        )
    axes = (1, 2, 3)
    return ((reconstruction - later) ** 2).mean(axes), ((first - later) ** 2).mean(axes)


@dataclass
class ReconstructionSums:
    """Streaming sums over batches of equal image size; `merge` joins the sums of several hosts."""

    images: int = 0
    error: float = 0.0
    copy_error: float = 0.0
    improved: int = 0

    def update(
        self,
        first: np.ndarray,
        later: np.ndarray,
        reconstruction: np.ndarray,
        *,
        mask: np.ndarray | None = None,
    ) -> None:
        """Adds a batch; `mask` bool (N,) leaves padding rows out."""
        error, copy_error = image_errors(first, later, reconstruction)
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != error.shape or mask.dtype != bool:
                raise ValueError(
                    f"mask must be bool {error.shape}, got {mask.dtype} {mask.shape}"
                )
            error, copy_error = error[mask], copy_error[mask]
        self.images += len(error)
        self.error += float(error.sum())
        self.copy_error += float(copy_error.sum())
        self.improved += int((error < copy_error).sum())

    def merge(self, other: ReconstructionSums) -> ReconstructionSums:
        return ReconstructionSums(
            self.images + other.images,
            self.error + other.error,
            self.copy_error + other.copy_error,
            self.improved + other.improved,
        )

    def result(self) -> dict[str, Any]:
        """Plain numbers; PSNR is that of the mean MSE, so that one perfect image cannot rule it."""
        if not self.images:
            raise ValueError("no images were added: call update() before result()")
        mse, mse_copy = self.error / self.images, self.copy_error / self.images
        return {
            "images": self.images,
            "mse": mse,
            "mse_copy": mse_copy,
            "psnr": psnr(mse),
            "psnr_copy": psnr(mse_copy),
            "skill": skill(mse, mse_copy),
            "better_than_copy_fraction": self.improved / self.images,
        }

"""How much of the change between two frames a reconstruction explains: MSE, PSNR, SSIM, skill.

Images are (N, H, W, C), uint8 (scaled by 1/255) or float32/float64 in [0, 1]; any other dtype is an
error. Reconstructions may overshoot [0, 1] and are scored as they are. `skill` is
1 - MSE / MSE(copy the first frame): 0 for a model that copies, 1 for a perfect one.
"""

import math
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from lapa_jax.diagnostics.sample import Sample, in_batches
from lapa_jax.diagnostics.statistics import bootstrap_ratio, means

# Wang et al. 2004, section III.C, for images in [0, 1].
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


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


def decoder_errors(
    sample: Sample, start: np.ndarray, received: np.ndarray, first: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `image_errors`, of what the decoder makes of frames `start` and latents as it takes them,
    compared where it answers: with features where these are what it predicts."""
    target = sample.target or (lambda frames: unit_images(frames, "frames"))

    def batch(start, received, first, last):
        drawn, first, last = (
            np.asarray(x, np.float64)
            for x in (sample.decode(start, received), target(first), target(last))
        )
        axes = tuple(range(1, drawn.ndim))
        return np.square(drawn - last).mean(axes), np.square(first - last).mean(axes)

    return in_batches(batch, start, received, first, last)


def structural_similarity(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM of each image with its reference, float64 (N,): 1 where equal, about 0 where unrelated.

    Wang et al. 2004: means and variances under a Gaussian of 1.5 pixels cut to 11 x 11, over the
    places where that lies inside the image, averaged over places and channels; peak 1. `images` may
    overshoot [0, 1].
    """
    images = unit_images(images, "images", overshoot=True)
    reference = unit_images(reference, "reference")
    if images.shape != reference.shape or min(images.shape[1:3]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(
            "images and reference must have one shape with H, W of at least "
            f"{2 * SSIM_RADIUS + 1} pixels, the window of SSIM; got {images.shape}, "
            f"{reference.shape}"
        )
    # One image at a time: the moments of a batch of large frames would take gigabytes.
    return np.array([_ssim(*pair) for pair in zip(images, reference, strict=True)])


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    inside = slice(SSIM_RADIUS, -SSIM_RADIUS)

    def local_mean(image: np.ndarray) -> np.ndarray:
        blurred = gaussian_filter(image, SSIM_SIGMA, radius=SSIM_RADIUS, axes=(0, 1))
        return blurred[inside, inside]

    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    return float((luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)).mean())


def reconstruction_report(
    error: np.ndarray,
    copy_error: np.ndarray,
    episode: np.ndarray,
    *,
    seed: int,
    **more: np.ndarray,
) -> dict[str, Any]:
    """From the errors of `image_errors` (N,), with episode-bootstrap 95 % intervals.

    `more`: values (N,) whose means are in the report, too. PSNR is that of the mean MSE, so that
    one perfect image cannot rule it.
    """
    mse, mse_copy = float(error.mean()), float(copy_error.mean())
    mean = bootstrap_ratio(error, np.ones(len(error)), episode, seed=seed)
    report: dict[str, Any] = {
        "images": len(error),
        "mse": mse,
        "mse_copy": mse_copy,
        "psnr": psnr(mse),
        "psnr_interval": [psnr(mean.high), psnr(mean.low)],
        "psnr_copy": psnr(mse_copy),
        "skill": skill(mse, mse_copy),
        "skill_interval": None,
        "better_than_copy_fraction": float((error < copy_error).mean()),
    }
    if mse_copy > 0:
        ratio = bootstrap_ratio(error, copy_error, episode, seed=seed)
        report["skill_interval"] = [1 - ratio.high, 1 - ratio.low]
    return report | means(more, episode, seed=seed)


def of_sample(sample: Sample) -> dict[str, Any]:
    """The `reconstruction_report` of what the decoder drew; of one that predicts features, of
    these, and without PSNR. `skill_exchanged`: that of the same decoder given the z of another
    pair, which is what it does without knowing the motion."""
    if sample.errors is not None:
        error, copy_error = np.asarray(sample.errors, np.float64).T
    else:  # in parts: large frames as float64 would take gigabytes
        parts = np.array_split(np.arange(len(sample.first)), -(-len(sample.first) // 256))
        errors = [image_errors(sample.first[i], sample.last[i], sample.recon[i]) for i in parts]
        error, copy_error = np.concatenate(errors, axis=1)
    report = reconstruction_report(error, copy_error, sample.episode, seed=0)
    if not sample.draws_frames:  # a peak of 1 is that of pixels
        report |= {name: None for name in report if name.startswith("psnr")}
    if sample.exchanged_mse is not None:
        report["skill_exchanged"] = skill(float(sample.exchanged_mse.mean()), report["mse_copy"])
    return report


def similarity(sample: Sample) -> dict[str, Any]:
    """Means of `structural_similarity` with the later frame, of what the decoder drew (`ssim`) and
    of the first frame (`ssim_copy`)."""
    values = {
        "ssim": structural_similarity(sample.recon, sample.last),
        "ssim_copy": structural_similarity(sample.first, sample.last),
    }
    return means(values, sample.episode, seed=0)

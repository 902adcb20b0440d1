"""What every figure of a report is called, what it says in one sentence, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Figure:
    """A figure of report.json as a page shows it.

    Attributes:
        name: words, with the unit.
        about: one sentence.
        better: which direction is better, "" where neither is.
        share: it is from 0 to 1 and shown in per cent.
    """

    name: str
    about: str
    better: Better = ""
    share: bool = False


FIGURES: dict[str, Figure] = {
    # likelihood of the codes
    "nats_per_code": Figure(
        "nats per code", "How many nats a lossless coder needs for one code of this level, given the coarser levels.", "lower"
    ),
    "bits_per_code": Figure("bits per code", "The same in bits: nats divided by ln 2.", "lower"),
    "bits_per_image": Figure(
        "bits per image", "What all codes of one image cost; details that the codes lose do not count.", "lower"
    ),
    "bits_per_pixel": Figure("bits per pixel", "Bits per image divided by height times width.", "lower"),
    "bits_per_dimension": Figure(
        "bits per value", "Bits per image divided by the number of colour values of an image.", "lower"
    ),
    "gap": Figure(
        "excess of held-out over training",
        "By how much held-out codes cost more than training codes; a large excess means that the prior overfits.",
        "lower",
        share=True,
    ),
    "uniform_nats_per_code": Figure(
        "nats per code without a prior", "What a code costs if all codes of its level are equally likely: ln K."
    ),
    # reconstruction
    "mse": Figure("mean squared error", "Of pixel values from -1 to 1.", "lower"),
    "mse_unit_range": Figure("mean squared error, values 0 to 1", "The same error of pixel values from 0 to 1.", "lower"),
    "psnr": Figure("PSNR in dB, mean of images", "Peak signal-to-noise ratio of each image, then the mean.", "higher"),
    "psnr_of_mean": Figure(
        "PSNR in dB, of the mean error", "Peak signal-to-noise ratio of the mean squared error of all images.", "higher"
    ),
    "ssim": Figure("structural similarity (SSIM)", "Agreement of local structure, 1 for equal images.", "higher"),
    "ms_ssim": Figure("multi-scale similarity (MS-SSIM)", "The same over several scales, 1 for equal images.", "higher"),
    "ms_ssim_scales": Figure("scales of MS-SSIM", "How many scales fit into an image of this size."),
    "perceptual": Figure(
        "perceptual distance",
        "Distance in the features of a VGG16, 0 for equal images; the protocol says whose weights it has, and whether it is LPIPS.",
        "lower",
    ),
    # codes
    "used": Figure("codes used", "Share of the codebook that occurs at least once in these images.", "higher", share=True),
    "perplexity": Figure(
        "perplexity", "How many codes would be in use if all that are used were equally frequent.", "higher"
    ),
    "codes": Figure("codes in the codebook", "K, the size of the codebook."),
    "most_used": Figure("most used codes", "Number of the code, and how often it occurs."),
    "least_used": Figure("least used codes", "Number of the code, and how often it occurs."),
    "set": Figure("counted over", "The images whose codes were counted."),
    # distances
    "n": Figure("images", "How many images of this set were measured."),
    "frechet": Figure(
        "Frechet distance",
        "Distance of the Gaussians that fit the features of this set and of the reference; compare only at equal n.",
        "lower",
    ),
    "kernel": Figure("kernel distance", "Squared maximum mean discrepancy of the features, about 0 for equal sets.", "lower"),
    "kernel_deviation": Figure("kernel distance, standard deviation", "Standard deviation between random subsets."),
    "score": Figure("class score", "High if each image is clearly of one class and all classes occur.", "higher"),
    "score_deviation": Figure("class score, standard deviation", "Standard deviation between subsets."),
    "network": Figure("feature network", "The network whose features are compared."),
    "reference_n": Figure("reference images", "How many training images the sets are compared with."),
    "dimension": Figure("feature dimensions", "Length of a feature vector."),
    "kernel_subset_size": Figure("images in a subset", "Size of the random subsets for the kernel distance."),
    # precision and recall
    "precision": Figure(
        "precision", "Share of these images that lie among the reference images in feature space.", "higher", share=True
    ),
    "recall": Figure("recall", "Share of the reference images that lie among these images.", "higher", share=True),
    "density": Figure("density", "As precision, but counts how many neighbourhoods an image is in; it may exceed 1.", "higher"),
    "coverage": Figure(
        "coverage", "Share of the reference images that have one of these images in their neighbourhood.", "higher", share=True
    ),
    "k": Figure("neighbours, precision and recall", "Rank of the neighbour that sets the radius of a neighbourhood."),
    "k_coverage": Figure("neighbours, density and coverage", "The same for density and coverage."),
    # classification
    "trained_on": Figure("trained on", "The images from which the classifier learned."),
    "tested_on": Figure("tested on", "The images on which it was tested."),
    "test_n": Figure("test images", "How many images it was tested on."),
    "top_1": Figure("accuracy, top 1", "Share of test images whose likeliest class is right.", "higher", share=True),
    "top_5": Figure("accuracy, top 5", "Share of test images whose class is among the five likeliest.", "higher", share=True),
    "classifier": Figure("classifier", "The settings of the classifier."),
    # memorisation
    "training_n": Figure("training images searched", "How many training images the nearest one was searched among."),
    "samples_median": Figure(
        "median distance of samples", "To the nearest training image; far below the next figure means memorised images."
    ),
    "heldout_median": Figure("median distance of held-out images", "The same of real images that were not trained on."),
    "nearer_than_any_heldout": Figure(
        "samples nearer than any held-out image", "Share of samples that are suspiciously near to a training image.",
        "lower", share=True,
    ),
    "statistic": Figure(
        "difference of the distributions", "Kolmogorov-Smirnov statistic, 0 for equal and 1 for disjoint distributions."
    ),
    "p_value": Figure("p value", "Probability that chance alone makes the difference at least as large."),
    # symmetry
    "against": Figure("compared with", "The set that the others are tested against."),
    "median": Figure("median mirror error", "0 for images that equal their mirror image, about 0.71 for noise."),
    "mean": Figure("mean mirror error", "The same, mean instead of median."),
    "real_median": Figure("median mirror error of real images", "The same figure of the held-out images of this class."),
    # speed
    "batch": Figure("images at a time", "Size of the batch that was timed."),
    "device": Figure("device", "Where it was timed."),
    "threads": Figure("CPU threads", "How many threads torch used."),
    "encode_images_per_second": Figure("images encoded per second", "From pixels to codes.", "higher"),
    "decode_images_per_second": Figure("images decoded per second", "From codes to pixels.", "higher"),
    "sample_images_per_second": Figure("images sampled per second", "Drawing all codes, then decoding them.", "higher"),
    "sample_seconds_per_position": Figure("seconds per code", "Time for one position of a batch of grids.", "lower"),
    "positions": Figure("codes per image", "Positions of all grids together."),
    # the choice of sampling settings
    "temperature": Figure("temperature", "Divides the logits; 1 is the model's own distribution."),
    "top_k": Figure("top-k", "Codes are drawn from the k most likely ones; 0 means all."),
    "top_p": Figure("top-p", "Codes are drawn from the fewest whose probabilities add up to p."),
    "guidance": Figure("guidance", "Strength of classifier-free guidance; 1 is off."),
    "kept_recall": Figure("recall to keep", "Share of the recall of the model's own distribution that a setting must keep.", share=True),
    # the critic
    "rate": Figure("fraction kept", "Share of the candidates that the critic keeps; 1 keeps all."),
    "candidates": Figure("candidates", "How many samples the critic chose among."),
    "kept": Figure("images kept", "How many of them it kept."),
    "frechet_reconstructions": Figure(
        "Frechet distance from reconstructions",
        "Of the images kept, from the reconstructed reference; what the decoder does to all images does not count (the paper's FID*).",
        "lower",
    ),
    "least_score": Figure("least score kept", "Smallest probability that the critic gives to an image that it kept."),
}  # fmt: skip

SETS: dict[str, str] = {
    "training": "the images that the run learned from",
    "reference": "training images with which all sets are compared",
    "held out": "real images that were not trained on; no sample can be expected to score better",
    "reconstructions": "held-out images through the codes and back; what the autoencoder loses shows here",
    "samples": "new images; what the priors get wrong shows in addition",
    "against their originals": (
        "reconstructions compared with the very held-out images that were encoded: what the autoencoder loses alone (rFID, where the "
        "features are those of Inception)"
    ),
    "all n": (
        "as many samples, and as many reconstructions of reference images, as --n asks for, where that is more than are held out; "
        "compare them only with figures at the same n"
    ),
    "against reconstructions": (
        "the same set compared with reconstructed training images, so that what the autoencoder loses does not count (FID* of the paper)"
    ),
}
"""What the sets of images are."""

PARTS: dict[str, str] = {
    "nll": "How well the priors predict codes. Training and held-out images should cost about the same.",
    "reconstruction": "What the autoencoder loses. No sample can be sharper than a reconstruction.",
    "codes": "How evenly the codes of each level are used. Codes that are never used are wasted.",
    "distances": (
        "How far each set is from the training images in the features of a network that knows other images. Compare a column "
        "with the column of held-out images: the part up to the reconstructions is lost by the autoencoder, the rest by the priors."
    ),
    "precision": "Precision falls when images look wrong, recall falls when some kinds of images are missing.",
    "classification": "A classifier learns from each set and is tested on real images: samples that lack a class or its variety train a bad one.",
    "memorisation": "Whether samples are copies. If they were, they would be nearer to training images than held-out images are.",
    "symmetry": "Whether samples are as symmetric as real images, which needs agreement over long distances.",
    "speed": "Times of this machine.",
    "tuning": "Temperature, top-p and guidance are chosen on half of the held-out images and reported on the other half.",
    "critic": "What a classifier gains by choosing among samples, and what variety that costs.",
}
"""What each part of a report shows, by its name."""


def figure(key: str) -> Figure:
    """The figure of a key of report.json; a key that is not listed is shown as it is written."""
    return FIGURES.get(key, Figure(key.replace("_", " "), ""))

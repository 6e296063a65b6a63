"""What is known of each pretrained encoder: its input, its output, its licence, and the data that it has already seen.

No torch here: the workflow reads the cards while its rules are parsed. A card states what a source says and names the
source; what no source says is said to be unknown.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderCard:
    """One encoder. Every number is checked against the network by a test."""

    title: str
    input_shape: tuple[int, int, int]  # voxels that the network itself takes
    spacing: float  # mm, of those voxels when they come from the study's volume of 192 mm
    channels: int  # of the output, at each position
    grid: tuple[int, int, int]  # positions of the output, along x, y, z
    width: int  # of a token between the blocks
    depth: int  # transformer blocks
    pooling: str  # how the authors make one vector of the positions
    licence: str
    origin: str  # where the weights come from
    file: str  # the published file's name
    reference: str
    pretraining: tuple[str, ...]  # data sets that the encoder has seen, as far as `pretraining_note` says
    pretraining_note: str
    operations: int = 0  # multiply-accumulates of our forward pass; 0: counted when asked for, which takes seconds
    reference_operations: int = 0  # multiply-accumulates of the authors' forward pass, where ours takes fewer


CARDS = {
    "sam_med3d": EncoderCard(
        title="SAM-Med3D-turbo, image encoder (vit_b_ori)",
        input_shape=(128, 128, 128),
        spacing=1.5,
        channels=384,
        grid=(8, 8, 8),
        width=768,
        depth=12,
        pooling="none: a map for the mask decoder",
        licence="Apache-2.0",
        origin="Hugging Face repository blueyo0/SAM-Med3D",
        file="sam_med3d_turbo.pth",
        reference="Wang et al., SAM-Med3D, arXiv 2310.15161; IEEE TNNLS 2025, doi 10.1109/TNNLS.2025.3586694",
        pretraining=(
            "ATLAS-2",
            "BrainPTM-2021",
            "BraTS-2020",
            "BraTS-2021",
            "CAUSE07",
            "cSeg-2022",
            "FeTA-2022",
            "iSeg-2017",
            "iSeg-2019",
            "ISLES-2015",
            "ISLES-2022",
            "Longitudinal Multiple Sclerosis Lesion Segmentation",
            "MESSEG",
            "MRBrainS13",
            "MRBrainS18",
            "MSD BrainTumour",
            "MSD Hippocampus",
            "MSseg08",
            "VALDO",
            "WMH",
        ),
        pretraining_note=(
            "Trained on segmentation masks. The names are the brain MRI sets of two lists by the authors: their public "
            "training code (github.com/uni-medical/SAM-Med3D, utils/data_paths.py at 10761d1) and the 44 sets of the turbo "
            "fine-tuning (github.com/uni-medical/SAM-Med3D/issues/2, 10 December 2023); sets of other organs are left out "
            "here, and spellings are joined. Neither list names ADNI, OASIS, AIBL or another dementia cohort. Not known: "
            "the paper counts 70 public sets and 8,000 licensed private cases from hospitals, which no public list names "
            "in full, and where challenges took their scans from."
        ),
        operations=52_374_798_336,
        reference_operations=184_293_556_224,  # counted on medim 0.1.2; a test counts again
    ),
    "brainiac": EncoderCard(
        title="BrainIAC (SimCLR, ViT-B)",
        input_shape=(96, 96, 96),
        spacing=2.0,
        channels=768,
        grid=(6, 6, 6),
        width=768,
        depth=12,
        pooling="the first token after the final norm: patch (0, 0, 0), for the network has no class token",
        licence="non-commercial academic research only (Mass General Brigham); see the repository's LICENSE",
        origin="the Dropbox folder that the README of github.com/AIM-KannLab/BrainIAC links to",
        file="BrainIAC.ckpt",
        reference="Tak et al., A generalizable foundation model for analysis of human brain MRI, Nature Neuroscience "
        "2026, doi 10.1038/s41593-026-02202-6; medRxiv 2024.12.02.24317992",
        pretraining=(
            "ABCD",
            "ABIDE",
            "ADNI",
            "CBTN LGG",
            "DFCI/BCH HGG",
            "DFCI/BCH LGG",
            "DLBS",
            "MCSA",
            "MIRIAD",
            "OASIS-2",
            "OASIS-3",
            "PPMI",
            "QIN-GBM",
            "RadART LGG",
            "RIDER",
            "SOOP",
        ),
        pretraining_note=(
            "Self-supervised, without labels: 32,015 scans of 16 data sets. The 16 names are those of the paper's "
            "Supplementary Data Table 4 as one public audit of the paper quotes them; the table itself could not be read "
            "here, so check it before you rely on the absence of a name. Not known: which subjects, for no list of them "
            "is published."
        ),
        operations=19_885_326_336,
    ),
}

# Full names that a config may use, in words, and what the lists call them.
_FULL_NAMES = {
    "alzheimers disease neuroimaging initiative": "adni",
    "open access series of imaging studies": "oasis",
    "parkinsons progression markers initiative": "ppmi",
    "mayo clinic study of aging": "mcsa",
    "minimal interval resonance imaging in alzheimers disease": "miriad",
    "dallas lifespan brain study": "dlbs",
    "autism brain imaging data exchange": "abide",
    "adolescent brain cognitive development": "abcd",
}
_PHASES = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "go": "go"}


def overlap(card: EncoderCard, dataset: str) -> str:
    """The data set of ``card.pretraining`` that a user's ``dataset`` names, or an empty string.

    Names are compared as words: case, spaces, hyphens, slashes and underscores do not count, and a number is a word of
    its own ("OASIS3" is "OASIS-3"). ``dataset`` matches a listed name where that name's words stand in it one after the
    other ("ADNI baseline" is ADNI, "AD" and "NADNI" are not). A listed name without a number stands for all its phases
    ("ADNI-1", "ADNI2", "ADNI_GO" and "ABIDE II" match ADNI and ABIDE). A listed name with a number needs that number
    ("OASIS-1" is not OASIS-3), unless ``dataset`` gives none: "OASIS" may be any of them, so it matches. A few full names
    are known ("Alzheimer's Disease Neuroimaging Initiative").

    Only names are compared: releases under other names may hold the same people.
    """
    words = _words(dataset)
    return next((name for name in card.pretraining if _names(words, _words(name))), "")


def _words(name: str) -> list[str]:
    plain = " ".join(re.findall(r"[a-z]+|[0-9]+", re.sub(r"['’]", "", name.casefold())))
    for full, short in _FULL_NAMES.items():
        plain = re.sub(rf"\b{full}\b", short, plain)
    return plain.split()


def _names(words: list[str], listed: list[str]) -> bool:
    if "".join(words) == "".join(listed):  # "QINGBM"
        return True
    numbers = [word for word in listed if word.isdigit()]
    stem = [word for word in listed if not word.isdigit()]
    for start in range(len(words) - len(stem) + 1):
        run, rest = words[start : start + len(stem)], words[start + len(stem) :]
        phases = []
        if run != stem and run[:-1] == stem[:-1] and run[-1].startswith(stem[-1]):
            phase = run[-1].removeprefix(stem[-1])  # "adnigo", "abideii"
            if phase in _PHASES:
                run, phases = stem, [_PHASES[phase]]
        if run != stem:
            continue
        for word in rest:
            if not word.isdigit() and word not in _PHASES:
                break
            phases.append(_PHASES.get(word, word))
        if not numbers or not phases or set(numbers) <= set(phases):
            return True
    return False

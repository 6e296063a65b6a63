"""What is known of each brain extractor: the packages that compute, and where weights come from that are not in them.

No torch and no extractor here: the workflow reads the cards while its rules are parsed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fedbrain.errors import StudyError


@dataclass(frozen=True)
class ExtractorCard:
    """One extractor. Without ``file`` it needs no weights beyond its packages."""

    name: str
    title: str
    memory_mb: int = 3500  # of a job without a GPU
    minutes: float = 1  # per scan at most, on one core without a GPU
    orientations: int = 24  # in which a head that is laid nowhere is tried, the likeliest first
    packages: tuple[str, ...] = ()  # distributions whose versions decide about the mask
    module: str | None = None  # what must be importable, where an extra brings it
    extra: str | None = None  # of fedbrain
    file: str | None = None  # the published file's name
    origin: str = ""
    licence: str = ""  # of the weights
    sha256: str | None = None  # of the published file, as its publisher states it

    def problems(self, weights: str | None, sha256: str | None) -> Iterator[str]:
        """What keeps the extractor from running, as far as it is cheap to find out; each names its config key."""
        key = "preprocessing.extractor_weights"
        if self.file is None:
            if weights is not None:
                yield f"{key}: {self.title} takes no weights; leave the key out"
            if sha256 is not None:
                yield f"preprocessing.extractor_sha256: {self.title} takes no weights; leave the key out"
            return
        if not _is_installed(self.module):
            yield f"preprocessing.extractor: {self.title} needs more packages; run pip install 'fedbrain[{self.extra}]'"
        if weights is None:
            yield f"{key}: {self.title} needs its weights; {self._mend()}"
        elif not Path(weights).is_file():
            yield self.missing(weights)

    def missing(self, weights: str) -> str:
        """What to say where the file is not there."""
        return f"preprocessing.extractor_weights: no file {weights}; {self._mend()}"

    def expected_sha256(self, weights: str | None, given: str | None) -> str | None:
        """The checksum that the weights must have: the given one, or else the published one. None without weights.

        Raises StudyError where neither is known; it tells the file's own checksum.
        """
        if self.file is None or given is not None or self.sha256 is not None:
            return given or (self.sha256 if self.file else None)
        from fedbrain.provenance import sha256_of

        own = sha256_of(weights) if weights and Path(weights).is_file() else "not known, since it is not there"
        raise StudyError(
            f"preprocessing.extractor_sha256: no SHA-256 of {self.file} is published ({self.origin}), so the study must "
            f"name it; that of the file at extractor_weights is {own}. Copy it, if you trust where the file came from"
        )

    def check(self, weights: str, found: str, expected: str) -> None:
        """Raises StudyError where the file's checksum is not the expected one."""
        if found != expected:
            raise StudyError(
                f"preprocessing.extractor_weights: {weights} has SHA-256 {found}, expected is {expected}"
                f"{' (published)' if expected == self.sha256 else ''}; {self._mend()}. For other weights on purpose, set "
                "preprocessing.extractor_sha256 to theirs"
            )

    def wrong(self, weights: str, why: str) -> StudyError:
        """The error for a file that is not the published checkpoint."""
        return StudyError(f"preprocessing.extractor_weights: {weights} is not {self.file} ({why}); {self._mend()}")

    def _mend(self) -> str:
        return f"take {self.file} from {self.origin} (licence: {self.licence}) and set the key to its path"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


CARDS = {
    card.name: card
    for card in (
        ExtractorCard("deepbet", "deepbet (Fisch et al. 2024)", packages=("deepbet", "torch")),
        ExtractorCard("provided", "masks of the scan table", orientations=0),  # it has one mask
        ExtractorCard("template", "the MNI152 template laid into the head", packages=("antspyx", "nilearn", "scipy")),
        ExtractorCard(
            "hd_bet",
            "HD-BET v2 (Isensee et al. 2019)",
            memory_mb=12_000,
            minutes=15,
            orientations=6,
            packages=("nnunetv2", "torch"),
            module="nnunetv2",
            extra="hd-bet",
            file="release_v1.5.0.zip",
            origin="https://zenodo.org/records/14445620",
            licence="see that page",
        ),
        ExtractorCard(
            "synthstrip",
            "SynthStrip (Hoopes et al. 2022)",
            memory_mb=14_000,
            minutes=3,
            orientations=6,
            packages=("nipreps-synthstrip", "torch"),
            module="nipreps.synthstrip",
            extra="synthstrip",
            file="synthstrip.1.pt",
            origin="https://surfer.nmr.mgh.harvard.edu/docs/synthstrip/",
            licence="see that page",
            # The name of the file in FreeSurfer's own git-annex store is this checksum.
            sha256="37417f802196186441aae3e7f385d94f8a98c64a88acaeaa2723af995c653e33",
        ),
    )
}

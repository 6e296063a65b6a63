"""A head without a person: the MNI152 brain, drawn skull and soft tissue around it, and how both vary and shrink.

Everything is a function of position, so that a scanner can ask for the intensity at exactly the points that it measures:

    point in a subject's head --(affine, random diffeomorphism)--> point in the common head --(atrophy)--> tissue maps

Coordinates are millimetres in MNI152NLin2009aSym throughout. The brain's grey and white matter maps are the files that
nilearn carries in its package (Fonov et al. 2011). Skull, marrow, scalp, muscles, airways, eyes and spine are drawn
from simple shapes; their places and sizes are ours, by eye after ordinary adult heads. All rates are ours too, chosen
to lie in the range that the literature on ageing and Alzheimer's disease makes familiar; they are not estimates.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.fft import dctn, idctn
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

Grid = tuple[np.ndarray, np.ndarray, np.ndarray]  # the coordinates (mm) along x, y and z of a regular grid

HEAD: Grid = tuple(np.arange(low, high, 1.5, dtype=np.float32) for low, high in ((-105, 106), (-135, 121), (-171, 111)))
SHAPE: Grid = tuple(
    np.arange(low, high, 5.0, dtype=np.float32) for low, high in ((-110, 111), (-140, 126), (-176, 119))
)
BRAIN: Grid = tuple(np.arange(low, high, 3.0, dtype=np.float32) for low, high in ((-96, 97), (-132, 97), (-75, 97)))
TEMPLATE_ORIGIN = (-98.0, -134.0, -72.0)

CSF, GREY, WHITE = 0.17, 0.61, 0.94  # T1w intensities before a scanner's contrast; white matter is near 1
MARROW, BONE, MUSCLE, FAT, SKIN = 0.62, 0.05, 0.44, 1.28, 0.55

STRUCTURES = ("hippocampus", "ventricles", "cortex", "white_matter")


@dataclass(frozen=True)
class Common:
    """The common head, in arrays that are read only; x, y, z order, float32."""

    grey: np.ndarray  # fraction of grey matter, 1 mm, from TEMPLATE_ORIGIN
    white: np.ndarray  # fraction of white matter, likewise
    hull: np.ndarray  # bool, the template's own brain mask (with ventricles and sulci), likewise
    hippocampus: np.ndarray  # 0..1 membership (with the amygdala's neighbourhood), on BRAIN
    ventricles: np.ndarray  # 0..1 membership of the lateral ventricles with temporal horns, on BRAIN
    deep: np.ndarray  # 0..1, where grey matter is not cortex, on BRAIN
    horn: np.ndarray  # 0..1, the temporal horn, on BRAIN
    flows: np.ndarray  # (4, 3, ...) velocity (mm) that changes one structure's log volume by one, on BRAIN
    inside: np.ndarray  # 0..1, the cranial cavity, on HEAD
    around: np.ndarray  # intensity of everything outside the cavity, on HEAD
    within: np.ndarray  # 0..1, the cranial cavity, on SHAPE
    builds: np.ndarray  # (5, 3, ...) velocities of bodily build, on SHAPE: see BUILDS


BUILDS = ("skull", "scalp", "neck", "jaw", "nose")  # thickness, thickness, girth, length, length


@dataclass(frozen=True)
class Person:
    """One anatomy. Follow-up sessions share it; disease and scanner do not touch it."""

    linear: np.ndarray  # (3, 3), subject to common
    pull: np.ndarray  # (3, ...) displacement from subject to common (mm), on SHAPE
    folding: np.ndarray  # on SHAPE; shifts the border of cortex and CSF
    lightness: np.ndarray  # on SHAPE; slow variation of tissue intensity
    volumes: dict[str, float]  # inborn log volume per structure, relative to the population's mean
    fat: float  # brightness of fat
    soft: float  # brightness of muscle and skin


def draw_person(rng: np.random.Generator, sex: str) -> Person:
    """Draws an anatomy; ``sex`` ("F" or "M") moves the mean head size only."""
    common = common_head()
    shape = tuple(len(axis) for axis in SHAPE)
    # The template is larger than ordinary heads (about a tenth in each direction).
    size = np.exp(rng.normal(-0.065, 0.03) + (-0.018 if sex == "F" else 0.018))
    linear = np.diag(np.exp(rng.normal(0.0, 0.022, 3)) * size) + rng.normal(0.0, 0.01, (3, 3))
    velocity = np.zeros((3, *shape), np.float32)
    for deviation, reach in ((3.0, 30.0), (1.1, 12.0)):  # mm
        for axis in range(3):
            noise = deviation * _smooth_noise(rng, shape, reach / 5.0)
            # Small bumps belong to the brain; on the skull they would look like dents.
            velocity[axis] += noise if reach > 20.0 else noise * (0.3 + 0.7 * common.within)
    builds = rng.normal(0.0, (0.9, 1.3, 4.0, 4.0, 2.5))  # mm
    velocity += np.tensordot(builds.astype(np.float32), common.builds, 1)
    return Person(
        linear=np.linalg.inv(linear).astype(np.float32),
        pull=_flow(-velocity, spacing=5.0),
        folding=_smooth_noise(rng, shape, 1.3),
        lightness=_smooth_noise(rng, shape, 2.4),
        volumes=dict(zip(STRUCTURES, rng.normal(0.0, (0.14, 0.30, 0.05, 0.03)))),
        fat=float(np.exp(rng.normal(0.0, 0.10))),
        soft=float(np.exp(rng.normal(0.0, 0.06))),
    )


def age_change(age: float) -> dict[str, float]:
    """Mean log volume at ``age`` (years) relative to the template, whose brain is young; healthy ageing, our rates."""
    decades = (age - 70.0) / 10.0
    return {
        "hippocampus": -0.08 - 0.05 * decades,
        "ventricles": 0.45 + 0.20 * decades,
        "cortex": -0.07 - 0.03 * decades,
        "white_matter": -0.03 - 0.02 * decades,
    }


def disease_change(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """Log volume change of one diseased subject at ``severity`` (1 is a typical case); patterns differ by subject."""
    mean = {"hippocampus": -0.23, "ventricles": 0.46, "cortex": -0.05, "white_matter": -0.005}
    return {name: float(severity * value * rng.lognormal(-0.045, 0.3)) for name, value in mean.items()}


def atrophy_pull(change: dict[str, float]) -> np.ndarray:
    """Displacement (mm, on BRAIN) from the changed brain to the common one, for log volume changes by structure.

    One stationary velocity field, a weighted sum of ``Common.flows``, integrated by scaling and squaring.
    """
    common = common_head()
    weights = np.array([change[name] / GAINS[name] for name in STRUCTURES], np.float32)
    return _flow(-np.tensordot(weights, common.flows, 1), spacing=3.0)


# What a unit of each flow does to its structure's log volume, measured by `python benchmarks/phantom_task.py --gains`.
GAINS = {"hippocampus": 0.52, "ventricles": 0.60, "cortex": 1.05, "white_matter": 0.47}


@dataclass(frozen=True)
class Look:
    """What is at each point."""

    intensity: np.ndarray  # (N,) before contrast; white matter near 1
    brain: np.ndarray  # (N,) bool, brain with ventricles and sulci, as brain extraction understands it
    grey: np.ndarray  # (N,) fraction
    white: np.ndarray  # (N,) fraction
    places: tuple[
        np.ndarray, ...
    ]  # (M,) indices of the points in the cavity; (3, M) where they lie before, after atrophy


def look(person: Person, change: dict[str, float], pull: np.ndarray, points: np.ndarray) -> Look:
    """Looks at ``points`` (3, N; mm in the subject's head). ``pull`` is ``atrophy_pull(change)``."""
    common = common_head()
    moved = person.linear @ points
    moved += np.stack([_at(person.pull[axis], SHAPE, moved) for axis in range(3)])
    inside = _at(common.inside, HEAD, moved)
    around = _at(common.around, HEAD, moved)
    tone = np.where(around > 0.8, person.fat, person.soft).astype(np.float32)
    intensity = around * tone
    here = np.flatnonzero(inside > 0.01)
    near = moved[:, here]
    near = near + np.stack([_at(pull[axis], BRAIN, near) for axis in range(3)])
    origin = np.array(TEMPLATE_ORIGIN, np.float32)[:, None]
    grey, white = (
        map_coordinates(part, near - origin, order=1, output=np.float32) for part in (common.grey, common.white)
    )
    tissue = np.clip(grey + white, 1e-3, 1.0 - 1e-3)
    deep = _at(common.deep, BRAIN, near)
    # Sharpening undoes the template's averaging; the shift opens or closes sulci. It spares deep structures.
    shift = (0.55 * _at(person.folding, SHAPE, moved[:, here]) - THINNING * change["cortex"]) * (1.0 - deep)
    filled = 1.0 / (1.0 + np.exp(-1.6 * (np.log(tissue / (1.0 - tissue)) - shift)))
    ratio = np.clip(white / np.maximum(grey + white, 1e-3), 0.01, 0.99)
    ratio = 1.0 / (1.0 + np.exp(-1.35 * np.log(ratio / (1.0 - ratio))))
    light = 1.0 + 0.03 * _at(person.lightness, SHAPE, moved[:, here])
    inner = filled * (GREY + (WHITE - GREY) * ratio) * light + (1.0 - filled) * CSF
    cover = inside[here]
    intensity[here] = cover * inner + (1.0 - cover) * intensity[here]
    full_grey, full_white = np.zeros(points.shape[1], np.float32), np.zeros(points.shape[1], np.float32)
    full_grey[here], full_white[here] = cover * filled * (1.0 - ratio), cover * filled * ratio
    brain = np.zeros(points.shape[1], bool)
    brain[here] = map_coordinates(common.hull.view(np.uint8), near - origin, order=0) > 0
    return Look(np.maximum(intensity, 0.0), brain, full_grey, full_white, (here, moved[:, here], near))


THINNING = 6.0  # logits of sulcal opening per unit of cortical log volume


def true_volumes(person: Person, change: dict[str, float], spacing: float = 2.0) -> dict[str, float]:
    """Volumes (mL) of what was drawn: hippocampus, ventricles (lateral), cortex, white_matter, brain, cavity."""
    common = common_head()
    axes = [np.arange(axis[0] - 6, axis[-1] + 6, spacing, dtype=np.float32) for axis in BRAIN]
    points = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")])
    seen = look(person, change, atrophy_pull(change), points)
    here, person_side, near = seen.places
    grey, white = seen.grey[here], seen.white[here]
    deep, hippocampus, ventricles = (
        _at(part, BRAIN, near) for part in (common.deep, common.hippocampus, common.ventricles)
    )
    millilitres = spacing**3 / 1000.0
    sums = {
        "hippocampus": hippocampus * (grey + white),
        "ventricles": ventricles * (1.0 - grey - white),
        "cortex": grey * (1.0 - deep),
        "white_matter": white,
        "brain": grey + white,
        "cavity": _at(common.inside, HEAD, person_side),
    }
    return {name: float(values.sum(dtype=np.float64) * millilitres) for name, values in sums.items()}


# --- the common head -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def common_head() -> Common:
    """Builds the common head (a few seconds), once per process."""
    grey, white = (_template(name) for name in ("gm", "wm"))
    parts = _brain_parts(grey, white)
    distance = _cavity_distance(grey + white)
    around = _draw_around(distance)
    inside = 1.0 / (1.0 + np.exp(np.clip(distance / 0.6, -20, 20)))
    return Common(
        grey=grey,
        white=white,
        hull=_template("t1") > 0.0,
        hippocampus=parts["hippocampus"],
        ventricles=parts["ventricles"],
        deep=parts["deep"],
        horn=parts["horn"],
        flows=_flows(parts),
        inside=inside.astype(np.float32),
        around=around,
        within=_resample(gaussian_filter(inside.astype(np.float32), 2.0), HEAD, SHAPE),
        builds=_builds(distance),
    )


def _template(name: str) -> np.ndarray:
    # Read from nilearn's folder: importing nilearn itself costs each job two seconds and gives the same numbers.
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    image = nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    if tuple(image.affine[:3, 3]) != TEMPLATE_ORIGIN:
        raise RuntimeError(f"nilearn's {name} map lies elsewhere than expected; the phantoms need nilearn 0.13")
    return np.asarray(image.dataobj, dtype=np.float32) / np.float32(255.0)


def _brain_parts(grey: np.ndarray, white: np.ndarray) -> dict[str, np.ndarray]:
    """Soft memberships on BRAIN. The template has no labels; these are tubes and boxes cut with its tissue maps."""
    points = np.stack(np.meshgrid(*BRAIN, indexing="ij"))
    flat = (points.reshape(3, -1) - np.array(TEMPLATE_ORIGIN, np.float32)[:, None]).astype(np.float32)
    # Averaged over one cell of 3 mm before it is sampled there.
    g, w = (
        map_coordinates(gaussian_filter(part, 0.9), flat, order=1).reshape(points.shape[1:]) for part in (grey, white)
    )
    x, y, z = np.abs(points[0]), points[1], points[2]
    fluid = np.clip(1.0 - g - w, 0.0, 1.0)
    hippocampus = np.zeros_like(g)
    horn = np.zeros_like(g)
    for start, end, radius in (((21, -3, -19), (24, -10, -20), 7.5), ((24, -10, -20), (29, -24, -13), 6.5),
                               ((29, -24, -13), (25, -37, -2), 5.0)):  # amygdala and head, body, tail  # fmt: skip
        hippocampus = np.maximum(hippocampus, _soft(radius - _to_segment((x, y, z), start, end), 1.2))
    for start, end in (((30, -8, -19), (35, -22, -11)), ((35, -22, -11), (34, -38, -2)), ((34, -38, -2), (27, -46, 6))):
        horn = np.maximum(horn, _soft(3.5 - _to_segment((x, y, z), start, end), 1.0))
    box = _soft(34 - x, 2) * _soft(y + 54, 2) * _soft(38 - y, 2) * _soft(z + 4, 2) * _soft(34 - z, 2)
    fissures = _soft(x - 25, 1.5) * _soft(y + 22, 2)  # the Sylvian fissure's depth lies beside the ventricles
    third = _soft(4.5 - x, 1.0) * _soft(8 - z, 1.5)
    ventricles = np.clip(box * (1 - fissures) * (1 - third) + horn * _soft(y + 45, 2), 0, 1) * np.clip(
        2.2 * fluid, 0, 1
    )
    ventricles = np.maximum(ventricles, 0.6 * horn * (1 - hippocampus))
    deep = _soft(36 - x, 2) * _soft(y + 40, 2) * _soft(26 - y, 2) * _soft(z + 14, 2) * _soft(26 - z, 2)
    below = _soft(-16 - z, 2) * np.maximum(_soft(-42 - y, 2), _soft(18 - x, 2) * _soft(-10 - y, 2))  # cerebellum, stem
    deep = np.maximum.reduce([deep, below, hippocampus, _soft(2.0 * ventricles - 0.5, 0.2)])
    return {
        "hippocampus": hippocampus.astype(np.float32),
        "ventricles": ventricles.astype(np.float32),
        "horn": horn.astype(np.float32),
        "deep": deep.astype(np.float32),
        "cortex": (g * (1 - deep)).astype(np.float32),
        "white_matter": (w * (1 - deep) * (1 - ventricles)).astype(np.float32),
        "sulci": (np.clip(2 * fluid, 0, 1) * (1 - ventricles) * _soft(12 - _outside(g + w), 1.0)).astype(np.float32),
        "cavity": _soft(3.0 - _outside(g + w), 1.0).astype(np.float32),
    }


def _outside(tissue: np.ndarray) -> np.ndarray:
    return distance_transform_edt(tissue < 0.3) * 3.0  # mm, on BRAIN


def _flows(parts: dict[str, np.ndarray]) -> np.ndarray:
    """Velocity fields with a prescribed divergence: gradients of a Poisson solution, one per structure.

    The source is the structure, the sink is what makes room for it (CSF nearby, or white matter for the ventricles),
    so that the sum over the cavity vanishes and the skull need not move.
    """
    close = gaussian_filter(parts["hippocampus"], 4.0)
    near = close / close.max() * (parts["sulci"] + parts["horn"]) * (1 - parts["hippocampus"])
    surroundings = 0.6 * _share(parts["white_matter"]) + 0.4 * _share(parts["sulci"])
    pairs = (
        (parts["hippocampus"], _share(near)),
        (parts["ventricles"], surroundings),
        (parts["cortex"], _share(parts["sulci"])),
        (parts["white_matter"], 0.8 * _share(parts["sulci"]) + 0.2 * _share(parts["ventricles"])),
    )
    flows = np.empty((4, 3, *parts["cortex"].shape), np.float32)
    for index, (source, sink) in enumerate(pairs):
        rate = source - source.sum() * sink
        potential = _poisson(rate - rate.mean())
        flows[index] = np.array(np.gradient(potential)) * 3.0 * parts["cavity"]  # voxel to mm
    return flows


def _share(part: np.ndarray) -> np.ndarray:
    return part / part.sum()


def _poisson(source: np.ndarray) -> np.ndarray:
    """Solves the Poisson equation (unit spacing, zero flux at the border) by a cosine transform."""
    waves = dctn(source, norm="ortho")
    eigen = [2.0 * np.cos(np.pi * np.arange(n) / n) - 2.0 for n in source.shape]
    total = eigen[0][:, None, None] + eigen[1][None, :, None] + eigen[2][None, None, :]
    total[0, 0, 0] = 1.0
    waves /= total
    waves[0, 0, 0] = 0.0
    return idctn(waves, norm="ortho")


def _cavity_distance(tissue: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the cranial cavity's wall on HEAD, positive outside: the brain closed over its sulci."""
    coarse = tuple(np.arange(axis[0], axis[-1] + 1.5, 3.0, dtype=np.float32) for axis in HEAD)
    flat = np.stack([part.ravel() for part in np.meshgrid(*coarse, indexing="ij")])
    flat -= np.array(TEMPLATE_ORIGIN, np.float32)[:, None]
    brain = map_coordinates(gaussian_filter(tissue, 1.0), flat, order=1).reshape([len(axis) for axis in coarse]) > 0.35
    reach = 14.0  # mm; sulci narrower than twice this are closed over
    beyond = distance_transform_edt(~brain) * 3.0 - reach
    within = distance_transform_edt(beyond < 0) * 3.0
    distance = gaussian_filter(np.where(beyond < 0, reach - within, beyond + reach), 0.8) - 2.0  # the rim of CSF
    x, y, z = np.meshgrid(*coarse, indexing="ij")
    # Thicker CSF over the frontal and parietal convexity; a foramen below instead of a bag around the cut brain stem.
    distance -= 1.6 * _soft(z - 30, 10.0)
    distance = np.maximum(distance, -(z + 68))
    return _resample(distance.astype(np.float32), coarse, HEAD)


def _builds(distance: np.ndarray) -> np.ndarray:
    """Velocities of bodily build on SHAPE, in mm per mm; see BUILDS."""
    d = _resample(distance, HEAD, SHAPE)
    normal = np.array(np.gradient(gaussian_filter(d, 1.0)), np.float32)
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
    x, y, z = np.meshgrid(*SHAPE, indexing="ij")
    vault = _soft(z + 45, 8.0)
    zero = np.zeros_like(x)
    neck = _soft(-75 - z, 10.0)
    face = _soft(-50 - z, 10.0) * _soft(y, 12.0)
    nose = np.exp(-((x / 16) ** 2) - ((y - 92) / 22) ** 2 - ((z + 68) / 20) ** 2)
    fields = (
        normal * (np.clip(d / 8.0, 0, 1) * vault),
        normal * (np.clip((d - 7.0) / 6.0, 0, 1) * vault),
        np.stack([x / 60, (y + 40) / 60, zero]) * neck,
        np.stack([zero, zero, (z + 50) / 80]) * face,
        np.stack([zero, nose, -0.3 * nose]),
    )
    return np.stack(fields).astype(np.float32)


def _draw_around(distance: np.ndarray) -> np.ndarray:
    """The intensity of skull, scalp, face and neck on HEAD; air is 0."""
    rng = np.random.default_rng(152)  # fixed: the common head is one head
    x, y, z = (part.astype(np.float32) for part in np.meshgrid(*HEAD, indexing="ij", sparse=True))
    side = np.abs(x)

    # Thickness of the layers over the vault (mm), uneven as in life.
    patchy = [_noise_on_head(rng, reach) for reach in (24.0, 20.0, 5.0)]
    temple = np.exp(-(((side - 66) / 16) ** 2) - ((y - 8) / 34) ** 2 - ((z + 14) / 28) ** 2)
    skull = 7.0 + 1.2 * patchy[0] + 2.5 * _soft(-85 - y, 6.0) + 1.0 * _soft(y - 60, 6.0) - 3.0 * temple
    skull = np.clip(skull, 2.8, 13.0)
    muscle = 9.0 * np.exp(-(((side - 70) / 18) ** 2) - ((y - 14) / 30) ** 2 - ((z + 26) / 30) ** 2)  # temporalis
    scalp = np.clip(5.6 + 1.5 * patchy[1] + 1.5 * _soft(-80 - y, 8.0) * _soft(-z, 12.0), 3.0, 11.0)

    # The outer surface: vault, face, chin, nose, lips and neck, run together.
    surface = distance - (skull + muscle + scalp)
    surface = np.where(z < -62, surface + 0.9 * (-62 - z), surface)
    face = _ellipsoid((x, y, z), (0, 8, -72), (71, 74, 84), power=2.4)
    chin = _ellipsoid((x, y, z), (0, 46, -126), (30, 31, 23))
    lips = _to_segment((side, y, z), (0, 74, -98), (16, 68, -98)) - 9.0
    bridge = _to_segment((side, y, z), (0, 78, -42), (0, 91, -72)) - (7.0 + 4.0 * _soft(-56 - z, 6.0))
    wings = _to_segment((side, y, z), (4, 84, -78), (10, 78, -80)) - 7.5
    lean = -53.0 + 0.14 * (z + 100)
    girth = 1.0 + 0.10 * _soft(-140 - z, 8.0) + 0.04 * _soft(z + 80, 10.0)
    power = 2.5
    column = ((side / (60 * girth)) ** power + (np.abs(y - lean) / (50 * girth)) ** power) ** (1 / power)
    neck = np.maximum((column - 1.0) * 50.0, z + 58)
    surface = _joined(_joined(surface, face, 16.0), _joined(chin, lips, 8.0), 12.0)
    surface = _joined(_joined(surface, _joined(bridge, wings, 6.0), 6.0), neck, 18.0)
    lobe = _ellipsoid((side, y + 0.25 * (z + 55), z), (84, -34, -55), (8, 15, 29))
    bowl = _ellipsoid((side, y + 0.25 * (z + 55), z), (88, -29, -50), (7.5, 9, 17))
    surface = _joined(surface, np.maximum(lobe, -bowl), 3.0)
    depth = -surface

    # Muscles in bundles that run upwards, parted by bright septa; fat under the skin, thick in cheeks and nape.
    bundles = _noise_on_head(rng, 6.0, rise=3.5)
    fine = _noise_on_head(rng, 2.6, rise=2.0)
    septa = np.exp(-((bundles / 0.20) ** 2)) * (0.55 + 0.45 * np.clip(patchy[1], -1, 1))
    thin = np.exp(-((_noise_on_head(rng, 3.6, rise=3.0) / 0.16) ** 2)) * 0.35
    image = MUSCLE * (1.0 + 0.11 * fine) + np.clip(septa + thin, 0, 1) * (0.85 * FAT - MUSCLE)
    cheek = np.exp(-(((side - 45) / 18) ** 2) - ((y - 45) / 22) ** 2 - ((z + 88) / 26) ** 2)
    nape = np.exp(-((side / 45) ** 2) - ((y + 92) / 20) ** 2) * _soft(-45 - z, 8.0)
    padding = np.where(z > -45, scalp + 1.0, 5.0) + 9.0 * cheek + 4.0 * nape
    padding = gaussian_filter(padding.astype(np.float32), (2, 2, 4)) + 0.6 * fine
    image += (FAT * (1.0 + 0.07 * fine + 0.05 * patchy[0]) - image) * _soft(padding - depth, 0.7)
    galea = _soft(depth - 0.62 * scalp, 0.4) * _soft(0.62 * scalp + 1.3 - depth, 0.4) * _soft(z + 20, 8.0)
    image += (0.5 - image) * 0.55 * galea * (muscle < 2.5)
    image += (
        (MUSCLE - image)
        * _soft(muscle - 1.0, 0.5)
        * _soft(skull + muscle - distance, 0.6)
        * _soft(distance - skull, 0.6)
    )

    # Skull: two dark tables with marrow between them where it is thick; the base is dark and patchy.
    share = distance / skull
    marrow = _soft(share - 0.34, 0.06) * _soft(0.70 - share, 0.06) * _soft(skull - 4.8, 0.8)
    marrow = marrow * np.clip(0.75 + 0.35 * patchy[2], 0.1, 1.2)
    base = _soft(-38 - z, 5.0)
    bone = BONE + (MARROW * (1 - base) + 0.75 * base * np.clip(patchy[2], 0, 1)) * marrow
    shell = _soft(skull - distance, 0.5) * _soft(distance + 1.0, 0.5) * _soft(z + 64, 3.0)
    image += (bone - image) * shell

    # Ribbons, tubes and hollows. Each is painted over what was there, in this order, inside its own box.
    canvas = _Canvas(image)
    _paint_face(canvas, fine, patchy[2])
    _paint_spine(canvas, patchy[2])

    image += (SKIN - image) * _soft(1.7 - depth, 0.45)
    image *= _soft(depth, 0.45)
    return np.clip(image, 0.0, 1.6).astype(np.float32)


class _Canvas:
    """The image on HEAD, to be painted on in boxes; ``side`` shapes are drawn left and right at once."""

    def __init__(self, image: np.ndarray):
        self.image = image

    def paint(self, value, low, high, signed, *, softness=0.6, strength=1.0, mirrored=True):
        """Paints ``value`` where ``signed((x, y, z)) < 0`` inside the box ``low``..``high`` (x is |x| if mirrored)."""
        for sign in (1, -1) if mirrored else (1,):
            ends = [(low[0], high[0]), (low[1], high[1]), (low[2], high[2])]
            if sign < 0:
                ends[0] = (-high[0], -low[0])
            box = tuple(
                slice(*np.searchsorted(axis, (start, stop)).tolist()) for axis, (start, stop) in zip(HEAD, ends)
            )
            x, y, z = np.meshgrid(*(axis[part] for axis, part in zip(HEAD, box)), indexing="ij", sparse=True)
            cover = strength * _soft(-signed((sign * x if mirrored else x, y, z)), softness)
            part = value[box] if isinstance(value, np.ndarray) else value
            self.image[box] += (part - self.image[box]) * cover


def _paint_face(canvas: _Canvas, fine: np.ndarray, patchy: np.ndarray) -> None:
    bright, streaks = FAT * (1 + 0.1 * fine), MUSCLE * (1.08 + 0.16 * fine)
    marrow = np.clip(0.7 + 0.3 * patchy, 0.15, 1.1)
    # Bone of the midface and base, then what it holds.
    canvas.paint(
        0.14 + 0.25 * np.clip(patchy, 0, 1),
        (0, -12, -94),
        (48, 88, -22),
        lambda p: _ellipsoid(p, (0, 34, -58), (44, 42, 34), power=3),
        mirrored=True,
    )
    canvas.paint(
        marrow, (0, -30, -72), (16, 6, -34), lambda p: _to_segment(p, (0, -6, -42), (0, -24, -66)) - 6.5
    )  # clivus
    canvas.paint(
        0.10 + 0.25 * np.clip(patchy, 0, 1.5),
        (24, -62, -78),
        (76, -8, -34),
        lambda p: _ellipsoid(p, (52, -36, -55), (19, 20, 17)),
    )  # mastoid and petrous bone, with cells
    canvas.paint(streaks, (26, -18, -100), (52, 34, -58), lambda p: _to_segment(p, (33, 8, -64), (44, -4, -92)) - 10)
    canvas.paint(
        bright, (10, 8, -56), (54, 86, -16), lambda p: _cone(p, (14, 20, -34), (34, 64, -38), 3.0, 18.0)
    )  # orbit
    canvas.paint(
        BONE,
        (15, 16, -60),
        (58, 80, -14),
        lambda p: np.abs(_cone(p, (14, 20, -34), (34, 62, -38), 4.0, 20.0)) - 1.2,
        strength=0.8,
    )
    for start, end in (((14, 22, -30), (31, 60, -28)), ((14, 22, -37), (32, 60, -49)), ((11, 24, -34), (23, 60, -38)),
                       ((17, 22, -34), (44, 58, -38))):  # fmt: skip
        canvas.paint(MUSCLE, (6, 14, -56), (52, 66, -20), lambda p, a=start, b=end: _to_segment(p, a, b) - 1.9)
    canvas.paint(
        0.6, (8, 12, -44), (40, 60, -28), lambda p: _to_segment(p, (12, 20, -34), (33, 50, -38)) - 2.2
    )  # nerve
    canvas.paint(0.48, (18, 46, -54), (50, 80, -22), lambda p: _ellipsoid(p, (34, 62, -38), (13, 13, 13)))
    canvas.paint(0.18, (18, 46, -54), (50, 80, -22), lambda p: _ellipsoid(p, (34, 62, -38), (11.4, 11.4, 11.4)))
    canvas.paint(0.42, (24, 62, -48), (44, 78, -30), lambda p: _ellipsoid(p, (34, 70.5, -38), (5, 2.2, 5)))  # lens
    canvas.paint(0.50, (20, 70, -50), (48, 90, -26), lambda p: _ellipsoid(p, (34, 77, -38), (16, 3.5, 10)))  # lids
    # Air: sinuses, nasal cavity with septum and turbinates, throat.
    canvas.paint(0.03, (16, 14, -90), (48, 58, -50), lambda p: _ellipsoid(p, (31, 36, -69), (13, 17, 15), power=2.6))
    canvas.paint(0.03, (0, -4, -46), (14, 22, -22), lambda p: _ellipsoid(p, (6, 9, -33), (8, 11, 9)))  # sphenoid
    canvas.paint(
        0.05 + 0.35 * np.clip(fine - 0.6, 0, 1),
        (0, 18, -50),
        (16, 72, -24),
        lambda p: _ellipsoid(p, (6, 44, -37), (9, 28, 11), power=3),
    )  # ethmoid cells
    canvas.paint(0.03, (0, 70, -30), (20, 88, 2), lambda p: _ellipsoid(p, (7, 79, -16), (9, 4, 11)))  # frontal
    canvas.paint(0.03, (0, -2, -90), (17, 92, -46), lambda p: _ellipsoid(p, (5, 38, -70), (11, 46, 18), power=3))
    for height, reach in ((-58, 5.5), (-67, 6.5), (-78, 7.5)):
        canvas.paint(
            0.55,
            (0, 8, height - 9),
            (18, 66, height + 9),
            lambda p, h=height, r=reach: _ellipsoid(p, (7.5, 36, h), (3.4, 26, 0.62 * r)),
        )  # turbinates
    canvas.paint(0.50, (0, 0, -88), (4, 92, -48), lambda p: p[0] - 1.3 + 0 * p[1] + 0 * p[2])  # septum
    canvas.paint(0.03, (0, -24, -90), (18, 8, -56), lambda p: _ellipsoid(p, (0, -5, -74), (12, 10, 15)))  # nasopharynx
    canvas.paint(
        0.03,
        (0, -40, -171),
        (16, 4, -78),
        lambda p: _to_segment((p[0] * 0.6, p[1], p[2]), (0, -10, -84), (0, -24, -165)) - 4.6,
    )
    # Palate, tongue, jaws and teeth.
    canvas.paint(BONE, (0, 4, -96), (34, 70, -82), lambda p: _ellipsoid(p, (0, 36, -88), (28, 34, 4)))
    canvas.paint(0.03, (0, 0, -100), (26, 62, -86), lambda p: _ellipsoid(p, (0, 30, -93), (20, 32, 3.2)))
    canvas.paint(streaks, (0, -12, -148), (32, 66, -90), lambda p: _ellipsoid(p, (0, 27, -116), (26, 33, 24)))
    canvas.paint(
        bright, (0, 10, -148), (3, 50, -100), lambda p: _ellipsoid(p, (0, 30, -122), (1.6, 22, 18)), strength=0.6
    )
    for height in (-98, -110):  # the two rows of teeth
        canvas.paint(
            0.07,
            (0, 8, height - 10),
            (40, 72, height + 10),
            lambda p, h=height: np.hypot(_arch(p, 26.0, 42.0, 20.0), (p[2] - h) / 1.5) - 4.2,
        )
    for value, thick in ((BONE, 7.0), (marrow, 4.2)):
        canvas.paint(
            value,
            (0, -4, -142),
            (58, 76, -108),
            lambda p, t=thick: np.maximum(
                np.hypot(_arch(p, 39.0, 54.0, 8.0), (p[2] + 124) / 2.0) - 0.8 * t, -4 - p[1] + 0 * p[2]
            ),
        )  # body of the mandible
        canvas.paint(
            value,
            (32, -22, -132),
            (64, 28, -58),
            lambda p, t=thick: np.maximum(
                np.abs(p[0] - 46 - 0.10 * (p[2] + 100)) - 0.55 * t,
                _to_segment((0 * p[0], p[1], p[2]), (0, -6, -64), (0, 6, -120)) - 1.7 * t,
            ),
        )  # ramus
    canvas.paint(
        BONE, (50, 4, -66), (78, 52, -46), lambda p: _to_segment(p, (69, 8, -55), (52, 48, -58)) - 3.6
    )  # zygoma
    canvas.paint(
        streaks,
        (44, -14, -126),
        (70, 44, -58),
        lambda p: _to_segment((1.7 * p[0], p[1], p[2]), (1.7 * 57.5, 20, -66), (1.7 * 54, 4, -116)) - 13,
    )  # masseter
    canvas.paint(
        0.66 * (1 + 0.1 * fine), (46, -34, -104), (74, 0, -62), lambda p: _ellipsoid(p, (60, -17, -82), (8, 13, 18))
    )
    canvas.paint(1.0, (18, -36, -171), (40, -4, -66), lambda p: _to_segment(p, (27, -20, -66), (31, -28, -168)) - 3.2)
    canvas.paint(0.12, (24, -44, -171), (50, -14, -66), lambda p: _to_segment(p, (34, -27, -66), (40, -36, -168)) - 4.2)
    canvas.paint(
        0.03, (56, -34, -62), (92, -16, -46), lambda p: _to_segment(p, (60, -24, -54), (90, -26, -54)) - 3.0
    )  # ear


def _paint_spine(canvas: _Canvas, patchy: np.ndarray) -> None:
    marrow = np.clip(0.58 + 0.12 * patchy, 0.2, 0.9)

    def middle(p):  # how far behind the axis of the spinal canal, which leans back as it descends
        return p[1] + 42.0 - 0.28 * (p[2] + 60.0)

    def disc(p):  # 1 at the discs, 17 mm apart
        return np.exp(-((((p[2] + 96.0) % 17.0) - 8.5) ** 2) / 5.0)

    low, high = (0, -92, -171), (30, 0, -64)
    canvas.paint(BONE, low, high, lambda p: np.hypot(p[0] * 0.85, middle(p)) - 16.5)  # arches
    canvas.paint(
        BONE, low, high, lambda p: _ellipsoid((p[0], middle(p), 0 * p[2]), (0, -24, 0), (5, 14, 99)) + 6 * disc(p)
    )  # spinous processes
    canvas.paint(BONE, low, high, lambda p: _ellipsoid((p[0], middle(p), 0 * p[2]), (0, 20, 0), (15, 10.5, 99)))
    canvas.paint(
        marrow,
        low,
        high,
        lambda p: _ellipsoid((p[0], middle(p), 0 * p[2]), (0, 20, 0), (13, 8.5, 99)) + 7 * disc(p),
        softness=0.8,
    )
    canvas.paint(
        0.30,
        low,
        high,
        lambda p: np.maximum(_ellipsoid((p[0], middle(p), 0 * p[2]), (0, 20, 0), (13, 8.5, 99)), 1.6 - 4.0 * disc(p)),
        softness=0.8,
    )
    canvas.paint(
        BONE,
        (14, -70, -171),
        (34, -24, -66),
        lambda p: _ellipsoid((p[0], middle(p), 0 * p[2]), (22, 8, 0), (9, 8, 99)) + 7 * disc(p),
    )  # joints
    canvas.paint(CSF, low, high, lambda p: np.hypot(p[0] * 0.85, middle(p)) - 10.5)
    canvas.paint(
        0.82,
        (0, -92, -171),
        (30, 0, -58),
        lambda p: np.hypot(p[0] * 0.8, middle(p)) - 5.6 - 2.5 * _soft(p[2] + 72, 4.0),
    )


# --- shapes, noise and grids -----------------------------------------------------------------------------------------


def _soft(value, softness):
    """A step from 0 to 1 at 0, ``softness`` wide."""
    return 1.0 / (1.0 + np.exp(-np.clip(np.asarray(value, np.float32) / np.float32(softness), -20, 20)))


def _joined(a, b, reach):
    """Union of two signed distances with a fillet of ``reach`` mm."""
    blend = np.clip(0.5 + 0.5 * (b - a) / reach, 0, 1)
    return b + (a - b) * blend - reach * blend * (1 - blend)


def _ellipsoid(points, centre, radii, power=2.0):
    """About the signed distance (mm) to a (super)ellipsoid."""
    total = sum(np.abs((p - c) / r) ** power for p, c, r in zip(points, centre, radii))
    return (total ** (1 / power) - 1.0) * min(radii)


def _to_segment(points, start, end):
    """Distance (mm) to a line segment."""
    start, end = np.array(start, np.float32), np.array(end, np.float32)
    along = end - start
    offsets = [p - s for p, s in zip(points, start)]
    share = np.clip(sum(o * a for o, a in zip(offsets, along)) / (along @ along), 0, 1)
    return np.sqrt(sum((o - share * a) ** 2 for o, a in zip(offsets, along)))


def _cone(points, start, end, first, last):
    """About the signed distance to a tube whose radius goes from ``first`` to ``last`` between two points."""
    start, end = np.array(start, np.float32), np.array(end, np.float32)
    along = end - start
    offsets = [p - s for p, s in zip(points, start)]
    share = np.clip(sum(o * a for o, a in zip(offsets, along)) / (along @ along), 0, 1)
    return np.sqrt(sum((o - share * a) ** 2 for o, a in zip(offsets, along))) - (first + (last - first) * share)


def _arch(points, width, length, back):
    """About the signed distance to a dental arch seen from above, open behind ``back``; negative within."""
    forward = np.maximum(points[1] - back, 0.0)
    radius = np.sqrt((points[0] / width) ** 2 + (forward / length) ** 2)
    return (radius - 1.0) * width + 0 * points[2]


def _smooth_noise(rng: np.random.Generator, shape, reach) -> np.ndarray:
    """Gaussian noise of unit deviation, smooth over ``reach`` voxels (a number, or one per axis)."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), reach, mode="reflect", truncate=3.0)
    return noise / noise.std()


def _noise_on_head(rng: np.random.Generator, reach: float, rise: float = 1.0) -> np.ndarray:
    """Noise on HEAD, smooth over ``reach`` mm, and ``rise`` times that upwards."""
    coarse = tuple(np.arange(axis[0], axis[-1] + 1.5, 3.0, dtype=np.float32) for axis in HEAD)
    shape = tuple(len(axis) for axis in coarse)
    return _resample(_smooth_noise(rng, shape, (reach / 3, reach / 3, reach * rise / 3)), coarse, HEAD)


def _resample(field: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Linear interpolation from one regular grid to another, axis by axis; the ends are held."""
    for axis, (have, want) in enumerate(zip(source, target)):
        where = np.clip((want - have[0]) / (have[1] - have[0]), 0, len(have) - 1)
        low = np.minimum(where.astype(int), len(have) - 2)
        share = (where - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        field = np.take(field, low, axis) * (1 - share) + np.take(field, low + 1, axis) * share
    return field.astype(np.float32)


def _at(field: np.ndarray, grid: Grid, points: np.ndarray) -> np.ndarray:
    """Linear interpolation of ``field`` on ``grid`` at ``points`` (3, N; mm); the border's value beyond it."""
    index = np.empty_like(points)
    for axis in range(3):
        index[axis] = (points[axis] - grid[axis][0]) / (grid[axis][1] - grid[axis][0])
    return map_coordinates(field, index, order=1, mode="nearest", output=np.float32)


def _flow(velocity: np.ndarray, spacing: float, steps: int = 4) -> np.ndarray:
    """Displacement (mm) of a stationary velocity field (3, ...; mm) by scaling and squaring; a diffeomorphism."""
    shift = (velocity / spacing / 2**steps).astype(np.float32)
    index = np.indices(velocity.shape[1:], dtype=np.float32)
    for _ in range(steps):
        there = index + shift
        shift = shift + np.stack([map_coordinates(part, there, order=1, mode="nearest") for part in shift])
    return shift * np.float32(spacing)

"""In a cohort of small simulated heads each fault makes an outlier of the metrics that are there for it.

The heads are the template at 3 mm with fluid, bone and fat around it, each with its own size, brightness, bias and noise. Here the
metrics are called on arrays; benchmarks/quality.py sends real heads with faults through the whole preprocessing.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from fedbrain.imaging import outliers, quality, registration

SIZE = np.full(3, 3.0)  # mm
SEEDS = range(11)


@pytest.fixture(scope="module")
def template():
    """Values, mask, grey and white matter, each (64, 64, 64)."""
    full = registration.template()
    parts = (full.values, full.mask, full.grey, full.white)
    return [part[::2, ::2, ::2] if part.dtype == bool else thinned(part) for part in parts]


def thinned(values):
    return values.reshape(64, 2, 64, 2, 64, 2).mean((1, 3, 5))


def make_head(template, seed):
    """A head and its brain mask, both (64, 64, 64), and its log bias field."""
    draw = np.random.default_rng(seed)
    scale = np.diag([*draw.normal(1, 0.01, 3), 1.0])
    scale[:3, 3] = 31.5 * (1 - np.diag(scale)[:3])
    values, mask = (registration.resample(np.asarray(part, np.float32), scale, (64,) * 3) for part in template[:2])
    mask = mask >= 0.5
    away = ndimage.distance_transform_edt(~mask)
    around = np.select([away < 2.5, away < 4.5, away < 7], [0.2, 0.05, 0.9], 0)
    log_field = draw.normal(0.15, 0.02) * np.linspace(-1, 1, 64)[None, :, None] + np.zeros((64, 64, 64))
    head = np.where(mask, values, around) * 100 * draw.normal(1, 0.1)
    noise = head[mask].mean() * draw.normal(0.04, 0.002)
    return head * np.exp(0.2 * log_field) + draw.normal(0, noise, head.shape), mask, log_field


def measure(template, head, mask, log_field, *, shown=slice(None), turned=None):
    """The metrics of a head that is a scan up to the slices ``shown`` and lies on the template, or as ``turned`` says."""
    values, region, grey, white = template
    placed = np.eye(4) if turned is None else turned
    on_grid, brain = (registration.resample(part.astype(np.float32), placed, (64,) * 3) for part in (head * mask, mask))
    brain = brain >= 0.5
    tissues = [on_grid[brain & (tissue > quality.TISSUE_PROBABILITY)] for tissue in (white, grey)]
    scan, native = head[:, :, shown], mask[:, :, shown]
    return {
        "brain_volume_ml": quality.brain_volume_ml(native, 27),
        "template_correlation": quality.template_correlation(on_grid, values, brain | region),
        "mask_dice": quality.dice(brain, region),
        "cjv": quality.cjv(*tissues),
        "snr_white_matter": quality.snr(tissues[0]),
        "smoothness_mm": quality.smoothness_mm(scan, native, SIZE),
        "rim_intensity": quality.rim_intensity(scan, native),
        "efc": quality.efc(scan),
        "left_right_correlation": quality.left_right_correlation(on_grid, brain),
        "left_right_dice": quality.dice(brain, brain[::-1]),
        "bias_log_sd": quality.bias_log_sd(log_field, mask),
        "edge_fraction": quality.edge_fraction(native),
        "fov_coverage": quality.fov_coverage(region, placed, scan.shape),
    }


@pytest.fixture(scope="module")
def cohort(template):
    return pd.DataFrame([measure(template, *make_head(template, seed)) for seed in SEEDS])


def noise(head, mask, field):
    return {"head": head + np.random.default_rng(99).normal(0, 0.15 * head[mask].mean(), head.shape)}


def shading(head, mask, field):
    steep = 8 * field
    return {"head": head * np.exp(0.6 * steep), "log_field": steep}


def blur(head, mask, field):
    return {"head": ndimage.gaussian_filter(head, 0.8)}


def cropped(head, mask, field):
    return {"shown": slice(None, int(np.flatnonzero(mask.any((0, 1)))[-1]) - 6)}


def eroded(head, mask, field):
    return {"mask": ndimage.binary_erosion(mask, iterations=2)}


def skull_left(head, mask, field):
    return {"mask": ndimage.distance_transform_edt(~mask) < 5}


def lobe_lost(head, mask, field):
    without = mask.copy()
    without[:32, 30:, :28] = False
    return {"mask": without}


def mirrored(head, mask, field):
    return {"head": np.concatenate([head[:32], head[:32][::-1]]), "mask": np.concatenate([mask[:32], mask[:32][::-1]])}


def tilted(head, mask, field):
    turn, shift = np.eye(4), np.eye(4)
    cosine, sine = np.cos(np.radians(15)), np.sin(np.radians(15))
    turn[1:3, 1:3], shift[:3, 3] = [[cosine, -sine], [sine, cosine]], 31.5
    return {"turned": shift @ turn @ np.linalg.inv(shift)}


NOTICED_BY = {
    noise: {"cjv", "snr_white_matter", "smoothness_mm"},
    shading: {"bias_log_sd", "cjv"},
    blur: {"smoothness_mm"},
    cropped: {"edge_fraction", "fov_coverage"},
    eroded: {"rim_intensity", "mask_dice"},
    skull_left: {"rim_intensity", "mask_dice"},
    lobe_lost: {"left_right_dice", "mask_dice"},
    mirrored: {"left_right_correlation"},
    tilted: {"mask_dice", "template_correlation"},
}
BLIND = {
    blur: {"edge_fraction", "bias_log_sd"},
    cropped: {"snr_white_matter"},
    mirrored: {"mask_dice"},
    noise: {"mask_dice"},
}


@pytest.mark.parametrize("fault", NOTICED_BY, ids=lambda fault: fault.__name__)
def test_a_fault_is_noticed_by_the_metrics_that_are_there_for_it(template, cohort, fault):
    head, mask, field = make_head(template, 200)
    # The same head without the fault passes.
    assert not noticed(cohort, measure(template, head, mask, field)) & NOTICED_BY[fault]
    parts = {"head": head, "mask": mask, "log_field": field} | fault(head, mask, field)
    found = noticed(cohort, measure(template, **parts))
    assert found >= NOTICED_BY[fault]
    assert not found & BLIND.get(fault, set())


def noticed(cohort, measured):
    """The metrics in which a scan is an outlier among those of the cohort."""
    table = pd.concat([cohort, pd.DataFrame([measured])], ignore_index=True).assign(status="ok")
    z = outliers.zscores(table).iloc[-1]
    return {name for name, value in z.items() if outliers.badness(value, name) > 3.5}

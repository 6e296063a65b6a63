import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbrain.imaging.histogram import merge, scan_histogram

scans = st.lists(
    st.lists(st.floats(-3000, 5000, width=32), min_size=1, max_size=60), min_size=1, max_size=5
)  # some scans of some voxels


@given(scans)
def test_merged_counts_are_those_of_all_values_together(scans):
    merged = merge(scan_histogram(np.array(scan)) for scan in scans)
    together = scan_histogram(np.concatenate(scans), width=merged["width"].iloc[0])
    pd.testing.assert_frame_equal(merged, together)


@given(scans)
def test_merging_is_exact_for_the_fixed_width_too(scans):
    merged = merge(scan_histogram(np.array(scan), 0.01) for scan in scans)
    pd.testing.assert_frame_equal(merged, scan_histogram(np.concatenate(scans), 0.01))


@given(scans)
def test_merging_merged_histograms_in_any_order_gives_the_same(scans):
    parts = [scan_histogram(np.array(scan)) for scan in scans]
    nested = merge([merge(parts[:2]), merge(parts[2:])])
    pd.testing.assert_frame_equal(nested, merge(parts[::-1]))


@given(st.lists(st.floats(0, 1e5, width=32), min_size=2, max_size=50))
def test_the_width_is_a_power_of_two_that_gives_512_to_1024_bins(values):
    width = scan_histogram(np.array(values))["width"].iloc[0]
    assert np.log2(width) == np.rint(np.log2(width))
    if max(values) - min(values) > 1e-6:
        assert 512 <= (max(values) - min(values)) / width < 1024


def test_bins_hold_their_lower_edge_and_start_at_multiples_of_the_width():
    table = scan_histogram(np.array([0, 0.5, 0.999, 1, -0.25, 2.5]), width=0.5)
    assert table.to_dict("list") == {
        "start": [-0.5, 0, 0.5, 1, 2.5],
        "width": [0.5] * 5,
        "count": [1, 1, 2, 1, 1],
    }


def test_against_numpy():
    values = np.random.default_rng(0).normal(500, 120, (17, 18, 19)).astype(np.float32)
    table = scan_histogram(values)
    width = float(table["width"].iloc[0])
    edges = np.arange(np.floor(values.min() / width), np.floor(values.max() / width) + 2) * width
    counts, _ = np.histogram(values, edges)
    expected = pd.Series(counts, index=edges[:-1])
    assert table.set_index("start")["count"].to_dict() == expected[expected > 0].to_dict()


def test_a_scan_of_one_value_does_not_coarsen_the_others():
    some = scan_histogram(np.linspace(0, 1, 100))
    assert merge([some, scan_histogram(np.array([0.5, 0.5]))])["width"].iloc[0] == some["width"].iloc[0]


def test_nothing_gives_no_rows_and_adds_nothing():
    empty = scan_histogram(np.array([]))
    some = scan_histogram(np.array([1.0, 2.0]))
    assert len(empty) == len(merge([])) == 0
    pd.testing.assert_frame_equal(merge([empty, some]), some)


def test_widths_that_do_not_nest_are_refused():
    with pytest.raises(ValueError, match="do not nest"):
        merge([scan_histogram(np.array([1.0]), 0.3), scan_histogram(np.array([1.0]), 0.5)])

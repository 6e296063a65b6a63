"""HD-BET with random weights in the published layout; there are no trained ones here."""

import json
import zipfile

import nibabel
import numpy as np
import pytest
import torch

from fedbrain.errors import StudyError
from fedbrain.imaging import brain_extraction
from fedbrain.imaging.extractors import hd_bet as module
from fedbrain.imaging.reading import Scan
from fedbrain.provenance import sha256_of

pytest.importorskip("nnunetv2", reason="fedbrain[hd-bet] is not installed")

STAGES = 2
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
PLANS = {
    "dataset_name": "Dataset001_small",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
    "original_median_shape_after_transp": [32, 32, 32],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {
        "0": dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    },
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [16, 16, 16],
            "median_image_size_in_voxels": [32.0, 32.0, 32.0],
            "spacing": [2.5, 2.5, 2.5],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": RESAMPLING,
            "resampling_fn_seg_kwargs": RESAMPLING | {"is_seg": True, "order": 1},
            "resampling_fn_probabilities_kwargs": RESAMPLING | {"order": 1},
            "batch_dice": False,
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": STAGES,
                    "features_per_stage": [4, 8],
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "kernel_sizes": [[3, 3, 3]] * STAGES,
                    "strides": [[1, 1, 1], [2, 2, 2]],
                    "n_conv_per_stage": [1] * STAGES,
                    "n_conv_per_stage_decoder": [1],
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        }
    },
}
DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "brain": 1}, "file_ending": ".nii.gz"}


def network():
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    torch.manual_seed(9)  # marks two thirds of the ball and little else
    kwargs = PLANS["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    parts = {
        "conv_op": torch.nn.Conv3d,
        "norm_op": torch.nn.InstanceNorm3d,
        "nonlin": torch.nn.LeakyReLU,
    }
    return PlainConvUNet(1, num_classes=2, deep_supervision=False, **kwargs | parts)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder as the authors' release unpacks: plans, data set, and a checkpoint as nnU-Net's trainer saves it."""
    folder = tmp_path_factory.mktemp("release")
    (folder / "fold_all").mkdir()
    (folder / "plans.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    checkpoint = {
        "network_weights": network().state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5), np.mean([0.1, 0.2])], "epoch_end_timestamps": [1.0]},
        "_best_ema": np.float64(0.9),
        "current_epoch": 1000,
        "init_args": {"plans": PLANS, "configuration": "3d_fullres", "fold": "all", "dataset_json": DATASET},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_all" / "checkpoint_final.pth")
    return folder


def zipped(folder, path, leave_out=()):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name not in leave_out:
                archive.write(file, file.relative_to(folder))
    return {"weights": str(path), "sha256": sha256_of(path)}


@pytest.fixture
def head():
    """A ball of 60 mm radius, 3 mm voxels, axes RAS, obliquely placed."""
    place = 3 * np.linalg.norm((np.indices((44, 46, 48)).T - [21, 22, 23]).T, axis=0)
    values = np.where(place < 60, 100, 5) + np.random.default_rng(0).normal(0, 8, place.shape)
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = [-50, -60, -40]
    return Scan(values.astype(np.float32), affine)


def test_the_mask_is_what_nnunet_makes_of_the_file_and_the_folder(release, head, tmp_path):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    # Their way: NIfTI file, SimpleITK, unpacked folder, weights with the trainer's own loading.
    nibabel.save(nibabel.Nifti1Image(head.values, head.affine), tmp_path / "head.nii.gz")
    image, properties = SimpleITKIO().read_images([str(tmp_path / "head.nii.gz")])
    theirs = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    theirs.initialize_from_trained_model_folder(str(release), "all")
    labels = theirs.predict_single_npy_array(image, properties).transpose(2, 1, 0) > 0
    assert 0.02 < labels.mean() < 0.98  # the random network marks something and not all

    brain, facts = module.hd_bet(head, None, options=zipped(release, tmp_path / "release.zip"))
    expected = brain_extraction.cleaned(labels, head, "it finds")
    np.testing.assert_array_equal(brain, expected.brain)
    assert facts == expected.facts


def test_a_zip_that_lacks_a_part_or_is_none_is_refused_with_the_origin(release, head, tmp_path):
    (tmp_path / "page.zip").write_bytes(b"<html>")
    cases = [{"weights": str(tmp_path / "page.zip"), "sha256": sha256_of(tmp_path / "page.zip")}]
    cases += [
        zipped(release, tmp_path / f"without_{name}.zip", [name])
        for name in ("plans.json", "dataset.json", "checkpoint_final.pth")
    ]
    for options in cases:
        with pytest.raises(StudyError, match=r"is not release_v1.5.0.zip .*zenodo.org/records/14445620"):
            module.hd_bet(head, None, options=options)


class Runs:
    """Pickles as a call of a function."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_a_checkpoint_that_would_run_code_is_refused_unrun(release, head, tmp_path, capsys):
    (tmp_path / "evil" / "fold_all").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (tmp_path / "evil" / name).write_bytes((release / name).read_bytes())
    torch.save({"network_weights": Runs()}, tmp_path / "evil" / "fold_all" / "checkpoint_final.pth")
    with pytest.raises(StudyError, match="is not release_v1.5.0.zip"):
        module.hd_bet(head, None, options=zipped(tmp_path / "evil", tmp_path / "evil.zip"))
    assert "must not run" not in capsys.readouterr().out


def test_torch_keeps_its_threads_and_numpys_numbers_are_all_that_is_let_in(release, head, tmp_path):
    threads = torch.get_num_threads()
    module.hd_bet(head, None, options=zipped(release, tmp_path / "release.zip"))
    assert torch.get_num_threads() == threads
    checkpoint, plans, dataset = module._read(str(tmp_path / "release.zip"))
    assert checkpoint["_best_ema"] == 0.9
    assert (plans, dataset) == (PLANS, DATASET)

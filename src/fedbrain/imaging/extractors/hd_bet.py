"""Brain masks by HD-BET, in this process: nnU-Net's predictor with HD-BET's settings and published weights.

The ``hd-bet`` package itself is a command about this predictor. It starts a dozen processes, takes all cores and fetches
the weights from the network, none of which a cluster's job should do.
"""

import io
import json
import os
import pickle
import zipfile
from functools import cache

import numpy as np

from fedbrain.imaging.brain_extraction import Extraction, checked_weights, cleaned
from fedbrain.imaging.extractor_cards import CARDS
from fedbrain.imaging.reading import Scan

CHECKPOINT, PLANS, DATASET = "fold_all/checkpoint_final.pth", "plans.json", "dataset.json"


def hd_bet(scan: Scan, mask: Scan | None, *, device: str = "cpu", options=None) -> Extraction:
    """Brain by HD-BET v2 (Isensee et al., Hum. Brain Mapp. 2019, 4952): largest component, holes filled.

    Half-overlapping windows weighted by a Gaussian, no mirroring, as ``hd-bet --disable_tta`` does it; the cleaning is ours.
    The weights are the published zip as it is, which is read without being unpacked. The network loads once per process.

    Raises ScanFailure where no brain is found, StudyError for weights that are missing or not the published ones.
    """
    predictor = _predictor(str(checked_weights("hd_bet", options["weights"], options["sha256"])), device)
    image = np.ascontiguousarray(scan.values.transpose(2, 1, 0))[None]  # (1, Z, Y, X), as SimpleITK would read it
    spacing = [float(size) for size in scan.voxel_size[::-1]]
    labels = predictor.predict_single_npy_array(image, {"spacing": spacing})  # (Z, Y, X)
    return cleaned(np.asarray(labels).transpose(2, 1, 0) > 0, scan, "HD-BET finds")


@cache
def _predictor(path: str, device: str):
    import torch

    # nnU-Net sets torch's threads to this number for part of its work; it reads the variable when it is imported.
    os.environ.setdefault("nnUNet_def_n_proc", str(torch.get_num_threads()))
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    checkpoint, plans, dataset = _read(path)
    try:
        plans = PlansManager(plans)
        configuration = plans.get_configuration(checkpoint["init_args"]["configuration"])
        network = recursive_find_trainer_class_by_name(checkpoint["trainer_name"]).build_network_architecture(
            plans,
            configuration,
            determine_num_input_channels(plans, configuration, dataset),
            plans.get_label_manager(dataset).num_segmentation_heads,
            enable_deep_supervision=False,
        )
        network.load_state_dict(checkpoint["network_weights"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CARDS["hd_bet"].wrong(path, _first_line(error)) from None
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=device == "cuda",
        device=torch.device(device),
        allow_tqdm=False,
    )
    weights = [checkpoint["network_weights"]]
    predictor.manual_initialization(network, plans, configuration, weights, dataset, checkpoint["trainer_name"], None)
    return predictor


def _read(path: str) -> tuple[dict, dict, dict]:
    """Checkpoint, plans and data set of the zip. Nothing but tensors, plain values and numpy's numbers is unpickled."""
    import torch

    scalar = np.float64(0).__reduce__()[0]
    inert = [np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar")]
    inert += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")]
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.endswith(CHECKPOINT)]
            if len(found) != 1:
                raise KeyError(f"it holds {len(found)} files {CHECKPOINT}")
            place = found[0].removesuffix(CHECKPOINT)
            plans, dataset = (json.loads(archive.read(place + name)) for name in (PLANS, DATASET))
            with torch.serialization.safe_globals(inert):
                checkpoint = torch.load(io.BytesIO(archive.read(found[0])), map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, ValueError, RuntimeError) as error:
        raise CARDS["hd_bet"].wrong(path, _first_line(error)) from None
    return checkpoint, plans, dataset


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

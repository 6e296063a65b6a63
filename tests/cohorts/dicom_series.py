"""Writes DICOM series of MR images whose voxels and place in the patient are known."""

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install -e '.[test]'")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402

SHAPE = (64, 60, 52)  # columns, rows, slices
AXIAL = np.array([[1.1, 0, 0, -35], [0, 1.15, 0, -40], [0, 0, 1.2, -20], [0, 0, 0, 1.0]])  # voxel to LPS mm
SAGITTAL = np.array([[0, 0, 1.25, -30], [1.1, 0, 0, -35], [0, -1.15, 0, 40], [0, 0, 0, 1.0]])
_TILT = np.deg2rad(14)
TILTED = np.array(
    [[1, 0, 0, 0], [0, np.cos(_TILT), -np.sin(_TILT), 0], [0, np.sin(_TILT), np.cos(_TILT), 0], [0, 0, 0, 1]]
) @ AXIAL  # fmt: skip
IDENTITY = {  # what must not travel
    "PatientName": "DOE^JANE",
    "PatientID": "ID4711",
    "PatientBirthDate": "19400102",
    "InstitutionName": "Mercy Hospital",
    "ReferringPhysicianName": "HOUSE^G",
    "StudyDate": "20210304",
    "AcquisitionTime": "101112",
    "PatientComments": "neighbour of SMITH",
}


def voxels(seed: int = 0, shape=SHAPE) -> np.ndarray:
    """(columns, rows, slices) of different grey values, 0 to 2000."""
    return np.random.default_rng(seed).integers(0, 2000, shape)


def write_series(folder, values, voxel_to_lps, *, number=2, description="T1 MPRAGE", **elements) -> list[Path]:
    """Writes one file per slice; returns their paths in the order of the slices."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    column, row, slice_ = voxel_to_lps[:3, :3].T
    size = np.linalg.norm(voxel_to_lps[:3, :3], axis=0)
    shared = IDENTITY | {
        "Modality": "MR",
        "Manufacturer": "SIEMENS",
        "ManufacturerModelName": "Prisma",
        "MagneticFieldStrength": 3,
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame"]),
        "SeriesNumber": number,
        "SeriesDescription": description,
        "ProtocolName": description,
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "AcquisitionNumber": 1,
        "PatientPosition": "HFS",
        "ScanningSequence": "GR",
        "MRAcquisitionType": "3D",
        "RepetitionTime": 2300,
        "EchoTime": 2.98,
        "InversionTime": 900,
        "FlipAngle": 9,
        "PixelSpacing": [size[1], size[0]],  # between rows, between columns
        "SliceThickness": size[2],
        "ImageOrientationPatient": [*(column / size[0]), *(row / size[1])],
        "Columns": values.shape[0],
        "Rows": values.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
    }
    paths = []
    for k in range(values.shape[2]):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MRImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        for key, value in (shared | elements).items():
            value = [round(float(v), 6) for v in value] if isinstance(value, list) and key != "ImageType" else value
            setattr(data, key, round(float(value), 6) if key == "SliceThickness" else value)
        data.InstanceNumber = k + 1
        data.ImagePositionPatient = [round(float(v), 6) for v in voxel_to_lps[:3, 3] + k * slice_]
        data.PixelData = np.ascontiguousarray(values[:, :, k].T).astype("<u2").tobytes()
        paths.append(folder / f"DOE_JANE_{number}_{k:04d}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths

# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pydicom
import pydicom.data
import pydicom.dataset
import pydicom.pixels
import pydicom.uid
import pytest
from PIL import Image

from medloc_jax.data import dicom

NAME = "DOE^JANE"


def dataset(pixels, kind="MONOCHROME2", *, bits=None, **tags):
    """A small file with a patient's name; pixels u8, u16 or i16, [h, w] or [h, w, 3]."""
    data = pydicom.dataset.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
    data.PatientName, data.PatientID = NAME, "secret-4711"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = kind
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(data, tag, value)
    return data


@pytest.fixture
def save(tmp_path):
    def write(data, name="scan.dcm"):
        data.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write


def levels(path):
    """What is seen, u8[h, w], of an image that must be grey."""
    image = dicom.read_image(path)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def refusal(path, read=dicom.read_image):
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and NAME not in message
    return message


RAMP = np.array([[0, 1000, 2000], [3000, 4000, 4095]], np.uint16)


def test_without_a_window_the_own_range_is_shown(save):
    path = save(dataset(RAMP + 100, bits=16))
    assert levels(path).tolist() == [[0, 62, 125], [187, 249, 255]]
    assert dicom.image_size(path) == dicom.read_image(path).size == (3, 2)


def test_monochrome1_is_white_at_zero(save):
    path = save(dataset(RAMP + 100, "MONOCHROME1", bits=16))
    assert levels(path).tolist() == [[255, 193, 130], [68, 6, 0]]


def test_eight_bits_without_a_window(save):
    assert levels(save(dataset(np.array([[10, 60, 110]], np.uint8)))).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_the_first_window_counts(save, kind):
    """A window of 1000..3000, of which the image holds values inside and on both sides."""
    tags = {"WindowCenter": [2000.5, 50], "WindowWidth": [2001, 10]}
    seen = levels(save(dataset(RAMP, kind, bits=12, **tags)))
    expected = np.array([[0, 0, 128], [255, 255, 255]])
    np.testing.assert_allclose(seen, expected if kind == "MONOCHROME2" else 255 - expected, atol=1)


def test_a_window_wider_than_the_image_keeps_its_ends(save):
    """Values that fill half of the window fill half of the levels: no stretching after it."""
    data = dataset(np.array([[1000, 2000]], np.uint16), WindowCenter=2000.5, WindowWidth=4001)
    np.testing.assert_allclose(levels(save(data)), [[64, 128]], atol=1)


def test_signed_ct_with_rescale(save):
    """Hounsfield units = stored - 24, shown in -160..240."""
    hounsfield = np.array([[-1000, -160, 40], [140, 240, 3000]], np.int16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -24, "WindowCenter": 40, "WindowWidth": 400}
    seen = levels(save(dataset(hounsfield + 24, **tags)))
    np.testing.assert_allclose(seen, [[0, 0, 128], [191, 255, 255]], atol=1)


def test_signed_without_a_window(save):
    assert levels(save(dataset(np.array([[-1000, 0, 1000]], np.int16)))).tolist() == [[0, 128, 255]]


def test_padding_is_black_and_does_not_count(save):
    pixels = np.array([[-2000, -2000, 100], [200, 300, 300]], np.int16)
    assert levels(save(dataset(pixels))).tolist()[0][2] > 200  # padding that is not declared
    for kind, expected in (
        ("MONOCHROME2", [[0, 0, 0], [128, 255, 255]]),
        ("MONOCHROME1", [[0, 0, 255], [127, 0, 0]]),
    ):
        path = save(dataset(pixels, kind, PixelPaddingValue=-2000))
        assert levels(path).tolist() == expected
    pixels[0, 1] = -1990
    data = dataset(pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    assert levels(save(data)).tolist() == [[0, 0, 0], [128, 255, 255]]


def lookup_table(values, first, bits):
    item = pydicom.dataset.Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", list(values))
    return pydicom.sequence.Sequence([item])


def test_voi_lut_goes_before_a_window(save):
    table = lookup_table([0, 1023, 255, 512], 10, 10)
    data = dataset(
        np.array([[9, 10, 11, 12, 13, 99]], np.uint16),
        VOILUTSequence=table,
        WindowCenter=1,
        WindowWidth=1,
        RescaleSlope=1,
        RescaleIntercept=0,
    )
    assert levels(save(data)).tolist() == [[0, 0, 255, 64, 128, 128]]


def test_modality_lut(save):
    data = dataset(
        np.array([[0, 1, 2]], np.uint16), ModalityLUTSequence=lookup_table([0, 400, 100], 0, 16)
    )
    data.ModalityLUTSequence[0].ModalityLUTType = "US"
    assert levels(save(data)).tolist() == [[0, 255, 64]]


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], np.uint8)


def test_rgb(save):
    np.testing.assert_array_equal(dicom.read_image(save(dataset(COLOURS, "RGB"))), COLOURS)


def test_rgb_in_planes(save):
    data = dataset(COLOURS, "RGB", PlanarConfiguration=1)
    data.PixelData = COLOURS.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(dicom.read_image(save(data)), COLOURS)


def test_ybr_full(save):
    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    seen = np.asarray(dicom.read_image(save(dataset(ybr, "YBR_FULL"))))
    np.testing.assert_allclose(seen.astype(int), COLOURS, atol=3)


def test_palette(save):
    entries = {"Red": [0, 255, 10], "Green": [0, 128, 20], "Blue": [0, 0, 30]}
    for bits in (8, 16):
        data = dataset(np.array([[0, 1, 2]], np.uint8), "PALETTE COLOR")
        for colour, values in entries.items():
            table = np.array(values) if bits == 8 else np.array(values) * 257
            setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [3, 0, bits])
            content = table.astype(f"u{bits // 8}").tobytes()
            # An odd table is filled up, which its number of entries tells.
            if bits == 8:
                content = table.astype("u2").tobytes()
            setattr(data, f"{colour}PaletteColorLookupTableData", content)
        expected = [[[0, 0, 0], [255, 128, 0], [10, 20, 30]]]
        assert np.asarray(dicom.read_image(save(data))).tolist() == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dataset(RAMP, bits=16), [[0, 62, 125], [187, 249, 255]]),
        (dataset(COLOURS, "RGB"), COLOURS.tolist()),
    ],
    ids=["grey", "colour"],
)
def test_rle_compressed(save, data, expected):
    data.compress(pydicom.uid.RLELossless)
    seen = np.asarray(dicom.read_image(save(data)))
    if seen.shape[:2] == RAMP.shape:
        seen = seen[..., 0]
    np.testing.assert_allclose(seen, expected, atol=1)


@pytest.mark.parametrize("kind", ["RLE", "bigendian", "expb", "implicit", "jp2klossless"])
def test_a_scanners_file_is_the_same_in_every_transfer_syntax(kind):
    """Files that come with pydicom."""
    plain, other = (
        pydicom.data.get_testdata_file(f"MR_small{name}.dcm", download=False)
        for name in ("", f"_{kind}")
    )
    seen = levels(plain)
    assert seen.shape == (64, 64) and len(np.unique(seen)) > 100
    np.testing.assert_array_equal(levels(other), seen)


def test_a_scanners_truncated_file():
    path = pydicom.data.get_testdata_file("MR_truncated.dcm", download=False)
    assert "less than expected" in refusal(path)


def test_compressed_without_a_decoder(save):
    data = dataset(RAMP)
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8not really\xff\xd9 "])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    if pydicom.pixels.get_decoder(pydicom.uid.JPEGLosslessSV1).is_available:
        pytest.skip("a decoder of lossless JPEG is installed")
    assert "pip install pylibjpeg" in refusal(save(data))
    data.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    assert "not read" in refusal(save(data))


def test_broken_compressed_data(save):
    data = dataset(RAMP)
    data.compress(pydicom.uid.RLELossless)
    data.PixelData = pydicom.encaps.encapsulate([b"\x01" + bytes(100)])
    message = refusal(save(data))
    assert "broken" in message and "replace the file" in message


def test_several_frames(save):
    data = dataset(RAMP, NumberOfFrames=2)
    data.PixelData *= 2
    path = save(data)
    assert "2 frames" in refusal(path)
    assert "2 frames" in refusal(path, dicom.image_size)
    assert levels(save(dataset(RAMP, NumberOfFrames=1))).shape == (2, 3)


def test_a_report_has_no_pixels(save):
    data = dataset(RAMP)
    del data.PixelData
    assert "without pixels" in refusal(save(data))
    del data.Rows
    assert "Rows" in refusal(save(data), dicom.image_size)


def test_truncated(save):
    path = save(dataset(np.zeros((50, 60), np.uint16)))
    path.write_bytes(path.read_bytes()[:-2000])
    assert "broken or truncated" in refusal(path)
    path.write_bytes(path.read_bytes()[:300])
    refusal(path)


def test_what_is_no_dicom(tmp_path):
    path = tmp_path / "scan.dcm"
    path.write_text("no image at all")
    for read in (dicom.read_image, dicom.image_size):
        assert "not a DICOM file" in refusal(path, read)
        assert "no such" in refusal(tmp_path / "none.dcm", read)
    assert dicom.is_dicom(path) and not dicom.is_dicom(tmp_path / "none")


def test_it_is_known_by_its_content(save):
    assert dicom.is_dicom(save(dataset(RAMP), "IM000001"))


@pytest.mark.parametrize("width", [0, 0.5, -3])
def test_a_window_that_shows_nothing(save, width):
    assert "WindowWidth" in refusal(save(dataset(RAMP, WindowCenter=3, WindowWidth=width)))


def test_unknown_photometric_interpretation(save):
    assert "CMYK" in refusal(save(dataset(RAMP, "CMYK")))


def test_no_patient_in_what_is_written(save, tmp_path):
    path = save(dataset(COLOURS, "RGB", StudyDescription=NAME, ImageComments=NAME))
    assert NAME.encode() in path.read_bytes()
    target = tmp_path / "scan.png"
    dicom.write_png(path, target)
    np.testing.assert_array_equal(np.asarray(Image.open(target)), COLOURS)
    assert Image.open(target).info == {}
    for secret in (NAME, "secret-4711", "DOE", "PatientName"):
        assert secret.encode() not in target.read_bytes()


def test_tags_of_the_patient_are_not_even_read(save, monkeypatch):
    seen = []
    read = pydicom.dcmread

    def spy(*args, **kwargs):
        seen.append(read(*args, **kwargs))
        return seen[-1]

    path = save(dataset(RAMP))
    monkeypatch.setattr(pydicom, "dcmread", spy)
    dicom.read_image(path)
    dicom.image_size(path)
    assert len(seen) == 2
    for data in seen:
        assert "Rows" in data and not {"PatientName", "PatientID", "SOPInstanceUID"} & set(
            data.dir()
        )


def test_pydicom_is_an_extra(save, monkeypatch):
    path = save(dataset(RAMP))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"pip install 'medloc_jax\[dicom\]'"):
        dicom.read_image(path)

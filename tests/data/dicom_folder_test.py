# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import drawn_data
import pytest

from medloc_jax.data import annotated, dicom_folder

CSV = "image,x1,y1,x2,y2,label\na.png,1,2,11,12,nodule\n"
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 10, 10]}],
    "categories": [{"id": 1, "name": "nodule"}],
}


def _read(folder, **options):
    refused = annotated.Refusals()
    (image,) = dicom_folder.read(folder, refused, **options)
    assert not refused.all and image.targets[0].label == "nodule"
    return image.targets[0].box_px


def test_the_file_beside_the_images_chooses_the_format(tmp_path):
    drawn_data.write_image(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text(CSV)
    assert _read(tmp_path) == (1, 2, 11, 12)
    (tmp_path / "boxes.json").write_text(json.dumps(COCO))
    assert _read(tmp_path) == (3, 4, 13, 14)
    assert _read(tmp_path, annotations="boxes.csv") == (1, 2, 11, 12)
    assert _read(tmp_path / "boxes.csv") == (1, 2, 11, 12)
    with pytest.raises(ValueError, match="--columns is for boxes in CSV"):
        _read(tmp_path, columns="x1=left")

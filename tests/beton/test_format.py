"""The layout equals FFCV's."""

import numpy as np
import pytest

from rebar.beton import format as layout

ffcv_types = pytest.importorskip("ffcv.types")


def test_version_and_records_equal_ffcvs() -> None:
    assert layout.VERSION == ffcv_types.CURRENT_VERSION
    assert ffcv_types.HeaderType == layout.HEADER
    assert ffcv_types.FieldDescType == layout.FIELD_DESCRIPTOR
    assert layout.ALLOCATION == ffcv_types.ALLOC_TABLE_TYPE


def test_entries_of_every_field_type_equal_ffcvs() -> None:
    arguments = {4: {"dtype": np.dtype("f4"), "shape": (2,)}, 6: {}}
    for type_id, field in ffcv_types.TYPE_ID_HANDLER.items():
        if type_id in (6, layout.TYPE_CUSTOM):  # 6 (tensor) is a subclass of 4 (array)
            continue
        assert layout.ENTRY_DTYPES[type_id] == field(**arguments.get(type_id, {})).metadata_type
    assert set(layout.ENTRY_DTYPES) == set(ffcv_types.TYPE_ID_HANDLER) - {layout.TYPE_CUSTOM}


def test_sample_records_have_ffcvs_alignment() -> None:
    from ffcv.fields import FloatField, IntField, RGBImageField

    fields = [FloatField(), RGBImageField(), IntField()]
    assert layout.sample_dtype([0, layout.TYPE_IMAGE, layout.TYPE_INT]) == ffcv_types.get_metadata_type(fields)


def test_image_modes_equal_ffcvs() -> None:
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert dict(IMAGE_MODES) == {"jpg": layout.MODE_JPG, "raw": layout.MODE_RAW}


@pytest.mark.parametrize(("position", "expected"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_round_up(position: int, expected: int) -> None:
    assert layout.round_up(position, 8) == expected

"""Size upright, format, hash, EXIF date, camera and place are read from the bytes; garbage is no failure."""

import hashlib
import io
from datetime import UTC, datetime

import pytest
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import Image as ImageMessage
from likeness.common.v1.types_pb2 import RgbImage
from PIL import ExifTags, Image, ImageFile

from chassis.errors import LikenessError
from chassis.pictures import PictureLimits
from gateway.picture_facts import content_hash, read

LIMITS = PictureLimits(max_encoded_bytes=20_000_000, max_pixels=64_000_000)


def jpeg(exif: Image.Exif | bytes | None = None, size: tuple[int, int] = (40, 30)) -> ImageMessage:
    out = io.BytesIO()
    Image.new("RGB", size, "olive").save(out, "JPEG", exif=exif or b"")
    return ImageMessage(encoded=out.getvalue())


def camera_exif(**changes: object) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "ACME"
    exif[ExifTags.Base.Model] = "ACME One\x00"
    exif[ExifTags.Base.Orientation] = changes.get("orientation", 1)
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = changes.get("taken", "2019:07:04 15:30:00")
    if "offset" in changes:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.OffsetTimeOriginal] = changes["offset"]
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLatitude] = "S", changes.get("latitude", (33.0, 51.0, 30.0))
    gps[ExifTags.GPS.GPSLongitudeRef], gps[ExifTags.GPS.GPSLongitude] = "E", (151.0, 12.0, 36.0)
    return exif


def test_a_plain_jpeg_tells_format_size_and_bytes() -> None:
    picture = jpeg()

    assert read(picture, LIMITS, "image") == {
        "format": "JPEG",
        "width": 40,
        "height": 30,
        "bytes": len(picture.encoded),
    }


def test_a_sideways_picture_is_measured_upright() -> None:
    facts = read(jpeg(camera_exif(orientation=6)), LIMITS, "image")

    assert (facts["width"], facts["height"]) == (30, 40)


def test_camera_date_and_place_are_read_from_exif() -> None:
    facts = read(jpeg(camera_exif()), LIMITS, "image")

    assert facts["camera"] == "ACME One"
    assert facts["taken_at"] == int(datetime(2019, 7, 4, 15, 30, tzinfo=UTC).timestamp())
    assert facts["latitude"] == pytest.approx(-33.858333, abs=1e-5)
    assert facts["longitude"] == pytest.approx(151.21, abs=1e-5)


@pytest.mark.parametrize(("offset", "hours"), [("+02:00", 2), ("-05:00", -5), ("nonsense", 0)])
def test_a_time_zone_is_heeded_where_the_camera_wrote_one(offset: str, hours: int) -> None:
    facts = read(jpeg(camera_exif(offset=offset)), LIMITS, "image")

    assert facts["taken_at"] == int(datetime(2019, 7, 4, 15, 30, tzinfo=UTC).timestamp()) - hours * 3600


@pytest.mark.parametrize("taken", ["0000:00:00 00:00:00", "yesterday", ""])
def test_a_date_that_is_none_is_left_out(taken: str) -> None:
    assert "taken_at" not in read(jpeg(camera_exif(taken=taken)), LIMITS, "image")


def test_a_place_off_the_globe_is_left_out() -> None:
    facts = read(jpeg(camera_exif(latitude=(120.0, 0.0, 0.0))), LIMITS, "image")

    assert "latitude" not in facts
    assert "longitude" not in facts


def test_no_pixel_of_a_png_is_decoded_to_look_for_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))

    assert read(ImageMessage(encoded=out.getvalue()), LIMITS, "image")["format"] == "PNG"


def test_a_sideways_tiff_is_measured_upright() -> None:
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, "TIFF", exif=camera_exif(orientation=6))

    facts = read(ImageMessage(encoded=out.getvalue()), LIMITS, "image")

    assert (facts["width"], facts["height"]) == (30, 40)


def test_garbage_instead_of_exif_costs_only_the_exif() -> None:
    facts = read(jpeg(b"Exif\x00\x00" + bytes(range(256)) * 4), LIMITS, "image")

    assert facts["format"] == "JPEG"
    assert "camera" not in facts


def test_a_decoded_picture_tells_its_size() -> None:
    rgb = ImageMessage(rgb=RgbImage(width=2, height=3, pixels=b"\0" * 18))

    assert read(rgb, LIMITS, "image") == {"width": 2, "height": 3}


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(LikenessError) as caught:
        read(ImageMessage(), LIMITS, "item.image")

    assert (caught.value.reason, caught.value.violations[0].field) == (error_pb2.REASON_FIELD_INVALID, "item.image")


def test_the_hash_of_an_encoded_picture_is_that_of_its_bytes() -> None:
    picture = jpeg()

    assert content_hash(picture) == hashlib.sha256(picture.encoded).hexdigest()


def test_decoded_pictures_of_the_same_bytes_and_other_shapes_have_other_hashes() -> None:
    wide = ImageMessage(rgb=RgbImage(width=6, height=2, pixels=b"\1" * 36))
    high = ImageMessage(rgb=RgbImage(width=2, height=6, pixels=b"\1" * 36))

    assert content_hash(wide) != content_hash(high)

"""Images as clients accept them: at most so many pixels a side, and not needlessly heavy.

An image comes from a sandbox, so it may be a bomb: only PNG and JPEG are decoded, after their
header has been believed to be small enough.
"""

from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

HEAVY_PNG = 300_000  # bytes above which a PNG becomes a JPEG
MOST_PIXELS = 40_000_000  # decoded, four bytes each
JPEG_QUALITY = 85


class Picture(NamedTuple):
    """`data` is what to send; `change` says how it differs from the original, "" for not at all."""

    data: bytes
    mime_type: str
    change: str = ""


def fit_image(raw: bytes, mime_type: str, *, side: int) -> Picture | None:
    """`raw`, scaled to `side` pixels and recoded where needed; None if it cannot be decoded."""
    from PIL import Image  # 0.1 s, and most results have no image

    try:
        with Image.open(BytesIO(raw), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            image.load()  # one that is cut off can make a client's whole conversation fail
            if max(image.size) <= side and not _heavy(raw, mime_type):
                return Picture(raw, mime_type)
            return _recode(image, mime_type, side=side)
    # What Pillow raises for broken files; a bomb is a warning up to twice the limit.
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError):
        return None


def _heavy(data: bytes, mime_type: str) -> bool:
    return mime_type == "image/png" and len(data) > HEAVY_PNG


def _recode(image: "Image.Image", mime_type: str, *, side: int) -> Picture:
    width, height = image.size
    image.thumbnail((side, side))
    changes = [f"scaled from {width}x{height}"] if max(width, height) > side else []
    data = _encoded(image, "PNG") if mime_type == "image/png" else b""
    if not data or len(data) > HEAVY_PNG:
        data, mime_type = _encoded(_opaque(image), "JPEG", quality=JPEG_QUALITY), "image/jpeg"
        changes.append("recoded as JPEG")
    return Picture(data, mime_type, " and ".join(changes))


def _opaque(image: "Image.Image") -> "Image.Image":
    """On white, as JPEG has no transparency."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _encoded(image: "Image.Image", form: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()

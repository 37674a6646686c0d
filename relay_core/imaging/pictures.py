"""PNG, JPEG and TIFF: upright, white is the largest value, colour is RGB; what is not understood is refused by its name.

Pillow decodes all but deep colour, which it would cut down to 8 bits: that comes from SimpleITK. Pillow turns a TIFF by
its Orientation while it decodes, and turns over white-is-zero of up to 8 bits; the rest is done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from relay_core.errors import ImageError

_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262
_GREY = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I", "F"}
_COLOUR = {"RGB", "RGBA", "RGBa", "RGBX", "YCbCr"}
_TIFF_KINDS = {0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 6: "YCbCr"}
_WHITE_IS_ZERO = 0


@dataclass(frozen=True)
class Picture:
    """The pixels of a picture file."""

    values: npt.NDArray[Any]
    """Grey (H, W) or colour (H, W, 3): uint8, uint16, int32 or float32."""
    indices: npt.NDArray[np.uint8] | None = None
    """(H, W) of a palette file: the numbers of the colours."""


def read_picture(path: Path) -> Picture:
    """Decode a picture. Transparency is dropped.

    Raises:
        ImageError: the true reason: damaged, several pages, too many pixels, or colours that are not read here.
    """
    try:
        # from a stream: Pillow maps an uncompressed TIFF into memory by its name, and garbles one that is turned
        with path.open("rb") as file, Image.open(file) as image:
            return _read(path, image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("has too many pixels") from None
    except Image.UnidentifiedImageError:
        raise ImageError("is no PNG, JPEG or TIFF file that can be read, or its header is damaged") from None
    except MemoryError:
        raise
    except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files
        raise ImageError("is truncated or damaged: its pixels cannot be decoded") from None


def _read(path: Path, image: Image.Image) -> Picture:
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if pages != 1:
        raise ImageError(f"has {pages} pages; give 2-D images, one a file")
    bits, tags = _bits(path, image), getattr(image, "tag_v2", {})
    photometric = tags.get(_PHOTOMETRIC)
    if image.format == "TIFF" and photometric not in _TIFF_KINDS:
        raise ImageError(f"is a TIFF whose PhotometricInterpretation is {photometric}; save it as grey or RGB")
    if bits not in (1, 2, 4, 8, 16, 32):
        raise ImageError(f"has {bits} bits a sample; save it with 8 or 16")
    if bits > 8 and image.mode not in _GREY:
        return Picture(_deep_colour(path, image, tags))
    if image.mode not in _GREY | _COLOUR | {"P", "PA"}:
        raise ImageError(f"is a picture of mode {image.mode} (such as CMYK or LAB); save it as grey or RGB")
    if bits > 8 and image.mode in ("LA", "La"):
        raise ImageError("is a PNG of 16 bits with transparency; save it without transparency")
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("P", "PA"):
        indices = np.array(upright.getchannel(0) if upright.mode == "PA" else upright)
        return Picture(np.array(upright.convert("RGB")), indices)
    if upright.mode in _COLOUR:
        return Picture(np.array(upright.convert("RGB")))
    if upright.mode in ("1", "LA", "La"):
        upright = upright.convert("L") if upright.mode == "1" else upright.getchannel(0)
    values = np.array(upright)
    if values.dtype.kind == "i" and bits == 16 and values.min() >= 0:
        values = values.astype(np.uint16)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if image.format == "TIFF" and photometric == _WHITE_IS_ZERO and bits > 8:
        values = _turned_over(values)
    return Picture(values)


def _turned_over(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind != "u":
        raise ImageError("is a TIFF of signed or floating-point values whose zero is white; save it with black as zero")
    return np.iinfo(values.dtype).max - values


def _bits(path: Path, image: Image.Image) -> int:
    """Bits of a sample as the file itself says."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS, 1)
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    return 8


def _deep_colour(path: Path, image: Image.Image, tags: Any) -> npt.NDArray[np.uint16]:
    """(H, W, 3) of more than 8 bits."""
    import SimpleITK as sitk

    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation != 1 or (image.format == "TIFF" and tags.get(_PHOTOMETRIC) != 2):
        raise ImageError("is in colour of more than 8 bits and turned, or not RGB; save it upright as RGB")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        pixels: npt.NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError:
        kind = "grey with transparency, or colour" if image.format == "PNG" else "colour"
        raise ImageError(f"is a picture of 16 bits, {kind}, that cannot be read; save it as RGB, or with 8 bits") from None
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ImageError(f"has {pixels.shape[-1] if pixels.ndim == 3 else 1} channels of more than 8 bits; save it as RGB")
    return pixels[..., :3]

#!/usr/bin/env python3
"""Make testdata/forms: one tiny picture per form, and what cv2.imread makes of it.

    pip install opencv-python-headless==5.0.0.93 pillow==13.0.0
    python scripts/forms.py testdata/forms

Every picture is drawn by formula, so the files are ours and a second run gives the same bytes.
For each NAME.ext there is expected/NAME.png: the RGB pixels of cv2.imread(IMREAD_COLOR).
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

W, H = 30, 20  # not a multiple of 8 or 16, so block edges are tested too


def scene(width=W, height=H):
    """Smooth colours with a sharp-edged block: chroma, edges and orientation all show."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    r = 255 * x / (width - 1)
    g = 255 * y / (height - 1)
    b = 127 + 120 * np.sin(x / 4 + y / 3)
    rgb = np.stack([r, g, b], -1).round().astype(np.uint8)
    rgb[3:8, 4:11] = (230, 40, 20)
    rgb[0, 0] = (255, 255, 255)
    return rgb


def ramp16(channels):
    """16-bit samples whose low byte would round the high byte up."""
    y, x, c = np.mgrid[0:H, 0:W, 0:channels]
    return ((x * 1931 + y * 2741 + c * 9973 + 0xC8) % 65536).astype(np.uint16)


# PNG by hand: every colour type, depth and chunk, whatever libraries can write.

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def pack_rows(samples, depth):
    rows = []
    for row in samples.reshape(samples.shape[0], -1):
        if depth == 16:
            data = row.astype(">u2").tobytes()
        elif depth == 8:
            data = row.astype(np.uint8).tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth:]
            data = np.packbits(bits.reshape(-1)).tobytes()
        rows.append(b"\0" + data)
    return b"".join(rows)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, depth, colour, extra=(), interlaced=False, after=()):
    """samples: (h, w, c) integers below 2**depth; extra: chunks before IDAT, after: behind it."""
    h, w = samples.shape[:2]
    if interlaced:
        passes = [samples[y0::dy, x0::dx] for x0, y0, dx, dy in ADAM7]
        raw = b"".join(pack_rows(p, depth) for p in passes if p.size)
    else:
        raw = pack_rows(samples, depth)
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, int(interlaced))
    parts = [chunk(b"IHDR", head), *[chunk(k, d) for k, d in extra], chunk(b"IDAT", zlib.compress(raw, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts + [chunk(k, d) for k, d in after] + [chunk(b"IEND", b"")])


def exif(orientation):
    """The smallest TIFF that says nothing but an orientation."""
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x112, 3, 1, orientation, 0)


def png_forms():
    rgb = scene()
    gray = rgb[:, :, 1:2]
    alpha = (np.mgrid[0:H, 0:W][1] * 255 // (W - 1)).astype(np.uint8)[:, :, None]
    for depth in (1, 2, 4, 8):
        yield f"png-gray{depth}.png", png(gray >> (8 - depth), depth, 0)
    yield "png-gray16.png", png(ramp16(1), 16, 0)
    yield "png-gray8-trns.png", png(gray, 8, 0, [(b"tRNS", struct.pack(">H", int(gray[5, 5, 0])))])
    yield "png-gray-alpha8.png", png(np.concatenate([gray, alpha], -1), 8, 4)
    yield "png-gray-alpha16.png", png(ramp16(2), 16, 4)
    yield "png-rgb8.png", png(rgb, 8, 2)
    yield "png-rgb8-trns.png", png(rgb, 8, 2, [(b"tRNS", struct.pack(">HHH", 230, 40, 20))])
    yield "png-rgb16.png", png(ramp16(3), 16, 2)
    yield "png-rgba8.png", png(np.concatenate([rgb, alpha], -1), 8, 6)
    yield "png-rgba16.png", png(ramp16(4), 16, 6)
    index = (np.mgrid[0:H, 0:W].sum(0) % 16)[:, :, None]
    palette = bytes(v for i in range(16) for v in (i * 16, 255 - i * 15, (i * 53) % 256))
    for depth in (1, 2, 4, 8):
        colours = palette[: 3 << depth] if depth < 4 else palette
        yield f"png-palette{depth}.png", png(index % (1 << depth), depth, 3, [(b"PLTE", colours)])
    trns = bytes(range(0, 256, 16))
    yield "png-palette8-trns.png", png(index, 8, 3, [(b"PLTE", palette), (b"tRNS", trns)])
    yield "png-interlaced.png", png(rgb, 8, 2, interlaced=True)
    yield "png-exif6.png", png(rgb, 8, 2, [(b"eXIf", exif(6))])
    yield "png-exif6-late.png", png(rgb, 8, 2, after=[(b"eXIf", exif(6))])
    yield "png-gamma.png", png(rgb, 8, 2, [(b"gAMA", struct.pack(">I", 100000))])
    # APNG: the default image is scene(), the one frame of the animation its negative.
    acTL = struct.pack(">II", 1, 0)
    fcTL = struct.pack(">IIIIIHHBB", 0, W, H, 0, 0, 1, 10, 0, 0)
    frame = struct.pack(">I", 1) + zlib.compress(pack_rows(255 - rgb, 8), 9)
    yield "png-apng.png", png(rgb, 8, 2, [(b"acTL", acTL)], after=[(b"fcTL", fcTL), (b"fdAT", frame)])


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def segments_first(jpeg, segment):
    """The JPEG with one more segment directly after SOI."""
    return jpeg[:2] + segment + jpeg[2:]


def jpeg_forms():
    image = Image.fromarray(scene())
    cmyk = Image.fromarray(np.concatenate([scene(), scene()[::-1, :, 1:2] // 2], -1), "CMYK")

    def jpeg(img=image, **options):
        return saved(img, "JPEG", **{"quality": 92, **options})

    yield "jpeg-444.jpg", jpeg(subsampling=0)
    yield "jpeg-422.jpg", jpeg(subsampling=1)
    yield "jpeg-420.jpg", jpeg(subsampling=2)
    yield "jpeg-gray.jpg", jpeg(image.convert("L"))
    yield "jpeg-optimized.jpg", jpeg(optimize=True)
    yield "jpeg-progressive-444.jpg", jpeg(subsampling=0, progressive=True)
    yield "jpeg-progressive-420.jpg", jpeg(subsampling=2, progressive=True)
    yield "jpeg-progressive-gray.jpg", jpeg(image.convert("L"), progressive=True)
    yield "jpeg-progressive-restart.jpg", jpeg(subsampling=2, progressive=True, restart_marker_blocks=1)
    yield "jpeg-restart.jpg", jpeg(subsampling=2, restart_marker_blocks=1)
    yield "jpeg-restart-rows.jpg", jpeg(subsampling=0, restart_marker_rows=1)
    yield "jpeg-rgb.jpg", jpeg(subsampling=0, keep_rgb=True)
    adobe = jpeg(cmyk)
    yield "jpeg-cmyk.jpg", adobe
    at = adobe.index(b"Adobe") + 11
    yield "jpeg-ycck.jpg", adobe[:at] + b"\x02" + adobe[at + 1:]
    yield "jpeg-cmyk-plain.jpg", adobe[: at - 15] + adobe[at + 1:]  # without the Adobe segment
    yield "jpeg-progressive-cmyk.jpg", jpeg(cmyk, progressive=True)
    for orientation in range(1, 9):
        body = b"Exif\0\0" + exif(orientation)
        app1 = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        yield f"jpeg-exif{orientation}.jpg", segments_first(jpeg(subsampling=0), app1)
    plain = jpeg(subsampling=2)
    yield "jpeg-no-tables.jpg", plain[: plain.index(b"\xff\xc4")] + plain[plain.index(b"\xff\xda"):]
    frame = plain.index(b"\xff\xc0")
    yield "jpeg-arithmetic.jpg", plain[: frame + 1] + b"\xc9" + plain[frame + 2:]
    yield "jpeg-12-bit.jpg", plain[: frame + 1] + b"\xc1\x00\x11\x0c" + plain[frame + 5:]
    yield "jpeg-trailing.jpg", jpeg(subsampling=0) + b"not a part of the picture" * 3


def webp_forms():
    rgb = scene()
    image = Image.fromarray(rgb)
    alpha = (np.mgrid[0:H, 0:W][0] * 255 // (H - 1)).astype(np.uint8)[:, :, None]
    rgba = Image.fromarray(np.concatenate([rgb, alpha], -1))
    yield "webp-lossy.webp", saved(image, "WEBP", quality=90)
    yield "webp-lossless.webp", saved(image, "WEBP", lossless=True)
    yield "webp-lossy-alpha.webp", saved(rgba, "WEBP", quality=90, exact=True)
    yield "webp-lossless-alpha.webp", saved(rgba, "WEBP", lossless=True, exact=True)
    more = dict(save_all=True, append_images=[Image.fromarray(255 - rgb)], duration=100, lossless=True)
    yield "webp-animated.webp", saved(image, "WEBP", **more)
    yield "webp-exif6.webp", saved(image, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(6))


def bmp(depth, rows, palette=b"", compression=0, masks=b"", height=H):
    """A BITMAPINFOHEADER file; rows is the pixel data, as stored."""
    offset = 14 + 40 + len(masks) + len(palette)
    colours = len(palette) // 4
    info = struct.pack("<IiiHHIIiiII", 40, W, height, 1, depth, compression, len(rows), 2835, 2835, colours, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + info + masks + palette + rows


def padded(rows):
    return b"".join(r + b"\0" * (-len(r) % 4) for r in rows)


def rle8(index):
    """Each row as runs, then end of line; end of bitmap last."""
    out = bytearray()
    for row in index:
        start = 0
        for x in range(1, len(row) + 1):
            if x == len(row) or row[x] != row[start]:
                out += bytes([x - start, int(row[start])])
                start = x
        out += b"\0\0"
    return bytes(out) + b"\0\1"


def rle4(index):
    """Rows as runs of one colour, two to a byte."""
    out = bytearray()
    for row in index:
        for value in row:
            out += bytes([1, int(value) << 4])
        out += b"\0\0"
    return bytes(out) + b"\0\1"


def bmp_forms():
    rgb = scene()[::-1]
    bgr = rgb[:, :, ::-1]
    index = (np.mgrid[0:H, 0:W].sum(0) // 3 % 16)[::-1].astype(np.uint8)
    palette = b"".join(bytes([(i * 53) % 256, 255 - i * 15, i * 16, 0]) for i in range(16))
    bits = [np.packbits(r % 2).tobytes() for r in index]
    nibbles = [((r[0::2] << 4) | r[1::2]).tobytes() for r in index]
    yield "bmp-1.bmp", bmp(1, padded(bits), palette[:8])
    yield "bmp-4.bmp", bmp(4, padded(nibbles), palette)
    yield "bmp-8.bmp", bmp(8, padded([r.tobytes() for r in index]), palette)
    yield "bmp-rle8.bmp", bmp(8, rle8(index), palette, 1)
    yield "bmp-rle4.bmp", bmp(4, rle4(index), palette, 2)
    five = (rgb >> 3).astype(np.uint16)
    word = (five[:, :, 0] << 10) | (five[:, :, 1] << 5) | five[:, :, 2]
    yield "bmp-555.bmp", bmp(16, padded([r.astype("<u2").tobytes() for r in word]))
    word = (five[:, :, 0] << 11) | ((rgb[:, :, 1] >> 2).astype(np.uint16) << 5) | five[:, :, 2]
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    yield "bmp-565.bmp", bmp(16, padded([r.astype("<u2").tobytes() for r in word]), b"", 3, masks)
    yield "bmp-24.bmp", bmp(24, padded([r.tobytes() for r in bgr]))
    yield "bmp-24-top-down.bmp", bmp(24, padded([r.tobytes() for r in bgr[::-1]]), height=-H)
    four = np.concatenate([bgr, np.full((H, W, 1), 77, np.uint8)], -1)
    yield "bmp-32.bmp", bmp(32, padded([r.tobytes() for r in four]))


def tiff(samples, bits, photometric, tags=(), order="<"):
    """One strip, uncompressed, by hand: the kinds that Pillow does not write."""
    kind = order + ("u2" if bits == 16 else "u1")
    count = samples.shape[2] if samples.ndim == 3 else 1
    data = samples.astype(kind).tobytes()
    fixed = [(256, 3, [W]), (257, 3, [H]), (258, 3, [bits] * count), (259, 3, [1]), (262, 3, [photometric]),
             (273, 4, [8]), (277, 3, [count]), (278, 3, [H]), (279, 4, [len(data)]), *tags]
    entries, spill = b"", b""
    base = 8 + len(data) + 2 + 12 * len(fixed) + 4
    for tag, form, values in sorted(fixed):
        body = struct.pack(order + ("H" if form == 3 else "I") * len(values), *values)
        entries += struct.pack(order + "HHI", tag, form, len(values))
        if len(body) <= 4:
            entries += body.ljust(4, b"\0")
        else:
            entries += struct.pack(order + "I", base + len(spill))
            spill += body
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + struct.pack(order + "H", len(fixed)) + entries + b"\0" * 4 + spill


def tiff_forms():
    rgb = scene()
    image = Image.fromarray(rgb)
    gray = image.convert("L")
    cmyk = np.concatenate([255 - rgb, rgb[::-1, :, 1:2] // 2], -1)
    alpha = np.full((H, W, 1), 99, np.uint8)
    yield "tiff-gray1.tif", saved(image.convert("1", dither=Image.Dither.NONE), "TIFF")
    yield "tiff-gray8.tif", saved(gray, "TIFF")
    yield "tiff-gray8-white-is-zero.tif", tiff(np.array(gray), 8, 0)
    yield "tiff-gray16.tif", tiff(ramp16(1), 16, 1)
    yield "tiff-rgb8.tif", saved(image, "TIFF")
    yield "tiff-rgb8-lzw.tif", saved(image, "TIFF", compression="tiff_lzw")
    yield "tiff-rgb8-deflate.tif", saved(image, "TIFF", compression="tiff_adobe_deflate")
    yield "tiff-rgb8-packbits.tif", saved(image, "TIFF", compression="packbits")
    yield "tiff-rgb8-jpeg.tif", saved(image, "TIFF", compression="jpeg", quality=90)
    yield "tiff-rgb16.tif", tiff(ramp16(3), 16, 2)
    yield "tiff-rgb16-big-endian.tif", tiff(ramp16(3), 16, 2, order=">")
    yield "tiff-rgba8.tif", tiff(np.concatenate([rgb, alpha], -1), 8, 2, [(338, 3, [2])])
    palette = [(i * k) % 256 * 257 for k in (16, 53, 101) for i in range(256)]
    index = (np.mgrid[0:H, 0:W].sum(0) % 16).astype(np.uint8)
    yield "tiff-palette8.tif", tiff(index, 8, 3, [(320, 3, palette)])
    yield "tiff-cmyk.tif", tiff(cmyk, 8, 5)
    for orientation in (3, 6):
        yield f"tiff-orientation{orientation}.tif", tiff(rgb, 8, 2, [(274, 3, [orientation])])
    pages = dict(save_all=True, append_images=[Image.fromarray(255 - rgb)])
    yield "tiff-multi-page.tif", saved(image, "TIFF", **pages)


def gif_forms():
    image = Image.fromarray(scene()).quantize(32, dither=Image.Dither.NONE)
    more = dict(save_all=True, append_images=[Image.fromarray(255 - scene()).quantize(32)], duration=100)
    yield "gif.gif", saved(image, "GIF")
    yield "gif-interlaced.gif", saved(image, "GIF", interlace=1)
    yield "gif-transparent.gif", saved(image, "GIF", transparency=image.getpixel((5, 5)))
    yield "gif-animated.gif", saved(image, "GIF", **more)
    # The first frame covers only a part of the canvas.
    small = saved(image.crop((0, 0, 16, 10)), "GIF", interlace=0)
    at = small.index(b"\x2c", 13 + 3 * (2 << (small[10] & 7)))
    canvas = small[:6] + struct.pack("<HH", W, H) + small[10:at + 1] + struct.pack("<HH", 7, 4) + small[at + 5:]
    yield "gif-part-of-canvas.gif", canvas


# Where haul does on purpose what cv2 does not; docs/pictures.md says why.
DIFFERENT = {
    "tiff-rgba8.tif": lambda: scene(),
    "tiff-orientation6.tif": lambda: np.rot90(scene(), -1),
}
REFUSED = {"tiff-palette8.tif", "jpeg-arithmetic.jpg", "jpeg-12-bit.jpg", "heic.heic"}


def other_forms():
    yield "heic.heic", struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic")


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "testdata/forms")
    (out / "expected").mkdir(parents=True, exist_ok=True)
    for family in (jpeg_forms, png_forms, webp_forms, bmp_forms, tiff_forms, gif_forms, other_forms):
        for name, data in family():
            (out / name).write_bytes(data)
            if name in REFUSED:
                continue
            if name in DIFFERENT:
                rgb = DIFFERENT[name]()
            else:
                rgb = cv2.imread(str(out / name), cv2.IMREAD_COLOR)[:, :, ::-1]
            (out / "expected" / f"{name.replace('.', '-')}.png").write_bytes(png(rgb, 8, 2))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Write testdata/pictures/: a small folder of pictures as people have them.

Several sizes and formats, folders in folders, one picture lying on its side
with an EXIF orientation, one with nothing in it to find. The seeds are neither
training's nor evaluation's.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from pictures import Canvas, picture

OUT = Path(__file__).resolve().parents[2] / "testdata" / "pictures"
FIRST = 20_000_000
PICTURES = [  # name, seed, size, tidy
    ("balloons.jpg", 126, (640, 480), True),
    ("evening.jpg", 111, (640, 480), True),
    ("hills.jpg", 129, (640, 480), True),
    ("panorama.jpg", 300, (960, 320), True),
    ("park/picnic.jpg", 516, (480, 360), True),
    ("park/playground.jpg", 504, (480, 360), True),
    ("park/winter/snow.webp", 103, (640, 480), True),
    ("phone.jpg", 203, (480, 640), True),
    ("pond.jpg", 209, (480, 640), True),
    ("sea.jpg", 105, (640, 480), True),
    ("stamp.bmp", 706, (160, 120), True),
    ("stamp.jpg", 715, (160, 120), True),
    ("table.png", 603, (240, 240), False),
]
ORIENTATION = 0x0112  # EXIF tag


def save(image, name):
    file = OUT / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if name == "phone.jpg":  # 6: to be turned right by a quarter, so stored turned left
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(file, quality=82, exif=exif)
    elif file.suffix in (".jpg", ".webp"):
        image.save(file, quality=82)
    else:
        image.save(file)


def main():
    for name, seed, size, tidy in PICTURES:
        save(Image.fromarray(picture(FIRST + seed, size, worn=False, tidy=tidy)[0]), name)
    canvas = Canvas(np.random.default_rng(FIRST), 320, 240)
    canvas.landscape(sea=True)
    save(Image.fromarray(np.clip(canvas.pixels, 0, 255).astype(np.uint8)), "empty.jpg")


if __name__ == "__main__":
    main()

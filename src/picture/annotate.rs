//! Drawing detections on a copy of a picture.

use std::convert::Infallible;

use embedded_graphics::Pixel;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle, iso_8859_1};
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::{DrawTarget, Drawable};
use embedded_graphics::text::{Baseline, Text};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::decode::Picture;
use super::error::PictureError;

/// Quality of the JPEG written.
const QUALITY: u8 = 90;

/// Chosen by hand to differ from one another and from most backgrounds; by class number.
const PALETTE: [[u8; 3]; 20] = [
    [230, 25, 75],
    [60, 180, 75],
    [0, 130, 200],
    [245, 130, 48],
    [145, 30, 180],
    [70, 240, 240],
    [240, 50, 230],
    [210, 245, 60],
    [250, 190, 212],
    [0, 128, 128],
    [220, 190, 255],
    [170, 110, 40],
    [255, 225, 25],
    [128, 0, 0],
    [170, 255, 195],
    [128, 128, 0],
    [255, 160, 122],
    [0, 0, 160],
    [120, 120, 120],
    [255, 250, 200],
];

/// One detection to draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark<'a> {
    /// x1, y1, x2, y2 in pixels of the upright picture.
    pub bbox: [f32; 4],
    /// Class number: it chooses the colour.
    pub class: u32,
    /// Class name. Letters beyond Latin-1 are drawn as question marks.
    pub label: &'a str,
    /// Score, 0 to 1: drawn with two decimals.
    pub score: f32,
}

/// What a drawn picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JPEG of quality 90.
    Jpeg,
    /// PNG, without loss.
    Png,
}

/// `picture` with `marks` drawn on it, the first on top, as the bytes of a file.
///
/// # Errors
/// [`super::Code::Unsupported`] for a side over 65535 pixels, which no JPEG can have.
pub fn annotate(
    picture: &Picture,
    marks: &[Mark],
    encoding: Encoding,
) -> Result<Vec<u8>, PictureError> {
    let (Ok(width), Ok(height)) = (u16::try_from(picture.width), u16::try_from(picture.height))
    else {
        return Err(PictureError::unsupported(format_args!(
            "an annotated picture of {} x {} pixels",
            picture.width, picture.height
        )));
    };
    if picture.rgb.len() != usize::from(width) * usize::from(height) * 3 || picture.rgb.is_empty() {
        return Err(PictureError::internal());
    }
    let mut canvas =
        Canvas { width: i32::from(width), height: i32::from(height), rgb: picture.rgb.clone() };
    for mark in marks.iter().rev() {
        canvas.mark(mark);
    }
    let mut file = Vec::new();
    let (rgb, form) = (&canvas.rgb, ExtendedColorType::Rgb8);
    let (width, height) = (picture.width, picture.height);
    match encoding {
        Encoding::Jpeg => {
            JpegEncoder::new_with_quality(&mut file, QUALITY).encode(rgb, width, height, form)
        }
        Encoding::Png => PngEncoder::new(&mut file).write_image(rgb, width, height, form),
    }
    .map_err(|_| PictureError::internal())?;
    Ok(file)
}

struct Canvas {
    width: i32,
    height: i32,
    rgb: Vec<u8>,
}

impl Canvas {
    /// Fill the part of a rectangle (right and bottom not included) that is on the picture.
    fn fill(&mut self, [left, top, right, bottom]: [i32; 4], colour: [u8; 3]) {
        let (left, right) = (left.max(0), right.min(self.width));
        if left >= right {
            return;
        }
        for y in top.max(0)..bottom.min(self.height) {
            let start = (y * self.width + left) as usize * 3;
            let line = &mut self.rgb[start..start + (right - left) as usize * 3];
            line.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&colour));
        }
    }

    fn mark(&mut self, mark: &Mark) {
        let colour = PALETTE[mark.class as usize % PALETTE.len()];
        // `as` sends NaN to zero, and the clamp keeps the arithmetic below from overflowing.
        let at = |v: f32, side: i32| (v.round() as i32).clamp(0, side);
        let (left, top) = (at(mark.bbox[0], self.width), at(mark.bbox[1], self.height));
        let (right, bottom) = (at(mark.bbox[2], self.width), at(mark.bbox[3], self.height));
        let line = (f64::from(self.width + self.height) * 0.0015).round().max(1.0) as i32;
        self.fill([left, top, right, top + line], colour);
        self.fill([left, bottom - line, right, bottom], colour);
        self.fill([left, top, left + line, bottom], colour);
        self.fill([right - line, top, right, bottom], colour);
        self.label(&format!("{} {:.2}", mark.label, mark.score), left, top, colour);
    }

    /// The text on its background, above (`left`, `top`) or, without room there, below; moved and
    /// shortened so that all of it is on the picture.
    fn label(&mut self, text: &str, left: i32, top: i32, background: [u8; 3]) {
        let (font, scale) = font(self.width.max(self.height));
        let margin = 2 * scale;
        let (advance, tall) =
            (font.character_size.width as i32 * scale, font.character_size.height as i32 * scale);
        let room = ((self.width - 2 * margin) / advance).max(0) as usize;
        let text: String = text.chars().take(room).collect();
        if text.is_empty() {
            return;
        }
        let mask = Mask::of(&text, font);
        let width = mask.size.width as i32 * scale + 2 * margin;
        let left = left.min(self.width - width).max(0);
        let top = if top >= tall { top - tall } else { top.min(self.height - tall).max(0) };
        self.fill([left, top, left + width, top + tall], background);
        let [r, g, b] = background.map(u32::from);
        let bright = 299 * r + 587 * g + 114 * b > 140_000;
        let ink = if bright { [0; 3] } else { [255; 3] };
        for (i, _) in mask.set.iter().enumerate().filter(|(_, set)| **set) {
            let x = left + margin + (i as u32 % mask.size.width) as i32 * scale;
            let y = top + (i as u32 / mask.size.width) as i32 * scale;
            self.fill([x, y, x + scale, y + scale], ink);
        }
    }
}

/// A font, and how many pixels each of its pixels is wide, for a picture's longer side.
fn font(side: i32) -> (&'static MonoFont<'static>, i32) {
    match side {
        ..320 => (&iso_8859_1::FONT_6X10, 1),
        320..600 => (&iso_8859_1::FONT_7X13_BOLD, 1),
        600..1000 => (&iso_8859_1::FONT_9X15_BOLD, 1),
        _ => (&iso_8859_1::FONT_9X15_BOLD, (side + 400) / 1000),
    }
}

/// A line of text as a bitmap.
struct Mask {
    size: Size,
    set: Vec<bool>,
}

impl Mask {
    fn of(text: &str, font: &MonoFont) -> Self {
        let letters = text.chars().count() as u32;
        let step = font.character_size.width + font.character_spacing;
        let size = Size::new(letters * step, font.character_size.height);
        let mut mask = Self { size, set: vec![false; (size.width * size.height) as usize] };
        let style = MonoTextStyle::new(font, BinaryColor::On);
        let drawn = Text::with_baseline(text, Point::zero(), style, Baseline::Top).draw(&mut mask);
        let _: Result<Point, Infallible> = drawn;
        mask
    }
}

impl OriginDimensions for Mask {
    fn size(&self) -> Size {
        self.size
    }
}

impl DrawTarget for Mask {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<BinaryColor>>,
    {
        for Pixel(point, colour) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(point.x), u32::try_from(point.y)) else { continue };
            if x < self.size.width && y < self.size.height {
                self.set[(y * self.size.width + x) as usize] = colour.is_on();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(width: u32, height: u32) -> Picture {
        let rgb = vec![114; width as usize * height as usize * 3];
        Picture { width, height, rgb, truncated: false }
    }

    fn drawn(picture: &Picture, marks: &[Mark]) -> image::RgbImage {
        let read = |encoding| {
            let file = annotate(picture, marks, encoding).expect("drawn");
            image::load_from_memory(&file).expect("a picture").into_rgb8()
        };
        let (jpeg, png) = (read(Encoding::Jpeg), read(Encoding::Png));
        assert_eq!(jpeg.dimensions(), (picture.width, picture.height));
        assert_eq!(png.dimensions(), jpeg.dimensions());
        jpeg
    }

    #[test]
    fn a_box_has_its_classes_colour_and_leaves_the_rest() {
        let mark = Mark { bbox: [20.0, 40.0, 80.0, 90.0], class: 2, label: "car", score: 0.5 };
        let image = drawn(&gray(120, 100), &[mark]);
        let near = |at: (u32, u32), colour: [u8; 3]| {
            let pixel = image.get_pixel(at.0, at.1).0;
            pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 60)
        };
        assert!(near((21, 31), PALETTE[2]), "label background: {:?}", image.get_pixel(21, 31));
        assert!(near((50, 65), [114; 3]) && near((5, 5), [114; 3]));
    }

    #[test]
    fn odd_marks_are_drawn_without_a_panic() {
        let boxes = [
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0],
            [-1e30, -1e30, 1e30, 1e30],
            [50.0, 50.0, 10.0, 10.0],
            [99.0, 99.0, 100.0, 100.0],
        ];
        for (width, height) in [(1, 1), (3, 200), (200, 3), (100, 100), (1300, 40)] {
            for label in
                ["", "person", "自転車 🚲", "a label longer than the whole picture is wide"]
            {
                let marks: Vec<Mark> = boxes
                    .iter()
                    .map(|&bbox| Mark { bbox, class: u32::MAX, label, score: f32::NAN })
                    .collect();
                drawn(&gray(width, height), &marks);
            }
        }
    }

    #[test]
    fn what_no_jpeg_can_hold_is_refused() {
        let error = annotate(&gray(65_536, 1), &[], Encoding::Jpeg).expect_err("too wide");
        assert_eq!(error.code, super::super::Code::Unsupported);
        let short = Picture { width: 2, height: 2, rgb: vec![0; 3], truncated: false };
        assert!(annotate(&short, &[], Encoding::Png).is_err());
    }
}

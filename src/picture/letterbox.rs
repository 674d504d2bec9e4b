//! Ultralytics' letterbox: where a picture lies in the network's input, and putting it there.

use super::decode::Picture;
use super::error::PictureError;
use super::resize::{Bilinear, Target};

/// The gray around a picture.
const PAD: u8 = 114;
/// The network halves its input five times.
const STRIDE: u32 = 32;

/// Where a picture lies in the network's input. Pure arithmetic: no pixels are touched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Letterbox {
    /// Width and height in pixels of the upright picture.
    pub source: (u32, u32),
    /// Width and height in pixels of the picture inside the input.
    pub resized: (u32, u32),
    /// Pixels left of and above it.
    pub pad: (u32, u32),
    /// Width in pixels of the input.
    pub width: u32,
    /// Height in pixels of the input.
    pub height: u32,
    /// Input pixels per picture pixel.
    gain: f64,
    /// What boxes are shifted by. Equal to `pad`, but for pictures so narrow that their resized
    /// side was raised to one pixel: there Ultralytics shifts by what rounding alone gives.
    shift: (f64, f64),
}

impl Letterbox {
    /// Fit a picture of `width` x `height` pixels into `imgsz`: enlarged or reduced until its
    /// longer side is `imgsz`, then padded to the smallest multiples of 32, or to the whole
    /// square if `square`. Zero sizes count as one.
    pub fn new(width: u32, height: u32, imgsz: u32, square: bool) -> Self {
        let (source_w, source_h) = (width.max(1), height.max(1));
        let size = f64::from(imgsz.max(1));
        let gain = (size / f64::from(source_h)).min(size / f64::from(source_w));
        let exact = |side: u32| (f64::from(side) * gain).round_ties_even();
        let fit = |side: u32| (exact(side).max(1.0) as u32).min(imgsz.max(1));
        let resized = (fit(source_w), fit(source_h));
        let whole = |side: u32| {
            if square { imgsz.max(1) } else { side.div_ceil(STRIDE).saturating_mul(STRIDE) }
        };
        let (width, height) = (whole(resized.0), whole(resized.1));
        // The tenth makes an odd pixel fall to the right and below.
        let before = |room: f64| (room / 2.0 - 0.1).round_ties_even();
        let pad = |whole: u32, part: u32| before(f64::from(whole - part)).max(0.0) as u32;
        Self {
            source: (source_w, source_h),
            resized,
            pad: (pad(width, resized.0), pad(height, resized.1)),
            width,
            height,
            gain,
            shift: (
                before(f64::from(width) - exact(source_w)),
                before(f64::from(height) - exact(source_h)),
            ),
        }
    }

    /// A box (x1, y1, x2, y2) in input pixels, as one in pixels of the upright picture, clipped
    /// to it.
    pub fn to_picture(&self, bbox: [f32; 4]) -> [f32; 4] {
        let place = |value: f32, shift: f64, side: u32| {
            // f32 step by step, as the tensors it stems from.
            let value = (value - shift as f32) / self.gain as f32;
            value.clamp(0.0, side as f32)
        };
        [
            place(bbox[0], self.shift.0, self.source.0),
            place(bbox[1], self.shift.1, self.source.1),
            place(bbox[2], self.shift.0, self.source.0),
            place(bbox[3], self.shift.1, self.source.1),
        ]
    }
}

/// Makes network inputs, reusing its buffers from one picture to the next.
#[derive(Debug, Default)]
pub struct Letterboxer {
    bilinear: Bilinear,
    input: Vec<u8>,
}

impl Letterboxer {
    /// Without buffers yet: the first picture makes them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Put `picture` where `geometry` says. Returns interleaved 8-bit RGB, `geometry.width *
    /// geometry.height * 3` bytes, with 114 around the picture. Bilinear without antialiasing and
    /// with half-pixel centres, as `cv2.resize(INTER_LINEAR)`.
    ///
    /// Every byte is written once: the picture straight into its place, and gray around it.
    ///
    /// # Errors
    /// [`super::Code::Internal`] if `geometry` is not of this picture.
    pub fn run<'a>(
        &'a mut self,
        picture: &Picture,
        geometry: &Letterbox,
    ) -> Result<&'a [u8], PictureError> {
        let (width, height) = geometry.resized;
        let whole = picture.width as usize * picture.height as usize * 3;
        if (picture.width, picture.height) != geometry.source || picture.rgb.len() != whole {
            return Err(PictureError::internal());
        }
        let line = geometry.width as usize * 3;
        // What an earlier picture left is written over below.
        self.input.resize(line * geometry.height as usize, PAD);
        let (left, row) = (geometry.pad.0 as usize * 3, width as usize * 3);
        let (above, rest) = self.input.split_at_mut(geometry.pad.1 as usize * line);
        let (inside, below) = rest.split_at_mut(height as usize * line);
        above.fill(PAD);
        below.fill(PAD);
        if row < line {
            for to in inside.chunks_exact_mut(line) {
                to[..left].fill(PAD);
                to[left + row..].fill(PAD);
            }
        }
        if geometry.resized == geometry.source {
            for (to, from) in inside.chunks_exact_mut(line).zip(picture.rgb.chunks_exact(row)) {
                to[left..left + row].copy_from_slice(from);
            }
        } else {
            let target = Target { rgb: &mut inside[left..], width, height, stride: line };
            self.bilinear.run(&picture.rgb, picture.width, picture.height, target);
        }
        Ok(&self.input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (width, height), square: resized, pad, input; by hand from the rules.
    #[test]
    fn geometry_follows_the_rules() {
        type Row = ((u32, u32), bool, (u32, u32), (u32, u32), (u32, u32));
        let rows: [Row; 9] = [
            ((640, 427), false, (640, 427), (0, 10), (640, 448)),
            ((640, 427), true, (640, 427), (0, 106), (640, 640)),
            ((427, 640), false, (427, 640), (10, 0), (448, 640)),
            ((1920, 1080), false, (640, 360), (0, 12), (640, 384)),
            ((100, 75), false, (640, 480), (0, 0), (640, 480)),
            ((1, 1), false, (640, 640), (0, 0), (640, 640)),
            ((1, 5000), false, (1, 640), (15, 0), (32, 640)),
            ((5000, 1), true, (640, 1), (0, 319), (640, 640)),
            ((640, 640), false, (640, 640), (0, 0), (640, 640)),
        ];
        for (source, square, resized, pad, input) in rows {
            let got = Letterbox::new(source.0, source.1, 640, square);
            assert_eq!(
                (got.source, got.resized, got.pad, (got.width, got.height)),
                (source, resized, pad, input),
                "{source:?}"
            );
        }
    }

    #[test]
    fn boxes_come_back_and_are_clipped() {
        let geometry = Letterbox::new(1920, 1080, 640, false);
        let [x1, y1, x2, y2] = geometry.to_picture([10.0, 22.0, 700.0, 384.0]);
        assert_eq!((x1, y1, x2, y2), (30.0, 30.0, 1920.0, 1080.0));
        assert_eq!(geometry.to_picture([-5.0, 0.0, 0.0, 12.0]), [0.0; 4]);
    }

    #[test]
    fn any_shape_fits_its_input() {
        let mut letterboxer = Letterboxer::new();
        for (width, height) in [(1, 1), (1, 5000), (5000, 1), (640, 640), (33, 65), (641, 3)] {
            for square in [false, true] {
                let rgb = vec![200; width as usize * height as usize * 3];
                let picture = Picture { width, height, rgb, truncated: false };
                let geometry = Letterbox::new(width, height, 640, square);
                let input = letterboxer.run(&picture, &geometry).expect("fits");
                assert_eq!(input.len(), (geometry.width * geometry.height * 3) as usize);
                let inside = input.iter().filter(|&&v| v == 200).count();
                assert_eq!(inside, (geometry.resized.0 * geometry.resized.1 * 3) as usize);
                assert_eq!(input.iter().filter(|&&v| v == PAD).count(), input.len() - inside);
                let at = (geometry.pad.1 * geometry.width + geometry.pad.0) as usize * 3;
                assert_eq!(input[at], 200, "{width} x {height}");
                // Whatever the picture before has left in the buffer.
                letterboxer.input.fill(77);
            }
        }
    }

    #[test]
    fn another_pictures_geometry_is_refused() {
        let picture = Picture { width: 2, height: 1, rgb: vec![0; 6], truncated: false };
        let geometry = Letterbox::new(3, 1, 640, false);
        assert!(Letterboxer::new().run(&picture, &geometry).is_err());
    }
}

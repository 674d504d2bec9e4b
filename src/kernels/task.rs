//! What a kernel is asked to do: plain numbers, no knowledge of networks.
//!
//! All places are byte offsets into one arena, all weights byte offsets into one packed block.
//! Activations lie in *planes* of 16 or 32 channels (3 for the picture): the channels of a pixel
//! are neighbours, then come the pixels of a row, then the rows. So a tap of a convolution is
//! nothing but another offset, and neighbouring taps of a row are one run of elements.

use std::ops::Range;

/// How activations and weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision, 4 bytes.
    F32,
    /// The upper half of one, 2 bytes; sums are kept in single precision.
    Bf16,
}

impl Element {
    /// Bytes of one.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }
}

/// A place in the arena that moves with the output pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Byte offset for the first pixel of the first row of the task.
    pub at: usize,
    /// Bytes from one output row to the next.
    pub row: usize,
    /// Bytes from one output pixel to the next.
    pub px: usize,
}

impl Place {
    /// The offset for a pixel of the task.
    #[must_use]
    pub fn of(&self, row: usize, x: usize) -> usize {
        self.at + row * self.row + x * self.px
    }
}

/// One run of input elements that every output pixel multiplies with the same weights: all
/// channels of a plane at one tap, or at the neighbouring taps of a kernel row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KStep {
    /// Where its elements begin.
    pub from: Place,
    /// How many elements; even for [`Element::Bf16`], a multiple of 32 for tiles.
    pub count: usize,
}

/// Where the weight of element `k` (counted over all K-steps) for a lane lies among those of its
/// block, in elements.
#[must_use]
pub fn weight_index(element: Element, tiled: bool, k: usize, lane: usize, lanes: usize) -> usize {
    let pair = match (element, tiled) {
        (Element::F32, _) => return k * lanes + lane,
        (Element::Bf16, false) => k / 2 * lanes + lane,
        // Tiles of 16 pairs × 16 lanes, one or two for each 32 elements.
        (Element::Bf16, true) => {
            let tile = k / 32 * (lanes / 16) + lane / 16;
            (tile * 16 + k % 32 / 2) * 16 + lane % 16
        }
    };
    2 * pair + k % 2
}

/// What follows the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// x · sigmoid(x).
    Silu,
}

/// How results are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// As activations, for the next convolution.
    Element,
    /// In single precision.
    F32,
    /// In single precision, each pixel twice in a row: a row of the sum that a convolution over
    /// the upsampled picture starts from.
    F32Twice,
}

/// 16 or 32 output channels that are computed together, and are neighbours in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Where its weights begin: for each element of each K-step, `lanes` weights
    /// (for [`Element::Bf16`]: for each pair of elements, `lanes` pairs; for tiles: for each 32
    /// elements one or two tiles of 16 pairs of elements × 16 lanes).
    pub weights: usize,
    /// Where its `lanes` f32 biases begin, in the same memory.
    pub bias: usize,
    /// 16 or 32.
    pub lanes: usize,
    /// Where results go.
    pub out: Place,
    /// Activations that are added to the result.
    pub residual: Option<Place>,
    /// Sums to begin with, in single precision, instead of the bias. Two rows share one of them.
    pub init: Option<Place>,
}

/// Some rows of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// What is summed, in this order.
    pub ksteps: &'a [KStep],
    /// What is computed.
    pub blocks: &'a [Block],
    /// Output rows.
    pub rows: usize,
    /// Output pixels per row.
    pub width: usize,
    /// Whether the first row is the second of two that share a row of `init`.
    pub odd: bool,
    /// What follows the sum.
    pub act: Activation,
    /// How results are stored.
    pub store: Store,
}

impl Conv<'_> {
    /// Pixels beyond the last that tiles may read.
    pub const TILE_OVERRUN: usize = 31;

    /// Bytes of weights that a block of so many lanes reads.
    #[must_use]
    pub fn weight_bytes(&self, lanes: usize, element: Element) -> usize {
        // Saturating: a sum that does not fit must not look like a small one to those who check.
        let elements = self.ksteps.iter().fold(0usize, |sum, k| sum.saturating_add(k.count));
        elements.saturating_mul(lanes).saturating_mul(element.bytes())
    }
}

/// Some rows of a 3 × 3 convolution of stride 1 by Winograd's F(4 × 4, 3 × 3): 36 products where the
/// plain sum has 144. Products and sums are in single precision, whatever activations are stored as.
#[derive(Clone, Copy, Debug)]
pub struct Winograd<'a> {
    /// For each plane of the input the place of the tap above and left of the first output pixel;
    /// all its lanes (16 or 32) take part. Two rows and two pixels more than the outputs have are
    /// read, and nothing beyond.
    pub planes: &'a [KStep],
    /// What is computed. The weights of a block are transformed f32: for each of 36 positions (row
    /// by row), for each lane of each plane, `lanes` weights.
    pub blocks: &'a [Block],
    /// Output rows; the number of the first in its tensor is a multiple of [`Winograd::SIDE`].
    pub rows: usize,
    /// Output pixels per row.
    pub width: usize,
    /// What follows the sum.
    pub act: Activation,
}

impl Winograd<'_> {
    /// Outputs of a tile, each way.
    pub const SIDE: usize = 4;
    /// Inputs of a tile, each way, and what they are transformed to.
    pub const REACH: usize = 6;
    /// Positions of a transformed tile.
    pub const POSITIONS: usize = Self::REACH * Self::REACH;
    /// Tiles in a chunk at most: as many as share one reading of the weights.
    const TILES: usize = 48;
    /// Transformed inputs (f32) of a chunk at most, if that leaves it [`Winograd::FEW`] tiles: what
    /// goes through all weights in one go should stay in the second-level cache meanwhile.
    const INPUTS: usize = 1 << 18;
    /// Tiles that fill the registers of the widest kernels.
    const FEW: usize = 12;

    /// Tiles in a row, and rows of tiles.
    #[must_use]
    pub fn tiles(&self) -> (usize, usize) {
        (self.width.div_ceil(Self::SIDE), self.rows.div_ceil(Self::SIDE))
    }

    /// Tiles in a chunk at most, for so many input channels.
    fn most(channels: usize) -> usize {
        (Self::INPUTS / (Self::POSITIONS * channels).max(1)).clamp(Self::FEW, Self::TILES)
    }

    /// In how many chunks the tiles are worked on, so that there are `least` if possible.
    #[must_use]
    pub fn chunks(&self, least: usize) -> usize {
        let (across, down) = self.tiles();
        let channels: usize = self.planes.iter().map(|plane| plane.count).sum();
        let tiles = across * down;
        tiles.div_ceil(Self::most(channels)).max(least.min(tiles.div_ceil(Self::FEW)))
    }

    /// The tiles of one of so many chunks, row by row.
    #[must_use]
    pub fn chunk(&self, index: usize, chunks: usize) -> Range<usize> {
        let (across, down) = self.tiles();
        let tiles = across * down;
        tiles * index / chunks..tiles * (index + 1) / chunks
    }

    /// f32 from one position of so many transformed tiles to the next: lines of the cache, and an
    /// odd number of them, so that positions do not fall on the same few lines.
    #[must_use]
    pub fn step(channels: usize, tiles: usize) -> usize {
        (channels * tiles).div_ceil(16) * 16 + (channels * tiles / 16 + 1) % 2 * 16
    }

    /// How many f32 of scratch memory it needs for so many input channels.
    #[must_use]
    pub fn scratch(channels: usize) -> usize {
        // A line more than the longest step: those of fewer tiles may be rounded up further.
        let most = Self::most(channels);
        Self::POSITIONS * (Self::step(channels, most) + 16 + most * 32)
    }
}

/// Some rows of a 5 × 5 maximum, stride 1, of one plane; what lies outside takes no part.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// The input's first pixel (of row 0, not of `first`).
    pub from: Place,
    /// The output's pixel of row `first`.
    pub out: Place,
    /// The first output row.
    pub first: usize,
    /// Output rows.
    pub rows: usize,
    /// Rows of the whole plane.
    pub height: usize,
    /// Pixels per row.
    pub width: usize,
    /// Elements per pixel.
    pub lanes: usize,
}

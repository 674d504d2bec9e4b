//! The tile registers and what each instruction does to them and to memory.
//!
//! It must not know of signals: the same code runs under a test's eyes and in the handler.

use super::decode::{Base, Op, Place};
use super::dot::{self, Scratch, Tile};
use std::fmt;

/// Why a processor refuses an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// #UD
    Undefined(Why),
    /// #GP(0)
    Protection(Why),
}

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    NotConfigured,
    EmptyTile(u8),
    OddColumns(u8, u16),
    StartBeyond(u8, u8),
    SameTile(u8, u8, u8),
    Rows(u8, u8, u8, u8),
    Columns(u8, u16, u8, u16),
    Depth(u8, u16, u8, u8),
    Palette(u8),
    Reserved(usize, u8),
    TooWide(u8, u16),
    TooTall(u8, u8),
    HalfEmpty(u8, u8, u16),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, why) = match self {
            Fault::Undefined(why) => ("#UD", why),
            Fault::Protection(why) => ("#GP", why),
        };
        write!(f, "{name}: ")?;
        match *why {
            Why::NotConfigured => write!(f, "no tile is configured"),
            Why::EmptyTile(t) => write!(f, "tmm{t} has no rows in this configuration"),
            Why::OddColumns(t, n) => write!(f, "tmm{t} has {n} bytes a row, no multiple of 4"),
            Why::StartBeyond(t, n) => write!(f, "start_row {n} is not inside tmm{t}"),
            Why::SameTile(d, a, b) => {
                write!(f, "tmm{d}, tmm{a} and tmm{b} are not three different tiles")
            }
            Why::Rows(d, m, a, n) => {
                write!(f, "shapes: tmm{d} has {m} rows, its first factor tmm{a} {n}")
            }
            Why::Columns(d, m, b, n) => {
                write!(f, "shapes: tmm{d} has {m} bytes a row, its second factor tmm{b} {n}")
            }
            Why::Depth(a, m, b, n) => {
                write!(
                    f,
                    "shapes: tmm{a} has {m} bytes a row, which is not 4 times tmm{b}'s {n} rows"
                )
            }
            Why::Palette(n) => write!(f, "palette {n}; there are only 0 and 1"),
            Why::Reserved(at, n) => write!(f, "byte {at} of the configuration is {n}, must be 0"),
            Why::TooWide(t, n) => write!(f, "tmm{t} is given {n} bytes a row, at most 64 fit"),
            Why::TooTall(t, n) => write!(f, "tmm{t} is given {n} rows, at most 16 fit"),
            Why::HalfEmpty(t, n, m) => {
                write!(f, "tmm{t} is given {n} rows of {m} bytes; both or neither must be 0")
            }
        }
    }
}

const TILES: usize = 8;

/// A thread's tile registers. All zero is the state a thread begins with.
#[repr(C, align(64))]
pub(crate) struct Tiles {
    data: [Tile; TILES],
    scratch: Scratch,
    palette: u8,
    start_row: u8,
    rows: [u8; TILES],
    row_bytes: [u16; TILES],
}

impl Tiles {
    pub(crate) const fn new() -> Self {
        Self {
            data: [Tile::ZERO; TILES],
            scratch: Scratch::new(),
            palette: 0,
            start_row: 0,
            rows: [0; TILES],
            row_bytes: [0; TILES],
        }
    }

    /// The whole register, with what lies outside its shape.
    pub(crate) fn tile(&self, tile: u8) -> &Tile {
        &self.data[usize::from(tile)]
    }

    /// Does what `op` does. `register` gives a general register by its number and `next` is the
    /// address of the instruction after this one.
    ///
    /// # Safety
    ///
    /// Memory operands are read and written as the program that is emulated says: whatever that
    /// program must promise for the real instruction must hold here.
    pub(crate) unsafe fn execute(
        &mut self,
        op: Op,
        register: impl Fn(u8) -> u64,
        next: u64,
    ) -> Result<(), Fault> {
        let address = |place: Place| {
            let base = match place.base {
                Base::None => 0,
                Base::Register(n) => register(n),
                Base::Next => next,
            };
            base.wrapping_add_signed(i64::from(place.disp))
        };
        // An index that is left out stands for 0.
        let index = |place: Place| place.index.map_or(0, |n| register(n) << place.scale);
        match op {
            Op::LoadConfig(place) => {
                let from = address(place).wrapping_add(index(place)) as *const [u8; 64];
                // SAFETY: the caller answers for the emulated program's addresses.
                let config = unsafe { from.read_unaligned() };
                self.configure(&config)
            }
            Op::StoreConfig(place) => {
                let to = address(place).wrapping_add(index(place)) as *mut [u8; 64];
                // SAFETY: as above.
                unsafe { to.write_unaligned(self.config()) };
                Ok(())
            }
            Op::Release => {
                self.clear();
                Ok(())
            }
            Op::Zero(tile) => {
                // Rows of any length may be zeroed: here the multiple of 4 is not asked for.
                self.shape(tile)?;
                self.data[usize::from(tile)] = Tile::ZERO;
                self.start_row = 0;
                Ok(())
            }
            Op::Load { tile, place, .. } => {
                let (rows, bytes) = self.movable(tile)?;
                let (mut from, stride) = (address(place), index(place));
                let data = &mut self.data[usize::from(tile)];
                let start = usize::from(self.start_row);
                from = from.wrapping_add(stride.wrapping_mul(start as u64));
                for row in start..rows {
                    // SAFETY: as above; a row holds 64 bytes and `bytes` is at most that.
                    unsafe { data.load_row(row, from as *const u8, bytes) };
                    from = from.wrapping_add(stride);
                }
                data.zero_rows(rows);
                self.start_row = 0;
                Ok(())
            }
            Op::Store { tile, place } => {
                let (rows, bytes) = self.movable(tile)?;
                let (mut to, stride) = (address(place), index(place));
                let data = &self.data[usize::from(tile)];
                let start = usize::from(self.start_row);
                to = to.wrapping_add(stride.wrapping_mul(start as u64));
                for row in start..rows {
                    // SAFETY: as for a load.
                    unsafe { data.store_row(row, to as *mut u8, bytes) };
                    to = to.wrapping_add(stride);
                }
                self.start_row = 0;
                Ok(())
            }
            Op::Dot { dst, a, b } => {
                let (rows, depth, columns) = self.product(dst, a, b)?;
                let [dst, a, b] = self
                    .data
                    .get_disjoint_mut([dst, a, b].map(usize::from))
                    .expect("product() refuses equal tiles");
                dot::dot(dst, a, b, rows, depth, columns, &mut self.scratch);
                self.start_row = 0;
                Ok(())
            }
        }
    }

    fn clear(&mut self) {
        self.palette = 0;
        self.start_row = 0;
        self.rows = [0; TILES];
        self.row_bytes = [0; TILES];
        self.data = [Tile::ZERO; TILES];
    }

    fn configure(&mut self, config: &[u8; 64]) -> Result<(), Fault> {
        let palette = config[0];
        if palette > 1 {
            return Err(Fault::Protection(Why::Palette(palette)));
        }
        if palette == 0 {
            // Nothing else in the 64 bytes is looked at.
            self.clear();
            return Ok(());
        }
        let reserved = (2..16).chain(32..48).chain(56..64);
        if let Some(at) = reserved.clone().find(|&at| config[at] != 0) {
            return Err(Fault::Protection(Why::Reserved(at, config[at])));
        }
        let (mut rows, mut row_bytes) = ([0; TILES], [0; TILES]);
        for tile in 0..TILES {
            let n = tile as u8;
            let width = u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]);
            let height = config[48 + tile];
            if width > 64 {
                return Err(Fault::Protection(Why::TooWide(n, width)));
            }
            if height > 16 {
                return Err(Fault::Protection(Why::TooTall(n, height)));
            }
            if (width == 0) != (height == 0) {
                return Err(Fault::Protection(Why::HalfEmpty(n, height, width)));
            }
            rows[tile] = height;
            row_bytes[tile] = width;
        }
        self.clear();
        (self.palette, self.start_row) = (1, config[1]);
        (self.rows, self.row_bytes) = (rows, row_bytes);
        Ok(())
    }

    fn config(&self) -> [u8; 64] {
        let mut config = [0; 64];
        config[0] = self.palette;
        config[1] = self.start_row;
        for tile in 0..TILES {
            config[16 + 2 * tile..][..2].copy_from_slice(&self.row_bytes[tile].to_le_bytes());
            config[48 + tile] = self.rows[tile];
        }
        config
    }

    /// Rows and bytes a row, of a tile that has any.
    fn shape(&self, tile: u8) -> Result<(u8, u16), Fault> {
        if self.palette == 0 {
            return Err(Fault::Undefined(Why::NotConfigured));
        }
        let (rows, bytes) = (self.rows[usize::from(tile)], self.row_bytes[usize::from(tile)]);
        if rows == 0 {
            return Err(Fault::Undefined(Why::EmptyTile(tile)));
        }
        Ok((rows, bytes))
    }

    /// The shape, of a tile that may take part in more than zeroing.
    fn usable(&self, tile: u8) -> Result<(u8, u16), Fault> {
        let (rows, bytes) = self.shape(tile)?;
        if bytes % 4 != 0 {
            return Err(Fault::Undefined(Why::OddColumns(tile, bytes)));
        }
        Ok((rows, bytes))
    }

    fn movable(&self, tile: u8) -> Result<(usize, usize), Fault> {
        let (rows, bytes) = self.usable(tile)?;
        if self.start_row >= rows {
            return Err(Fault::Undefined(Why::StartBeyond(tile, self.start_row)));
        }
        Ok((rows.into(), bytes.into()))
    }

    /// Rows, pairs and columns of a product.
    fn product(&self, dst: u8, a: u8, b: u8) -> Result<(usize, usize, usize), Fault> {
        if dst == a || dst == b || a == b {
            return Err(Fault::Undefined(Why::SameTile(dst, a, b)));
        }
        let (d_rows, d_bytes) = self.usable(dst)?;
        let (a_rows, a_bytes) = self.usable(a)?;
        let (b_rows, b_bytes) = self.usable(b)?;
        if d_rows != a_rows {
            return Err(Fault::Undefined(Why::Rows(dst, d_rows, a, a_rows)));
        }
        if d_bytes != b_bytes {
            return Err(Fault::Undefined(Why::Columns(dst, d_bytes, b, b_bytes)));
        }
        if a_bytes / 4 != u16::from(b_rows) {
            return Err(Fault::Undefined(Why::Depth(a, a_bytes, b, b_rows)));
        }
        Ok((d_rows.into(), b_rows.into(), usize::from(d_bytes) / 4))
    }
}

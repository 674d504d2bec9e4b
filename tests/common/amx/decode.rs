//! Reads one AMX instruction from bytes: which one, which tiles, where its memory operand is.
//!
//! It must not touch tiles or memory; it only asks for the instruction's bytes, one by one and
//! never beyond the end of a valid instruction, so that it may look at the instruction after
//! the one that trapped.

/// A memory operand, not yet an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// What the displacement is added to.
    pub(crate) base: Base,
    /// Number of the index register. Tile loads and stores take their stride from it.
    pub(crate) index: Option<u8>,
    /// Log2 of the index's factor.
    pub(crate) scale: u8,
    /// Displacement.
    pub(crate) disp: i32,
}

/// The base of a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Only the displacement.
    None,
    /// A general register by its number: 0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, ….
    Register(u8),
    /// The address of the next instruction.
    Next,
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// LDTILECFG
    LoadConfig(Place),
    /// STTILECFG
    StoreConfig(Place),
    /// TILERELEASE
    Release,
    /// TILEZERO
    Zero(u8),
    /// TILELOADD, and TILELOADDT1 when `hint`
    Load { tile: u8, place: Place, hint: bool },
    /// TILESTORED
    Store { tile: u8, place: Place },
    /// TDPBF16PS `dst, a, b`, in the order of Intel's syntax
    Dot { dst: u8, a: u8, b: u8 },
}

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// An instruction that is emulated, and its length.
    Amx(Op, usize),
    /// In AMX's part of the opcode map, but refused by a processor or not emulated: why.
    Refused(&'static str),
    /// Nothing of AMX.
    Other,
}

const NONE: u8 = 0;
const P66: u8 = 1;
const PF3: u8 = 2;
const PF2: u8 = 3;

/// Decodes the instruction whose byte `n` is `byte(n)`.
pub(crate) fn decode(byte: impl Fn(usize) -> u8) -> Decoded {
    let mut at = 0;
    let (mut legacy, mut moved) = (false, false);
    loop {
        match byte(at) {
            0xc4 => break,
            // The segments that mean nothing in 64-bit mode.
            0x26 | 0x2e | 0x36 | 0x3e => {}
            // fs, gs, 32-bit addresses
            0x64 | 0x65 | 0x67 => moved = true,
            0x66 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f => legacy = true,
            _ => return Decoded::Other,
        }
        at += 1;
        if at > 10 {
            return Decoded::Other;
        }
    }
    let (p1, p2, opcode) = (byte(at + 1), byte(at + 2), byte(at + 3));
    // VEX keeps these bits inverted.
    let (r, x, b) = (!p1 >> 7 & 1, !p1 >> 6 & 1, !p1 >> 5 & 1);
    let (map, wide, v, long, prefix) = (p1 & 31, p2 >> 7, !p2 >> 3 & 15, p2 >> 2 & 1, p2 & 3);
    if map != 2 || !matches!(opcode, 0x48 | 0x49 | 0x4b | 0x5c | 0x5e | 0x6c) {
        return Decoded::Other;
    }
    if legacy {
        return Decoded::Refused("#UD: a 66, F2, F3, LOCK or REX prefix before VEX");
    }
    if moved {
        return Decoded::Refused("not emulated: fs, gs or a 32-bit address");
    }
    if wide != 0 || long != 0 {
        return Decoded::Refused("#UD: VEX.W and VEX.L must be 0");
    }
    let modrm = byte(at + 4);
    let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7 | r << 3, modrm & 7);
    at += 5;
    if mode == 3 {
        let op = match (opcode, prefix) {
            (0x49, NONE) if modrm == 0xc0 && r == 0 && v == 0 => Op::Release,
            (0x49, PF2) if rm == 0 && v == 0 => Op::Zero(reg),
            (0x49 | 0x4b, _) => return Decoded::Refused("#UD: no such form of 49 or 4B"),
            (0x5c, PF3) => Op::Dot { dst: reg, a: rm | b << 3, b: v },
            _ => return Decoded::Refused("not emulated: another AMX instruction than TDPBF16PS"),
        };
        if let Op::Zero(t) | Op::Dot { dst: t, .. } = op
            && t > 7
        {
            return Decoded::Refused("#UD: tile number above 7");
        }
        if let Op::Dot { a, b, .. } = op
            && (a > 7 || b > 7)
        {
            return Decoded::Refused("#UD: tile number above 7");
        }
        return Decoded::Amx(op, at);
    }
    // Which instruction, and whether it insists on the long form of address.
    let tiled = match (opcode, prefix) {
        (0x49, NONE | P66) => false,
        (0x4b, P66 | PF2 | PF3) => true,
        (0x49 | 0x4b, _) => return Decoded::Refused("#UD: no such form of 49 or 4B"),
        _ => return Decoded::Refused("not emulated: another AMX instruction than TDPBF16PS"),
    };
    if v != 0 {
        return Decoded::Refused("#UD: VEX.vvvv must be 1111");
    }
    if tiled && rm != 4 {
        return Decoded::Refused("#UD: a tile's memory operand needs a SIB byte");
    }
    if tiled && reg > 7 {
        return Decoded::Refused("#UD: tile number above 7");
    }
    if !tiled && reg != 0 {
        return Decoded::Refused("#UD: no such form of 49 or 4B");
    }
    let mut place = Place { base: Base::Register(rm | b << 3), index: None, scale: 0, disp: 0 };
    let mut low = rm;
    if rm == 4 {
        let sib = byte(at);
        at += 1;
        low = sib & 7;
        place.base = Base::Register(low | b << 3);
        place.scale = sib >> 6;
        // Only rsp's number means «none»: r12 is an index like any other.
        place.index = Some(sib >> 3 & 7 | x << 3).filter(|&n| n != 4);
    }
    let bytes = match mode {
        0 if low == 5 => {
            place.base = if rm == 4 { Base::None } else { Base::Next };
            4
        }
        0 => 0,
        1 => 1,
        _ => 4,
    };
    place.disp = match bytes {
        0 => 0,
        1 => i32::from(byte(at) as i8),
        _ => i32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]),
    };
    at += bytes;
    let tile = reg;
    let op = match (opcode, prefix) {
        (0x49, NONE) => Op::LoadConfig(place),
        (0x49, _) => Op::StoreConfig(place),
        (_, PF3) => Op::Store { tile, place },
        (_, other) => Op::Load { tile, place, hint: other == P66 },
    };
    Decoded::Amx(op, at)
}

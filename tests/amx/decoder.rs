//! The decoder against binutils: everything in AMX's part of the opcode map that it takes must
//! be what objdump prints. What it refuses may be printed: objdump is lenient with some bits
//! that no assembler sets.

use super::Random;
use super::amx::{Base, Decoded, Op, Place, decode};
use std::collections::BTreeMap;
use std::process::Command;

const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// Far more than the longest instruction, so that objdump is in step again at the next.
const SLOT: usize = 32;

fn found(bytes: &[u8]) -> Decoded {
    decode(|n| bytes[n])
}

/// objdump's text of each slot, or nothing if it is not there or does not know AMX.
fn objdump(slots: &[Vec<u8>]) -> Option<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("code");
    let mut code = Vec::new();
    for slot in slots {
        code.extend(slot);
        code.resize(code.len().next_multiple_of(SLOT), 0x90);
    }
    std::fs::write(&path, code).unwrap();
    let out = Command::new("objdump")
        .args(["-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn", "-w"])
        .arg(&path)
        .output()
        .ok()
        .filter(|out| out.status.success())?;
    let text = String::from_utf8(out.stdout).unwrap();
    let mut lines = vec![String::new(); slots.len()];
    for line in text.lines() {
        let Some((address, text)) = line.split_once(':') else { continue };
        let Ok(address) = usize::from_str_radix(address.trim(), 16) else { continue };
        if address % SLOT == 0 && address / SLOT < lines.len() {
            lines[address / SLOT] = text.trim().to_owned();
        }
    }
    lines.first()?.starts_with("tilerelease").then_some(lines)
}

/// What objdump's text says, in our words.
fn parse(text: &str) -> Option<Op> {
    // It marks tiles that are not three different ones; here that is no matter of decoding.
    let text = text.split('#').next().unwrap().trim().replace("/(bad)", "");
    let (name, operands) = text.split_once(' ').unwrap_or((&text, ""));
    let operands = operands.trim();
    let tile = |name: &str| name.strip_prefix("%tmm").and_then(|n| n.parse::<u8>().ok());
    let op = match name {
        "tilerelease" => Op::Release,
        "tilezero" => Op::Zero(tile(operands)?),
        "ldtilecfg" => Op::LoadConfig(place(operands)),
        "sttilecfg" => Op::StoreConfig(place(operands)),
        "tdpbf16ps" => {
            let mut tiles = operands.split(',').map(tile);
            let mut next = || tiles.next().flatten();
            let (b, a, dst) = (next()?, next()?, next()?);
            Op::Dot { dst, a, b }
        }
        "tileloadd" | "tileloaddt1" => {
            let (memory, name) = operands.rsplit_once(',').unwrap();
            let hint = text.starts_with("tileloaddt1");
            Op::Load { tile: tile(name)?, place: place(memory), hint }
        }
        "tilestored" => {
            let (name, memory) = operands.split_once(',').unwrap();
            Op::Store { tile: tile(name)?, place: place(memory) }
        }
        _ => return None,
    };
    Some(op)
}

/// `0x10(%rax,%rcx,4)` and its kin.
fn place(text: &str) -> Place {
    let register = |name: &str| {
        let name = name.strip_prefix('%').unwrap();
        REGISTERS.iter().position(|&known| known == name).map(|n| n as u8)
    };
    let (disp, inner) = text.split_once('(').unwrap_or((text, ")"));
    let disp = disp.trim_start_matches("ds:");
    let (sign, digits) = disp.strip_prefix('-').map_or((1, disp), |rest| (-1, rest));
    let digits = digits.strip_prefix("0x").unwrap_or("0");
    let mut disp = sign
        * i64::from_str_radix(digits, 16)
            .unwrap_or_else(|_| u64::from_str_radix(digits, 16).unwrap() as i64);
    let parts: Vec<&str> = inner.trim_end_matches(')').split(',').collect();
    let base = match parts[0] {
        "" => Base::None,
        // The number before it is the distance; the target comes in a comment.
        "%rip" => Base::Next,
        name => Base::Register(register(name).unwrap()),
    };
    // `riz` stands for «no index».
    let index = parts.get(1).and_then(|name| register(name));
    let scale = match (index, parts.get(2)) {
        (Some(_), Some(factor)) => factor.parse::<u32>().unwrap().trailing_zeros() as u8,
        _ => 0,
    };
    if !(i64::from(i32::MIN)..=i64::from(i32::MAX)).contains(&disp) {
        // An address alone is printed as 64 bits.
        disp = i64::from(disp as i32);
    }
    Place { base, index, scale, disp: disp as i32 }
}

/// Without what means nothing: a factor of no index.
fn plain(op: Op) -> Op {
    let plain = |place: Place| Place {
        scale: if place.index.is_some() { place.scale } else { 0 },
        ..place
    };
    match op {
        Op::LoadConfig(place) => Op::LoadConfig(plain(place)),
        Op::StoreConfig(place) => Op::StoreConfig(plain(place)),
        Op::Load { tile, place, hint } => Op::Load { tile, place: plain(place), hint },
        Op::Store { tile, place } => Op::Store { tile, place: plain(place) },
        other => other,
    }
}

/// Encodings: all first bytes of VEX, prefixes and ModRM of the three opcodes in their valid
/// setting, and as many at random with all bits free.
fn encodings() -> Vec<Vec<u8>> {
    let mut random = Random(3);
    let mut tail = || -> Vec<u8> { random.next().to_le_bytes()[..6].to_vec() };
    let mut all = vec![vec![0xc4, 0xe2, 0x78, 0x49, 0xc0]];
    for opcode in [0x49, 0x4b, 0x5c] {
        for prefix in 0..4 {
            for modrm in 0..=255 {
                for extended in 0..8 {
                    // A product's third tile is in vvvv.
                    let third = if opcode == 0x5c { tail()[0] & 0x38 | 0x40 } else { 0x78 };
                    let mut bytes = vec![0xc4, extended << 5 | 2, third | prefix, opcode, modrm];
                    bytes.extend(tail());
                    all.push(bytes);
                }
            }
        }
    }
    // All address bytes of a load.
    for sib in 0..=255 {
        for (mode, extended) in [(0x0c, 7), (0x4c, 7), (0x8c, 7), (0x0c, 4), (0x4c, 5), (0x8c, 6)] {
            let mut bytes = vec![0xc4, extended << 5 | 2, 0x7b, 0x4b, mode, sib];
            bytes.extend(tail());
            all.push(bytes);
        }
    }
    for _ in 0..6000 {
        let t = tail();
        let mut bytes =
            vec![0xc4, t[0] & 0xe0 | 2, t[1], [0x49, 0x4b, 0x5c][usize::from(t[2]) % 3]];
        bytes.extend(tail());
        all.push(bytes);
    }
    all
}

#[test]
fn the_decoder_reads_what_objdump_reads() {
    let slots = encodings();
    let Some(lines) = objdump(&slots) else {
        println!("skipped: no objdump that knows AMX");
        return;
    };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (slot, line) in slots.iter().zip(&lines) {
        let name = line.split(' ').next().unwrap().to_owned();
        match found(slot) {
            Decoded::Amx(op, _) => {
                assert_eq!(Some(plain(op)), parse(line), "{slot:02x?}: {line}");
                *seen.entry(name).or_default() += 1;
            }
            other => {
                *seen.entry(format!("{other:?}: {name}")).or_default() += 1;
            }
        }
    }
    println!("{seen:#?}");
    for name in [
        "ldtilecfg",
        "sttilecfg",
        "tilerelease",
        "tilezero",
        "tileloadd",
        "tileloaddt1",
        "tilestored",
    ] {
        assert!(seen.contains_key(name), "{name} in {seen:?}");
    }
    assert!(seen["tdpbf16ps"] > 100 && seen["tileloadd"] > 1000, "{seen:?}");
}

#[test]
fn nothing_else_is_taken_for_amx() {
    let cases: [&[u8]; 6] = [
        &[0x0f, 0x0b],                               // ud2
        &[0xc4, 0xe2, 0x79, 0x58, 0xc0],             // vpbroadcastd
        &[0xc5, 0xf8, 0x77],                         // vzeroupper
        &[0x62, 0xf2, 0x7e, 0x48, 0x52, 0xc0],       // vdpbf16ps
        &[0x48, 0x8b, 0x00],                         // mov
        &[0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0], // nop
    ];
    for bytes in cases {
        // No byte behind the instruction is asked for, or this panics.
        assert_eq!(found(bytes), Decoded::Other, "{bytes:02x?}");
    }
    for bytes in [
        [0x64, 0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x08], // tileloadd tmm0, fs:[rax + rcx]
        [0x67, 0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x08], // tileloadd tmm0, [eax + ecx]
        [0xf3, 0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x08],
    ] {
        assert!(matches!(found(&bytes), Decoded::Refused(_)), "{bytes:02x?}");
    }
    let other = [0xc4, 0xe2, 0x6b, 0x5e, 0xc1]; // tdpbssd
    assert!(matches!(found(&other), Decoded::Refused(why) if why.contains("another AMX")));
}

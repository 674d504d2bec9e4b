//! Maximum, conversion, storing and scanning, against naive ones.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::math::{from_bf16, to_bf16};
use super::super::task::{Element, Place, Pool};
use super::super::{Kernels, Memory, Tier};
use super::case::{get, set};
use super::{Noise, same, tiers};

/// A plane's maximum by its definition, with other loops than the reference's.
fn naive_pool(input: &[f32], (width, height, lanes): (usize, usize, usize)) -> Vec<f32> {
    let mut out = vec![f32::NEG_INFINITY; input.len()];
    for dy in -2isize..=2 {
        for dx in -2isize..=2 {
            for y in 0..height {
                for x in 0..width {
                    let (yy, xx) = (y.wrapping_add_signed(dy), x.wrapping_add_signed(dx));
                    if yy < height && xx < width {
                        for lane in 0..lanes {
                            let v = input[(yy * width + xx) * lanes + lane];
                            let best = &mut out[(y * width + x) * lanes + lane];
                            *best = if v > *best { v } else { *best };
                        }
                    }
                }
            }
        }
    }
    out
}

#[test]
fn a_maximum_is_a_maximum() {
    for kernels in tiers() {
        let element = kernels.tier().element();
        let size = element.bytes();
        let mut line = vec![1e9; 7];
        for (width, height, lanes) in
            [(1, 1, 16), (2, 3, 32), (3, 2, 16), (5, 5, 32), (20, 7, 32), (13, 40, 16)]
        {
            let pitch = width + 1;
            let bytes = height * pitch * lanes * size;
            let mut noise = Noise((width * height) as u64);
            let values: Vec<f32> = (0..width * height * lanes)
                .map(|_| from_bf16(to_bf16(noise.unit() - 0.5)))
                .collect();
            let expected = naive_pool(&values, (width, height, lanes));
            for (first, rows) in [(0, height), (height / 2, height - height / 2), (height - 1, 1)] {
                let mut arena = Memory::new(2 * bytes).unwrap();
                // The pad between the rows holds more than any value: nobody may look at it.
                for at in 0..bytes / size {
                    set(&mut arena, at * size, element, 9.0);
                }
                for (i, &value) in values.iter().enumerate() {
                    let (pixel, lane) = (i / lanes, i % lanes);
                    let at = (pixel / width * pitch + pixel % width) * lanes + lane;
                    set(&mut arena, at * size, element, value);
                }
                let before = arena.bytes().to_vec();
                let place = |at: usize| Place { at, row: pitch * lanes * size, px: lanes * size };
                let at = bytes + first * pitch * lanes * size;
                let task =
                    Pool { from: place(0), out: place(at), first, rows, height, width, lanes };
                kernels.pool(&mut arena, &task, &mut line);
                let mut after = before;
                for y in first..first + rows {
                    for i in 0..width * lanes {
                        let to = bytes + (y * pitch * lanes + i) * size;
                        let ours = get(arena.bytes(), to, element);
                        let expected = expected[y * width * lanes + i];
                        assert!(same(ours, expected), "{}: {ours} {expected}", kernels.tier());
                        after[to..to + size].copy_from_slice(&arena.bytes()[to..to + size]);
                    }
                }
                assert_eq!(arena.bytes(), after, "{} wrote elsewhere", kernels.tier());
            }
        }
    }
}

/// A NaN takes no part in a maximum, as in the reference; infinities do.
#[test]
fn a_maximum_of_hard_numbers() {
    let all: Vec<(Tier, Vec<u32>)> = tiers()
        .filter(|kernels| kernels.tier().element() == Element::F32)
        .map(|kernels| {
            let mut noise = Noise(3);
            let (width, height, lanes) = (20, 9, 16);
            let bytes = width * height * lanes * 4;
            let mut arena = Memory::new(2 * bytes).unwrap();
            let values: Vec<f32> = (0..bytes / 4)
                .map(|_| noise.wild())
                .map(|v| if v == 0.0 { 0.0 } else { v })
                .collect();
            arena.floats_mut()[..values.len()].copy_from_slice(&values);
            let place = |at| Place { at, row: width * lanes * 4, px: lanes * 4 };
            let out = place(bytes);
            let task = Pool { from: place(0), out, first: 0, rows: height, height, width, lanes };
            kernels.pool(&mut arena, &task, &mut Vec::new());
            let out = &arena.floats()[values.len()..];
            let expected = naive_pool(&values, (width, height, lanes));
            assert!(out.iter().zip(&expected).all(|(&a, &b)| same(a, b)), "{}", kernels.tier());
            (kernels.tier(), out.iter().map(|v| v.to_bits()).collect())
        })
        .collect();
    for (tier, bits) in &all {
        assert!(*bits == all[0].1, "{tier} and {} differ", all[0].0);
    }
}

#[test]
fn bytes_become_numbers() {
    let pixels: Vec<u8> = (0..=255).chain((0..77).map(|i| i * 3)).collect();
    for kernels in tiers() {
        let element = kernels.tier().element();
        let size = element.bytes();
        for count in [0, 1, 3, 15, 16, 17, 63, 64, 65, 256, pixels.len()] {
            // Flush with the end.
            let mut arena = Memory::new(2048).unwrap();
            arena.bytes_mut().fill(0xA5);
            let at = arena.len() - count * size;
            kernels.convert(&mut arena, at, &pixels[..count]);
            for (i, &pixel) in pixels[..count].iter().enumerate() {
                assert_eq!(get(arena.bytes(), at + i * size, element), f32::from(pixel));
            }
            assert!(arena.bytes()[..at].iter().all(|&byte| byte == 0xA5));
            let beyond =
                AssertUnwindSafe(|| kernels.convert(&mut arena, at + size, &pixels[..count]));
            assert!(catch_unwind(beyond).is_err(), "{count}");
        }
    }
}

#[test]
fn numbers_become_activations() {
    for kernels in tiers() {
        let element = kernels.tier().element();
        let size = element.bytes();
        let mut noise = Noise(5);
        let values: Vec<f32> = (0..333).map(|_| noise.wild()).collect();
        let mut arena = Memory::new(2048).unwrap();
        arena.bytes_mut().fill(0xA5);
        let at = arena.len() - values.len() * size;
        kernels.store(&mut arena, at, &values);
        for (i, &value) in values.iter().enumerate() {
            let expected = match element {
                Element::F32 => value,
                Element::Bf16 => half::bf16::from_f32(value).to_f32(),
            };
            assert!(same(get(arena.bytes(), at + i * size, element), expected), "{value:e}");
        }
        assert!(arena.bytes()[..at].iter().all(|&byte| byte == 0xA5));
        let beyond = AssertUnwindSafe(|| kernels.store(&mut arena, at + size, &values));
        assert!(catch_unwind(beyond).is_err());
    }
}

#[test]
fn a_scan_finds_what_reaches_the_floor() {
    for kernels in tiers() {
        let mut noise = Noise(11);
        for width in (1..=33).chain([80]) {
            // The second plane ends the arena.
            let lanes = [32, 16];
            let first = width * 32 * 4;
            let mut arena = Memory::new(first + width * 16 * 4).unwrap();
            arena.floats_mut().iter_mut().for_each(|v| *v = noise.unit() - 1.5);
            let mut expected = Vec::new();
            for x in 0..width {
                let at = match noise.bits() % 4 {
                    0 => Some(x * 32 + noise.bits() as usize % 32),
                    1 => Some(first / 4 + x * 16 + noise.bits() as usize % 16),
                    _ => None,
                };
                if let Some(at) = at {
                    arena.floats_mut()[at] = [0.25, 0.5, f32::INFINITY][x % 3];
                    expected.push((1000 + x) as u32);
                } else {
                    // Neither may pass.
                    arena.floats_mut()[x * 32] = f32::NAN;
                    arena.floats_mut()[x * 32 + 1] = 0.249_999_99;
                }
            }
            let planes = [
                (Place { at: 0, row: 0, px: 32 * 4 }, lanes[0]),
                (Place { at: first, row: 0, px: 16 * 4 }, lanes[1]),
            ];
            let mut hits = vec![7];
            kernels.scan(&arena, &planes, (1000, width), 0.25, &mut hits);
            assert_eq!(hits[0], 7);
            assert_eq!(hits[1..], expected, "{}", kernels.tier());

            let mut all = Vec::new();
            kernels.scan(&arena, &planes, (0, width), f32::NEG_INFINITY, &mut all);
            assert_eq!(all.len(), width);
            let mut none = Vec::new();
            kernels.scan(&arena, &planes, (0, width), f32::NAN, &mut none);
            kernels.scan(&arena, &planes, (0, 0), 0.0, &mut none);
            assert!(none.is_empty());
        }
    }
}

#[test]
fn what_is_asked_for_beyond_the_arena_panics() {
    for kernels in tiers() {
        let size = kernels.tier().element().bytes();
        let (width, height, lanes) = (4, 4, 16);
        let bytes = width * height * lanes * size;
        let place = |at| Place { at, row: width * lanes * size, px: lanes * size };
        let sound = Pool {
            from: place(0),
            out: place(bytes),
            first: 0,
            rows: height,
            height,
            width,
            lanes,
        };
        let pool = |kernels: &Kernels, task: Pool| {
            let mut arena = Memory::new(2 * bytes).unwrap();
            let run = AssertUnwindSafe(|| kernels.pool(&mut arena, &task, &mut Vec::new()));
            catch_unwind(run).is_ok()
        };
        assert!(pool(&kernels, sound));
        assert!(!pool(&kernels, Pool { rows: height + 1, height: height + 1, ..sound }));
        assert!(!pool(&kernels, Pool { width: 40, ..sound }));
        assert!(!pool(&kernels, Pool { lanes: 160, ..sound }));
        assert!(!pool(&kernels, Pool { from: place(2 * bytes), ..sound }));
        assert!(!pool(&kernels, Pool { out: place(2 * bytes - 64), ..sound }));

        let arena = Memory::new(640).unwrap();
        let planes = [(Place { at: 64, row: 0, px: 64 }, 16)];
        let scan = || kernels.scan(&arena, &planes, (0, 10), 0.0, &mut Vec::new());
        assert!(catch_unwind(AssertUnwindSafe(scan)).is_err());
    }
}

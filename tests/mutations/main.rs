//! Thousands of broken files: an answer each time, within the memory that was promised.
//!
//! A run is repeated by its seed. By hand, and with many more files:
//!
//!     HAUL_MUTATIONS=10000 cargo test --release --test mutations -- --nocapture
//!
//! `HAUL_SEED=N` begins at another seed. Each file has one of its own, counted from there; with
//! `HAUL_SEED=` what a failure names and `HAUL_MUTATIONS=1` that file comes first.

#[path = "../common/mod.rs"]
mod common;
mod mutate;

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::binary::{Haul, lines, testdata};
use common::checkpoint::{Builder, archive, tiny, tiny_scale};
use haul::job::{Compress, Segment, Tally};
use haul::model;
use haul::picture::{Code, Decoder, Format, Limits, Truncated, probe};
use mutate::{Random, mutated};

/// Files of each kind where `HAUL_MUTATIONS` does not say how many.
const COUNT: u64 = 300;

/// Longest time for one file. Far above the slowest there is, also on a busy machine and unoptimised:
/// it tells a hang from work.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a decode may take beside what its header promised: lists and strings of a few bytes.
const SLACK: u64 = 64 << 10;

/// What the decoder of lossy WebP may ask for besides, and not touch: a partition's size has 24 bits.
const PARTITION: u64 = 16 << 20;

/// The system's allocator, knowing how much of it each thread holds, and held at most.
struct Counting;

thread_local! {
    static HELD: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

fn count(bytes: i64) {
    // A thread that is ending has no count left, and no test to tell.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + bytes, most.max(now + bytes)));
    });
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call goes to the system's allocator with its arguments unchanged, and counting
// neither allocates nor unwinds: the cell is constant before it is used and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(signed(size) - signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `run` gives, and how much more than before it held at most on this thread.
fn peak<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let (before, _) = HELD.get();
    HELD.set((before, before));
    let result = run();
    (result, u64::try_from(HELD.get().1 - before).unwrap_or(0))
}

/// Ends the process when one file takes longer than [`PATIENCE`]: a thread cannot be stopped.
struct Watchdog(Arc<Mutex<Option<(String, Instant)>>>);

impl Watchdog {
    fn new() -> Watchdog {
        let current = Arc::new(Mutex::new(None::<(String, Instant)>));
        let watched = Arc::downgrade(&current);
        std::thread::spawn(move || {
            while let Some(current) = watched.upgrade() {
                if let Some((what, since)) = &*current.lock().expect("nobody panics with it")
                    && since.elapsed() > PATIENCE
                {
                    eprintln!("{what}: no answer in {PATIENCE:?}");
                    std::process::abort();
                }
                drop(current);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Watchdog(current)
    }

    fn begin(&self, what: String) {
        *self.0.lock().expect("nobody panics with it") = Some((what, Instant::now()));
    }
}

/// Most bytes that reading a header may take: before it is known, nothing is counted.
fn for_a_header(file: &[u8]) -> u64 {
    (4 << 20) + 4 * file.len() as u64
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect(name))
}

/// Seeds of so many files, from `HAUL_SEED`.
fn seeds(kind: &str, count: u64) -> std::ops::Range<u64> {
    let (first, count) = (setting("HAUL_SEED", 1), setting("HAUL_MUTATIONS", count));
    println!("{kind}: {count} files from HAUL_SEED={first}");
    first..first + count
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Every file below our folders of pictures, whatever its form.
fn pictures() -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![testdata("forms"), testdata("pictures")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name() != Some("expected".as_ref()) {
                folders.push(path);
            } else if path.is_file() {
                let bytes = fs::read(&path).unwrap();
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    assert!(found.len() > 90, "{}", found.len());
    found
}

/// The broken picture of a seed, and the name of the whole one.
fn picture(seed: u64, whole: &[(PathBuf, Vec<u8>)]) -> (&Path, Vec<u8>) {
    let mut random = Random::new(seed);
    let (path, bytes) = random.of(whole);
    // Pieces come from a file of the same form most times.
    let same: Vec<_> =
        whole.iter().filter(|(other, _)| other.extension() == path.extension()).collect();
    let other = match random.below(4) {
        0 => &random.of(whole).1,
        _ => &random.of(&same).1,
    };
    (path, mutated(bytes, other, &mut random))
}

#[test]
fn broken_pictures_get_an_answer_within_their_memory() {
    let (whole, watchdog) = (pictures(), Watchdog::new());
    let (mut codes, mut wrong) = (BTreeMap::<&str, u64>::new(), Vec::new());
    let (mut slowest, mut probing) = ((Duration::ZERO, String::new()), (0, String::new()));
    let (mut fullest, mut largest) = ((0.0, String::new()), (0, String::new()));
    for seed in seeds("pictures", COUNT) {
        let (path, bytes) = picture(seed, &whole);
        let name = format!("HAUL_SEED={seed} ({})", path.file_name().unwrap().display());
        watchdog.begin(name.clone());
        let truncated = if seed % 2 == 0 { Truncated::Accept } else { Truncated::Reject };
        let limits = Limits { truncated, ..Limits::default() };
        let began = Instant::now();
        // A panic that gets out of these is our own; one inside of a decoder has the code `internal`.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let (header, probed) = peak(|| probe(&bytes, &limits));
            if probed > probing.0 {
                probing = (probed, name.clone());
            }
            let most = for_a_header(&bytes);
            assert!(probed <= most, "the header took {probed} bytes, more than {most}");
            let header = header?;
            let mut decoder = Decoder::new();
            let (picture, took) = peak(|| decoder.run(&bytes, &header, &limits).cloned());
            // The copy that this test has made is not the decoder's.
            let copy = picture.as_ref().map_or(0, |picture| picture.rgb.len() as u64);
            let partition = if header.format == Format::WebP { PARTITION } else { 0 };
            let most = header.decode_bytes + partition;
            let took = took.saturating_sub(copy);
            assert!(took <= most + SLACK, "decoding took {took} bytes, the header promised {most}");
            assert!(took + bytes.len() as u64 <= limits.max_memory + SLACK, "{took}");
            if took as f64 / most as f64 > fullest.0 {
                fullest = (took as f64 / most as f64, name.clone());
            }
            if took > largest.0 {
                largest = (took, name.clone());
            }
            let picture = picture?;
            let pixels = u64::from(picture.width) * u64::from(picture.height);
            assert!(pixels > 0 && pixels <= limits.max_pixels, "{pixels}");
            assert_eq!(picture.rgb.len() as u64, 3 * pixels);
            Ok::<_, haul::picture::PictureError>(())
        }));
        let took = began.elapsed();
        if took > slowest.0 {
            slowest = (took, name.clone());
        }
        let code = match answer {
            Ok(Ok(())) => "ok",
            Ok(Err(error)) => {
                if error.code == Code::Internal {
                    wrong.push(format!("{name}: {error}"));
                }
                error.code.as_str()
            }
            Err(panic) => {
                wrong.push(format!("{name}: {}", words(&*panic)));
                "panic"
            }
        };
        *codes.entry(code).or_default() += 1;
    }
    println!("{codes:?}");
    println!("slowest: {:?}, {}", slowest.0, slowest.1);
    println!("most memory: {} bytes, {}", largest.0, largest.1);
    println!("nearest to what its header promised: {:.4}, {}", fullest.0, fullest.1);
    println!("most memory for a header: {} bytes, {}", probing.0, probing.1);
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_folder_of_broken_pictures_has_a_line_for_each() {
    let (whole, dir) = (pictures(), tempfile::tempdir().unwrap());
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir(&input).unwrap();
    let seeds = seeds("a folder", COUNT / 3);
    let count = seeds.clone().count();
    for seed in seeds {
        let (path, bytes) = picture(seed, &whole);
        let suffix = path.extension().unwrap().display();
        // Some of the whole ones are of forms that haul knows without reading them.
        fs::write(input.join(format!("{seed:08}.{suffix}")), bytes).unwrap();
    }
    let include = ["--include", "*", "--max-failures", "100%"];
    let ran = Haul::run(&input, &out).args(include).ran();
    assert!(ran.code == 0 || ran.code == 3, "{}: {}", ran.code, ran.stderr);
    Haul::new("verify").arg(&out).exits(ran.code);
    let lines = lines(&out);
    let planned: u64 = common::binary::success(&out)["planned"].as_u64().unwrap();
    assert_eq!(lines.len() as u64, planned);
    assert!(lines.len() * 10 >= count * 9, "{} of {count}", lines.len());
    for line in lines {
        let code = line.error.map(|error| error.code).unwrap_or_default();
        assert_ne!(code, "internal", "HAUL_SEED={}", line.image);
    }
}

/// The code of what a header says, after a look at the memory it took.
#[track_caller]
fn probed(file: &[u8]) -> &'static str {
    let (header, took) = peak(|| probe(file, &Limits::default()));
    assert!(took <= for_a_header(file), "{took}");
    header.map_or_else(|error| error.code.as_str(), |_| "ok")
}

/// Found here: the EXIF chunk's length was believed, up to 4 GiB of it.
#[test]
fn the_length_of_an_exif_chunk_is_not_believed() {
    let whole = fs::read(testdata("forms/webp-exif6.webp")).unwrap();
    let at = whole.windows(4).position(|name| name == b"EXIF").unwrap();
    let orientation = |file: &[u8]| probe(file, &Limits::default()).unwrap().orientation;
    assert_eq!(orientation(&whole), 6);
    for length in [0x7fff_ffffu32, u32::MAX, 1 << 20] {
        let mut file = whole.clone();
        file[at + 4..at + 8].copy_from_slice(&length.to_le_bytes());
        assert_eq!(probed(&file), "ok");
        assert_eq!(orientation(&file), 1, "as where there is none");
    }
}

/// A TIFF of one row a strip, in one of the four forms of the format, with one more entry.
fn tiff(high_first: bool, big: bool, extra: (u16, u16, u64)) -> Vec<u8> {
    let (width, rows) = (3u64, 4u64);
    let (pixels, mut lists) = (if big { 16 } else { 8 }, vec![]);
    let number = |value: u64, bytes: usize| match high_first {
        true => value.to_be_bytes()[8 - bytes..].to_vec(),
        false => value.to_le_bytes()[..bytes].to_vec(),
    };
    let (wide, pair) =
        (if big { 8 } else { 4 }, |a: u64, b: u64| [number(a, 4), number(b, 4)].concat());
    let offsets = pixels + width * rows;
    (0..rows).for_each(|row| lists.extend(number(pixels + width * row, 4)));
    (0..rows).for_each(|_| lists.extend(number(width, 4)));
    let mut entries = vec![
        (256u16, 4u16, 1u64, number(width, 4)),
        (257, 4, 1, number(rows, 4)),
        (258, 3, 1, number(8, 2)),
        (259, 3, 1, number(1, 2)),
        (262, 3, 1, number(1, 2)),
        (273, 4, rows, number(offsets, wide)),
        (277, 3, 1, number(1, 2)),
        (278, 4, 1, number(1, 4)),
        (279, 4, rows, number(offsets + 4 * rows, wide)),
        (extra.0, extra.1, extra.2, number(pixels, wide)),
    ];
    entries.sort_by_key(|entry| entry.0);
    entries.dedup_by_key(|entry| entry.0);
    let mut file = if high_first { b"MM".to_vec() } else { b"II".to_vec() };
    let directory = offsets + lists.len() as u64;
    match big {
        true => {
            file.extend([number(43, 2), number(8, 2), number(0, 2), number(directory, 8)].concat())
        }
        false => file.extend([number(42, 2), number(directory, 4)].concat()),
    }
    file.resize(usize::try_from(offsets).unwrap(), 7);
    file.extend(lists);
    file.extend(number(entries.len() as u64, if big { 8 } else { 2 }));
    for (tag, kind, count, mut value) in entries {
        value.resize(wide, 0);
        file.extend(
            [number(tag.into(), 2), number(kind.into(), 2), number(count, wide), value].concat(),
        );
    }
    file.extend(pair(0, 0));
    file
}

/// Found here: room was made for as many numbers as a list claims, up to 256 MiB of it.
#[test]
fn the_length_of_a_list_in_a_tiff_is_not_believed() {
    for (high_first, big) in [(false, false), (true, false), (false, true), (true, true)] {
        // A comment may say what it likes.
        let sound = tiff(high_first, big, (270, 2, 1 << 22));
        assert_eq!(probed(&sound), "ok", "{high_first} {big}");
        let header = probe(&sound, &Limits::default()).unwrap();
        let picture = Decoder::new().run(&sound, &header, &Limits::default()).unwrap().clone();
        assert_eq!((picture.width, picture.height, picture.rgb[0]), (3, 4, 7));
        for tag in [338, 339, 347, 530] {
            for (kind, count) in
                [(1, 1 << 22), (3, 1 << 21), (4, 1 << 22), (12, u64::from(u32::MAX))]
            {
                let file = tiff(high_first, big, (tag, kind, count));
                assert_eq!(probed(&file), "truncated", "{tag} {kind} {count}");
            }
        }
        // All there, and far more of it than pictures have.
        let mut file = tiff(high_first, big, (339, 1, 4 << 20));
        file.resize(5 << 20, 0);
        assert_eq!(probed(&file), "too_large");
    }
}

/// Found here: a frame larger than its canvas took more than the canvas promised.
#[test]
fn a_gif_frame_larger_than_its_canvas_keeps_the_promise() {
    let mut file = fs::read(testdata("forms/gif.gif")).unwrap();
    // Behind the palette, past the extensions, to the first frame.
    let mut at = 13 + 3 * (2 << (file[10] & 7));
    while file[at] == b'!' {
        at += 2;
        while file[at] != 0 {
            at += 1 + usize::from(file[at]);
        }
        at += 1;
    }
    assert_eq!(file[at], b',');
    file[6..10].copy_from_slice(&[1, 0, 1, 0]);
    file[at + 1..at + 5].fill(0);
    let limits = Limits::default();
    for (side, code) in [(700u16, "too_large"), (300, "corrupt"), (u16::MAX, "too_large")] {
        file[at + 5..at + 7].copy_from_slice(&side.to_le_bytes());
        file[at + 7..at + 9].copy_from_slice(&side.to_le_bytes());
        let header = probe(&file, &limits).unwrap();
        let mut decoder = Decoder::new();
        let (code_of, took) = peak(|| decoder.run(&file, &header, &limits).map_err(|e| e.code));
        assert_eq!(code_of.unwrap_err().as_str(), code, "{side}");
        assert!(took <= header.decode_bytes + SLACK, "{side}: {took} of {}", header.decode_bytes);
    }
}

/// Reads each broken checkpoint, and says what came of them.
fn checkpoints(kind: &str, broken: impl Fn(&mut Random) -> Vec<u8>) {
    let watchdog = Watchdog::new();
    let (mut taken, mut wrong, mut refused) = (0, Vec::new(), BTreeMap::<String, u64>::new());
    let (mut slowest, mut largest) = ((Duration::ZERO, 0), (0, 0, 0));
    for seed in seeds(kind, COUNT) {
        let bytes = broken(&mut Random::new(seed));
        let name = format!("{kind} HAUL_SEED={seed}");
        watchdog.begin(name.clone());
        let began = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let (read, took) = peak(|| model::read_bytes(&bytes, Path::new("x")));
            if took > largest.0 {
                largest = (took, bytes.len(), seed);
            }
            // What a member may unpack to, and that as numbers of four bytes.
            let most = 12 * bytes.len() as u64 + (48 << 20);
            assert!(took <= most, "reading took {took} bytes, more than {most}");
            read.map(drop)
        }));
        slowest = slowest.max((began.elapsed(), seed));
        match answer {
            Ok(Ok(())) => taken += 1,
            Ok(Err(error)) => {
                let variant = format!("{error:?}");
                let variant = variant.split([' ', '(']).next().unwrap_or_default().to_owned();
                *refused.entry(variant).or_default() += 1;
            }
            Err(panic) => wrong.push(format!("{name}: {}", words(&*panic))),
        }
    }
    println!("{kind}: {taken} taken, refused: {refused:?}");
    println!("{kind}: slowest {slowest:?}; most memory, length and seed {largest:?}");
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn broken_pt_checkpoints_are_read_or_refused() {
    let whole = [tiny(false), tiny(true)];
    let mut builder = Builder::new(&tiny_scale());
    let pickle = builder.checkpoint(2).pickle();
    checkpoints(".pt", |random| match random.below(3) {
        0 => {
            let (one, other) = (random.of(&whole).clone(), random.of(&whole).clone());
            mutated(&one, &other, random)
        }
        // Behind the zip's checksums: in the pickle, or in a storage.
        1 => archive(&mutated(&pickle, &pickle, random), &builder.storages, random.below(2) == 0),
        _ => {
            let mut storages = builder.storages.clone();
            let index = random.below(storages.len());
            storages[index].1 = mutated(&storages[index].1, &pickle, random);
            archive(&pickle, &storages, random.below(2) == 0)
        }
    });
}

#[test]
fn broken_safetensors_checkpoints_are_read_or_refused() {
    let read = |name: &str| fs::read(testdata(name)).unwrap();
    let tiny = model::read_bytes(&tiny(false), Path::new("tiny.pt")).unwrap();
    let small = model::write_safetensors(&tiny);
    let whole = [small.clone(), small.clone(), small, read("golden/narrow.safetensors")];
    let shapes = read("model/shapes.safetensors");
    checkpoints(".safetensors", |random| {
        let one = if random.below(50) == 0 { shapes.clone() } else { random.of(&whole).clone() };
        let other = random.of(&whole).clone();
        mutated(&one, &other, random)
    });
}

/// What lies in an output and may have been edited, cut off or swapped.
#[test]
fn broken_plans_and_parts_are_read_or_refused() {
    let (photos, dir) = (common::binary::folder(12), tempfile::tempdir().unwrap());
    let mut whole = Vec::new();
    for compress in Compress::ALL {
        let out = dir.path().join(format!("{compress:?}"));
        let name = format!("{compress:?}").to_lowercase();
        let options = ["--max-images", "4", "--hidden", "--compress", &name];
        Haul::run(photos.path(), &out).args(options).exits(0);
        let plan = fs::read(out.join("_manifest/plan-00000000.jsonl")).unwrap();
        let batch = Segment::decode(&plan).unwrap().batches.remove(1);
        let part = fs::read(out.join(format!("part-00000001{}", compress.suffix()))).unwrap();
        assert_eq!(
            Tally::of_part(&compress.unpack(&part, 1 << 20).unwrap(), &batch).unwrap().ok,
            4
        );
        whole.push((plan, part, compress, batch));
    }
    let watchdog = Watchdog::new();
    let (mut plans, mut parts) = ((0, 0), (0, 0));
    for seed in seeds("plans and parts", COUNT) {
        watchdog.begin(format!("HAUL_SEED={seed}"));
        let mut random = Random::new(seed);
        let (plan, part, compress, batch) = random.of(&whole);
        let other = &random.of(&whole).1;
        match Segment::decode(&mutated(plan, part, &mut random)) {
            Ok(segment) => {
                plans.0 += 1;
                assert_eq!(Segment::decode(&segment.encode()), Ok(segment), "HAUL_SEED={seed}");
            }
            Err(_) => plans.1 += 1,
        }
        let broken = mutated(part, other, &mut random);
        let (lines, took) = peak(|| compress.unpack(&broken, 1 << 20).map(|l| l.into_owned()));
        // Lines grow by doubling; tables and windows of the decoders take some MiB.
        assert!(took <= (3 << 20) + (4 << 20) + broken.len() as u64, "HAUL_SEED={seed}: {took}");
        match lines.and_then(|lines| Tally::of_part(&lines, batch)) {
            Ok(tally) => {
                parts.0 += 1;
                assert_eq!(tally.ok + tally.failed, 4, "HAUL_SEED={seed}");
            }
            Err(_) => parts.1 += 1,
        }
    }
    println!("taken and refused: plans {plans:?}, parts {parts:?}");
    assert!(plans.1 > 0 && parts.1 > 0);
}

#[test]
fn a_seed_always_gives_the_same_file() {
    let whole = pictures();
    let digest = |seed: u64| haul::store::sha256(&picture(seed, &whole).1);
    let all: Vec<String> = (1..40).map(digest).collect();
    assert_eq!(all, (1..40).map(digest).collect::<Vec<_>>());
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert!(different.len() > 35);
}

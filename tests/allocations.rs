//! Steady state takes no memory: what a picture asks the allocator for, once a worker is warm.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use common::formula::Scale;
use haul::engine::{self, Input, Precision, Team};
use haul::picture::{Decoder, Letterbox, Letterboxer, Limits, probe};
use haul::yolo::{Candidate, Nms, NmsOptions};

/// The system's allocator, counting what each thread asks it for.
struct Counting;

thread_local! {
    static ASKED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

fn count(bytes: usize) {
    // A thread that is ending has no count left, and no test to tell.
    let _ = ASKED.try_with(|asked| {
        let (times, all) = asked.get();
        asked.set((times + 1, all + bytes as u64));
    });
}

// SAFETY: every call goes to the system's allocator with its arguments unchanged, and counting
// neither allocates nor unwinds: the cell is constant before it is used and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How often, and for how many bytes in all, `run` asks for memory.
fn asked<T>(run: impl FnOnce() -> T) -> (T, (u64, u64)) {
    let before = ASKED.get();
    let result = run();
    let after = ASKED.get();
    (result, (after.0 - before.0, after.1 - before.1))
}

/// What a worker keeps from one picture to the next, but for its network.
#[derive(Default)]
struct Warm {
    decoder: Decoder,
    letterboxer: Letterboxer,
    nms: Nms,
    candidates: Vec<Candidate>,
}

impl Warm {
    /// A picture's way through a worker. Returns its pixels and what the decoder asked for; all
    /// the others have to ask for nothing once `warm`.
    fn picture(&mut self, bytes: &[u8], warm: bool) -> (u64, (u64, u64)) {
        let limits = Limits::default();
        let (header, probing) = asked(|| probe(bytes, &limits).expect("a picture"));
        let (picture, decoding) =
            asked(|| self.decoder.run(bytes, &header, &limits).expect("a whole picture"));
        let pixels = u64::from(picture.width) * u64::from(picture.height);
        let ((), others) = asked(|| {
            let geometry = Letterbox::new(picture.width, picture.height, 640, false);
            self.letterboxer.run(picture, &geometry).expect("its own geometry");
            self.candidates.clear();
            self.candidates.extend((0..2000).map(candidate));
            self.nms.run(&NmsOptions::default(), &mut self.candidates);
            assert_eq!(self.candidates.len(), 300);
        });
        self.decoder.trim();
        if warm {
            assert_eq!((probing, others), ((0, 0), (0, 0)));
        }
        (pixels, decoding)
    }
}

/// Many boxes of many classes, few of which overlap much.
fn candidate(number: u32) -> Candidate {
    let (x, y) = ((number % 50) as f32 * 12.0, (number / 50) as f32 * 12.0);
    let score = 0.3 + (number * 7919 % 2000) as f32 / 4000.0;
    Candidate { anchor: number, class: number % 7, score, bbox: [x, y, x + 20.0, y + 16.0] }
}

fn jpegs(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a name").path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ext| ext == "jpg")).collect();
    paths.sort();
    paths
}

/// Sends the folder's baseline JPEGs through a worker, and again once it is warm.
fn steady(folder: &Path) {
    let files: Vec<Vec<u8>> =
        jpegs(folder).iter().map(|path| fs::read(path).expect("readable")).collect();
    let mut warm = Warm::default();
    files.iter().for_each(|file| _ = warm.picture(file, false));
    let (mut times, mut bytes, mut all) = (0, 0, 0);
    for file in &files {
        let (pixels, decoding) = warm.picture(file, true);
        (times, bytes, all) = (times + decoding.0, bytes + decoding.1, all + 3 * pixels);
        // The decoder's own: its list of components, and for each of them one row of blocks or,
        // where chroma is coarser, a few.
        assert!(decoding.0 <= 20, "{decoding:?}");
    }
    let count = files.len() as u64;
    println!(
        "{count} pictures of {} bytes of RGB: {} allocations and {} bytes each",
        all / count,
        times / count,
        bytes / count
    );
    assert!(bytes * 5 < all, "{bytes} bytes for {all} of pixels");
}

#[test]
fn our_pictures_take_no_memory_once_warm() {
    steady(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/pictures"));
}

/// Neither a leader's picture nor the help with it, whoever does which piece.
#[test]
fn pictures_that_are_shared_take_no_memory_once_warm() {
    let scale = Scale {
        widths: vec![16, 32, 64, 128, 256],
        depths: vec![1, 2, 2, 1, 1, 1, 1, 1],
        classes: 80,
    };
    let tier = engine::choose(Precision::Auto, None, None).expect("a tier");
    let engine = engine::load(Arc::new(scale.network()), tier).expect("an engine");
    let team = Team::new(NonZeroUsize::new(2).expect("2"));
    let rgb = vec![90; 320 * 320 * 3];
    let input = Input { width: 320, height: 320, rgb: &rgb };
    let (warm, done, helped) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let hook = |piece: &mut dyn FnMut()| {
        helped.fetch_add(1, Ordering::Relaxed);
        piece();
    };
    std::thread::scope(|scope| {
        let assistant = scope.spawn(|| {
            let mut worker = engine.member(&team).expect("a worker");
            let stop = || done.load(Ordering::Relaxed);
            let mut all = 0;
            while !stop() {
                let counts = warm.load(Ordering::Relaxed);
                let ((), (times, _)) = asked(|| worker.assist(&stop));
                all += if counts { times } else { 0 };
                std::thread::yield_now();
            }
            all
        });
        let mut worker = engine.member(&team).expect("a worker");
        let mut found = Vec::with_capacity(1 << 16);
        // Until every kind of step was helped with.
        let mut lead = || worker.run_assisted(input, 0.99, &mut found, &hook).expect("it runs");
        let until = |pieces: u64, lead: &mut dyn FnMut()| {
            let (before, start) = (helped.load(Ordering::Relaxed), Instant::now());
            // Whatever the tier shares: on some it is nothing.
            while helped.load(Ordering::Relaxed) < before + pieces && start.elapsed().as_secs() < 5
            {
                lead();
            }
        };
        until(2000, &mut lead);
        warm.store(true, Ordering::Relaxed);
        let (_, (times, _)) = asked(|| until(1000, &mut lead));
        done.store(true, Ordering::Relaxed);
        assert_eq!((times, assistant.join().expect("no panic")), (0, 0));
    });
    println!("{} pieces were done by the assistant", helped.into_inner());
}

#[test]
fn photographs_take_no_memory_once_warm() {
    let Some(data) = std::env::var_os("HAUL_PARITY_DATA") else {
        println!("skipped: HAUL_PARITY_DATA is not set");
        return;
    };
    steady(&PathBuf::from(data).join("coco/images"));
}

#[test]
fn a_decoder_remembers_memory_and_nothing_else() {
    let forms = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/forms");
    let limits = Limits { truncated: haul::picture::Truncated::Accept, ..Limits::default() };
    let mut paths: Vec<PathBuf> = fs::read_dir(forms)
        .expect("a folder")
        .map(|entry| entry.expect("a name").path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    let mut used = Decoder::new();
    // White everywhere, larger than all that follow: what shows through would be seen.
    let white = image::RgbImage::from_pixel(300, 300, image::Rgb([255; 3]));
    let mut file = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut file).encode_image(&white).expect("encoded");
    let clean = probe(&file, &limits).expect("a picture");
    let mut compared = 0;
    for path in paths {
        let whole = fs::read(&path).expect("readable");
        for part in [1, 2, 3, 4, 5, 6, 7, 8] {
            let mut bytes = whole[..whole.len() * part / 8].to_vec();
            for damage in [0, 0x55] {
                let middle = bytes.len() * 2 / 3;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= damage;
                }
                let Ok(header) = probe(&bytes, &limits) else { continue };
                used.run(&file, &clean, &limits).expect("white");
                let fresh = haul::picture::decode(&bytes, &header, &limits);
                let ours = used.run(&bytes, &header, &limits).cloned();
                assert!(fresh == ours, "{}: {part} eighths, damage {damage}", path.display());
                compared += usize::from(fresh.is_ok());
            }
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn a_large_picture_is_given_back() {
    let (width, height) = (2400, 1800);
    let image = image::RgbImage::from_pixel(width, height, image::Rgb([90; 3]));
    let mut file = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut file).encode_image(&image).expect("encoded");
    let (limits, mut decoder) = (Limits::default(), Decoder::new());
    let header = probe(&file, &limits).expect("a picture");
    let (_, (_, cold)) = asked(|| decoder.run(&file, &header, &limits).map(|_| ()));
    decoder.trim();
    // More than is kept: the next one asks for as much again.
    assert!(u64::from(width * height * 3) > Decoder::KEPT as u64);
    let (_, (_, again)) = asked(|| decoder.run(&file, &header, &limits).map(|_| ()));
    assert_eq!(cold, again);
    assert!(cold <= header.decode_bytes, "{cold} of {}", header.decode_bytes);
}

//! Each part around the network alone, on one thread: decoding, letterbox, suppression.
//!
//! Sizes are those of photographs and some that fit nothing: odd sides, one pixel too many, narrow
//! strips. Pictures are made here. `cargo bench --bench parts -- letterbox` runs one group.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use haul::picture::{Decoder, Letterbox, Letterboxer, Limits, Picture, probe};
use haul::yolo::{Candidate, Nms, NmsOptions};
use image::codecs::jpeg::JpegEncoder;

/// Even numbers from the same seed each time.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// 0 to 1.
    fn unit(&mut self) -> f32 {
        self.next() as f32 / (1 << 24) as f32
    }
}

/// Slopes, edges and grain: harder to compress than most photographs.
fn picture(width: u32, height: u32) -> Picture {
    let mut random = Random(width * 31 + height);
    let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for x in 0..width {
            let edge = 60 * ((x / 37 + y / 29) % 2);
            for slope in [x * 120 / width, y * 120 / height, (x + y) * 120 / (width + height)] {
                rgb.push((slope + edge + random.next() % 24) as u8);
            }
        }
    }
    Picture { width, height, rgb, truncated: false }
}

fn jpeg(picture: &Picture) -> Vec<u8> {
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 90)
        .encode(&picture.rgb, picture.width, picture.height, image::ExtendedColorType::Rgb8)
        .expect("it can be encoded");
    file
}

/// The file with an EXIF orientation.
fn turned(file: &[u8], orientation: u8) -> Vec<u8> {
    let exif = b"\xff\xe1\x00\x22Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
    [&file[..2], exif, &[orientation, 0, 0, 0, 0, 0, 0, 0], &file[2..]].concat()
}

fn decode(criterion: &mut Criterion) {
    let limits = Limits::default();
    let mut decoder = Decoder::new();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(20);
    let sides = [(640, 480), (641, 479), (333, 500), (17, 23), (1920, 1080), (4000, 3000)];
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for (width, height) in sides {
        files.push((format!("jpeg {width}x{height}"), jpeg(&picture(width, height))));
    }
    let portrait = turned(&jpeg(&picture(4000, 3000)), 6);
    files.push(("jpeg 4000x3000 orientation 6".to_owned(), portrait));
    for name in ["jpeg-420.jpg", "jpeg-progressive-420.jpg", "png-rgb8.png", "webp-lossy.webp"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/forms/");
        if let Ok(bytes) = std::fs::read(format!("{path}{name}")) {
            files.push((name.to_owned(), bytes));
        }
    }
    for (name, bytes) in &files {
        let header = probe(bytes, &limits).expect("it is a picture");
        group.throughput(Throughput::Elements(u64::from(header.width) * u64::from(header.height)));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                let header = probe(bytes, &limits).expect("it is a picture");
                black_box(decoder.run(bytes, &header, &limits).expect("it is whole"));
                decoder.trim();
            });
        });
    }
    group.finish();
}

fn letterbox(criterion: &mut Criterion) {
    let mut letterboxer = Letterboxer::new();
    let mut group = criterion.benchmark_group("letterbox");
    // Copied, enlarged, reduced; and strips.
    let copied = [(640, 480), (427, 640), (640, 1)];
    let resized = [(500, 375), (641, 479), (1920, 1080), (4000, 3000), (3, 5), (7, 3001)];
    for (width, height) in copied.into_iter().chain(resized) {
        let picture = picture(width, height);
        let geometry = Letterbox::new(width, height, 640, false);
        let pixels = u64::from(geometry.width) * u64::from(geometry.height);
        group.throughput(Throughput::Elements(pixels));
        group.bench_function(BenchmarkId::from_parameter(format!("{width}x{height}")), |b| {
            b.iter(|| black_box(letterboxer.run(&picture, &geometry).map(<[u8]>::len)));
        });
    }
    group.finish();
}

/// `count` boxes of 80 classes in `clusters` places.
fn candidates(count: u32, clusters: u32) -> Vec<Candidate> {
    let mut random = Random(count + clusters);
    let mut one = |anchor| {
        let place = random.next() % clusters;
        let (x, y) = ((place % 25) as f32 * 25.0, (place / 25 % 25) as f32 * 25.0);
        let mut near = |v: f32| v + 8.0 * random.unit();
        let bbox = [near(x), near(y), near(x + 40.0), near(y + 30.0)];
        Candidate { anchor, class: place % 80, score: 0.001 + 0.99 * random.unit(), bbox }
    };
    (0..count).map(&mut one).collect()
}

fn suppression(criterion: &mut Criterion) {
    let mut nms = Nms::new();
    let mut group = criterion.benchmark_group("nms");
    // Typical at a threshold of 0.25 and of 0.001, an odd number, and the most that are looked at:
    // with many classes, and all of one class, where no shortcut is left.
    let low = NmsOptions { conf: 0.001, ..NmsOptions::default() };
    let agnostic = NmsOptions { agnostic: true, ..low.clone() };
    let cases = [
        ("20 of 5 places", candidates(20, 5), &low),
        ("577 of 60 places", candidates(577, 60), &low),
        ("2023 of 150 places", candidates(2023, 150), &low),
        ("30000 of 200 places", candidates(30_000, 200), &low),
        ("30000 of 200 places, agnostic", candidates(30_000, 200), &agnostic),
        ("30000 of 625 places, agnostic", candidates(30_000, 625), &agnostic),
    ];
    for (name, list, options) in &cases {
        group.throughput(Throughput::Elements(list.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            let each = |list: &mut Vec<Candidate>| nms.run(options, list);
            b.iter_batched_ref(|| list.clone(), each, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, decode, letterbox, suppression);
criterion_main!(benches);

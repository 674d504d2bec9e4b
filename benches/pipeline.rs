//! Where a picture's time goes with the engine that this CPU gets.
//!
//! `cargo bench` runs it on the model and pictures that come with haul; with HAUL_BENCH_MODEL and
//! HAUL_BENCH_PICTURE it runs on any others. One thread, as a worker has.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use haul::engine::{self, Input, Precision};
use haul::picture::{Decoder, Letterbox, Letterboxer, Limits, Truncated, decode, probe};
use haul::yolo::{Nms, NmsOptions};

fn setting(name: &str, default: &str) -> PathBuf {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(default);
    std::env::var_os(name).map_or_else(default, PathBuf::from)
}

fn pipeline(criterion: &mut Criterion) {
    let model = setting("HAUL_BENCH_MODEL", "testdata/model/shapes.safetensors");
    let model = haul::model::read(&model).expect("the model can be read");
    let imgsz = u32::try_from(model.info.imgsz).expect("a side fits");
    let bytes = std::fs::read(setting("HAUL_BENCH_PICTURE", "testdata/pictures/sea.jpg"))
        .expect("the picture can be read");
    let limits =
        Limits { max_pixels: 100_000_000, max_memory: 512 << 20, truncated: Truncated::Reject };
    let header = probe(&bytes, &limits).expect("it is a picture");
    let picture = decode(&bytes, &header, &limits).expect("it is whole");
    let geometry = Letterbox::new(picture.width, picture.height, imgsz, false);
    let mut letterboxer = Letterboxer::new();
    let rgb = letterboxer.run(&picture, &geometry).expect("it can be resized").to_vec();
    let tier = engine::choose(Precision::Auto, None, None).expect("a CPU has a tier");
    let network = engine::load(Arc::new(model.network), tier).expect("the engine takes the model");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut worker = network.worker().expect("a worker");
    let (width, height) = (geometry.width as usize, geometry.height as usize);
    let mut infer = |candidates: &mut Vec<_>| {
        let input = Input { width, height, rgb: &rgb };
        pool.install(|| worker.run(input, 0.001, candidates)).expect("it runs");
    };
    let options = NmsOptions {
        conf: 0.001,
        iou: 0.7,
        max_det: 300,
        max_nms: 30_000,
        agnostic: false,
        classes: None,
    };

    let mut candidates = Vec::new();
    let mut group = criterion.benchmark_group("picture");
    group.sample_size(10);
    let mut decoder = Decoder::new();
    group.bench_function("decode", |b| {
        b.iter(|| black_box(decoder.run(&bytes, &header, &limits).map(|picture| picture.width)));
    });
    group.bench_function("letterbox", |b| {
        b.iter(|| black_box(letterboxer.run(&picture, &geometry).map(<[u8]>::len)));
    });
    group.bench_function("infer", |b| b.iter(|| infer(&mut candidates)));
    group.bench_function("nms", |b| {
        let mut nms = Nms::new();
        let each = |candidates: &mut Vec<_>| nms.run(&options, candidates);
        b.iter_batched_ref(|| candidates.clone(), each, BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);

//! bf16 against our own f32, on identical pixels of real photographs.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "common/amx/mod.rs"]
mod amx;
mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use common::parity_data;
use haul::engine::fused::Fused;
use haul::engine::{Engine, Input, Worker};
use haul::kernels::{Cpu, Tier};
use haul::model;
use haul::picture::{Letterbox, Letterboxer, Limits, Truncated, decode, probe};
use haul::yolo::{Candidate, NmsOptions, nms};

/// What is allowed: pixels of the network's input, scores, shares.
const BOX_MEAN: f64 = 0.15;
const BOX_P99: f64 = 1.0;
const SCORE_MEAN: f64 = 0.008;
const PARTNERS: f64 = 0.98;

/// A picture as the network sees it.
struct Pixels {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Pixels {
    fn input(&self) -> Input<'_> {
        Input { width: self.width, height: self.height, rgb: &self.rgb }
    }
}

fn pictures(folder: PathBuf) -> Vec<Pixels> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let limits =
        Limits { max_pixels: 100_000_000, max_memory: 1 << 30, truncated: Truncated::Reject };
    let mut letterboxer = Letterboxer::new();
    let mut read = |path: PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        let picture = decode(&bytes, &probe(&bytes, &limits).unwrap(), &limits).unwrap();
        let geometry = Letterbox::new(picture.width, picture.height, 640, false);
        let rgb = letterboxer.run(&picture, &geometry).unwrap().to_vec();
        Pixels { width: geometry.width as usize, height: geometry.height as usize, rgb }
    };
    paths.into_iter().map(&mut read).collect()
}

fn run(worker: &mut dyn Worker, pixels: &Pixels, conf: f32) -> Vec<Candidate> {
    let mut found = Vec::new();
    worker.run(pixels.input(), conf, &mut found).unwrap();
    found
}

fn kept(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.retain(|c| c.score > 0.25);
    nms(&NmsOptions::default(), &mut candidates);
    candidates
}

fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let side = |low: usize, high: usize| (a[high].min(b[high]) - a[low].max(b[low])).max(0.0);
    let area = |b: [f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let both = side(0, 2) * side(1, 3);
    both / (area(a) + area(b) - both)
}

/// Detections of `these` for which `those` have one of the same class at IoU ≥ 0.90.
fn partners(these: &[Candidate], those: &[Candidate]) -> usize {
    let matches = |a: &Candidate, b: &Candidate| a.class == b.class && iou(a.bbox, b.bbox) >= 0.9;
    these.iter().filter(|a| those.iter().any(|b| matches(a, b))).count()
}

fn compare(tier: Tier, pictures: &[Pixels], network: &haul::yolo::Network) {
    let mut exact = Fused::new(network, Tier::Avx512).unwrap().worker().unwrap();
    let mut coarse = Fused::new(network, tier).unwrap().worker().unwrap();
    let (mut boxes, mut scores) = (Vec::new(), Vec::new());
    let (mut other_class, mut found, mut matched) = (0, 0, 0);
    for pixels in pictures {
        let theirs = run(exact.as_mut(), pixels, 0.25);
        let ours = run(coarse.as_mut(), pixels, 0.001);
        let by_anchor: HashMap<u32, &Candidate> = ours.iter().map(|c| (c.anchor, c)).collect();
        for candidate in &theirs {
            match by_anchor.get(&candidate.anchor) {
                Some(same) if same.class == candidate.class => {
                    scores.push(f64::from((same.score - candidate.score).abs()));
                    let sides = same.bbox.iter().zip(candidate.bbox);
                    boxes.extend(sides.map(|(a, b)| f64::from((a - b).abs())));
                }
                _ => other_class += 1,
            }
        }
        let (ours, theirs) = (kept(ours), kept(theirs));
        found += ours.len() + theirs.len();
        matched += partners(&theirs, &ours) + partners(&ours, &theirs);
    }
    boxes.sort_by(f64::total_cmp);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let p99 = boxes[boxes.len() * 99 / 100];
    let share = matched as f64 / found as f64;
    println!(
        "{tier}: {} pictures, {} anchors above 0.25 ({other_class} of another class): box error mean \
         {:.3} px, p99 {p99:.2} px; score error mean {:.4}; {matched} of {found} detections with a \
         partner at IoU 0.90 ({:.1} %)",
        pictures.len(),
        scores.len(),
        mean(&boxes),
        mean(&scores),
        100.0 * share,
    );
    assert!(scores.len() > 100, "too few to say anything");
    assert!(other_class * 100 <= scores.len(), "{tier}");
    assert!(mean(&boxes) <= BOX_MEAN && p99 <= BOX_P99, "{tier}");
    assert!(mean(&scores) <= SCORE_MEAN && share >= PARTNERS, "{tier}");
}

#[test]
fn bf16_stays_close_to_f32() {
    let Some(data) = parity_data() else { return };
    if !Cpu::get().has(Tier::Avx512Bf16) {
        println!("skipped: this CPU has no AVX512-BF16");
        return;
    }
    let network = model::read(&data.join("weights/yolov8n.pt")).unwrap().network;
    let pictures = pictures(data.join("coco/images"));
    compare(Tier::Avx512Bf16, &pictures, &network);
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        // Emulated tiles take a second a picture.
        let some = if Cpu::get().has(Tier::Amx) || std::env::var_os("HAUL_ALL_TILES").is_some() {
            pictures.len()
        } else {
            24
        };
        if !Cpu::get().has(Tier::Amx) {
            amx::install();
            Cpu::pretend_amx();
        }
        compare(Tier::Amx, &pictures[..some], &network);
    }
}

//! The network against outputs of PyTorch: made by formula, and with real weights.

mod common;

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use common::formula::{Scale, input};
use common::parity_data;
use haul::engine::candle::Candle;
use haul::engine::fused::{Dense, Fused, Strips};
use haul::engine::{self, Engine, Input, Precision, RawHead, RawLevel, Worker as _};
use haul::kernels::{Cpu, Tier};
use haul::model;
use haul::yolo::Network;
use haul::yolo::{Candidate, NmsOptions, nms};
use safetensors::SafeTensors;

/// Relative error allowed, ‖a − b‖ / ‖b‖.
const CLOSE: f64 = 2e-5;

fn relative(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |x: f64| x * x;
    let pairs = ours.iter().zip(theirs);
    let error: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = theirs.iter().map(|&b| square(f64::from(b))).sum();
    (error / norm).sqrt()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data();
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// One output of all levels side by side: (rows, anchors).
fn joined(head: &RawHead, pick: impl Fn(&RawLevel) -> &[f32]) -> Vec<f32> {
    let cells = |l: &RawLevel| l.width * l.height;
    let rows = pick(&head.levels[0]).len() / cells(&head.levels[0]);
    let mut out = Vec::new();
    for row in 0..rows {
        for level in &head.levels {
            out.extend(&pick(level)[row * cells(level)..(row + 1) * cells(level)]);
        }
    }
    out
}

/// Every executor that computes in f32 here, by name: what the head says of planes of 0..=1.
type Run = Box<dyn FnMut(&[f32], usize, usize) -> RawHead>;
fn executors(network: &Network) -> Vec<(String, Run)> {
    let candle = Candle::new(network).unwrap();
    let run: Run = Box::new(move |planes, w, h| candle.head(planes.to_vec(), w, h).unwrap());
    let mut all = vec![("candle".to_owned(), run)];
    for tier in Tier::ALL {
        // The naive one takes minutes.
        if Cpu::get().has(tier)
            && tier.numeric_class().starts_with("f32")
            && tier != Tier::Reference
        {
            let mut worker = Fused::new(network, tier).unwrap().fused_worker().unwrap();
            let run: Run = Box::new(move |planes, w, h| worker.head(planes, w, h).unwrap());
            all.push((format!("fused {tier}"), run));
        }
    }
    all
}

/// The network as candle's operation, on every tier that computes in f32 here: its head for planes
/// of 0..=1, as rows of all anchors.
type Operate = Box<dyn Fn(&[f32], usize, usize) -> Vec<f32>>;
fn operations(network: &Network) -> Vec<(Tier, Operate)> {
    let f32s = Tier::ALL.into_iter().filter(|tier| tier.numeric_class().starts_with("f32"));
    let quick = f32s.filter(|&tier| Cpu::get().has(tier) && tier != Tier::Reference);
    let operation = |tier| {
        let op = Fused::new(network, tier).unwrap().custom_op();
        let run: Operate = Box::new(move |planes: &[f32], width, height| {
            let image = Tensor::from_slice(planes, (1, 3, height, width), &Device::Cpu).unwrap();
            let head = image.apply_op1_no_bwd(&op).unwrap();
            head.flatten_all().unwrap().to_vec1().unwrap()
        });
        (tier, run)
    };
    quick.map(operation).collect()
}

/// Compares everything a golden file holds, on every executor.
fn compare(what: &str, scale: &Scale, bytes: &[u8], (width, height): (usize, usize)) {
    let golden = SafeTensors::deserialize(bytes).unwrap();
    for (executor, mut run) in executors(&scale.network()) {
        let head = run(&input(height, width), width, height);
        let dense = head.view().dense();
        let out = floats(&golden, "out.0");
        let split = 4 * out.len() / (4 + scale.classes);
        let raw = |name: &str, pick: fn(&RawLevel) -> &[f32]| {
            let name = format!("out.1.{name}");
            let error = relative(&joined(&head, pick), &floats(&golden, &name));
            (name, error)
        };
        let mut errors = vec![
            raw("boxes", |l| &l.boxes),
            raw("scores", |l| &l.scores),
            ("out.0 boxes".into(), relative(&dense[..split], &out[..split])),
            ("out.0 scores".into(), relative(&dense[split..], &out[split..])),
        ];
        for (i, level) in head.levels.iter().enumerate() {
            let name = format!("out.1.feats.{i}");
            let error = relative(&level.features, &floats(&golden, &name));
            errors.push((name, error));
        }
        for (name, error) in &errors {
            println!("{what} {executor} {name}: {error:.1e}");
            assert!(*error <= CLOSE, "{what} {executor} {name}: {error:.1e}");
        }
    }
    let (boxes, scores) = (floats(&golden, "out.1.boxes"), floats(&golden, "out.1.scores"));
    let network = scale.network();
    let planes = input(height, width);
    let reference = Candle::new(&network).unwrap().head(planes.clone(), width, height).unwrap();
    for (tier, run) in operations(&network) {
        let head = run(&planes, width, height);
        assert_eq!(head.len(), boxes.len() + scores.len());
        let (ours_boxes, ours_scores) = head.split_at(boxes.len());
        for (name, ours, theirs) in [
            ("boxes", ours_boxes, boxes.as_slice()),
            ("scores", ours_scores, &scores),
            ("boxes, candle", ours_boxes, &joined(&reference, |l| &l.boxes)),
            ("scores, candle", ours_scores, &joined(&reference, |l| &l.scores)),
        ] {
            let error = relative(ours, theirs);
            println!("{what} operation {tier} {name}: {error:.1e}");
            assert!(error <= CLOSE, "{what} operation {tier} {name}: {error:.1e}");
        }
    }
}

#[test]
fn committed_goldens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: {} does not exist", folder.display());
        return;
    };
    let mut seen = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap_or_default();
        let list = |key: &str| serde_json::from_str(&metadata[key]).unwrap();
        let classes = metadata["nc"].parse().unwrap();
        let scale = Scale { widths: list("widths"), depths: list("depths"), classes };
        let size = picture_size(&SafeTensors::deserialize(&bytes).unwrap());
        compare(&path.file_stem().unwrap().to_string_lossy(), &scale, &bytes, size);
        seen += 1;
    }
    assert!(seen > 0, "no golden in {}", folder.display());
}

#[test]
fn all_anchors_decoded_fast_are_those_decoded_exactly() {
    let scale = Scale { widths: vec![16, 16, 16, 32, 32], depths: vec![1; 8], classes: 19 };
    let network = scale.network();
    // Cells that are no multiple of 16, on two of three levels.
    let (width, height) = (96, 160);
    let rgb: Vec<u8> = (0..3 * width * height).map(|i| (i * 7 % 251) as u8).collect();
    let planes: Vec<f32> =
        (0..3).flat_map(|c| rgb[c..].iter().step_by(3).map(|&v| f32::from(v) / 255.0)).collect();
    for tier in Tier::ALL.into_iter().filter(|&tier| Cpu::get().has(tier)) {
        let mut worker = Fused::new(&network, tier).unwrap().fused_worker().unwrap();
        let mut dense = Dense::default();
        for _ in 0..2 {
            worker.dense(Input { width, height, rgb: &rgb }, &mut dense).unwrap();
        }
        let exact = worker.head(&planes, width, height).unwrap().view().dense();
        assert_eq!(dense.output.len(), exact.len());
        let worst = dense.output.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // The picture's bytes are exact in either form; in bf16 the scaled planes are not.
        let allowed = if tier.numeric_class().starts_with("f32") { 1e-3 } else { 0.5 };
        assert!(worst <= allowed, "{tier}: {worst:.1e}");
    }
}

#[test]
fn committed_nms() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/nms.json");
    let Ok(text) = std::fs::read_to_string(&file) else {
        println!("skipped: {} does not exist", file.display());
        return;
    };
    // Numbers that are not finite are texts: "nan", "inf".
    let number = |value: &serde_json::Value| -> f32 {
        match value.as_str() {
            Some(text) => text.parse().unwrap(),
            None => value.as_f64().unwrap() as f32,
        }
    };
    let rows = |value: &serde_json::Value| -> Vec<Vec<f32>> {
        let rows = value.as_array().unwrap().iter();
        rows.map(|row| row.as_array().unwrap().iter().map(number).collect()).collect()
    };
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    for case in &cases {
        let mut candidates = Vec::new();
        for (anchor, (bbox, scores)) in
            rows(&case["boxes"]).iter().zip(rows(&case["scores"])).enumerate()
        {
            // The best class, the first of equals; a NaN poisons its anchor, as in the decoder.
            let mut best = 0;
            for (class, &score) in scores.iter().enumerate() {
                if score > scores[best] || score.is_nan() {
                    best = class;
                }
            }
            candidates.push(Candidate {
                anchor: anchor as u32,
                class: best as u32,
                score: scores[best],
                bbox: bbox.as_slice().try_into().unwrap(),
            });
        }
        let options = NmsOptions {
            conf: number(&case["conf"]),
            iou: number(&case["iou"]),
            max_det: case["max_det"].as_u64().unwrap() as usize,
            agnostic: case["agnostic"].as_bool().unwrap(),
            ..NmsOptions::default()
        };
        nms(&options, &mut candidates);
        let kept: Vec<_> =
            candidates.iter().map(|c| serde_json::json!([c.anchor, c.class])).collect();
        assert_eq!(serde_json::Value::from(kept), case["kept"], "{}", case["name"]);
    }
    assert!(!cases.is_empty());
}

#[test]
fn the_committed_model_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/model");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: {} does not exist", folder.display());
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|e| e == "safetensors") {
            let model = model::read(&path).unwrap();
            assert_eq!(model.info.format, "haul.model/1");
            println!("{:?} {:?}", model.info.widths, model.info.names);
        }
    }
}

/// Width and height of the input, from those of the features at stride 8.
fn picture_size(golden: &SafeTensors<'_>) -> (usize, usize) {
    let shape = golden.tensor("out.1.feats.0").unwrap().shape().to_vec();
    (8 * shape[3], 8 * shape[2])
}

#[test]
fn shared_synthetic_goldens() {
    let Some(data) = parity_data() else { return };
    let n = vec![1, 2, 2, 1, 1, 1, 1, 1];
    for (name, widths, depths) in [
        ("n", vec![16, 32, 64, 128, 256], n.clone()),
        ("s", vec![32, 64, 128, 256, 512], n),
        ("m", vec![48, 96, 192, 384, 576], vec![2, 4, 4, 2, 2, 2, 2, 2]),
    ] {
        let path = data.join(format!("golden/synthetic_yolov8{name}_detect.safetensors"));
        let bytes = std::fs::read(path).unwrap();
        let scale = Scale { widths, depths, classes: 80 };
        compare(&format!("yolov8{name}"), &scale, &bytes, (128, 96));
    }
}

/// A letterboxed picture of the real goldens as interleaved bytes.
fn letterboxed(golden: &SafeTensors<'_>, id: &str) -> (usize, usize, Vec<u8>) {
    let view = golden.tensor(&format!("{id}.letterbox_u8")).unwrap();
    let (height, width) = (view.shape()[1], view.shape()[2]);
    let pixels = width * height;
    let rgb = (0..pixels).flat_map(|i| [0, 1, 2].map(|c| view.data()[c * pixels + i])).collect();
    (width, height, rgb)
}

#[test]
fn real_weights() {
    let Some(data) = parity_data() else { return };
    let model = model::read(&data.join("weights/yolov8n.pt")).unwrap();
    assert_eq!(model.info.names.len(), 80);
    assert_eq!(model.info.names[0], "person");
    assert_eq!(model.info.imgsz, 640);
    assert_eq!(model.info.bn_eps, 1e-3);
    assert_eq!(model.info.widths, [16, 32, 64, 128, 256]);
    assert_eq!(model.info.depths, [1, 2, 2, 1, 1, 1, 1, 1]);
    println!("{} parameters, {:?}", model.info.parameters, model.info.dtypes);

    let bytes = std::fs::read(data.join("golden/yolov8n_raw.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let ids: Vec<String> = golden
        .names()
        .iter()
        .filter_map(|name| name.strip_suffix(".letterbox_u8").map(String::from))
        .collect();
    assert_eq!(ids.len(), 2);
    for id in ids {
        let (width, height, rgb) = letterboxed(&golden, &id);
        let planes: Vec<f32> = (0..3)
            .flat_map(|c| rgb[c..].iter().step_by(3).map(|&v| f32::from(v) / 255.0))
            .collect();
        for (executor, mut run) in executors(&model.network) {
            let ours = run(&planes, width, height).view().dense();
            let theirs = floats(&golden, &format!("{id}.output"));
            let anchors = ours.len() / 84;
            let (boxes, scores) = (4 * anchors, 4 * anchors..);
            let box_error = relative(&ours[..boxes], &theirs[..boxes]);
            let score_error = relative(&ours[scores.clone()], &theirs[scores.clone()]);
            let pairs = ours[scores.clone()].iter().zip(&theirs[scores]);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!(
                "{id} {executor} {width}x{height}: boxes {box_error:.1e} scores {score_error:.1e} worst {worst:.1e}"
            );
            assert!(box_error <= CLOSE && score_error <= CLOSE && worst <= 1e-4);
        }

        let engine = Candle::new(&model.network).unwrap();
        let reference = engine.head(planes.clone(), width, height).unwrap();
        for (tier, run) in operations(&model.network) {
            let head = run(&planes, width, height);
            let (boxes, scores) = head.split_at(4 * 16 * head.len() / (4 * 16 + 80));
            let errors = [
                relative(boxes, &joined(&reference, |l| &l.boxes)),
                relative(scores, &joined(&reference, |l| &l.scores)),
            ];
            println!("{id} operation {tier}: {:.1e} {:.1e}", errors[0], errors[1]);
            assert!(errors.iter().all(|&error| error <= CLOSE), "{id} operation {tier}");
        }

        // The hot path gives the same numbers, and some detections in the end.
        let ours = reference.view().dense();
        let anchors = ours.len() / 84;
        let mut found = Vec::new();
        let input = Input { width, height, rgb: &rgb };
        engine.worker().unwrap().run(input, 0.25, &mut found).unwrap();
        assert!(!found.is_empty());
        for Candidate { anchor, class, score, .. } in &found {
            assert_eq!(*score, ours[(4 + *class as usize) * anchors + *anchor as usize]);
        }
        nms(&NmsOptions::default(), &mut found);
        println!("{id}: {} detections", found.len());
    }
}

#[test]
fn conversion_changes_no_bit() {
    let Some(data) = parity_data() else { return };
    let path = data.join("weights/yolov8n.pt");
    let original = model::read(&path).unwrap();
    let bytes = model::write_safetensors(&original);
    assert_eq!(bytes, model::write_safetensors(&model::read(&path).unwrap()));
    let converted = model::read_bytes(&bytes, Path::new("yolov8n.safetensors")).unwrap();
    assert_eq!(converted.network, original.network);
    assert_eq!(converted.dtypes, original.dtypes);
    assert_eq!(converted.info.metadata, original.info.metadata);
    assert_eq!(bytes, model::write_safetensors(&converted));
    println!("{} bytes", bytes.len());

    let golden = std::fs::read(data.join("golden/yolov8n_raw.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let names = golden.names();
    let id = names.iter().find_map(|name| name.strip_suffix(".letterbox_u8")).unwrap();
    let (width, height, rgb) = letterboxed(&golden, id);
    let run = |network| {
        let tier = engine::choose(Precision::Auto, None, None).unwrap();
        let engine: Arc<dyn Engine> = engine::load(Arc::new(network), tier).unwrap();
        let mut found = Vec::new();
        let input = Input { width, height, rgb: &rgb };
        engine.worker().unwrap().run(input, 0.001, &mut found).unwrap();
        found
    };
    assert_eq!(run(original.network), run(converted.network));
}

#[test]
fn other_tasks_are_refused_by_name() {
    let Some(data) = parity_data() else { return };
    let error = model::read(&data.join("weights/yolov8n-seg.pt")).unwrap_err().to_string();
    println!("{error}");
    assert!(error.contains("yolov8n-seg.pt` is a segment model; haul runs YOLOv8 detect"));
}

/// Not a test: `cargo test --release --test parity -- --ignored --nocapture` says what one picture
/// costs, tiers and schedules in turn.
#[test]
#[ignore = "a measurement"]
fn time_one_picture() {
    let Some(data) = parity_data() else { return };
    let model = model::read(&data.join("weights/yolov8n.pt")).unwrap();
    let (width, height) = (640, 640);
    let rgb: Vec<u8> = (0..3 * width * height).map(|i| (i * 7 % 251) as u8).collect();
    let whole = Strips { up_to_stride: 0, ..Strips::default() };
    let rows = |rows| Strips { rows: Some(rows), ..Strips::default() };
    let schedules = [
        ("", Strips::default()),
        (", no strips", whole),
        (", strips of 32 rows", rows(32)),
        (", strips of 128 rows", rows(128)),
        (", strips to stride 16", Strips { up_to_stride: 16, ..Strips::default() }),
    ];
    let mut workers = Vec::new();
    for tier in [Tier::Avx512Bf16, Tier::Avx512, Tier::Avx2] {
        if !Cpu::get().has(tier) {
            continue;
        }
        for (name, strips) in schedules {
            let engine = Fused::with_strips(&model.network, tier, strips).unwrap();
            workers.push((format!("{tier}{name}"), engine.fused_worker().unwrap(), Vec::new()));
        }
        let engine = Fused::new(&model.network, tier).unwrap();
        let two = engine.team_worker(2.try_into().unwrap()).unwrap();
        workers.push((format!("{tier} on two cores"), two, Vec::new()));
    }
    let mut found = Vec::new();
    for _ in 0..30 {
        for (_, worker, times) in &mut workers {
            let started = std::time::Instant::now();
            worker.run(Input { width, height, rgb: &rgb }, 0.25, &mut found).unwrap();
            times.push(started.elapsed());
        }
    }
    for (tier, _, times) in &mut workers {
        times.sort();
        println!("{tier}: best {:?}, median {:?}", times[0], times[times.len() / 2]);
    }
}

//! Checkpoints that are broken or made to hurt: an error each time, and nothing else.

mod common;

use std::io::{Cursor, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use common::checkpoint::{Builder, P, archive, dict, tiny, tiny_scale};
use haul::model::{self, ModelError};
use haul::yolo::{Act, Network};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn read(bytes: &[u8]) -> Result<model::Model, ModelError> {
    model::read_bytes(bytes, Path::new("tiny.pt"))
}

/// The message with its causes, or a panic if the file is taken.
fn refusal(bytes: &[u8]) -> String {
    let started = Instant::now();
    let error = read(bytes).expect_err("the file should be refused");
    assert!(started.elapsed() < Duration::from_secs(10), "{error}: {:?}", started.elapsed());
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A zip with the given pickle and one small storage.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    archive(pickle, &[("0".into(), vec![0; 64])], false)
}

#[test]
fn a_sound_checkpoint_is_read() {
    for deflate in [false, true] {
        let model = read(&tiny(deflate)).unwrap();
        assert_eq!(model.info.names, ["class 0", "class 1"]);
        assert_eq!(model.info.imgsz, 320);
        assert_eq!(model.info.widths, [2, 4, 4, 4, 4]);
        assert_eq!(model.info.depths, [1, 2, 1, 1, 1, 1, 1, 1]);
        assert_eq!(model.info.metadata["license"], "none");
    }
}

#[test]
fn the_averaged_model_is_taken_where_there_is_no_other() {
    let mut builder = Builder::new(&tiny_scale());
    let P::Dict(entries) = builder.checkpoint(2) else { panic!("a checkpoint is a dictionary") };
    let (_, tree) =
        entries.into_iter().find(|(key, _)| matches!(key, P::Str(k) if k == "model")).unwrap();
    let expected = read(&tiny(false)).unwrap().network;
    for (model, ema, taken) in
        [(P::None, tree.clone(), true), (tree, P::None, true), (P::None, P::None, false)]
    {
        let pickle = dict(vec![("model", model), ("ema", ema)]).pickle();
        let bytes = archive(&pickle, &builder.storages, false);
        if taken {
            assert!(read(&bytes).unwrap().network == expected);
        } else {
            let text = refusal(&bytes);
            assert!(text.contains("without a `model`"), "{text}");
        }
    }
}

#[test]
fn activation_and_epsilon_come_from_the_tree() {
    let mut builder = Builder::new(&tiny_scale());
    builder.eps = 0.03125;
    builder.identity = "model.9.cv1";
    let pickle = builder.checkpoint(2).pickle();
    let model = read(&archive(&pickle, &builder.storages, false)).unwrap();
    assert_eq!(model.info.bn_eps, 0.03125);
    assert_eq!(model.info.act, Act::Silu);
    assert_eq!(model.info.act_overrides.get("model.9.cv1"), Some(&Act::Identity));
    assert_eq!(model.info.act_overrides.len(), 1);
    // Both survive the conversion.
    let again = read(&model::write_safetensors(&model)).unwrap();
    assert_eq!(again.network, model.network);
    assert_eq!(again.info.act_overrides, model.info.act_overrides);
}

#[test]
fn truncations_are_refused() {
    let whole = tiny(false);
    let mut cut = 0;
    while cut < whole.len() {
        refusal(&whole[..cut]);
        cut += 1 + cut / 97;
    }
    // Cut within the pickle, in an otherwise sound zip.
    let mut builder = Builder::new(&tiny_scale());
    let pickle = builder.checkpoint(2).pickle();
    let mut cut = 0;
    while cut < pickle.len() {
        refusal(&archive(&pickle[..cut], &builder.storages, false));
        cut += 1 + cut / 23;
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let whole = tiny(false);
    let mut builder = Builder::new(&tiny_scale());
    let pickle = builder.checkpoint(2).pickle();
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut taken, started) = (0, Instant::now());
    for round in 0..2000 {
        // Half of the rounds flip behind the zip's checksum, in the pickle itself.
        let mut bytes = if round % 2 == 0 { whole.clone() } else { pickle.clone() };
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] ^= 1 << random(8);
        }
        if round % 2 == 1 {
            bytes = archive(&bytes, &builder.storages, false);
        }
        // A flip may well be harmless (a date, a character of the license).
        taken += usize::from(read(&bytes).is_ok());
    }
    println!("{taken} of 2000 were harmless; {:?}", started.elapsed());
    assert!(taken < 1000);
}

#[test]
fn commands_are_refused_by_name() {
    let call = |global: &str| {
        let mut pickle = vec![0x80, 2];
        pickle.extend(format!("c{global}\n").bytes());
        pickle.extend(b"X\x04\x00\x00\x00true\x85R.");
        pickle
    };
    for (global, name) in [
        ("os\nsystem", "os.system"),
        ("posix\nsystem", "posix.system"),
        ("builtins\neval", "builtins.eval"),
        ("__builtin__\nexec", "__builtin__.exec"),
        ("subprocess\nPopen", "subprocess.Popen"),
        ("torch\nload", "torch.load"),
        ("models.yolo\nDetectionModel", "models.yolo.DetectionModel"),
    ] {
        let message = refusal(&with_pickle(&call(global)));
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
    // By two texts on the stack (protocol 4), too.
    let by_stack = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.";
    assert!(refusal(&with_pickle(by_stack)).contains("`os.system`"));
}

#[test]
fn hostile_pickles_are_refused() {
    let repeat = |part: &[u8], times: usize, end: &[u8]| {
        [&[0x80u8, 2][..], &part.repeat(times), end].concat()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("stop alone", b"\x80\x02.".to_vec()),
        ("no dictionary", b"\x80\x02K\x01.".to_vec()),
        ("never stops", repeat(b"N0", 1000, b"")),
        ("deep lists", repeat(b"](", 100_000, &[&b"e".repeat(100_000)[..], b"."].concat())),
        ("deep tuples", repeat(b")", 1, &[&b"\x85".repeat(1_500_000)[..], b"."].concat())),
        ("many marks", repeat(b"(", 3_000_000, b".")),
        ("many values", repeat(b"N", 3_000_000, b".")),
        ("many steps", repeat(b"N0", 3_000_000, b"N.")),
        ("huge LONG4", b"\x80\x02\x8b\xff\xff\xff\x7f\x01.".to_vec()),
        ("negative LONG4", b"\x80\x02\x8b\xff\xff\xff\xff\x01.".to_vec()),
        ("huge BINUNICODE", b"\x80\x02X\xff\xff\xff\xffab.".to_vec()),
        ("huge BINUNICODE8", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.".to_vec()),
        ("huge BINBYTES8", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.".to_vec()),
        ("huge frame", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()),
        ("huge memo", b"\x80\x02Nr\xff\xff\xff\xff.".to_vec()),
        ("unset memo", b"\x80\x02j\x01\x00\x00\x00.".to_vec()),
        ("underflow", b"\x80\x020.".to_vec()),
        ("underflow through a mark", b"\x80\x02N(\x85.".to_vec()),
        ("odd items", b"\x80\x02}(Nu.".to_vec()),
        ("list in itself", b"\x80\x02]q\x00h\x00a.".to_vec()),
        (
            "dictionary in itself",
            [b"\x80\x02}q\x00X\x05\x00\x00\x00model", &b"h\x00s."[..]].concat(),
        ),
        ("append to a number", b"\x80\x02K\x01Na.".to_vec()),
        ("call a number", b"\x80\x02K\x01)R.".to_vec()),
        ("unknown instruction", b"\x80\x02\xff.".to_vec()),
        ("extension registry", b"\x80\x02\x82\x01.".to_vec()),
        ("endless name", repeat(b"c", 1, &b"a".repeat(5000))),
        ("name not UTF-8", b"\x80\x02c\xff\xfe\nx\n.".to_vec()),
        ("storage of text", b"\x80\x02X\x01\x00\x00\x000Q.".to_vec()),
        // A module that is its own child, many times over.
        ("cyclic module", cyclic(1)),
        ("cyclic modules", cyclic(1000)),
        // The same large list copied by many calls.
        ("copied lists", {
            let mut p = b"\x80\x02]q\x00(".to_vec();
            p.extend(b"N\x85".repeat(100_000));
            p.extend(b"e0ccollections\nOrderedDict\nq\x01".iter());
            p.extend(b"h\x01h\x00\x85R0".repeat(100_000));
            p.extend(b"N.");
            p
        }),
    ];
    for (what, pickle) in cases {
        let message = refusal(&with_pickle(&pickle));
        println!("{what}: {message}");
    }
}

/// A module whose `_modules` name itself so many times.
fn cyclic(times: usize) -> Vec<u8> {
    let text = |t: &str| [&b"X"[..], &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat();
    let mut p = b"\x80\x02}".to_vec();
    p.extend(text("model"));
    p.extend(b"cultralytics.nn.tasks\nDetectionModel\n)\x81q\x00}");
    p.extend(text("_modules"));
    p.extend(b"}(");
    for i in 0..times {
        // Half of the names are equal: entries count, not names.
        p.extend(text(&format!("{}", i / 2)));
        p.extend(b"h\x00");
    }
    p.extend(b"usbs.");
    p
}

#[test]
fn hostile_tensors_are_refused() {
    let tensor = |elements, offset, shape: &[i64], strides: &[i64]| {
        P::Tensor("FloatStorage", "0".into(), elements, offset, shape.to_vec(), strides.to_vec())
    };
    let max = i64::MAX;
    for (what, tensor) in [
        ("huge dims", tensor(16, 0, &[max, max], &[1, 1])),
        ("huge and broadcast", tensor(16, 0, &[1 << 40], &[0])),
        ("many broadcast", tensor(16, 0, &[1 << 20, 1 << 20], &[0, 0])),
        ("huge strides", tensor(16, 0, &[2, 2], &[max, max])),
        ("offset outside", tensor(16, 16, &[1], &[1])),
        ("negative offset", tensor(16, -1, &[1], &[1])),
        ("negative dims", tensor(16, 0, &[-1], &[1])),
        ("negative strides", tensor(16, 0, &[4], &[-1])),
        ("too few strides", tensor(16, 0, &[2, 2], &[1])),
        ("too many dims", tensor(16, 0, &[1; 9], &[1; 9])),
        ("negative storage", tensor(-16, 0, &[1], &[1])),
        ("reach beyond", tensor(16, 0, &[4, 4], &[5, 1])),
    ] {
        let pickle = dict(vec![("model", tensor)]).pickle();
        let message = refusal(&with_pickle(&pickle));
        assert!(message.contains("its pickle is broken"), "{what}: {message}");
    }
    // Storages that are not what they are said to be.
    let mut builder = Builder::new(&tiny_scale());
    let pickle = builder.checkpoint(2).pickle();
    let mut short = builder.storages.clone();
    short[0].1.truncate(10);
    assert!(refusal(&archive(&pickle, &short, false)).contains("storage 0 has 10 bytes"));
    assert!(refusal(&archive(&pickle, &short[1..], false)).contains("tiny/data/0"));
    for class in ["LongStorage", "QUInt8Storage", "UntypedStorage"] {
        let key = P::Tensor(class, "0".into(), 8, 0, vec![8], vec![1]);
        refusal(&with_pickle(&dict(vec![("model", key)]).pickle()));
    }
    for key in ["../data.pkl", "", "/etc/passwd", "0/../1"] {
        let tensor = P::Tensor("FloatStorage", key.into(), 16, 0, vec![1], vec![1]);
        let message = refusal(&with_pickle(&dict(vec![("model", tensor)]).pickle()));
        assert!(message.contains("not named as torch does"), "{message}");
    }
}

#[test]
fn bombs_are_refused() {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    zip.start_file("tiny/data.pkl", options).unwrap();
    // 256 MiB of "push None, pop", in 256 KiB.
    let block = b"N0".repeat(1 << 19);
    zip.write_all(b"\x80\x02").unwrap();
    for _ in 0..256 {
        zip.write_all(&block).unwrap();
    }
    let mut bomb = zip.finish().unwrap().into_inner();
    assert!(bomb.len() < 2 << 20);
    assert!(refusal(&bomb).contains("larger than"));
    // The same with a small declared size, in the local header and in the directory.
    let size = (256u32 << 20) + 2;
    let mut at = 0;
    while let Some(found) = bomb[at..].windows(4).position(|w| w == size.to_le_bytes()) {
        bomb[at + found..at + found + 4].copy_from_slice(&64u32.to_le_bytes());
        at += found + 4;
    }
    println!("{}", refusal(&bomb));

    // A storage that unpacks to far more than the file could hold, and is said to.
    let mut builder = Builder::new(&tiny_scale());
    builder.first_storage = Some(1 << 27);
    let pickle = builder.checkpoint(2).pickle();
    builder.storages[0].1 = vec![0; 256 << 20];
    let message = refusal(&archive(&pickle, &builder.storages, true));
    assert!(message.contains("far more than the file's size"), "{message}");

    let mut builder = Builder::new(&tiny_scale());
    let pickle = builder.checkpoint(2).pickle();
    let mut storages = builder.storages.clone();
    storages[3].1 = vec![0; 64 << 20];
    // Only what the pickle uses is unpacked, so the excess does no harm.
    assert!(read(&archive(&pickle, &storages, true)).is_ok());
}

#[test]
fn relatives_are_refused_by_name() {
    let refused = |bytes: &[u8], words: &str| {
        let message = refusal(bytes);
        assert!(message.contains(words), "{message}");
    };
    refused(b"", "empty");
    refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "old (non-zip) format");
    refused(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS");
    refused(b"<!DOCTYPE html>", "HTML");
    refused(b"\x00\x01\x02", "unknown format");
    refused(&with_pickle(b"\x80\x02}."), "without a `model`");
    refused(
        &with_pickle(&dict(vec![("model", dict(vec![("a", P::Int(1))]))]).pickle()),
        "state dict",
    );

    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    for name in ["x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"] {
        zip.start_file(name, options).unwrap();
    }
    refused(&zip.finish().unwrap().into_inner(), "TorchScript");
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("word/document.xml", options).unwrap();
    refused(&zip.finish().unwrap().into_inner(), "without data.pkl");
}

#[test]
fn other_graphs_are_refused_by_name() {
    // Each edit turns the sound pickle into something that only resembles it.
    let sound = {
        let mut builder = Builder::new(&tiny_scale());
        (builder.checkpoint(2).pickle(), builder.storages)
    };
    let edited = |from: &str, to: &str| {
        let (pickle, storages) = &sound;
        let at = pickle.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut pickle = pickle.clone();
        pickle.splice(at..at + from.len(), to.bytes());
        refusal(&archive(&pickle, storages, false))
    };
    for (from, to, words) in [
        ("\nDetectionModel", "\nSegmentationModel", "a segment model"),
        ("\nDetectionModel", "\nPoseModel", "a pose model"),
        ("\nDetect\n", "\nOBB\n", "an oriented-box (OBB) model"),
        ("\nDetect\n", "\nv10Detect\n", "a YOLOv10 model"),
        ("\nC2f\n", "\nC3k2\n", "YOLO11"),
        ("\nC2f\n", "\nRepNCSPELAN4\n", "YOLOv9"),
        ("\nC2f\n", "\nC3\n", "YOLOv5"),
        ("\nSPPF\n", "\nSPPX\n", "layer 9 is SPPX where YOLOv8 has SPPF"),
        ("\nSiLU\n", "\nReLU\n", "another activation"),
        ("nearest", "bicubic", "scale or mode"),
    ] {
        let message = edited(from, to);
        assert!(message.contains(words), "{from} -> {to}: {message}");
    }
}

#[test]
fn safetensors_without_our_words_are_refused() {
    let model = read(&tiny(false)).unwrap();
    let good = model::write_safetensors(&model);
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(good[8..8 + header].to_vec()).unwrap();
    let with = |text: &str| {
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.bytes());
        file.extend(&good[8 + header..]);
        file
    };
    assert!(read(&with(&text)).is_ok());
    for (from, to, words) in [
        ("haul.model/1", "pt", "without haul's metadata"),
        ("haul.model/1", "haul.model/99", "does not know"),
        ("\"detect\"", "\"segment\"", "a segment model"),
        ("\"silu\"", "\"relu\"", "neither `silu` nor `identity`"),
        ("\"act\":", "\"acht\":", "`act` is missing"),
        ("\"0.001\"", "\"nan\"", "epsilon"),
        ("\"16\"", "\"8\"", "`reg_max`"),
        ("[8,16,32]", "[4,8,16]", "`strides`"),
        ("class 1\\\"]", "class 1\\\",\\\"x\\\"]", "3 class names"),
        ("\"320\"", "\"-1\"", "`imgsz`"),
        ("\"F16\"", "\"I16\"", "stored as I16"),
        ("model.4.m.1.cv1.bn.bias", "model.4.m.1.cv1.bn.bier", "is missing"),
        ("model.9.cv1.conv.weight", "model.9.cvx.conv.weight", "is missing"),
    ] {
        assert!(text.contains(from), "{from}");
        let message = refusal(&with(&text.replacen(from, to, 1)));
        assert!(message.contains(words), "{from} -> {to}: {message}");
    }
    let mut cut = 0;
    while cut < good.len() {
        refusal(&good[..cut]);
        cut += 1 + cut / 50;
    }
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    refusal(&huge);
    let mut wrong = good;
    let end = wrong.len();
    wrong[end - 2..].copy_from_slice(&0x7c00u16.to_le_bytes());
    assert!(refusal(&wrong).contains("NaN or infinity"));
}

#[test]
fn tensors_of_other_graphs_are_refused() {
    let mut weights = tiny_scale().weights();
    let extra = weights["model.0.bn.bias"].clone();
    weights.insert("model.23.cv1.conv.weight".into(), extra);
    let labels = vec!["a".into(), "b".into()];
    let error = Network::new(weights, labels, 1e-3, |_| Act::Silu).unwrap_err().to_string();
    assert!(error.contains("`model.23.cv1.conv.weight` has no place"), "{error}");
}

#[test]
fn names_of_classes_must_fit() {
    let mut builder = Builder::new(&tiny_scale());
    let checkpoint = builder.checkpoint(3);
    let message = refusal(&archive(&checkpoint.pickle(), &builder.storages, false));
    assert!(message.contains("2 classes but there are 3 class names"), "{message}");
}

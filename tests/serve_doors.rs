//! The same picture gives the same bytes through every door, and in a batch job.

mod common;
#[path = "common/served.rs"]
mod served;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::binary::{Haul, concatenated, testdata};
use serde_json::{Value, json};
use served::Served;
use tempfile::TempDir;

/// Every form of picture that there is, whole, cut in half and with a byte flipped, and what is no
/// picture at all.
struct Pictures {
    root: TempDir,
    names: Vec<String>,
}

impl Pictures {
    fn new() -> Pictures {
        let root = tempfile::tempdir().unwrap();
        let mut files: Vec<PathBuf> = Vec::new();
        for folder in ["forms", "pictures", "pictures/park"] {
            let entries = fs::read_dir(testdata(folder)).unwrap();
            let paths = entries.map(|entry| entry.unwrap().path());
            files.extend(paths.filter(|path| path.is_file()));
        }
        for file in files {
            // A batch job lists by suffix, and what a file is its bytes say.
            let name = format!("{}.jpg", file.file_name().unwrap().to_str().unwrap());
            let bytes = fs::read(&file).unwrap();
            let half = bytes.len() / 2;
            let mut flipped = bytes.clone();
            flipped[half] ^= 0x55;
            for (kind, bytes) in
                [("whole", &bytes[..]), ("half", &bytes[..half]), ("flipped", &flipped)]
            {
                let folder = root.path().join(kind);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(&name), bytes).unwrap();
            }
        }
        fs::write(root.path().join("empty.jpg"), "").unwrap();
        fs::write(root.path().join("text.jpg"), "This is a text.").unwrap();
        fs::write(root.path().join("short.jpg"), [0xff, 0xd8, 0xff]).unwrap();
        let mut names = Vec::new();
        for kind in [".", "whole", "half", "flipped"] {
            for entry in fs::read_dir(root.path().join(kind)).unwrap().map(|entry| entry.unwrap()) {
                if entry.path().is_file() {
                    let name = entry.file_name().into_string().unwrap();
                    names.push(if kind == "." { name } else { format!("{kind}/{name}") });
                }
            }
        }
        assert!(names.len() > 250, "{}", names.len());
        Pictures { root, names }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// What a batch job has to say about each, from behind its name on.
    fn batch(&self, settings: &[&str]) -> BTreeMap<String, String> {
        let out = tempfile::tempdir().unwrap();
        let ran = Haul::run(self.root.path(), &out.path().join("out")).args(settings).ran();
        assert_eq!(ran.code, 3, "some pictures are broken: {}", ran.stderr);
        let text = String::from_utf8(concatenated(&out.path().join("out"))).unwrap();
        let lines = text.lines().map(|line| {
            let name = serde_json::from_str::<Value>(line).unwrap()["image"].clone();
            (name.as_str().unwrap().to_owned(), behind_name(line).to_owned())
        });
        lines.collect()
    }
}

/// What does not depend on what a picture is called: raw text, since the bytes are the promise.
fn behind_name(line: &str) -> &str {
    let found = [r#""width":"#, r#""error":"#].iter().filter_map(|word| line.find(word)).min();
    &line[found.unwrap_or_else(|| panic!("this is no line: {line}"))..]
}

/// What a door answers for a picture, as the status of plain routes and the text behind the name.
type Door = fn(&Served, &Pictures, &str, &Asked) -> (u16, String);

/// All doors. The asynchronous one and Lambda's join here: each is one function more.
const DOORS: [(&str, Door); 6] = [
    ("bytes", bytes),
    ("JSON with base64", base64),
    ("JSON with a path", path),
    ("JSON with a path below the root", relative),
    ("SageMaker's runtime, bytes", runtime),
    ("SageMaker's runtime, JSON", runtime_json),
];

/// What is asked besides: the same in a query, and as flags of a batch job.
#[derive(Default)]
struct Asked {
    query: &'static str,
    members: Value,
    attributes: &'static str,
}

fn plain(served: &Served, target: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let reply = served.post(target, &[("Content-Type", kind)], body);
    let line = String::from_utf8(reply.body).unwrap();
    assert!(line.ends_with("\n") && line.matches('\n').count() == 1, "{line}");
    (reply.status, behind_name(line.trim_end()).to_owned())
}

fn document(asked: &Asked, member: &str, value: &str) -> Vec<u8> {
    let mut document = json!({ member: value });
    if let Some(members) = asked.members.as_object() {
        document.as_object_mut().unwrap().extend(members.clone());
    }
    document.to_string().into_bytes()
}

fn bytes(served: &Served, pictures: &Pictures, name: &str, asked: &Asked) -> (u16, String) {
    let target = format!("/invocations{}", asked.query);
    plain(served, &target, "application/x-image", &pictures.bytes(name))
}

fn base64(served: &Served, pictures: &Pictures, name: &str, asked: &Asked) -> (u16, String) {
    let body = document(asked, "bytes", &STANDARD.encode(pictures.bytes(name)));
    plain(served, "/invocations", "application/json", &body)
}

fn path(served: &Served, pictures: &Pictures, name: &str, asked: &Asked) -> (u16, String) {
    let body = document(asked, "location", pictures.path(name).to_str().unwrap());
    plain(served, "/invocations", "application/json", &body)
}

fn relative(served: &Served, _: &Pictures, name: &str, asked: &Asked) -> (u16, String) {
    plain(served, "/invocations", "application/json", &document(asked, "location", name))
}

fn of_runtime(served: &Served, asked: &Asked, kind: &str, body: &[u8]) -> (u16, String) {
    let mut headers = vec![("Content-Type", kind)];
    if !asked.attributes.is_empty() {
        headers.push(("X-Amzn-SageMaker-Custom-Attributes", asked.attributes));
    }
    let reply = served.post("/endpoints/shapes/invocations", &headers, body);
    if reply.status == 200 {
        let line = String::from_utf8(reply.body).unwrap();
        return (200, behind_name(line.trim_end()).to_owned());
    }
    // What a container of ours says is passed on as SageMaker does it.
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (424, Some("ModelError")));
    let said = reply.json();
    assert_eq!(said["ErrorCode"], "CLIENT_ERROR_FROM_MODEL");
    let status = u16::try_from(said["OriginalStatusCode"].as_u64().unwrap()).unwrap();
    (status, behind_name(said["OriginalMessage"].as_str().unwrap()).to_owned())
}

fn runtime(served: &Served, pictures: &Pictures, name: &str, asked: &Asked) -> (u16, String) {
    of_runtime(served, asked, "image/jpeg", &pictures.bytes(name))
}

fn runtime_json(served: &Served, pictures: &Pictures, name: &str, asked: &Asked) -> (u16, String) {
    let body = document(asked, "bytes", &STANDARD.encode(pictures.bytes(name)));
    let quiet = Asked { attributes: "", ..Asked::default() };
    of_runtime(served, &quiet, "application/json", &body)
}

fn serve(root: &Path, workers: usize) -> Served {
    let workers = workers.to_string();
    Served::start(&["--workers", &workers, "--root", root.to_str().unwrap()])
}

#[track_caller]
fn is_as(door: &str, name: &str, answered: &(u16, String), expected: &str) {
    let (status, text) = answered;
    assert_eq!(text, expected, "{door}, {name}");
    let wanted = if expected.starts_with(r#""error":"#) { 400 } else { 200 };
    assert_eq!(*status, wanted, "{door}, {name}: {text}");
}

#[test]
fn every_picture_gets_the_same_bytes_through_every_door() {
    let pictures = Pictures::new();
    let batch = pictures.batch(&[]);
    assert_eq!(batch.len(), pictures.names.len());
    let failed = batch.values().filter(|text| text.starts_with(r#""error":"#)).count();
    let found = batch.values().filter(|text| text.contains(r#""score":"#)).count();
    assert!(failed > 50 && found > 10, "{failed} failed, {found} have something in them");
    let served = serve(pictures.root.path(), 2);
    for (door, answer) in DOORS {
        for name in &pictures.names {
            let answered = answer(&served, &pictures, name, &Asked::default());
            is_as(door, name, &answered, &batch[name]);
        }
    }
    served.stop();
}

#[test]
fn workers_and_neighbours_do_not_show() {
    let pictures = Pictures::new();
    let batch = pictures.batch(&["--workers", "1"]);
    for workers in [1, 2, 4] {
        let served = serve(pictures.root.path(), workers);
        // Each client begins elsewhere, so that the neighbours of a picture differ.
        let compared = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for client in 0..8 {
                let (served, pictures, batch, compared) = (&served, &pictures, &batch, &compared);
                scope.spawn(move || {
                    let (door, answer) = DOORS[client % DOORS.len()];
                    let names = pictures.names.iter().cycle().skip(client * 31);
                    for name in names.take(pictures.names.len()).step_by(3) {
                        let answered = answer(served, pictures, name, &Asked::default());
                        is_as(door, name, &answered, &batch[name]);
                        compared.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(compared.into_inner() > 8 * 80, "the clients did not get through");
        served.stop();
    }
}

#[test]
fn what_is_asked_means_the_same_through_every_door() {
    let pictures = Pictures::new();
    let batch = pictures.batch(&[
        "--conf",
        "0.1",
        "--iou",
        "0.2",
        "--max-det",
        "3",
        "--classes",
        "boat,house",
        "--boxes",
        "normalized",
    ]);
    let asked = Asked {
        query: "?conf=0.1&iou=0.2&max_det=3&classes=boat,house&boxes=normalized",
        members: json!({
            "conf": 0.1, "iou": 0.2, "max_det": 3, "classes": ["boat", "house"],
            "boxes": "normalized",
        }),
        attributes: "mine=1; haul-conf=0.1; haul-iou=0.2; haul-max-det=3; \
                     haul-classes=boat,house; haul-boxes=normalized",
    };
    let plain = pictures.batch(&[]);
    assert_ne!(plain, batch, "nothing of what is asked shows");
    let served = serve(pictures.root.path(), 2);
    for (door, answer) in DOORS {
        for name in pictures.names.iter().filter(|name| name.starts_with("whole/")) {
            is_as(door, name, &answer(&served, &pictures, name, &asked), &batch[name]);
        }
    }
    served.stop();
}

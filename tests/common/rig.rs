//! A bucket on a real S3 server, a folder to compare it with, and the binary on both.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use haul::job::Line;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::binary::{Haul, fill, model, parts, success};
use crate::s3::Bucket;

pub(crate) type Parts = BTreeMap<String, Vec<u8>>;

/// A bucket, and a folder for what is compared with it.
pub(crate) struct Rig {
    pub(crate) bucket: Bucket,
    pub(crate) dir: TempDir,
}

/// Runs a test where there is a server. What it leaves behind in the bucket holds no secret.
pub(crate) fn with_server(test: impl FnOnce(&Rig)) {
    let Some(bucket) = Bucket::new() else { return };
    let rig = Rig { bucket, dir: tempfile::tempdir().unwrap() };
    test(&rig);
    for key in rig.bucket.keys("") {
        assert!(!rig.tells(&rig.bucket.get(&key).unwrap()), "`{key}` holds the secret key");
    }
}

impl Rig {
    /// An address in the bucket.
    pub(crate) fn at(&self, key: &str) -> PathBuf {
        format!("s3://{}/{key}", self.bucket.name).into()
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn told(&self, haul: Haul) -> Haul {
        let haul = haul.without_env(&["AWS_PROFILE", "AWS_SESSION_TOKEN"]);
        let haul = haul.env("XDG_STATE_HOME", self.path("state").to_str().unwrap());
        self.bucket.variables().iter().fold(haul, |haul, (name, value)| haul.env(name, value))
    }

    pub(crate) fn haul(&self, command: &str) -> Haul {
        self.told(Haul::new(command))
    }

    /// Mini-batches of two pictures, in the arithmetic that the slow kernels have too.
    pub(crate) fn run(&self, input: &Path, out: &Path) -> Haul {
        self.told(Haul::run(input, out)).args(["--max-images", "2", "--precision", "f32"])
    }

    /// A run at half a second a picture, which is still going when somebody looks.
    pub(crate) fn slow(&self, out: &str) -> Haul {
        let run = self.run(&self.at("in/"), &self.at(out)).slowly();
        run.args(["--imgsz", "160", "--workers", "1"])
    }

    /// The same settings.
    pub(crate) fn plan(&self, input: &Path, out: &Path) -> Haul {
        let plan = self.haul("plan").arg("--model").arg(model()).args(["--imgsz", "64"]);
        let plan = plan.args(["--max-images", "2", "--precision", "f32", "--workers", "2"]);
        plan.arg("--input").arg(input).arg("--output").arg(out)
    }

    /// Puts a folder's files under a prefix.
    pub(crate) fn upload(&self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let key = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => self.upload(&entry.path(), &format!("{key}/")),
                false => self.bucket.put(&key, &fs::read(entry.path()).unwrap()),
            }
        }
    }

    /// Changes a picture in the folder and in the bucket.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self.bucket.put(key, bytes);
    }

    pub(crate) fn remove(&self, key: &str) {
        fs::remove_file(self.path(key)).unwrap();
        self.bucket.delete(key);
    }

    /// So many pictures in the folder `in` and under the prefix `in/`, the second of them broken.
    pub(crate) fn pictures(&self, count: usize) {
        fill(&self.path("in"), 0..count);
        fs::write(self.path("in/1/00001.png"), b"no picture").unwrap();
        self.upload(&self.path("in"), "in/");
    }

    /// The parts of an output, wherever it lies.
    pub(crate) fn parts(&self, out: &Path) -> Parts {
        let prefix = self.at("");
        let Ok(key) = out.strip_prefix(&prefix) else { return parts(out) };
        let key = format!("{}/", key.to_str().unwrap().trim_end_matches('/'));
        let keys = self.bucket.keys(&format!("{key}part-"));
        let read = |name: &String| (name[key.len()..].to_owned(), self.bucket.get(name).unwrap());
        keys.iter().map(read).collect()
    }

    /// The lines of an output in the bucket, by what `image` says.
    pub(crate) fn lines(&self, out: &str) -> BTreeMap<String, Line> {
        let text: Vec<u8> = self.parts(&self.at(out)).into_values().flatten().collect();
        let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Line::parse(line).unwrap()).map(|l| (l.image.clone(), l)).collect()
    }

    pub(crate) fn json(&self, key: &str) -> Value {
        serde_json::from_slice(&self.bucket.get(key).expect(key)).unwrap()
    }

    /// That an output in the bucket is finished and what the one in the folder is.
    #[track_caller]
    pub(crate) fn is_as(&self, out: &str, local: &Path) {
        self.is_shared(out, local);
        let state = self.json(&format!("{out}_manifest/lock"))["state"].clone();
        assert_eq!(state, "released", "of `{out}`");
    }

    /// The same, where nobody need have had all of it.
    #[track_caller]
    pub(crate) fn is_shared(&self, out: &str, local: &Path) {
        assert!(self.parts(&self.at(out)) == parts(local), "the parts in `{out}` differ");
        let (one, two) = (self.json(&format!("{out}_SUCCESS.json")), success(local));
        for field in ["planned", "ok", "failed", "parts", "parts_sha256"] {
            assert_eq!(one[field], two[field], "{field}");
        }
        let code = if one["failed"] == 0 { 0 } else { 3 };
        self.haul("verify").arg(self.at(out)).exits(code);
    }

    /// Takes objects of an output away, as a kill would have kept them from being there.
    pub(crate) fn unfinish(&self, out: &str, names: &[&str]) {
        self.bucket.delete(&format!("{out}_SUCCESS.json"));
        names.iter().for_each(|name| self.bucket.delete(&format!("{out}{name}")));
    }

    /// Waits until a run has written an object; fails if it ends before, or takes too long.
    #[track_caller]
    pub(crate) fn wait_for(&self, key: &str, child: &mut Child) {
        let start = Instant::now();
        while self.bucket.get(key).is_none() {
            assert!(child.try_wait().unwrap().is_none(), "haul ended without {key}");
            assert!(start.elapsed().as_secs() < 120, "no {key} in two minutes");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether bytes hold the secret key.
    pub(crate) fn tells(&self, bytes: &[u8]) -> bool {
        let variables = self.bucket.variables();
        let secret = variables.iter().find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY").unwrap().1;
        bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
    }
}

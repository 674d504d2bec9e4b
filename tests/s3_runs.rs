//! The binary as its users run it, on a real S3 server. Whatever a job reads from and writes to, its
//! parts are those of a run on folders. Without a server (`HAUL_TEST_S3_ENDPOINT`), each test says so
//! and passes.

mod common;
#[path = "common/s3.rs"]
mod s3;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use common::binary::{Haul, Ran, by_image, fill, model, parts, success, testdata};
use haul::job::Line;
use s3::Bucket;
use serde_json::Value;
use tempfile::TempDir;

type Parts = BTreeMap<String, Vec<u8>>;

/// A bucket, and a folder for what is compared with it.
struct Rig {
    bucket: Bucket,
    dir: TempDir,
}

/// Runs a test where there is a server. What it leaves behind in the bucket holds no secret.
fn with_server(test: impl FnOnce(&Rig)) {
    let Some(bucket) = Bucket::new() else { return };
    let rig = Rig { bucket, dir: tempfile::tempdir().unwrap() };
    test(&rig);
    for key in rig.bucket.keys("") {
        assert!(!rig.tells(&rig.bucket.get(&key).unwrap()), "`{key}` holds the secret key");
    }
}

impl Rig {
    /// An address in the bucket.
    fn at(&self, key: &str) -> PathBuf {
        format!("s3://{}/{key}", self.bucket.name).into()
    }

    /// A path in the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn told(&self, haul: Haul) -> Haul {
        let haul = haul.without_env(&["AWS_PROFILE", "AWS_SESSION_TOKEN"]);
        let haul = haul.env("XDG_STATE_HOME", self.path("state").to_str().unwrap());
        self.bucket.variables().iter().fold(haul, |haul, (name, value)| haul.env(name, value))
    }

    fn haul(&self, command: &str) -> Haul {
        self.told(Haul::new(command))
    }

    /// Mini-batches of two pictures, in the arithmetic that the slow kernels have too.
    fn run(&self, input: &Path, out: &Path) -> Haul {
        self.told(Haul::run(input, out)).args(["--max-images", "2", "--precision", "f32"])
    }

    /// The same settings.
    fn plan(&self, input: &Path, out: &Path) -> Haul {
        let plan = self.haul("plan").arg("--model").arg(model()).args(["--imgsz", "64"]);
        let plan = plan.args(["--max-images", "2", "--precision", "f32", "--workers", "2"]);
        plan.arg("--input").arg(input).arg("--output").arg(out)
    }

    /// Puts a folder's files under a prefix.
    fn upload(&self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let key = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => self.upload(&entry.path(), &format!("{key}/")),
                false => self.bucket.put(&key, &fs::read(entry.path()).unwrap()),
            }
        }
    }

    /// Changes a picture in the folder and in the bucket.
    fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self.bucket.put(key, bytes);
    }

    fn remove(&self, key: &str) {
        fs::remove_file(self.path(key)).unwrap();
        self.bucket.delete(key);
    }

    /// So many pictures in the folder `in` and under the prefix `in/`, the second of them broken.
    fn pictures(&self, count: usize) {
        fill(&self.path("in"), 0..count);
        fs::write(self.path("in/1/00001.png"), b"no picture").unwrap();
        self.upload(&self.path("in"), "in/");
    }

    /// The parts of an output, wherever it lies.
    fn parts(&self, out: &Path) -> Parts {
        let prefix = self.at("");
        let Ok(key) = out.strip_prefix(&prefix) else { return parts(out) };
        let key = format!("{}/", key.to_str().unwrap().trim_end_matches('/'));
        let keys = self.bucket.keys(&format!("{key}part-"));
        let read = |name: &String| (name[key.len()..].to_owned(), self.bucket.get(name).unwrap());
        keys.iter().map(read).collect()
    }

    /// The lines of an output in the bucket, by what `image` says.
    fn lines(&self, out: &str) -> BTreeMap<String, Line> {
        let text: Vec<u8> = self.parts(&self.at(out)).into_values().flatten().collect();
        let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Line::parse(line).unwrap()).map(|l| (l.image.clone(), l)).collect()
    }

    fn json(&self, key: &str) -> Value {
        serde_json::from_slice(&self.bucket.get(key).expect(key)).unwrap()
    }

    /// That an output in the bucket is finished and what the one in the folder is.
    #[track_caller]
    fn is_as(&self, out: &str, local: &Path) {
        assert!(self.parts(&self.at(out)) == parts(local), "the parts in `{out}` differ");
        let (one, two) = (self.json(&format!("{out}_SUCCESS.json")), success(local));
        for field in ["planned", "ok", "failed", "parts", "parts_sha256"] {
            assert_eq!(one[field], two[field], "{field}");
        }
        let code = if one["failed"] == 0 { 0 } else { 3 };
        self.haul("verify").arg(self.at(out)).exits(code);
        let state = self.json(&format!("{out}_manifest/lock"))["state"].clone();
        assert_eq!(state, "released", "of `{out}`");
    }

    /// Takes objects of an output away, as a kill would have kept them from being there.
    fn unfinish(&self, out: &str, names: &[&str]) {
        self.bucket.delete(&format!("{out}_SUCCESS.json"));
        names.iter().for_each(|name| self.bucket.delete(&format!("{out}{name}")));
    }

    /// Waits until a run has written an object; fails if it ends before, or takes too long.
    #[track_caller]
    fn wait_for(&self, key: &str, child: &mut Child) {
        let start = Instant::now();
        while self.bucket.get(key).is_none() {
            assert!(child.try_wait().unwrap().is_none(), "haul ended without {key}");
            assert!(start.elapsed().as_secs() < 120, "no {key} in two minutes");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether bytes hold the secret key.
    fn tells(&self, bytes: &[u8]) -> bool {
        let variables = self.bucket.variables();
        let secret = variables.iter().find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY").unwrap().1;
        bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
    }
}

fn finish(child: Child) -> Ran {
    Ran::of(child.wait_with_output().unwrap())
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

fn sea() -> Vec<u8> {
    fs::read(testdata("pictures/sea.jpg")).unwrap()
}

#[test]
fn buckets_and_folders_give_the_same_bytes() {
    with_server(|rig| {
        rig.pictures(5);
        for name in ["balloons.jpg", "phone.jpg", "table.png"] {
            rig.put(&format!("in/{name}"), &fs::read(testdata("pictures").join(name)).unwrap());
        }
        let run = |input: &Path, out: &Path| rig.run(input, out).args(["--imgsz", "160"]);
        let (photos, bucket) = (rig.path("in"), rig.at("in/"));
        let whole = rig.path("whole");
        let ran = run(&photos, &whole).exits(3);
        assert!(!ran.stderr.contains("S3: "), "{}", ran.stderr);
        run(&bucket, &rig.at("out/")).exits(3).says("\nS3: ");
        rig.is_as("out/", &whole);
        run(&photos, &rig.at("from-folder/")).exits(3).says("\nS3: ");
        rig.is_as("from-folder/", &whole);
        run(&bucket, &rig.path("to-folder")).exits(3).says("\nS3: ");
        assert!(parts(&rig.path("to-folder")) == parts(&whole));
        assert!(by_image(&whole).values().any(|l| l.detections.iter().flatten().count() > 0));

        for (number, options) in [
            &["--compress", "zstd"][..],
            &["--boxes", "normalized"],
            &["--sample", "4", "--seed", "3"],
            &["--limit", "3"],
        ]
        .into_iter()
        .enumerate()
        {
            let (out, local) = (format!("{number}/"), rig.path(&number.to_string()));
            let code = run(&photos, &local).args(options).ran().code;
            run(&bucket, &rig.at(&out)).args(options).exits(code);
            rig.is_as(&out, &local);
            assert!(parts(&local) != parts(&whole), "{options:?} do nothing");
        }
    });
}

#[test]
fn lists_tables_and_manifests_name_objects() {
    with_server(|rig| {
        rig.pictures(5);
        rig.put("in/late.dat", &sea());
        let names = "late.dat\n0/00003.jpg\nnever.jpg\n1/00001.png\n";
        rig.put("in/list.txt", names.as_bytes());
        rig.put("in/table.csv", b"file,site\n2/00002.jpg,\"A, \xc3\xbc\"\nnever.jpg,B\n");
        let same = |input: &str| {
            let out = format!("of-{input}/");
            rig.run(&rig.path("in").join(input), &rig.path(&out)).exits(3);
            let ran = rig.run(&rig.at("in/").join(input), &rig.at(&out)).exits(3);
            ran.says("\nS3: ");
            rig.is_as(&out, &rig.path(&out));
        };
        same("list.txt");
        same("table.csv");
        assert!(rig.lines("of-table.csv/")["2/00002.jpg"].meta.is_some());

        // A manifest's pictures are where its prefix says, wherever it lies itself.
        let manifest =
            |prefix: &Path| format!("[{{\"prefix\":{prefix:?}}},\"0.jpg\",\"3.jpg\",\"7.jpg\"]");
        let local = rig.path("local.manifest");
        fs::write(&local, manifest(&rig.path("in/0/0000"))).unwrap();
        rig.run(&local, &rig.path("of-local")).exits(3);
        let there = manifest(&rig.at("in/0/0000"));
        rig.bucket.put("lists/there.json", there.as_bytes());
        rig.run(&rig.at("lists/there.json"), &rig.at("of-there/")).exits(3).says("\nS3: ");
        rig.is_as("of-there/", &rig.path("of-local"));
        fs::write(&local, there).unwrap();
        let (out, folder) = (rig.at("of-here/"), rig.path("of-here"));
        rig.run(&local, &out).exits(3).says("\nS3: ");
        rig.is_as("of-here/", &rig.path("of-local"));
        rig.run(&local, &folder).exits(3).says("\nS3: ");
        assert!(parts(&folder) == parts(&rig.path("of-local")));
    });
}

#[test]
fn what_is_planned_under_a_prefix() {
    with_server(|rig| {
        rig.pictures(3);
        for key in ["in/.hidden.jpg", "in/.folder/a.jpg", "in/skip/a.jpg", "in/notes.txt"] {
            rig.put(key, &sea());
        }
        rig.bucket.put("in/0/", b"");
        rig.bucket.put("in/empty/", b"");
        let run = |input: &Path, out: &Path| rig.run(input, out).args(["--exclude", "skip/*"]);
        // The output lies in the input, and is none.
        let (input, out) = (rig.at("in/"), rig.at("in/out/"));
        run(&rig.path("in"), &rig.path("in/out")).exits(3);
        run(&input, &out).exits(3).says("2 ").says("hidden");
        rig.is_as("in/out/", &rig.path("in/out"));
        assert_eq!(rig.json("in/out/_SUCCESS.json")["planned"], 3);
        rig.bucket.put("in/out/x.jpg", &sea());
        run(&input, &out).exits(3).says("is finished, and nothing is new");
        run(&rig.path("in"), &rig.path("hidden")).arg("--hidden").exits(3);
        run(&input, &rig.at("hidden/")).arg("--hidden").exits(3);
        // The other output is input there, in the folder as in the bucket.
        assert_eq!(
            rig.json("hidden/_SUCCESS.json")["planned"].as_u64().unwrap(),
            success(&rig.path("hidden"))["planned"].as_u64().unwrap() + 1
        );
        rig.run(&input, &rig.at("in")).exits(2).says("are the same prefix");
        rig.run(&input, &input).exits(2).says("are the same prefix");
        rig.run(&rig.at("none/"), &rig.at("nothing/")).exits(5).says("no picture");
        assert_eq!(rig.bucket.keys("nothing/_manifest/job"), [""; 0]);
    });
}

#[test]
fn every_command_works_on_an_output_in_a_bucket() {
    with_server(|rig| {
        rig.pictures(7);
        let (photos, input) = (rig.path("in"), rig.at("in/"));
        let (local, out) = (rig.path("out"), rig.at("out/"));
        // A dry run writes nothing.
        let dry = |input: &Path, out: &Path| {
            report(&rig.plan(input, out).args(["--dry-run", "--json"]).exits(0))["plan"].clone()
        };
        let (one, two) = (dry(&input, &out), dry(&photos, &local));
        assert_eq!((&one["pictures"], &one["bytes"]), (&two["pictures"], &two["bytes"]));
        assert_eq!(rig.bucket.keys("out/"), [""; 0]);

        rig.haul("status").arg(&out).exits(2);
        rig.plan(&input, &out).exits(0).says("7 pictures");
        rig.haul("status").arg(&out).exits(75);
        rig.haul("verify").arg(&out).exits(75);
        rig.haul("export").arg(&out).args(["--to", "csv"]).exits(2);
        // From anywhere.
        let elsewhere = tempfile::tempdir().unwrap();
        rig.haul("resume").arg(&out).in_folder(elsewhere.path()).exits(3);
        rig.run(&photos, &local).exits(3);
        rig.is_as("out/", &local);

        let status = |out: &Path, flag: &str| rig.haul("status").arg(out).arg(flag).exits(3).stdout;
        let (one, two) = (status(&out, "--json"), status(&local, "--json"));
        assert_eq!(one, two);
        // All but how long each took, and where.
        let columns = |table: String| -> Vec<String> {
            let first = |line: &str| line.split(',').take(9).collect::<Vec<_>>().join(",");
            table.lines().map(first).collect()
        };
        let table = columns(status(&out, "--csv"));
        assert_eq!((&table, table.len()), (&columns(status(&local, "--csv")), 5));
        let export = |out: &Path, to: &str| {
            let to = rig.path(to);
            rig.haul("export").arg(out).args(["--to", "coco", "--dest"]).arg(&to).exits(0);
            fs::read(to).unwrap()
        };
        assert!(export(&out, "one.json") == export(&local, "two.json"));

        // One line that is another: verify names it.
        let key = "out/part-00000001.jsonl";
        let whole = rig.bucket.get(key).unwrap();
        rig.bucket.put(key, &[&whole[..], b"{}\n"].concat());
        let ran = rig.haul("verify").arg(&out).exits(1);
        assert!(ran.stderr.contains("part-00000001.jsonl"), "{}", ran.stderr);
        rig.bucket.put(key, &whole);

        // Started over, with other settings, and back.
        rig.run(&input, &out).args(["--conf", "0.6"]).exits(2).says("conf was 0.25, is 0.6");
        rig.run(&input, &out).args(["--conf", "0.6", "--new", "--limit", "1"]).exits(0);
        assert_eq!(rig.parts(&out).len(), 1);
        rig.run(&input, &out).arg("--new").exits(3);
        rig.is_as("out/", &local);

        // And once the input has moved on.
        rig.haul("resume").arg(&out).exits(3).says("is finished");
        rig.put("in/9/new.jpg", &sea());
        rig.put("in/2/00002.jpg", &sea());
        rig.remove("in/0/00003.jpg");
        let says = "1 new, 1 changed and 1 gone pictures";
        rig.run(&input, &out).exits(2).says(says);
        rig.run(&photos, &local).exits(2).says(says);
        rig.haul("resume").arg(&out).exits(3).says("is finished");
    });
}

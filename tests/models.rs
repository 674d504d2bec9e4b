//! Models in archives and in buckets: the same weights are the same model however they are wrapped.

mod common;

use std::io::Write;
use std::path::Path;

use common::binary::{Haul, concatenated, folder, model};
use flate2::Compression;
use flate2::write::GzEncoder;
use haul::model::{ModelError, ModelFile, read, read_bytes};
use haul::store::S3Options;
use tar::{Builder, EntryType, Header};

fn weights() -> Vec<u8> {
    std::fs::read(model()).unwrap()
}

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o644);
    header
}

/// An archive of files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = header(EntryType::Regular, bytes.len());
        // `Builder` takes no name with `..` in it or a slash before it.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
    gzip(&archive(files))
}

#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    let start = std::time::Instant::now();
    let error = read_bytes(bytes, Path::new("model.tar.gz")).unwrap_err().to_string();
    for word in words.iter().chain(&["`model.tar.gz"]) {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    assert!(start.elapsed().as_secs() < 10, "{error} took {:?}", start.elapsed());
}

#[test]
fn the_checkpoint_in_an_archive_is_the_checkpoint() {
    let weights = weights();
    let sha256 = read(&model()).unwrap().sha256;
    let code: &[u8] = b"import torch";
    let long = format!("{}/model.safetensors", "folder".repeat(20));
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header(EntryType::Regular, weights.len()), &long, &*weights).unwrap();
    let long = builder.into_inner().unwrap();
    for (what, bytes) in [
        ("alone", tarball(&[("model.safetensors", &weights)])),
        ("its suffix in capitals", tarball(&[("./M.SAFETENSORS", &weights)])),
        (
            "among other files",
            tarball(&[
                ("code/inference.py", code),
                ("code/requirements.txt", b""),
                ("a/b/model.safetensors", &weights),
                ("a/b/._model.safetensors", b"what macOS puts there"),
                ("notes.txt", code),
            ]),
        ),
        ("outside", tarball(&[("../../etc/model.safetensors", &weights)])),
        ("absolute", tarball(&[("/etc/model.safetensors", &weights)])),
        ("not compressed", archive(&[("model.safetensors", &weights)])),
        ("with a long name", gzip(&long)),
        ("in two members of gzip", [gzip(&long[..5000]), gzip(&long[5000..])].concat()),
    ] {
        let model = read_bytes(&bytes, Path::new("model.tar.gz"));
        let model = model.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(model.sha256, sha256, "{what}");
        assert_eq!(model.info.imgsz, read(&common::binary::model()).unwrap().info.imgsz);
    }
}

#[test]
fn an_archive_has_one_checkpoint() {
    let weights = weights();
    let two = tarball(&[("a.safetensors", &weights), ("code/b.pt", b"PK")]);
    refused(&two, &["two checkpoints, `a.safetensors` and `code/b.pt`"]);
    refused(&tarball(&[("a.txt", b"a"), ("model.onnx", b"")]), &["without a .pt or .safetensors"]);
    refused(&tarball(&[]), &["without a .pt or .safetensors"]);
    refused(&archive(&[("storages", b""), ("pickle", b"")]), &["torch's old tar format"]);
    // What is wrong with it is said of it.
    refused(&tarball(&[("x/a.pt", b"nothing")]), &["`model.tar.gz: x/a.pt` is of an unknown"]);
    refused(&tarball(&[("a\n.pt", b"")]), &["a\\n.pt` is empty"]);
    // An archive in an archive is none.
    refused(&tarball(&[("a.pt", &tarball(&[("a.pt", &weights)]))]), &["a.pt` is a gzip file"]);
}

#[test]
fn a_checkpoint_is_a_plain_file() {
    for (kind, words) in [
        (EntryType::Symlink, "is a link"),
        (EntryType::Link, "is a link"),
        (EntryType::Char, "is no file"),
        (EntryType::Block, "is no file"),
        (EntryType::Fifo, "is no file"),
        (EntryType::GNUSparse, "stored with holes"),
    ] {
        let mut builder = Builder::new(Vec::new());
        let mut header = header(kind, 0);
        header.set_path("m.pt").unwrap();
        header.as_gnu_mut().unwrap().set_real_size(0);
        if kind == EntryType::Symlink || kind == EntryType::Link {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        refused(&gzip(&builder.into_inner().unwrap()), &["m.pt", words]);
    }
    // Links and folders beside it are nobody's business, whatever they are called.
    let mut builder = Builder::new(Vec::new());
    for (kind, name) in [(EntryType::Symlink, "latest"), (EntryType::Directory, "old.pt/")] {
        let mut header = header(kind, 0);
        header.set_path(name).unwrap();
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    }
    let weights = weights();
    let mut header = header(EntryType::Regular, weights.len());
    builder.append_data(&mut header, "m.safetensors", &*weights).unwrap();
    read_bytes(&gzip(&builder.into_inner().unwrap()), Path::new("m")).unwrap();
}

/// An archive whose one member claims a size, with so many zeros behind it, as gzip.
fn claims(name: &str, kind: EntryType, size: u64, zeros: u64) -> Vec<u8> {
    let mut header = header(kind, 0);
    header.set_path(name).unwrap();
    header.set_size(size);
    header.set_cksum();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(header.as_bytes()).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bombs_go_off_nowhere() {
    let gib = 1 << 30;
    refused(&claims("m.pt", EntryType::Regular, gib, gib), &["far more than the file's size"]);
    refused(&claims("m.pt", EntryType::Regular, u64::MAX >> 2, 100), &["far more"]);
    refused(&claims("m.pt", EntryType::Regular, 1 << 20, 100), &["ends after 100 of 1048576"]);
    // What a name may have, `tar` would keep in memory.
    refused(&claims("x", EntryType::GNULongName, gib, gib), &["names in it are too long"]);
    refused(&claims("x", EntryType::XHeader, gib, gib), &["names in it are too long"]);
    // What is passed over costs no memory.
    refused(&claims("zeros", EntryType::Regular, gib, gib), &["without a .pt"]);
    refused(&claims("zeros", EntryType::Regular, u64::MAX >> 2, 100), &["cannot be unpacked"]);
    let members = archive(&[("a", b"")]).repeat(1)[..512].repeat(100_001);
    refused(&gzip(&members), &["over 100000 members"]);
}

#[test]
fn a_damaged_archive_is_an_error() {
    let weights = weights();
    let whole = tarball(&[("code/a.py", b"a"), ("m.safetensors", &weights)]);
    for cut in [3, 12, 100, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
        refused(&whole[..cut], &["cannot be unpacked"]);
    }
    let mut wrong = whole.clone();
    *wrong.iter_mut().rev().nth(5).unwrap() ^= 1;
    refused(&wrong, &["cannot be unpacked"]);
    refused(&[&whole[..], b"behind it"].concat(), &["cannot be unpacked"]);
    refused(&gzip(b"just text"), &["something else than a tar archive"]);
    refused(&gzip(&weights), &["something else than a tar archive"]);
    refused(&gzip(b""), &["without a .pt"]);
    refused(b"\x1f\x8b\x08garbage", &["cannot be unpacked"]);
    let plain = archive(&[("m.safetensors", &weights)]);
    refused(&plain[..plain.len() / 2], &["of 1865320 bytes"]);
}

#[test]
fn a_job_is_the_same_with_an_archive() {
    let (pictures, home) = (folder(4), tempfile::tempdir().unwrap());
    let out = home.path().join("out");
    let file = home.path().join("model.tar.gz");
    std::fs::write(&file, tarball(&[("code/a.py", b"a"), ("m.safetensors", &weights())])).unwrap();
    Haul::run(pictures.path(), &out).exits(0);
    let lines = concatenated(&out);
    let model_of = |file: &Path| {
        let paths = [("--model", file), ("--input", pictures.path()), ("--output", &out)];
        let haul =
            paths.iter().fold(Haul::new("run").args(["--imgsz", "64"]), |haul, (flag, path)| {
                haul.arg(flag).arg(path)
            });
        haul.exits(0)
    };
    model_of(&file).says("nothing is new");
    assert_eq!(concatenated(&out), lines);
    let inspect = |file: &Path| Haul::new("model").arg("inspect").arg(file).exits(0).stdout;
    let after = |text: String| text.split_once('\n').unwrap().1.to_owned();
    assert_eq!(after(inspect(&file)), after(inspect(&model())));
    Haul::new("doctor").arg("--model").arg(&file).exits(0);
    // Its pack lies beside it like any other's.
    Haul::new("model").arg("pack").arg(&file).exits(0);
    let doctor = Haul::new("doctor").arg("--model").arg(&file).exits(0);
    assert!(doctor.stdout.contains("model.tar.gz."), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("whole"), "{}", doctor.stdout);
}

#[test]
fn other_addresses_are_no_models() {
    for (name, words) in [
        ("https://example.com/m.pt", "files, folders and s3:// only"),
        ("s3://", "names no bucket"),
        ("gs://b/m.pt", "files, folders and s3:// only"),
    ] {
        let error = ModelFile::find(Path::new(name), &S3Options::default()).unwrap_err();
        assert!(matches!(error, ModelError::Address(_)), "{error}");
        Haul::new("model").args(["inspect", name]).exits(2).says(words);
        Haul::new("doctor").args(["--model", name]).exits(2).says(words);
        Haul::new("bench").args(["--images", ".", "--model", name]).exits(2);
    }
}

/// A bucket on the server that the environment names, with what was put into it.
struct Bucket {
    name: String,
    runtime: tokio::runtime::Runtime,
    client: aws_sdk_s3::Client,
    variables: Vec<(&'static str, String)>,
}

impl Bucket {
    /// `None`, and a word why, without such a server.
    fn new() -> Option<Bucket> {
        use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
        use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
        let said = |name: &str| std::env::var(format!("HAUL_TEST_S3_{name}")).ok();
        let Some(endpoint) = said("ENDPOINT") else {
            println!("skipped: HAUL_TEST_S3_ENDPOINT is not set");
            return None;
        };
        let region = said("REGION").unwrap_or("us-east-1".into());
        let (key, secret) = (said("KEY").unwrap(), said("SECRET").unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .endpoint_url(&endpoint)
            .force_path_style(true)
            .region(Region::new(region.clone()))
            .credentials_provider(Credentials::new(&key, &secret, None, None, "test"))
            .build();
        let client = aws_sdk_s3::Client::from_conf(config);
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let name = format!("haul-models-{}-{nanos}", std::process::id());
        runtime.block_on(client.create_bucket().bucket(&name).send()).unwrap();
        let variables = vec![
            ("AWS_ENDPOINT_URL_S3", endpoint),
            ("AWS_REGION", region),
            ("AWS_ACCESS_KEY_ID", key),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ];
        Some(Bucket { name, runtime, client, variables })
    }

    /// Puts an object, and gives its address.
    fn put(&self, key: &str, bytes: &[u8]) -> String {
        let body = aws_sdk_s3::primitives::ByteStream::from(bytes.to_vec());
        let request = self.client.put_object().bucket(&self.name).key(key).body(body);
        self.runtime.block_on(request.send()).unwrap();
        self.address(key)
    }

    fn address(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.name)
    }

    fn haul(&self, command: &str) -> Haul {
        let with = |haul: Haul, (name, value): &(&str, String)| haul.env(name, value);
        self.variables.iter().fold(Haul::new(command), with)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let (client, name) = (&self.client, &self.name);
        self.runtime.block_on(async {
            let listed = client.list_objects_v2().bucket(name).send().await;
            for object in listed.map(|page| page.contents.unwrap_or_default()).unwrap_or_default() {
                let key = object.key.unwrap_or_default();
                let _ = client.delete_object().bucket(name).key(key).send().await;
            }
            let _ = client.delete_bucket().bucket(name).send().await;
        });
    }
}

#[test]
fn models_are_read_from_buckets() {
    let Some(bucket) = Bucket::new() else { return };
    let (pictures, home) = (folder(4), tempfile::tempdir().unwrap());
    let out = home.path().join("out");
    Haul::run(pictures.path(), &out).exits(0);
    let weights = weights();
    // Larger than a few pieces of a download, and not to be packed any smaller.
    let mut noise = vec![0u8; 41 << 20];
    let mut state = 1u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 33) as u8;
    }
    let packed = home.path().join("pack");
    let addresses = [
        bucket.put("a b/ü+%2B/model.safetensors", &weights),
        bucket.put("model.tar.gz", &tarball(&[("code/x", b"x"), ("m.safetensors", &weights)])),
        bucket.put("large.tar.gz", &tarball(&[("noise", &noise), ("m.safetensors", &weights)])),
    ];
    let inspect = |haul: Haul, file: &str| {
        let text = haul.args(["inspect", file]).exits(0).stdout;
        text.split_once('\n').unwrap().1.to_owned()
    };
    let local = inspect(Haul::new("model"), model().to_str().unwrap());
    let run = |model: &str, code: i32| {
        let haul = bucket.haul("run").args(["--model", model, "--imgsz", "64", "--output"]);
        haul.arg(&out).arg("--input").arg(pictures.path()).exits(code)
    };
    for address in &addresses {
        run(address, 0).says("nothing is new");
        assert_eq!(inspect(bucket.haul("model"), address), local);
        bucket.haul("doctor").args(["--model", address]).exits(0);
        bucket.haul("model").args(["pack", address]).exits(2).says("--dest");
        bucket.haul("model").args(["convert", address]).exits(2).says("--dest");
        let convert = bucket.haul("model").args(["convert", address, "--dest"]);
        let to = home.path().join("converted");
        convert.arg(&to).exits(0);
        assert_eq!(read(&to).unwrap().info.parameters, read(&model()).unwrap().info.parameters);
        std::fs::remove_file(to).unwrap();
    }
    bucket.haul("model").args(["pack", &addresses[1], "--dest"]).arg(&packed).exits(0);
    let address = bucket.put("model.haulpack", &std::fs::read(&packed).unwrap());
    run(&address, 0).says("nothing is new");
    bucket.haul("doctor").args(["--model", &address]).exits(0);
    let bench = ["--seconds", "0.1", "--imgsz", "64", "--only", "model", "--images"];
    bucket.haul("bench").args(["--model", &addresses[0]]).args(bench).arg(pictures.path()).exits(0);

    // What is wrong is said of the address.
    let broken = bucket.put("broken.pt", b"nothing");
    run(&broken, 2).says(&broken);
    run(&bucket.put("empty.pt", b""), 2).says("empty.pt` is empty");
    run(&bucket.put("cut.tar.gz", &tarball(&[("m.pt", &weights)])[..9999]), 2).says("cut.tar.gz");
    run(&bucket.address("none.pt"), 2).says("none.pt");
    run("s3://haul-no-such-bucket/m.pt", 2).says("s3://haul-no-such-bucket/m.pt");
    let denied = run_as(&bucket, &addresses[0]);
    assert!(denied.contains(&addresses[0]), "{denied}");
}

/// What is said to somebody whom the server does not know.
fn run_as(bucket: &Bucket, address: &str) -> String {
    let haul = bucket.haul("model").env("AWS_ACCESS_KEY_ID", "NOBODY");
    haul.args(["inspect", address]).exits(2).stderr
}

//! A folder as people have them: one line for each planned picture, whatever it is.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::binary::{Haul, by_image, concatenated, lines, testdata};

fn copy(form: &str, to: &Path) {
    fs::copy(testdata("forms").join(form), to).unwrap();
}

fn code(output: &Path, image: &str) -> String {
    let line = by_image(output).remove(image).unwrap_or_else(|| panic!("no line for {image}"));
    line.error.map_or_else(|| "ok".to_owned(), |error| format!("{} at {}", error.code, error.stage))
}

#[test]
fn everything_that_folders_hold() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir_all(photos.join("x.jpg")).unwrap();
    let at = |name: &str| photos.join(name);
    copy("jpeg-444.jpg", &at("good.jpg"));
    fs::write(at("empty.jpg"), b"").unwrap();
    fs::write(at("text.jpg"), b"This is no picture at all, whatever its name says.\n").unwrap();
    for (form, name) in [
        ("jpeg-444.jpg", "cut-baseline.jpg"),
        ("jpeg-progressive-420.jpg", "cut-progressive.jpg"),
        ("png-rgb8.png", "cut.png"),
    ] {
        let bytes = fs::read(testdata("forms").join(form)).unwrap();
        fs::write(at(name), &bytes[..bytes.len() * 3 / 4]).unwrap();
    }
    // Only a header: 60,000 by 60,000 pixels, 8-bit RGB, with the right check sum.
    let mut huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
    let crc = crc32(&huge[12..]);
    huge.extend(crc.to_be_bytes());
    fs::write(at("huge.png"), huge).unwrap();
    fs::write(at("1x1.bmp"), bmp(1, 1)).unwrap();
    fs::write(at("1x5000.bmp"), bmp(1, 5000)).unwrap();
    for name in ["with space.jpg", "ünïcode-写真.jpg", "new\nline.jpg", "-dash.jpg"] {
        copy("jpeg-444.jpg", &at(name));
    }
    copy("jpeg-444.jpg", &photos.join(OsStr::from_bytes(b"bad-\xff\xfe.jpg")));
    copy("jpeg-444.jpg", &at("x.jpg/inside.jpg"));
    symlink("nowhere.jpg", at("broken-link.jpg")).unwrap();
    copy("jpeg-444.jpg", &root.path().join("outside.jpg"));
    symlink("../outside.jpg", at("leaving-link.jpg")).unwrap();
    symlink("good.jpg", at("inner-link.jpg")).unwrap();
    symlink("x.jpg", at("folder-link")).unwrap();
    copy("jpeg-444.jpg", &at(".hidden.jpg"));
    fs::write(at("notes.txt"), b"x").unwrap();
    fs::write(at("README"), b"x").unwrap();
    nix::unistd::mkfifo(&at("pipe.jpg"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let out = root.path().join("out");
    let ran = Haul::run(&photos, &out).arg("--json").exits(3);
    let expected = [
        ("good.jpg", "ok"),
        ("empty.jpg", "empty at decode"),
        ("text.jpg", "not_an_image at decode"),
        ("cut-baseline.jpg", "truncated at decode"),
        ("cut-progressive.jpg", "truncated at decode"),
        ("cut.png", "truncated at decode"),
        ("huge.png", "too_large at decode"),
        ("1x1.bmp", "ok"),
        ("1x5000.bmp", "ok"),
        ("with space.jpg", "ok"),
        ("ünïcode-写真.jpg", "ok"),
        ("new\nline.jpg", "ok"),
        ("-dash.jpg", "ok"),
        ("bad-\u{fffd}\u{fffd}.jpg", "ok"),
        ("x.jpg/inside.jpg", "ok"),
        ("broken-link.jpg", "broken_link at fetch"),
        ("leaving-link.jpg", "outside_link at fetch"),
        ("inner-link.jpg", "ok"),
    ];
    for (image, expected) in expected {
        assert_eq!(code(&out, image), expected, "{image}");
    }
    let lines = lines(&out);
    assert_eq!(lines.len(), expected.len());
    let keys: Vec<_> = lines.iter().map(|line| line.key().unwrap()).collect();
    assert!(keys.is_sorted(), "lines are in plan order");
    assert_eq!(lines.iter().filter(|line| line.image_b64.is_some()).count(), 1);
    let text = String::from_utf8(concatenated(&out)).unwrap();
    assert!(!text.contains(root.path().to_str().unwrap()), "no path in messages");

    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let skipped = serde_json::json!({
        "hidden": 1, "foreign": 1, "no_suffix": 1, "folder_link": 1, "special": 1
    });
    assert_eq!(report["skipped"], skipped);
    assert_eq!((&report["ok"], &report["failed"]), (&10.into(), &8.into()));
    for flag in ["--hidden takes them", "--include PATTERN takes them"] {
        assert!(ran.stderr.contains(flag), "{}", ran.stderr);
    }
    Haul::new("verify").arg(&out).exits(3);
    Haul::new("status").arg(&out).exits(3);
    Haul::run(&photos, &out).exits(3).says("nothing is new");

    // The flags that the messages name do what they say.
    let more = root.path().join("more");
    let flags = ["--follow-symlinks", "--hidden", "--include", "*", "--exclude", "x.jpg"];
    Haul::run(&photos, &more).args(flags).exits(3);
    assert_eq!(code(&more, "leaving-link.jpg"), "ok");
    assert_eq!(code(&more, ".hidden.jpg"), "ok");
    assert_eq!(code(&more, "README"), "not_an_image at decode");
    assert!(!by_image(&more).contains_key("x.jpg/inside.jpg"));
}

#[test]
fn truncated_files_are_taken_when_asked() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    let bytes = fs::read(testdata("pictures/sea.jpg")).unwrap();
    fs::write(photos.join("cut.jpg"), &bytes[..bytes.len() / 2]).unwrap();
    copy("jpeg-444.jpg", &photos.join("whole.jpg"));
    let out = root.path().join("out");
    Haul::run(&photos, &out).args(["--truncated", "accept"]).exits(0);
    let lines = by_image(&out);
    assert_eq!(lines["cut.jpg"].truncated, Some(true));
    assert_eq!(lines["whole.jpg"].truncated, None);
    Haul::new("verify").arg(&out).exits(0);
}

#[test]
fn limits_become_lines() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    copy("jpeg-444.jpg", &photos.join("small.jpg"));
    fs::copy(testdata("pictures/sea.jpg"), photos.join("large.jpg")).unwrap();
    let size = fs::metadata(photos.join("large.jpg")).unwrap().len();
    for (name, flags, stage) in [
        ("file", ["--max-file-mb", "0.01"], "too_large at fetch"),
        ("pixels", ["--max-pixels", "10000"], "too_large at decode"),
        ("memory", ["--max-picture-memory", "300KiB"], "too_large at decode"),
    ] {
        assert!(size > 10_000 && size < 300 << 10);
        let out = root.path().join(name);
        Haul::run(&photos, &out).args(flags).exits(3);
        assert_eq!(code(&out, "large.jpg"), stage, "{name}");
        assert_eq!(code(&out, "small.jpg"), "ok", "{name}");
    }
}

#[test]
fn what_may_not_be_read_or_written_is_said() {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 65_534;
    let root = tempfile::tempdir().unwrap();
    let open =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(root.path(), 0o755);
    let (photos, desk) = (root.path().join("photos"), root.path().join("desk"));
    fs::create_dir_all(photos.join("sealed")).unwrap();
    fs::create_dir(&desk).unwrap();
    if chown(&desk, Some(NOBODY), None).is_err() {
        println!("skipped: only root can try this as another user");
        return;
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_haul"));
    let model = common::binary::model();
    let reachable = |path: &Path| {
        let seen =
            |dir: &Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        path.ancestors().skip(1).all(seen)
    };
    if !reachable(binary) || !reachable(&model) {
        println!("skipped: another user cannot reach the binary here");
        return;
    }
    copy("jpeg-444.jpg", &photos.join("a.jpg"));
    copy("jpeg-444.jpg", &photos.join("b.jpg"));
    copy("jpeg-444.jpg", &photos.join("sealed/c.jpg"));
    open(&photos.join("a.jpg"), 0o000);
    let run = |out: &Path| Haul::run(&photos, out).user(NOBODY).in_folder(Path::new("/"));

    let out = desk.join("out");
    run(&out).exits(3);
    assert_eq!(code(&out, "a.jpg"), "denied at fetch");
    assert_eq!(code(&out, "b.jpg"), "ok");
    // A whole folder that cannot be looked into might hold anything: that is no picture's fault.
    open(&photos.join("sealed"), 0o000);
    run(&desk.join("out2")).exits(2).says("sealed").says("who owns it");
    open(&photos.join("sealed"), 0o755);
    run(&root.path().join("out3")).exits(2).says("out3");
    // And if nothing can be read, the store is to blame.
    open(&photos.join("b.jpg"), 0o000);
    open(&photos.join("sealed/c.jpg"), 0o000);
    run(&desk.join("out4")).exits(1).says("is it still mounted?");
}

fn bmp(width: u32, height: u32) -> Vec<u8> {
    let row = (width * 3).next_multiple_of(4);
    let mut bytes = b"BM".to_vec();
    for value in
        [54 + row * height, 0, 54, 40, width, height, 1 | 24 << 16, 0, row * height, 0, 0, 0, 0]
    {
        bytes.extend(value.to_le_bytes());
    }
    bytes.resize(54 + (row * height) as usize, 90);
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

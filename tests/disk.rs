//! A full disk and a read-only one. Needs a mount of its own, and so root.

mod common;

use std::path::Path;
use std::process::Command;

use common::binary::{Haul, folder, parts, success};

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

fn mount(at: &Path, options: &str) -> bool {
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "haul-test"])
        .arg(at)
        .stderr(std::process::Stdio::null())
        .status();
    let mounted = mounted.is_ok_and(|status| status.success());
    if !mounted {
        println!("skipped: a tmpfs cannot be mounted here");
    }
    mounted
}

#[test]
fn a_full_disk_is_exit_1_and_resumable() {
    let photos = folder(40);
    let disk = tempfile::tempdir().unwrap();
    if !mount(disk.path(), "size=10m") {
        return;
    }
    let _mounted = Mounted(disk.path());
    // Everything but a few pages is taken by somebody else.
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1u8; (10 << 20) - (64 << 10)]).unwrap();
    let out = disk.path().join("out");
    let run = || Haul::run(photos.path(), &out).args(["--max-images", "2", "--square"]);
    let ran = run().exits(1).says("No space left").says("make room and run the same command again");
    assert!(ran.stderr.contains(disk.path().to_str().unwrap()), "{}", ran.stderr);
    // Still full: the same answer, and what is there is whole.
    run().exits(1);
    Haul::new("verify").arg(&out).exits(75);
    let before = parts(&out);
    std::fs::remove_file(&ballast).unwrap();
    run().exits(0);
    assert!(before.iter().all(|(name, bytes)| parts(&out)[name] == *bytes));
    assert_eq!(success(&out)["ok"], 40);
    Haul::new("verify").arg(&out).exits(0);
}

#[test]
fn a_read_only_output_is_exit_2() {
    let photos = folder(2);
    let disk = tempfile::tempdir().unwrap();
    if !mount(disk.path(), "size=10m,ro") {
        return;
    }
    let _mounted = Mounted(disk.path());
    Haul::run(photos.path(), &disk.path().join("out")).exits(2).says("read-only");
}

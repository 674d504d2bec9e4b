//! A full disk, one without inodes and a read-only one. Needs a mount of its own, and so root.

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

fn remount(at: &Path, options: &str) {
    let options = format!("remount,{options}");
    assert!(Command::new("mount").args(["-o", &options]).arg(at).status().unwrap().success());
}

/// A run that meets a disk without room, with room made afterwards by a larger disk.
fn full_and_then_larger(small: &str, larger: &str, ballast: usize, pictures: usize) {
    let photos = folder(pictures);
    let disk = tempfile::tempdir().unwrap();
    if !mount(disk.path(), small) {
        return;
    }
    let _mounted = Mounted(disk.path());
    std::fs::write(disk.path().join("ballast"), vec![1u8; ballast]).unwrap();
    let out = disk.path().join("out");
    let run = || Haul::run(photos.path(), &out).args(["--max-images", "1"]);
    let ran = run().exits(1).says("No space left").says("make room and run the same command again");
    let errors = ran.stderr.lines().filter(|line| line.contains("No space left")).count();
    assert_eq!(errors, 1, "{}", ran.stderr);
    let before = parts(&out);
    assert!(!before.is_empty() && before.len() < pictures, "{} parts", before.len());
    Haul::new("verify").arg(&out).exits(75);
    Haul::new("status").arg(&out).exits(75);
    remount(disk.path(), larger);
    run().exits(0);
    let after = parts(&out);
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));
    assert_eq!(success(&out)["ok"], pictures);
    Haul::new("verify").arg(&out).exits(0);
    // The same bytes as where there always was room.
    let calm = tempfile::tempdir().unwrap();
    Haul::run(photos.path(), calm.path()).args(["--max-images", "1"]).exits(0);
    assert_eq!(parts(calm.path()), after);
}

#[test]
fn a_disk_that_fills_up_goes_on_once_it_is_larger() {
    // Each file takes a page: room for the plan and some forty files.
    let ballast = (10 << 20) - (200 << 10);
    full_and_then_larger("size=10m", "size=20m", ballast, 60);
}

#[test]
fn a_disk_without_inodes_goes_on_once_it_has_some() {
    full_and_then_larger("size=10m,nr_inodes=50", "size=10m,nr_inodes=1000", 1, 60);
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

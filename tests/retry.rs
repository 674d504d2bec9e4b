//! `haul retry`: the pictures that failed, and no others, into another output.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use common::binary::{Haul, by_image, concatenated, fill, lines, model, parts, success, testdata};
use serde_json::Value;
use tempfile::TempDir;

/// Keys that no text can say, or that break a list of lines.
const ODD: [&[u8]; 3] = [b"0/bad-\xff.jpg", b"0/bad-\xfe.jpg", b"1/new\nline.jpg"];

/// Nine good pictures and six bad ones; the three odd ones and two others are cut short.
fn photos(root: &Path) -> PathBuf {
    let photos = root.join("photos");
    fs::create_dir(&photos).unwrap();
    fill(&photos, 0..9);
    let whole = fs::read(testdata("pictures/sea.jpg")).unwrap();
    let half = &whole[..whole.len() / 2];
    for key in ODD.into_iter().chain([&b"2/cut.jpg"[..], b"cut.jpg"]) {
        fs::write(photos.join(OsStr::from_bytes(key)), half).unwrap();
    }
    fs::write(photos.join("text.jpg"), b"no picture").unwrap();
    photos
}

fn failed_run() -> (TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let photos = photos(root.path());
    let out = root.path().join("out");
    Haul::run(&photos, &out).args(["--max-images", "2", "--max-failures", "50%"]).exits(3);
    assert_eq!(success(&out)["failed"], 6);
    (root, photos, out)
}

fn retry(out: &Path, output: &Path) -> Haul {
    Haul::new("retry").arg(out).arg("--output").arg(output)
}

/// The lines of an output that are errors, as text.
fn error_lines(out: &Path) -> String {
    let text = String::from_utf8(concatenated(out)).unwrap();
    text.split_inclusive('\n').filter(|line| line.contains("\"error\"")).collect()
}

#[test]
fn exactly_the_failed_ones_are_tried_with_the_settings_of_then() {
    let (root, photos, out) = failed_run();
    let at = |name: &str| root.path().join(name);
    let before = parts(&out);

    // Nothing was repaired: the same lines, in the same order.
    let same = at("same");
    retry(&out, &same).exits(3).says("6 planned, 0 ok, 6 failed, 3 of 3 mini-batches");
    assert_eq!(String::from_utf8(concatenated(&same)).unwrap(), error_lines(&out));
    Haul::new("verify").arg(&same).exits(3);

    // A limit is raised: five of six.
    let accepted = at("accepted");
    retry(&out, &accepted).args(["--truncated", "accept"]).exits(3);
    assert_eq!((success(&accepted)["ok"].as_u64(), lines(&accepted).len()), (Some(5), 6));

    // They are repaired, and what they give is what a whole new run gives them.
    for key in ODD.into_iter().chain([&b"2/cut.jpg"[..], b"cut.jpg", b"text.jpg"]) {
        let to = photos.join(OsStr::from_bytes(key));
        fs::copy(testdata("forms/jpeg-444.jpg"), to).unwrap();
    }
    let (repaired, whole) = (at("repaired"), at("whole"));
    retry(&out, &repaired).exits(0);
    Haul::run(&photos, &whole).exits(0);
    let all = lines(&whole);
    let repaired = lines(&repaired);
    assert_eq!(repaired.len(), 6);
    assert!(repaired.iter().all(|line| all.contains(line)), "{repaired:?}");

    // A retry may be retried, and then nothing is left.
    retry(&same, &at("again")).exits(0);
    assert!(lines(&at("again")) == repaired);
    let nothing = || retry(&at("again"), &at("no"));
    nothing().exits(0).says("none of the 6 pictures in");
    // Which is an end like others, with messages, reports and gates.
    let report: Value = serde_json::from_str(&nothing().arg("--json").exits(0).stdout).unwrap();
    assert_eq!((&report["state"], &report["planned"]), (&"done".into(), &0.into()));
    let ran = nothing().args(["--progress", "json", "--gate", "pictures > 0"]).exits(6);
    assert!(ran.stdout.contains("\"message_type\":\"summary\""), "{}", ran.stdout);
    let (junit, metrics) = (at("haul.xml"), at("haul.prom"));
    nothing().arg("--junit").arg(&junit).arg("--prometheus").arg(&metrics).exits(0);
    assert!(fs::read_to_string(&junit).unwrap().contains("failures=\"0\""));
    assert!(fs::read_to_string(&metrics).unwrap().contains("haul_run_exit_code"));
    nothing().args(["--gate", "nonsense"]).exits(2).says("nonsense");
    nothing().args(["--gate", "class unicorn > 0"]).exits(2).says("no class `unicorn`");
    nothing().arg("--junit").arg(at("none/haul.xml")).exits(2).says("cannot write there");
    assert!(!at("no").exists(), "and nothing was written");
    assert!(parts(&out) == before, "what was retried stays as it was");
}

#[test]
fn what_cannot_be_retried_is_refused_by_name() {
    let (root, photos, out) = failed_run();
    let other = root.path().join("other");
    Haul::new("retry").arg(&out).exits(2).says("--output is missing");
    retry(&out, &out).exits(2).says("itself");
    retry(&out, &root.path().join("./out/../out")).exits(2).says("itself");
    retry(&photos, &other).exits(2).says("holds no job of haul");
    for flags in [
        &["--input", "x"][..],
        &["--include", "*"],
        &["--exclude", "*"],
        &["--hidden"],
        &["--limit", "1"],
        &["--since", "x"],
        &["--allow-empty"],
    ] {
        retry(&out, &other).args(flags).exits(2).says(&format!("{} does not go with", flags[0]));
    }
    let marker = fs::read(out.join("_SUCCESS.json")).unwrap();
    fs::remove_file(out.join("_SUCCESS.json")).unwrap();
    retry(&out, &other).exits(2).says("haul resume").says("first");
    assert!(!other.exists(), "nothing was written");
    fs::write(out.join("_SUCCESS.json"), marker).unwrap();

    // It is a job with a fingerprint like any other, and no other job's.
    retry(&out, &other).exits(3);
    retry(&out, &other).args(["--conf", "0.5"]).exits(2).says("conf was 0.25, is 0.5");
    let second = root.path().join("second");
    Haul::run(&photos, &second).exits(3);
    retry(&second, &other).exits(2).says("retry was ");
    Haul::run(&photos, &other).args(["--max-images", "2"]).exits(2).says("retry was ");
}

#[test]
fn it_goes_on_after_a_crash_and_without_the_other_output() {
    let (root, _, out) = failed_run();
    let again = root.path().join("again");
    retry(&out, &again).args(["--truncated", "accept"]).exits(3);
    let before = parts(&again);
    let remove = |names: &[&str]| {
        names.iter().for_each(|name| fs::remove_file(again.join(name)).unwrap());
    };
    let gone = root.path().join("gone");
    let work = ["_SUCCESS.json", "_manifest/done/00000001.json", "part-00000001.jsonl"];
    let plan = ["_manifest/plan.json", "_manifest/plan-00000000.jsonl"];

    for resume in [true, false] {
        let go_on = || match resume {
            true => Haul::new("resume").arg(&again),
            false => retry(&out, &again).args(["--truncated", "accept"]),
        };
        // With the plan, as before a kill in the work: the other output is not needed.
        remove(&work);
        fs::rename(&out, &gone).unwrap();
        go_on().exits(3);
        assert!(parts(&again) == before);
        go_on().exits(3).says("is finished");
        // Without it, as before a kill while it was made: it is.
        remove(&work);
        remove(&plan);
        go_on().exits(2).says("holds no job of haul");
        fs::rename(&gone, &out).unwrap();
        go_on().exits(3);
        assert!(parts(&again) == before);
    }
    // And it must be the same one still.
    remove(&work);
    remove(&plan);
    let job = out.join("_manifest/job.json");
    let text = fs::read_to_string(&job).unwrap();
    let id = serde_json::from_str::<serde_json::Value>(&text).unwrap()["id"].clone();
    fs::remove_dir_all(&out).unwrap();
    Haul::run(root.path().join("photos"), &out).exits(3);
    assert!(!fs::read_to_string(&job).unwrap().contains(id.as_str().unwrap()));
    Haul::new("resume").arg(&again).exits(2).says("holds another job");
}

#[test]
fn what_a_list_named_is_tried_by_name() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path(), 0..3);
    let list = root.path().join("list.txt");
    fs::write(&list, "late.dat\n0/00000.jpg\nnever.jpg\n").unwrap();
    let out = root.path().join("out");
    Haul::run(&list, &out).exits(3);
    fs::copy(testdata("forms/jpeg-444.jpg"), root.path().join("late.dat")).unwrap();
    // The list itself is not needed any more, nor is standard input where it came from there.
    let (again, piped) = (root.path().join("again"), root.path().join("piped"));
    let stdin = fs::File::open(&list).unwrap();
    Haul::run("-", &piped).in_folder(root.path()).stdin(stdin).exits(3);
    fs::remove_file(&list).unwrap();
    retry(&out, &again).exits(3);
    let found = by_image(&again);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["late.dat", "never.jpg"]);
    assert!(found["late.dat"].detections.is_some());
    assert_eq!(found["never.jpg"].error.as_ref().unwrap().code, "gone");

    let again = root.path().join("piped-again");
    retry(&piped, &again).exits(3);
    assert_eq!(by_image(&again).into_keys().collect::<Vec<_>>(), ["never.jpg"]);
    Haul::new("resume").arg(&again).exits(3);
}

#[test]
fn a_link_that_leaves_a_tree_needs_its_flag_still() {
    let root = tempfile::tempdir().unwrap();
    let (photos, out) = (root.path().join("photos"), root.path().join("out"));
    fs::create_dir(&photos).unwrap();
    fill(&photos, 0..2);
    fs::copy(testdata("forms/jpeg-444.jpg"), root.path().join("outside.jpg")).unwrap();
    symlink("../outside.jpg", photos.join("leaving.jpg")).unwrap();
    symlink("nowhere.jpg", photos.join("broken.jpg")).unwrap();
    Haul::run(&photos, &out).exits(3);
    let codes = |out: &Path| -> Vec<String> {
        let lines = by_image(out).into_values();
        lines.map(|line| line.error.map_or("ok".to_owned(), |error| error.code)).collect()
    };
    let (same, followed) = (root.path().join("same"), root.path().join("followed"));
    retry(&out, &same).exits(3);
    assert_eq!(codes(&same), ["broken_link", "outside_link"]);
    fs::copy(testdata("forms/jpeg-444.jpg"), photos.join("nowhere.jpg")).unwrap();
    retry(&out, &followed).arg("--follow-symlinks").exits(0);
    assert_eq!(codes(&followed), ["ok", "ok"]);
}

#[test]
fn a_link_to_the_input_that_leads_elsewhere_now_lets_nothing_out() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("data/1")).unwrap();
    fill(&at("data/1"), 0..2);
    fill(&at("data/2"), 0..2);
    fs::copy(testdata("forms/jpeg-444.jpg"), at("secret.jpg")).unwrap();
    symlink("../../secret.jpg", at("data/1/leaving.jpg")).unwrap();
    symlink("data/1", at("latest")).unwrap();
    Haul::run(at("latest"), &at("out")).exits(3).says("1 × outside_link");
    fs::remove_file(at("latest")).unwrap();
    symlink("data/2", at("latest")).unwrap();
    retry(&at("out"), &at("again")).exits(3).says("1 × outside_link");
    retry(&at("again"), &at("third")).exits(3).says("1 × outside_link");
    fs::remove_file(at("latest")).unwrap();
    retry(&at("out"), &at("fourth")).exits(3).says("1 × outside_link");

    // What somebody named may lie anywhere.
    fs::write(at("secret.jpg"), "no picture").unwrap();
    let named = [
        ("l.txt", "data/1/leaving.jpg\n".to_owned()),
        ("m.json", "[{\"prefix\":\"data/1/\"},\"leaving.jpg\"]".to_owned()),
    ];
    for (list, text) in named {
        fs::write(at(list), text).unwrap();
        let (out, again) = (at(&format!("{list}-out")), at(&format!("{list}-again")));
        Haul::run(at(list), &out).args(["--max-failures", "100%"]).exits(3);
        fs::remove_file(at(list)).unwrap();
        retry(&out, &again).exits(3).says("1 × not_an_image");
    }
}

#[test]
fn all_of_them_may_fail_again() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fill(&photos, 0..30);
    for number in 0..24 {
        fs::write(photos.join(format!("zz-{number}.jpg")), b"no picture").unwrap();
    }
    // More than the first twenty of a new job may, whatever share was allowed then.
    let (out, again) = (root.path().join("out"), root.path().join("again"));
    Haul::run(&photos, &out).args(["--max-failures", "50%"]).exits(3);
    retry(&out, &again).exits(3).says("24 planned, 0 ok, 24 failed");
    retry(&out, &root.path().join("few")).args(["--max-failures", "3"]).exits(4);
}

#[test]
fn what_is_still_denied_does_not_look_like_a_lost_disk() {
    const NOBODY: u32 = 65_534;
    let root = tempfile::tempdir().unwrap();
    let open =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(root.path(), 0o755);
    let (photos, desk) = (root.path().join("photos"), root.path().join("desk"));
    fs::create_dir(&photos).unwrap();
    fs::create_dir(&desk).unwrap();
    if chown(&desk, Some(NOBODY), None).is_err() {
        println!("skipped: only root can try this as another user");
        return;
    }
    let reachable = |path: &Path| {
        let seen =
            |dir: &Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        path.ancestors().skip(1).all(seen)
    };
    if !reachable(Path::new(env!("CARGO_BIN_EXE_haul"))) || !reachable(&model()) {
        println!("skipped: another user cannot reach the binary here");
        return;
    }
    fill(&photos, 0..4);
    for name in ["0/00000.jpg", "0/00003.jpg", "1/00001.png"] {
        open(&photos.join(name), 0o000);
    }
    let (out, again) = (desk.join("out"), desk.join("again"));
    let here = Path::new("/");
    Haul::run(&photos, &out).user(NOBODY).in_folder(here).exits(3).says("3 × denied");
    retry(&out, &again).user(NOBODY).in_folder(here).exits(3).says("3 × denied");
    // So is what may not even be looked at, and what has no digest therefore.
    open(&photos.join("1"), 0o744);
    let list = photos.join("l.txt");
    fs::write(&list, "0/00000.jpg\n1/00001.png\n2/00002.jpg\n").unwrap();
    for (input, failed) in [(&photos, "3 × denied"), (&list, "2 × denied")] {
        for identity in ["mtime", "sha256"] {
            let out = desk.join(failed.replace(' ', "")).join(identity);
            let run = Haul::run(input, &out).args(["--identity", identity]);
            run.user(NOBODY).in_folder(here).exits(3).says(failed);
        }
    }
    open(&photos.join("1"), 0o755);
    // Where the picture that could be read is gone as well, the disk is to blame.
    fs::remove_file(photos.join("2/00002.jpg")).unwrap();
    let ran = retry(&out, &desk.join("lost")).user(NOBODY).in_folder(here).exits(1);
    ran.says("is it still mounted?");
}

#[test]
fn since_takes_it_for_an_output_like_any_other() {
    let root = tempfile::tempdir().unwrap();
    let photos = photos(root.path());
    let outputs = root.path().join("outputs");
    let (out, again) = (outputs.join("1"), outputs.join("2"));
    Haul::run(&photos, &out).exits(3);
    fs::copy(testdata("forms/jpeg-444.jpg"), photos.join("cut.jpg")).unwrap();
    retry(&out, &again).exits(3);
    // Since the first alone, the repaired picture is a changed one.
    let since = |from: &Path, name: &str| {
        let run = Haul::run(&photos, &root.path().join(name)).arg("--since");
        run.arg(format!("{}{}", from.display(), if from == outputs { "/" } else { "" }))
    };
    since(&out, "changed").exits(0).says("1 planned, 1 ok");
    since(&outputs, "nothing").exits(0).says("0 planned");
}

#[test]
fn what_a_table_said_is_said_again() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path(), 0..2);
    fs::write(root.path().join("late.jpg"), "no picture").unwrap();
    let table = root.path().join("table.csv");
    let rows = "image,site\n0/00000.jpg,A\nlate.jpg,\"North, pier\"\ngone.jpg,C\n";
    fs::write(&table, rows).unwrap();
    let out = root.path().join("out");
    Haul::run(&table, &out).args(["--compress", "gzip"]).exits(3);
    fs::copy(testdata("forms/jpeg-444.jpg"), root.path().join("late.jpg")).unwrap();
    fs::remove_file(&table).unwrap();
    let again = root.path().join("again");
    retry(&out, &again).args(["--compress", "none"]).exits(3);
    let found = by_image(&again);
    let site = |key: &str| found[key].meta.as_ref().unwrap().0[0].1.clone();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["gone.jpg", "late.jpg"]);
    assert_eq!((site("gone.jpg"), site("late.jpg")), ("C".into(), "North, pier".into()));
    assert!(found["late.jpg"].detections.is_some());
}

//! The binary as its users run it, on a real S3 server. Whatever a job reads from and writes to, its
//! parts are those of a run on folders. Without a server (`HAUL_TEST_S3_ENDPOINT`), each test says so
//! and passes.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/s3.rs"]
mod s3;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

use common::binary::{Haul, Ran, by_image, model, parts, success, testdata};
use haul::job::Line;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::{Rig, with_server};
use serde_json::Value;

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
        // Another picture of the same size is another picture.
        let mut bytes = rig.bucket.get("in/0/00003.jpg").unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        rig.bucket.put("in/0/00003.jpg", &bytes);
        rig.run(&local, &out).exits(2).says("0 new, 1 changed and 0 gone");
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
        run(&input, &out).exits(3);
        rig.is_as("in/out/", &rig.path("in/out"));
        assert_eq!(rig.json("in/out/_SUCCESS.json")["planned"], 3);
        let skipped = &rig.json("in/out/_manifest/plan.json")["skipped"];
        for (what, count) in [("hidden", 2), ("excluded", 1), ("foreign", 1), ("marker", 2)] {
            assert_eq!(skipped[what], count, "{skipped}");
        }
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

#[test]
fn earlier_outputs_in_a_bucket_are_known() {
    with_server(|rig| {
        rig.pictures(5);
        let since = |since: &[&str], out: &str, code: i32| {
            for on_s3 in [false, true] {
                let at = |key: &str| if on_s3 { rig.at(key) } else { rig.path(key) };
                let run = rig.run(&at("in/"), &at(out));
                since.iter().fold(run, |run, key| run.arg("--since").arg(at(key))).exits(code);
            }
            rig.is_as(out, &rig.path(out));
            rig.json(&format!("{out}_SUCCESS.json"))["planned"].as_u64().unwrap()
        };
        assert_eq!(since(&[], "outs/1/", 3), 5);
        rig.put("in/9/new.jpg", &sea());
        rig.put("in/0/00000.jpg", &sea());
        assert_eq!(since(&["outs/1/"], "outs/2/", 0), 2);
        rig.put("in/9/newer.jpg", &sea());
        assert_eq!(since(&["outs/"], "outs/3/", 0), 1);
        assert_eq!(since(&["outs/"], "outs/4/", 0), 0);
        // Outputs in a folder are as good.
        let out = rig.path("mixed");
        rig.run(&rig.at("in/"), &out).arg("--since").arg(rig.at("outs/1/")).exits(0);
        assert_eq!(success(&out)["planned"], 3);
        rig.plan(&rig.at("in/"), &rig.at("outs/5/")).exits(0);
        let run = || rig.run(&rig.at("in/"), &rig.at("x/")).arg("--since");
        run().arg(rig.at("outs/5/")).exits(2).says("that job is not finished");
        run().arg(rig.at("none/")).exits(2).says("there is no output of haul");
    });
}

#[test]
fn what_failed_is_tried_again() {
    with_server(|rig| {
        rig.pictures(5);
        let cut = sea()[..9000].to_vec();
        rig.put("in/cut.jpg", &cut);
        rig.run(&rig.path("in"), &rig.path("out")).exits(3);
        rig.run(&rig.at("in/"), &rig.at("out/")).exits(3);
        let retry = |of: &Path, to: &Path| rig.haul("retry").arg(of).arg("--output").arg(to);
        retry(&rig.path("out"), &rig.path("same")).exits(3);
        retry(&rig.at("out/"), &rig.at("same/")).exits(3).says("2 planned, 0 ok, 2 failed");
        rig.is_as("same/", &rig.path("same"));
        retry(&rig.at("out/"), &rig.path("there")).exits(3);
        assert!(parts(&rig.path("there")) == parts(&rig.path("same")));
        retry(&rig.at("out/"), &rig.at("out")).exits(2).says("itself");
        // How the server is reached, the job in a folder says, also for an output in a bucket.
        let [(name, endpoint), ..] = rig.bucket.variables();
        let out = rig.path("told");
        let run = rig.run(&rig.at("in/"), &out).arg("--endpoint-url").arg(endpoint);
        run.without_env(&[name]).exits(3);
        rig.haul("resume").arg(&out).without_env(&[name]).exits(3);
        retry(&out, &rig.at("told/")).without_env(&[name]).exits(3);
        rig.is_as("told/", &rig.path("same"));
        // A retry of a retry, once one is repaired and one is gone.
        rig.put("in/cut.jpg", &sea());
        rig.remove("in/1/00001.png");
        retry(&rig.path("same"), &rig.path("again")).exits(3);
        retry(&rig.at("same/"), &rig.at("again/")).exits(3);
        rig.is_as("again/", &rig.path("again"));
        assert_eq!(rig.lines("again/")["1/00001.png"].error.as_ref().unwrap().code, "gone");
        retry(&rig.at("again/"), &rig.at("again-2/")).args(["--truncated", "accept"]).exits(3);
    });
}

#[test]
fn annotated_pictures_lie_in_a_bucket() {
    with_server(|rig| {
        rig.pictures(3);
        rig.put("in/balloons.jpg", &fs::read(testdata("pictures/balloons.jpg")).unwrap());
        let run = |input: &Path, out: &Path, seen: &Path| {
            rig.run(input, out).args(["--imgsz", "160", "--annotate"]).arg(seen).exits(3)
        };
        run(&rig.path("in"), &rig.path("out"), &rig.path("seen"));
        run(&rig.at("in/"), &rig.at("out/"), &rig.at("seen"));
        rig.is_as("out/", &rig.path("out"));
        let keys = rig.bucket.keys("seen/");
        assert_eq!(keys.len(), 3, "{keys:?}");
        for key in &keys {
            let bytes = rig.bucket.get(key).unwrap();
            assert!(bytes.starts_with(b"\xff\xd8") && bytes.ends_with(b"\xff\xd9"), "{key}");
            assert!(fs::read(rig.path(key)).unwrap() == bytes, "{key}");
        }
        run(&rig.at("in/"), &rig.path("to-folder"), &rig.at("other/"));
        assert_eq!(rig.bucket.keys("other/").len(), 3);
        let inside =
            rig.run(&rig.at("in/"), &rig.at("x/")).arg("--annotate").arg(rig.at("in/seen"));
        inside.exits(2).says("lies in --input");
    });
}

#[test]
fn what_changed_and_what_is_gone_since_the_plan() {
    with_server(|rig| {
        rig.pictures(7);
        let jobs = [(rig.path("in"), rig.path("out")), (rig.at("in/"), rig.at("out/"))];
        let plan = |out: &str| rig.plan(&rig.at("in/"), &rig.at(out)).exits(0);
        jobs.iter().for_each(|(input, out)| drop(rig.plan(input, out).exits(0)));
        plan("blameless/");
        rig.put("in/0/00003.jpg", &sea());
        rig.remove("in/2/00005.jpg");
        jobs.iter().for_each(|(_, out)| drop(rig.haul("resume").arg(out).exits(3)));
        rig.is_as("out/", &rig.path("out"));
        let lines = rig.lines("out/");
        let code = |key: &str| lines[key].error.as_ref().unwrap().code.clone();
        assert_eq!((code("0/00003.jpg"), code("2/00005.jpg")), ("changed".into(), "gone".into()));

        // Where nothing is left, that is no picture's fault.
        rig.bucket.keys("in/").iter().for_each(|key| rig.bucket.delete(key));
        let ran = rig.haul("resume").arg(rig.at("blameless/")).exits(1);
        let ran =
            ran.says("and so is everything else").says("/blameless/_manifest/failed says why");
        assert!(!ran.stderr.contains("1 × gone"), "{}", ran.stderr);
        assert_eq!(rig.bucket.keys("blameless/part-"), [""; 0]);
        assert_eq!(rig.bucket.keys("blameless/_manifest/done/"), [""; 0]);
        assert!(rig.bucket.get("blameless/_SUCCESS.json").is_none());
        // Once it is back, the job goes on.
        rig.upload(&rig.path("in"), "in/");
        rig.haul("resume").arg(rig.at("blameless/")).exits(3);
        rig.haul("verify").arg(rig.at("blameless/")).exits(3);
    });
}

#[test]
fn parts_of_others_are_refused_and_own_ones_adopted() {
    with_server(|rig| {
        rig.pictures(7);
        rig.run(&rig.path("in"), &rig.path("out")).exits(3);
        let again = || rig.run(&rig.at("in/"), &rig.at("out/"));
        again().exits(3);
        let record = "_manifest/done/00000001.json";
        let part = rig.bucket.get("out/part-00000001.jsonl").unwrap();

        rig.unfinish("out/", &[record]);
        let ran = again().arg("--json").exits(3).says("\nS3: ");
        let report = report(&ran);
        assert_eq!((&report["adopted"], &report["pictures"]), (&1.into(), &0.into()));
        rig.is_as("out/", &rig.path("out"));

        // The right bytes, but nobody says that they are of this job.
        let refused = |says: &str| {
            let ran = again().exits(2).says("part-00000001.jsonl").says("--new").says(says);
            assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
            assert!(rig.bucket.get(&format!("out/{record}")).is_none());
        };
        rig.unfinish("out/", &[record]);
        rig.bucket.put("out/part-00000001.jsonl", &part);
        refused("is not this job's part");
        rig.bucket.put_of("out/part-00000001.jsonl", &part, &"0".repeat(32));
        refused("is not this job's part");
        // Ours, but other lines.
        let job = rig.json("out/_manifest/job.json")["id"].as_str().unwrap().to_owned();
        rig.bucket.put_of("out/part-00000001.jsonl", b"{\"image\":\"x\"}\n", &job);
        refused("is not this job's part");
        rig.bucket.delete("out/part-00000001.jsonl");
        again().exits(3);
        rig.is_as("out/", &rig.path("out"));

        // Whatever is where an output is to be.
        rig.bucket.put("other/notes.txt", b"");
        rig.run(&rig.at("in/"), &rig.at("other/")).exits(2).says("notes.txt");

        // It comes while the job is at work, before the part that it is in the way of.
        rig.run(&rig.path("in"), &rig.path("late")).args(["--imgsz", "160"]).exits(3);
        let mut slow = rig.slow("late/").spawn();
        rig.wait_for("late/_manifest/done/00000000.json", &mut slow);
        rig.bucket.put("late/part-00000003.jsonl", &part);
        let ran = finish(slow);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        ran.says("part-00000003.jsonl").says("--new");
        assert!(rig.bucket.get("late/_manifest/done/00000003.json").is_none());
        rig.bucket.delete("late/part-00000003.jsonl");
        rig.run(&rig.at("in/"), &rig.at("late/")).args(["--imgsz", "160"]).exits(3);
        rig.is_as("late/", &rig.path("late"));
    });
}

/// Waits for the first two records of a run on `out/`, and stops it there.
fn stopped_at_work(rig: &Rig, run: Haul) -> Child {
    let mut child = run.spawn();
    rig.wait_for("out/_manifest/done/00000001.json", &mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGSTOP).unwrap();
    assert!(rig.bucket.get("out/_SUCCESS.json").is_none(), "it was stopped at work");
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_is_followed_at_once_and_a_live_one_is_not() {
    with_server(|rig| {
        rig.pictures(12);
        let quick = |run: Haul| run.args(["--imgsz", "160"]);
        quick(rig.run(&rig.path("in"), &rig.path("out"))).exits(3);
        let again = || quick(rig.run(&rig.at("in/"), &rig.at("out/")));
        let first = stopped_at_work(rig, rig.slow("out/"));
        let holder = format!("is in use by process {} on host", first.id());
        again().exits(11).says(&holder);
        rig.haul("resume").arg(rig.at("out/")).exits(11).says(&holder);
        again().args(["--shard", "1/2"]).exits(11).says(&holder);
        again().args(["--if-locked", "skip"]).exits(0).says(&holder).says("nothing to do here");
        end(first);
        // The next one is told to stop, and gives its lease back.
        let mut second = rig.slow("out/").args(["--grace", "100ms"]).spawn();
        rig.wait_for("out/_manifest/done/00000002.json", &mut second);
        kill(Pid::from_raw(second.id() as i32), Signal::SIGTERM).unwrap();
        let ran = finish(second);
        assert_eq!(ran.code, 75, "{}", ran.stderr);
        assert_eq!(rig.json("out/_manifest/lock")["state"], "released");
        end(stopped_at_work(rig, rig.slow("out/")));
        let start = Instant::now();
        again().exits(3);
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
        rig.is_as("out/", &rig.path("out"));
    });
}

#[test]
fn a_run_that_lost_its_lease_commits_nothing_more() {
    with_server(|rig| {
        rig.pictures(80);
        rig.run(&rig.path("in"), &rig.path("out")).args(["--imgsz", "160"]).exits(3);
        let start = |out: &str| {
            let mut child = rig.slow(out).spawn();
            rig.wait_for(&format!("{out}_manifest/done/00000000.json"), &mut child);
            child
        };
        let (taken, deleted) = (start("taken/"), start("deleted/"));
        // Whose it is now is dead, and of this machine: nobody needs to wait for it.
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let mut lease = rig.json("taken/_manifest/lock");
        (lease["nonce"], lease["pid"]) = ("0".repeat(32).into(), dead.id().into());
        rig.bucket.put("taken/_manifest/lock", lease.to_string().as_bytes());
        rig.bucket.delete("deleted/_manifest/lock");
        let ran = finish(taken);
        assert_eq!(ran.code, 11, "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("process {}", dead.id())), "{}", ran.stderr);
        assert_eq!(rig.json("taken/_manifest/lock"), lease, "it is not its own to give back");
        let ran = finish(deleted);
        assert_eq!(ran.code, 11, "{}", ran.stderr);
        assert!(rig.bucket.get("deleted/_manifest/lock").is_none(), "nor to make anew");
        for out in ["taken/", "deleted/"] {
            assert!(rig.bucket.get(&format!("{out}_SUCCESS.json")).is_none());
            let done = rig.bucket.keys(&format!("{out}_manifest/done/")).len();
            assert!(done < 40, "it went on to the end");
            rig.run(&rig.at("in/"), &rig.at(out)).args(["--imgsz", "160"]).exits(3);
            rig.is_as(out, &rig.path("out"));
        }
    });
}

#[test]
fn shards_share_a_prefix() {
    with_server(|rig| {
        rig.pictures(9);
        rig.run(&rig.path("in"), &rig.path("out")).args(["--imgsz", "160"]).exits(3);
        let shard = |run: Haul, share: &str| run.args(["--imgsz", "160", "--shard", share]);
        let quick = |share: &str| shard(rig.run(&rig.at("in/"), &rig.at("both/")), share);
        let both = ["1/2", "2/2"].map(|share| quick(share).spawn()).map(finish);
        let codes = [both[0].code, both[1].code];
        assert!(codes == [0, 3] || codes == [3, 0], "{both:?}");
        rig.is_shared("both/", &rig.path("out"));
        assert_eq!(quick("1/2").exits(codes[0]).code, codes[0]);

        let first = stopped_at_work(rig, shard(rig.slow("out/"), "2/2"));
        let quick = |share: &str| shard(rig.run(&rig.at("in/"), &rig.at("out/")), share);
        let holder = format!("is in use by shard 2/2, process {} on host", first.id());
        quick("2/2").exits(11).says(&holder);
        quick("2/3").exits(11).says(&holder);
        let whole = || rig.run(&rig.at("in/"), &rig.at("out/")).args(["--imgsz", "160"]);
        whole().exits(11).says(&holder);
        whole().args(["--if-locked", "skip"]).exits(0).says(&holder);
        quick("1/2").exits(codes[0]).says("the job is not finished");
        end(first);
        quick("2/2").exits(codes[1]).says("the job is finished");
        rig.is_shared("out/", &rig.path("out"));
    });
}

#[test]
fn a_model_is_what_it_holds_wherever_it_lies() {
    with_server(|rig| {
        rig.pictures(5);
        let weights = fs::read(model()).unwrap();
        rig.bucket.put("models/shapes.safetensors", &weights);
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        let mut header = tar::Header::new_gnu();
        header.set_size(weights.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "model/shapes.safetensors", &weights[..]).unwrap();
        let archive = archive.into_inner().unwrap().finish().unwrap();
        rig.bucket.put("models/model.tar.gz", &archive);
        rig.run(&rig.path("in"), &rig.path("out")).exits(3);
        let run = || rig.run(&rig.at("in/"), &rig.at("out/"));
        run().exits(3);
        let there = ["models/shapes.safetensors", "models/model.tar.gz"].map(|key| rig.at(key));
        for model in &there {
            rig.unfinish("out/", &["part-00000001.jsonl", "_manifest/done/00000001.json"]);
            run().arg("--model").arg(model).exits(3).says("2 pictures in");
            rig.is_as("out/", &rig.path("out"));
        }
        // Begun with one of these, with everything else on this machine.
        let out = rig.path("of-archive");
        let run = || rig.run(&rig.path("in"), &out);
        run().arg("--model").arg(&there[1]).exits(3).says("\nS3: ");
        assert!(parts(&out) == parts(&rig.path("out")));
        run().exits(3).says("is finished, and nothing is new");
        rig.haul("resume").arg(&out).exits(3);
        run().arg("--model").arg(rig.at("models/no.pt")).exits(2).says("models/no.pt");
    });
}

#[test]
fn keys_are_what_they_are() {
    with_server(|rig| {
        let mut keys = [
            "a.jpg",
            "a.jpg/b.jpg",
            "x//y.jpg",
            "../../z.jpg",
            "/root.jpg",
            "./dot.jpg",
            "100%.jpg",
            "%2B.jpg",
            "a+b c.jpg",
            "\u{fc}/e\u{301}.jpg",
            "\u{65e5}\u{672c}.jpg",
            "\u{1f600}?x=1&y#z.jpg",
            " .jpg",
        ];
        let balloons = fs::read(testdata("pictures/balloons.jpg")).unwrap();
        keys.iter().for_each(|key| rig.bucket.put(&format!("in/{key}"), &balloons));
        keys.sort_unstable();
        let size = ["--imgsz", "160"];
        fs::create_dir(rig.path("in")).unwrap();
        fs::write(rig.path("in/a.jpg"), &balloons).unwrap();
        rig.run(&rig.path("in"), &rig.path("one")).args(size).exits(0);
        let one = &by_image(&rig.path("one"))["a.jpg"];
        assert!(one.detections.iter().flatten().count() > 0);

        let seen = rig.path("seen/of/these");
        let run = |input: &str, out: &str| {
            rig.run(&rig.at(input), &rig.at(out)).args(size).arg("--hidden")
        };
        run("in/", "out/").arg("--annotate").arg(&seen).exits(0);
        rig.haul("verify").arg(rig.at("out/")).exits(0);
        let lines = rig.lines("out/");
        assert_eq!(lines.keys().map(String::as_str).collect::<Vec<_>>(), keys);
        for (key, line) in &lines {
            assert_eq!(&Line { image: one.image.clone(), ..line.clone() }, one, "{key}");
        }
        // Nothing lies outside of its folder.
        let names = |path: &Path| {
            let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&rig.path("seen")), ["of"]);
        assert_eq!(names(&rig.path("seen/of")), ["these"]);
        let expected = ["in", "one", "seen", "state"].map(str::to_owned);
        assert!(names(rig.dir.path()).iter().all(|name| expected.contains(name)));
        assert_eq!(files(&seen), keys.len());
        // As many in a bucket, none on top of another, and all of them under its prefix.
        run("in/", "again/").arg("--annotate").arg(rig.at("seen/")).exits(0);
        assert_eq!(rig.bucket.keys("seen/").len(), keys.len());
        assert_eq!(rig.parts(&rig.at("again/")), rig.parts(&rig.at("out/")));
        // A list may name each of them.
        rig.bucket.put("in/list.txt", (keys.join("\n") + "\n").as_bytes());
        run("in/list.txt", "listed/").exits(0);
        assert_eq!(rig.parts(&rig.at("listed/")), rig.parts(&rig.at("out/")));
        // A name that begins with a dot is hidden, wherever it stands and whatever it means elsewhere.
        rig.plan(&rig.at("in/"), &rig.at("shown/")).exits(0).says("not planned: 2 ").says("hidden");
    });
}

/// How many files lie in a folder, and in those in it.
fn files(path: &Path) -> usize {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[test]
fn what_people_get_wrong_is_one_line() {
    with_server(|rig| {
        rig.pictures(2);
        rig.bucket.open_to_all("");
        let run = || rig.run(&rig.at("in/"), &rig.at("out/"));
        let other = |name: &str| std::env::var(format!("HAUL_TEST_S3_OTHER_{name}")).unwrap();
        let reader = |run: Haul| {
            let run = run.env("AWS_ACCESS_KEY_ID", &other("KEY"));
            run.env("AWS_SECRET_ACCESS_KEY", &other("SECRET"))
        };
        let nowhere = PathBuf::from("s3://haul-has-no-such-bucket/x/");
        for (haul, code, says) in [
            (reader(run()), 2, "s3:PutObject"),
            (run().env("AWS_SECRET_ACCESS_KEY", "wrong"), 2, "access key right"),
            (rig.run(&nowhere, &rig.at("out/")), 2, "haul-has-no-such-bucket"),
            (rig.run(&rig.at("in/"), &nowhere), 2, "haul-has-no-such-bucket"),
            (rig.haul("status").arg(&nowhere), 2, "haul-has-no-such-bucket"),
            (run().env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"), 1, "endpoint"),
        ] {
            let start = Instant::now();
            let ran = haul.exits(code).says(says);
            assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
            assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
        }
        // The lease was taken before the missing bucket was listed, and given back.
        assert!(rig.bucket.keys("out/").iter().all(|key| key == "out/_manifest/lock"));
        // Who may read only can look, prove, and have the results elsewhere.
        run().exits(3);
        reader(rig.haul("verify").arg(rig.at("out/"))).exits(3);
        reader(rig.run(&rig.at("in/"), &rig.path("mine"))).exits(3);
        assert!(parts(&rig.path("mine")) == rig.parts(&rig.at("out/")));
    });
}

#[test]
fn credentials_are_told_to_nobody() {
    with_server(|rig| {
        rig.pictures(3);
        let (input, out) = (rig.at("in/"), rig.at("out/"));
        let reports = |haul: Haul| {
            let haul = haul.arg("-v").arg("--junit").arg(rig.path("junit.xml"));
            haul.args(["--progress", "json"]).arg("--prometheus").arg(rig.path("haul.prom"))
        };
        for (haul, code) in [
            (rig.run(&input, &out).arg("--print-config"), 0),
            (rig.plan(&input, &out).arg("-v"), 0),
            (reports(rig.run(&input, &out)), 3),
            (reports(rig.run(&input, &out)), 3),
            (reports(rig.haul("resume").arg(&out)), 3),
            (reports(rig.run(&input, &out)).args(["--conf", "0.7"]), 2),
            (rig.run(&rig.at("in/"), Path::new("s3://haul-has-no-such-bucket/")), 2),
            (rig.haul("status").arg(&out).arg("--json"), 3),
            (rig.haul("doctor"), 0),
        ] {
            let ran = haul.exits(code);
            assert!(!rig.tells(ran.stdout.as_bytes()), "{}", ran.stdout);
            assert!(!rig.tells(ran.stderr.as_bytes()), "{}", ran.stderr);
        }
        for name in ["junit.xml", "haul.prom"] {
            assert!(!rig.tells(&fs::read(rig.path(name)).unwrap()), "{name}");
        }
        // What is in the bucket is looked through at the end of every test.
        assert!(rig.bucket.get("out/_manifest/job.json").is_some());
    });
}

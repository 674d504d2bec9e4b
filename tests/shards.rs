//! Several processes on one job, each with its share of the mini-batches.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Child;

use common::binary::{Haul, Ran, concatenated, folder, model, parts, success, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Every variable that an engine may set, so that the one that runs the tests is not heard.
const VARIABLES: [&str; 17] = [
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_MAX",
    "SLURM_ARRAY_TASK_COUNT",
    "JOB_COMPLETION_INDEX",
    "AWS_BATCH_JOB_ARRAY_INDEX",
    "AWS_BATCH_JOB_ARRAY_SIZE",
    "BATCH_TASK_INDEX",
    "BATCH_TASK_COUNT",
    "CLOUD_RUN_TASK_INDEX",
    "CLOUD_RUN_TASK_COUNT",
    "CI_NODE_INDEX",
    "CI_NODE_TOTAL",
    "CIRCLE_NODE_INDEX",
    "CIRCLE_NODE_TOTAL",
    "BUILDKITE_PARALLEL_JOB",
    "BUILDKITE_PARALLEL_JOB_COUNT",
];

/// Mini-batches of two pictures, in the arithmetic that the slow kernels have too.
fn haul(photos: &Path, out: &Path) -> Haul {
    let run = Haul::run(photos, out).without_env(&VARIABLES);
    run.args(["--max-images", "2", "--precision", "f32"])
}

fn shard(photos: &Path, out: &Path, shard: &str) -> Haul {
    haul(photos, out).args(["--shard", shard])
}

fn finish(child: Child) -> Ran {
    Ran::of(child.wait_with_output().unwrap())
}

/// 23 pictures, one of which is broken, in 12 mini-batches, and what one run makes of them.
struct Job {
    photos: TempDir,
    root: TempDir,
    parts: BTreeMap<String, Vec<u8>>,
    success: serde_json::Value,
}

fn job() -> Job {
    let photos = folder(23);
    fs::write(photos.path().join("1/00001.png"), b"no picture").unwrap();
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    haul(photos.path(), &whole).exits(3);
    let (parts, success) = (parts(&whole), without_job(&whole));
    assert_eq!(parts.len(), 12);
    Job { photos, root, parts, success }
}

/// The success marker but for the job's id.
fn without_job(out: &Path) -> serde_json::Value {
    let mut marker = success(out);
    assert!(marker.as_object_mut().unwrap().remove("job").is_some());
    marker
}

impl Job {
    /// That an output is what one run makes.
    #[track_caller]
    fn is_whole(&self, out: &Path) {
        assert!(parts(out) == self.parts, "the parts differ");
        assert_eq!(without_job(out), self.success);
        Haul::new("status").arg(out).exits(3);
        Haul::new("verify").arg(out).exits(3);
        assert!(!out.join("_manifest/strikes.jsonl").exists(), "the last one tidies up");
        assert_eq!(fs::read_dir(out.join("_manifest/tmp")).unwrap().count(), 0);
    }

    /// The code of a shard of so many: 3 where the broken picture is.
    fn code(&self, index: u64, count: u64) -> i32 {
        let broken = |part: &Vec<u8>| part.windows(8).any(|text| text == b"\"error\":");
        let batch = self.parts.values().position(broken).unwrap() as u64;
        if batch % count == index - 1 { 3 } else { 0 }
    }
}

/// Ids of the committed mini-batches.
fn done(out: &Path) -> BTreeSet<u64> {
    let names = fs::read_dir(out.join("_manifest/done")).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    names.map(|entry| name(entry.unwrap())[..8].parse().unwrap()).collect()
}

#[test]
fn three_shards_at_once_make_what_one_run_makes() {
    let job = job();
    let out = job.root.path().join("out");
    let seen = job.root.path().join("seen");
    let start = |index: u64| {
        let run = shard(job.photos.path(), &out, &format!("{index}/3")).arg("--json");
        run.arg("--annotate").arg(&seen).spawn()
    };
    let ended: Vec<Ran> = [1, 2, 3].map(start).into_iter().map(finish).collect();
    let mut finishers = 0;
    for (ran, index) in ended.iter().zip(1..) {
        assert_eq!(ran.code, job.code(index, 3), "{ran:?}");
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let share = &report["shard"];
        assert_eq!(share["shard"], format!("{index}/3"));
        assert_eq!((&share["batches"], &share["committed"]), (&4.into(), &4.into()), "{share}");
        let [planned, ok, failed] = ["planned", "ok", "failed"].map(|f| share[f].as_u64().unwrap());
        assert_eq!(planned, ok + failed, "{share}");
        assert_eq!(failed, u64::from(ran.code == 3));
        assert_eq!(report["planned"], 23);
        finishers += u64::from(report["state"] == "done");
    }
    assert!(finishers > 0, "somebody puts the marker: {ended:?}");
    job.is_whole(&out);
    let drawn = fs::read_dir(seen.join("0")).unwrap().count();
    assert_eq!(drawn, fs::read_dir(job.photos.path().join("0")).unwrap().count());
    let left = fs::read_dir(&seen).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<BTreeSet<_>>(), ["0", "1", "2"].map(Into::into).into());

    // Each still answers for its own share.
    for index in 1..=3 {
        let again = shard(job.photos.path(), &out, &format!("{index}/3"));
        again.exits(job.code(index, 3)).says("is finished, and nothing is new");
    }
    haul(job.photos.path(), &out).exits(3);
}

#[test]
fn each_does_its_share_only_and_the_last_one_finishes() {
    let job = job();
    let out = job.root.path().join("out");
    for index in 1..=4u64 {
        let ran = shard(job.photos.path(), &out, &format!("{index}/4")).exits(job.code(index, 4));
        let share: BTreeSet<u64> = (0..12).filter(|batch| batch % 4 < index).collect();
        assert_eq!(done(&out), share, "after shard {index}");
        assert_eq!(out.join("_SUCCESS.json").exists(), index == 4);
        if index < 4 {
            let ran = ran.says("the job is not finished").says("share done: ");
            ran.says(&format!("{} of 12 mini-batches committed", 3 * index));
            Haul::new("status").arg(&out).exits(75);
        } else {
            ran.says("the job is finished").says("shard 4/4: ");
        }
    }
    job.is_whole(&out);
}

#[test]
fn a_killed_shard_is_run_again() {
    let job = job();
    let out = job.root.path().join("out");
    let mut doomed = shard(job.photos.path(), &out, "1/2").slowly().spawn();
    wait_for(&out.join("_manifest/done/00000000.json"), &mut doomed);
    doomed.kill().unwrap();
    doomed.wait().unwrap();
    assert!(done(&out).len() < 6, "it was killed at work");
    // As if it had died between a part and its record.
    fs::remove_file(out.join("_manifest/done/00000000.json")).unwrap();
    shard(job.photos.path(), &out, "2/2").exits(job.code(2, 2)).says("the job is not finished");
    let others = done(&out);
    assert!(others.is_superset(&[1, 3, 5, 7, 9, 11].into()) && !others.contains(&0), "{others:?}");
    let again = Haul::new("resume").without_env(&VARIABLES).arg(&out).args(["--shard", "1/2"]);
    let ran = again.arg("--json").exits(job.code(1, 2));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["adopted"], 1);
    job.is_whole(&out);
}

#[test]
fn the_count_may_change_between_runs() {
    let job = job();
    let out = job.root.path().join("out");
    shard(job.photos.path(), &out, "2/3").exits(job.code(2, 3));
    // More shards than mini-batches are left: some have nothing to do.
    for index in 1..=12 {
        let text = format!("{index}/30");
        shard(job.photos.path(), &out, &text).exits(job.code(index, 30));
    }
    job.is_whole(&out);
    let other = job.root.path().join("other");
    shard(job.photos.path(), &other, "1/5").exits(job.code(1, 5));
    shard(job.photos.path(), &other, "20/20").exits(0).says("0 of 0 mini-batches committed");
    haul(job.photos.path(), &other).exits(3);
    job.is_whole(&other);
}

#[test]
fn shards_and_whole_runs_exclude_each_other() {
    let job = job();
    let (photos, out) = (job.photos.path(), job.root.path().join("out"));
    let stop = |child: &Child| kill(Pid::from_raw(child.id() as i32), Signal::SIGSTOP).unwrap();
    let end = |mut child: Child| {
        child.kill().unwrap();
        child.wait().unwrap();
    };
    let mut first = shard(photos, &out, "1/2").slowly().spawn();
    wait_for(&out.join("_manifest/done/00000000.json"), &mut first);
    stop(&first);
    let holder = format!("is in use by shard 1/2, process {} on host", first.id());
    haul(photos, &out).exits(11).says(&holder);
    Haul::new("resume").arg(&out).exits(11).says(&holder);
    shard(photos, &out, "1/2").exits(11).says(&holder);
    shard(photos, &out, "1/3").exits(11).says(&holder);
    shard(photos, &out, "3/3").args(["--if-locked", "skip"]).exits(0).says("nothing to do here");
    assert!(done(&out).iter().all(|batch| batch % 2 == 0), "{:?}", done(&out));
    shard(photos, &out, "2/2").exits(job.code(2, 2));
    end(first);

    let mut whole = haul(photos, &out).slowly().spawn();
    let committed = done(&out).len();
    while done(&out).len() == committed {
        assert!(whole.try_wait().unwrap().is_none(), "it ended: {:?}", done(&out));
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    stop(&whole);
    let holder = format!("is in use by process {} on host", whole.id());
    shard(photos, &out, "1/2").exits(11).says(&holder);
    shard(photos, &out, "2/2").args(["--if-locked", "skip"]).exits(0).says(&holder);
    end(whole);
    shard(photos, &out, "1/2").exits(job.code(1, 2));
    job.is_whole(&out);
}

#[test]
fn many_at_once_on_an_empty_output_agree_on_one_job() {
    let photos = folder(8);
    let root = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let out = root.path().join(round.to_string());
        // Without locks nothing keeps them from meeting anywhere.
        let locks: &[&str] = if round % 2 == 0 { &[] } else { &["--no-lock"] };
        let start =
            |index: u64| shard(photos.path(), &out, &format!("{index}/4")).args(locks).spawn();
        for ran in [1, 2, 3, 4].map(start).map(finish) {
            assert_eq!(ran.code, 0, "round {round}: {ran:?}");
        }
        assert_eq!(success(&out)["planned"], 8, "round {round}");
        Haul::new("verify").arg(&out).exits(0);
    }
}

#[test]
fn gates_are_for_whoever_finds_the_job_complete() {
    let photos = folder(6);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let gate = ["--gate", "pictures >= 100", "--json"];
    let report = |ran: Ran| serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap();
    let first = report(shard(photos.path(), &out, "1/2").args(gate).exits(0));
    assert_eq!(first["gates"], serde_json::json!([]));
    assert_eq!((&first["state"], &first["exit"]), (&"share done".into(), &0.into()));
    let last = report(shard(photos.path(), &out, "2/2").args(gate).exits(6));
    assert_eq!((&last["state"], &last["exit"]), (&"done".into(), &6.into()));
    shard(photos.path(), &out, "1/2").args(gate).exits(6);
}

#[test]
fn a_gate_on_errors_leaves_judging_to_the_last_shard() {
    let job = job();
    let out = job.root.path().join("out");
    let gate =
        |share: &str, gate: &str| shard(job.photos.path(), &out, share).args(["--gate", gate]);
    // Both shares have a picture that is none.
    fs::write(job.photos.path().join("2/00002.jpg"), b"nor this").unwrap();
    gate("1/2", "pictures > 0").exits(3);
    gate("1/2", "errors < 3").exits(0).says("the job is not finished");
    gate("2/2", "errors < 2").exits(6);
    gate("1/2", "errors < 3").exits(0);
}

#[test]
fn failed_pictures_are_retried_by_shards() {
    let job = job();
    fs::write(job.photos.path().join("2/00002.jpg"), b"nor this").unwrap();
    let (out, again) = (job.root.path().join("out"), job.root.path().join("again"));
    haul(job.photos.path(), &out).exits(3);
    let retry = |text: &str| {
        let retry = Haul::new("retry").without_env(&VARIABLES).arg(&out).arg("--output");
        retry.arg(&again).args(["--max-images", "1", "--shard", text])
    };
    retry("2/2").exits(3).says("the job is not finished");
    retry("1/2").exits(3).says("the job is finished");
    assert_eq!(parts(&again).len(), 2);
    retry("0/2").exits(2).says("--shard is `0/2`");
}

#[test]
fn each_engine_says_which_shard_it_is() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let slurm = [
        ("SLURM_ARRAY_TASK_ID", "8"),
        ("SLURM_ARRAY_TASK_MIN", "7"),
        ("SLURM_ARRAY_TASK_MAX", "9"),
        ("SLURM_ARRAY_TASK_COUNT", "3"),
    ];
    // What is said, what is asked for, and the variables.
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);
    let cases: [Case<'_>; 8] = [
        ("Slurm, SLURM_ARRAY_TASK_ID=8, counted from 7", "auto", &slurm),
        (
            "Kubernetes, JOB_COMPLETION_INDEX=1, counted from 0; 3 shards, as given",
            "auto/3",
            &[("JOB_COMPLETION_INDEX", "1")],
        ),
        (
            "AWS Batch, AWS_BATCH_JOB_ARRAY_INDEX=1, counted from 0",
            "auto",
            &[("AWS_BATCH_JOB_ARRAY_INDEX", "1"), ("AWS_BATCH_JOB_ARRAY_SIZE", "3")],
        ),
        (
            "Google Cloud Batch, BATCH_TASK_INDEX=1, counted from 0",
            "auto",
            &[("BATCH_TASK_INDEX", "1"), ("BATCH_TASK_COUNT", "3")],
        ),
        (
            "Cloud Run, CLOUD_RUN_TASK_INDEX=1, counted from 0",
            "auto",
            &[("CLOUD_RUN_TASK_INDEX", "1"), ("CLOUD_RUN_TASK_COUNT", "3")],
        ),
        (
            "GitLab, CI_NODE_INDEX=2, counted from 1",
            "auto",
            &[("CI_NODE_INDEX", "2"), ("CI_NODE_TOTAL", "3")],
        ),
        (
            "CircleCI, CIRCLE_NODE_INDEX=1, counted from 0",
            "auto",
            &[("CIRCLE_NODE_INDEX", "1"), ("CIRCLE_NODE_TOTAL", "3")],
        ),
        (
            "Buildkite, BUILDKITE_PARALLEL_JOB=1, counted from 0",
            "auto",
            &[("BUILDKITE_PARALLEL_JOB", "1"), ("BUILDKITE_PARALLEL_JOB_COUNT", "3")],
        ),
    ];
    for (index, (said, text, variables)) in cases.into_iter().enumerate() {
        let out = root.path().join(index.to_string());
        let run = || Haul::run(photos.path(), &out).args(["--max-images", "1"]);
        let run = |text: &str| {
            let run = run().without_env(&VARIABLES).args(["--shard", text]);
            variables.iter().fold(run, |run, (name, value)| run.env(name, value))
        };
        let ran = run(text).exits(0);
        let first = ran.stderr.lines().next().unwrap();
        assert!(first.starts_with(&format!("shard 2/3: {said}")), "{first}");
        assert_eq!(done(&out), [1].into(), "{said}");
        // Now the job knows, where the engine does not.
        run("auto").exits(0).says("shard 2/3: ");
        // Nobody is a shard who was not asked to be one.
        let all = haul(photos.path(), &root.path().join(format!("{index}-all")));
        let all = all.args(["--max-images", "1"]);
        variables.iter().fold(all, |run, (name, value)| run.env(name, value)).exits(0);
        assert_eq!(done(&root.path().join(format!("{index}-all"))), [0, 1, 2].into(), "{said}");
    }
}

#[test]
fn a_part_of_a_slurm_array_is_run_again() {
    let job = job();
    let out = job.root.path().join("out");
    let task = |id: &str, [min, max, count]: [&str; 3]| {
        shard(job.photos.path(), &out, "auto")
            .env("SLURM_ARRAY_TASK_ID", id)
            .env("SLURM_ARRAY_TASK_MIN", min)
            .env("SLURM_ARRAY_TASK_MAX", max)
            .env("SLURM_ARRAY_TASK_COUNT", count)
    };
    for id in ["0", "2", "3"] {
        task(id, ["0", "5", "6"]).ran();
    }
    assert_eq!(done(&out), [0, 2, 3, 6, 8, 9].into());
    // --array=1,4-5: Slurm counts those.
    for id in ["1", "4", "5"] {
        task(id, ["1", "5", "3"]).ran().says("6 shards, as in the first run of this job");
    }
    job.is_whole(&out);
    task("6", ["6", "6", "1"]).exits(2).says("SLURM_ARRAY_TASK_ID=6 is none of the 6 shards");
    // A plan that was made before knows of no array yet; the first run says it, not the second.
    let planned = job.root.path().join("planned");
    let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(job.photos.path());
    plan.arg("-o").arg(&planned).args(["--imgsz", "64", "--max-images", "2"]).exits(0);
    let resume = |id: &str, [min, max, count]: [&str; 3]| {
        let resume = Haul::new("resume").without_env(&VARIABLES).arg(&planned);
        resume
            .args(["--shard", "auto"])
            .env("SLURM_ARRAY_TASK_ID", id)
            .env("SLURM_ARRAY_TASK_MIN", min)
            .env("SLURM_ARRAY_TASK_MAX", max)
            .env("SLURM_ARRAY_TASK_COUNT", count)
    };
    resume("1", ["1", "3", "3"]).ran();
    resume("3", ["3", "3", "1"]).ran().says("shard 3/3: ");
    assert_eq!(done(&planned), [0, 2, 3, 5, 6, 8, 9, 11].into());
}

#[test]
fn what_cannot_be_a_shard_is_refused_before_anything_is_written() {
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    for wrong in ["0/3", "4/3", "a/b", "3", "auto/0"] {
        let ran = shard(photos.path(), &out, wrong).exits(2);
        ran.says(&format!("--shard is `{wrong}`; it is i/N"));
    }
    shard(photos.path(), &out, "auto").exits(2).says("no variable says which shard this is");
    let pod = shard(photos.path(), &out, "auto").env("JOB_COMPLETION_INDEX", "1");
    pod.exits(2).says("JOB_COMPLETION_INDEX=1").says("--shard auto/N");
    shard(photos.path(), &out, "1/2").arg("--new").exits(2).says("--new does not go with --shard");
    let file = root.path().join("job.toml");
    for (value, code) in [("1/2", 2), ("auto", 0)] {
        fs::write(&file, format!("shard = '{value}'\n")).unwrap();
        let run = haul(photos.path(), &out).arg(&file).env("CI_NODE_INDEX", "1");
        let ran = run.env("CI_NODE_TOTAL", "1").exits(code);
        if code == 2 {
            ran.says("every process that reads the file would be the same shard");
            assert!(!out.exists());
        }
    }
    // What a run prints as a job file is one; and a resume without --shard does everything.
    let config = shard(photos.path(), &out, "1/2").arg("--print-config").exits(0).stdout;
    assert!(!config.lines().any(|line| line.starts_with("shard")), "{config}");
    let other = root.path().join("other");
    shard(photos.path(), &other, "2/2").exits(0);
    Haul::new("resume").arg(&other).exits(0);
    assert_eq!(concatenated(&other), concatenated(&out));
}

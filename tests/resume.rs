//! Same bytes however it was run, and nothing lost however it was stopped.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::binary::{
    Haul, Ran, by_image, concatenated, fill, folder, lines, model, parts, success, testdata,
    wait_for,
};

const SMALL_BATCHES: [&str; 2] = ["--max-images", "3"];

/// At the end of a job, and in jobs of a few pictures, idle workers assist busy ones.
#[test]
fn bytes_do_not_depend_on_who_assists() {
    let root = tempfile::tempdir().unwrap();
    for count in [1, 2, 3, 5] {
        let photos = folder(count);
        let mut first = None;
        for workers in ["1", "2", "4"] {
            let out = root.path().join(format!("{count}-{workers}"));
            let run = Haul::run(photos.path(), &out);
            run.args(["--imgsz", "320", "--workers", workers]).exits(0);
            let bytes = concatenated(&out);
            assert_eq!(lines(&out).len(), count);
            assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{count} {workers}");
        }
    }
}

#[test]
fn bytes_do_not_depend_on_workers_mini_batches_or_budget() {
    let photos = testdata("pictures");
    let root = tempfile::tempdir().unwrap();
    let mut whole: Option<Vec<u8>> = None;
    for (index, flags) in [
        ["--workers", "1", "--max-images", "100", "--max-payload-mb", "100"],
        ["--workers", "2", "--max-images", "100", "--max-payload-mb", "100"],
        ["--workers", "4", "--max-images", "5", "--max-payload-mb", "100"],
        ["--workers", "3", "--max-images", "1", "--max-payload-mb", "100"],
        ["--workers", "2", "--max-images", "100", "--max-payload-mb", "0.05"],
        ["--workers", "4", "--max-picture-memory", "32MiB", "--memory-budget", "96MiB"],
    ]
    .into_iter()
    .enumerate()
    {
        let out = root.path().join(index.to_string());
        let run =
            Haul::new("run").arg("-m").arg(model()).arg("-i").arg(&photos).arg("-o").arg(&out);
        run.args(flags).args(["--imgsz", "128"]).exits(0);
        let bytes = concatenated(&out);
        assert!(bytes.windows(7).any(|w| w == b"\"score\""), "something is found");
        match &whole {
            None => whole = Some(bytes),
            Some(whole) => assert!(bytes == *whole, "{flags:?} gave other bytes"),
        }
    }
}

#[test]
fn a_crash_between_part_and_record_is_adopted() {
    let photos = folder(20);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(0);
    let (before, marker) = (parts(&out), success(&out));
    let modified = |name: &str| fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let first = modified("part-00000000.jsonl");

    // As after a crash in a finished plan, and as after one while the listing still went on.
    for gone in [
        &["_SUCCESS.json", "_manifest/done/00000000.json", "_manifest/done/00000003.json"][..],
        &["_SUCCESS.json", "_manifest/plan.json", "_manifest/done/00000000.json"],
        &[
            "_SUCCESS.json",
            "_manifest/plan.json",
            "_manifest/plan-00000000.jsonl",
            "_manifest/done/00000001.json",
        ],
    ] {
        for name in gone {
            fs::remove_file(out.join(name)).unwrap();
        }
        let ran = Haul::new("resume").arg(&out).arg("--json").exits(0);
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(report["adopted"].as_u64().unwrap() >= 1, "{report}");
        assert_eq!(report["pictures"], 0, "nothing was done again");
        assert!(parts(&out) == before, "the parts differ");
        assert_eq!(success(&out), marker);
    }
    assert_eq!(modified("part-00000000.jsonl"), first, "what is published is not touched");
    Haul::new("verify").arg(&out).exits(0);
}

#[test]
fn foreign_parts_and_records_are_refused() {
    let photos = folder(6);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(0);
    fs::remove_file(out.join("_SUCCESS.json")).unwrap();
    fs::remove_file(out.join("_manifest/done/00000001.json")).unwrap();
    fs::write(out.join("part-00000001.jsonl"), b"{\"image\":\"x\"}\n").unwrap();
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(2).says("part-00000001.jsonl");
    fs::remove_file(out.join("part-00000001.jsonl")).unwrap();

    let record = out.join("_manifest/done/00000000.json");
    let text = fs::read_to_string(&record).unwrap();
    let job = text.split("\"job\":\"").nth(1).unwrap()[..32].to_owned();
    fs::remove_file(&record).unwrap();
    fs::write(&record, text.replace(&job, &"0".repeat(32))).unwrap();
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(2).says("record of another job");
    fs::write(&record, text).unwrap();

    // A part behind the end of the plan.
    fs::write(out.join("part-00000077.jsonl"), b"").unwrap();
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(2).says("mini-batch 77");
    fs::remove_file(out.join("part-00000077.jsonl")).unwrap();
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(0);
}

#[test]
fn verify_names_what_was_altered() {
    let photos = folder(9);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(0);
    Haul::new("verify").arg(&out).exits(0);
    let alter = |name: &str, change: &dyn Fn(String) -> String, says: &str| {
        let path = out.join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(text.clone())).unwrap();
        Haul::new("verify").arg(&out).exits(1).says(says);
        fs::write(&path, text).unwrap();
        Haul::new("verify").arg(&out).exits(0);
    };
    alter(
        "part-00000001.jsonl",
        &|t| t.replace("width", "Width"),
        "part-00000001.jsonl is not what",
    );
    alter("_SUCCESS.json", &|t| t.replace("\"ok\":9", "\"ok\":8"), "_SUCCESS.json");
    alter("_manifest/plan.json", &|t| t.replace("\"pictures\":9", "\"pictures\":8"), "plan.json");
    alter(
        "_manifest/plan-00000000.jsonl",
        &|t| t.replace("00003", "00004"),
        "plan.json does not say",
    );
    alter("_manifest/plan-00000000.jsonl", &|t| t.replacen("\"size\":", "\"size\":1", 1), "counts");
    alter("_manifest/done/00000002.json", &|t| t.replace("\"ok\":3", "\"ok\":2"), "add up");
    // The same lie in part and record is still no line of ours.
    let part = fs::read_to_string(out.join("part-00000000.jsonl")).unwrap();
    let lie = part.replacen("\"width\":", "\"width\":-", 1);
    fs::write(out.join("part-00000000.jsonl"), &lie).unwrap();
    let record = out.join("_manifest/done/00000000.json");
    let text = fs::read_to_string(&record).unwrap();
    let digest = haul::store::sha256(part.as_bytes());
    fs::write(&record, text.replace(&digest, &haul::store::sha256(lie.as_bytes()))).unwrap();
    Haul::new("verify").arg(&out).exits(1).says("line 1 breaks the schema");
}

#[test]
fn a_job_goes_on_in_its_numeric_class_or_not_at_all() {
    use haul::engine::candle::Candle;
    use haul::kernels::{Cpu, Tier};
    let photos = folder(8);
    let root = tempfile::tempdir().unwrap();
    let class = |out: &Path| {
        let text = fs::read_to_string(out.join("_manifest/job.json")).unwrap();
        let job: serde_json::Value = serde_json::from_str(&text).unwrap();
        job["fingerprint"]["numeric_class"].as_str().unwrap().to_owned()
    };
    // As if another run had been killed before its last mini-batch.
    let unfinish = |out: &Path| {
        fs::remove_file(out.join("_SUCCESS.json")).unwrap();
        fs::remove_file(out.join("_manifest/done/00000002.json")).unwrap();
        fs::remove_file(out.join("part-00000002.jsonl")).unwrap();
    };
    // On whatever tier of a class it is begun, all of them go on with the same bytes.
    let mut whole = None;
    for begun in [Tier::Avx512, Tier::Avx2, Tier::Reference] {
        if !Cpu::get().has(begun) {
            continue;
        }
        let out = root.path().join(begun.name());
        let run = || Haul::run(photos.path(), &out).args(SMALL_BATCHES);
        run().env("HAUL_CPU_TIER", begun.name()).exits(0);
        assert_eq!(class(&out), "f32");
        let bytes = whole.get_or_insert_with(|| concatenated(&out)).clone();
        assert!(concatenated(&out) == bytes, "{begun} gave other bytes");
        unfinish(&out);
        run().exits(0);
        unfinish(&out);
        Haul::new("resume")
            .arg(&out)
            .env("HAUL_CPU_TIER", "portable")
            .exits(2)
            .says("numeric_class was \"f32\", is \"f32-portable");
        Haul::new("resume").arg(&out).exits(0);
        assert!(concatenated(&out) == bytes, "{begun} was not gone on with");
        run().args(["--precision", "f32"]).exits(0);
        if haul::engine::choose(haul::engine::Precision::Bf16, None, None).is_ok() {
            run()
                .args(["--precision", "bf16"])
                .exits(2)
                .says("numeric_class was \"f32\", is \"bf16");
        }
    }
    // A job of another machine, and one that an earlier version began with candle.
    let out = root.path().join("portable");
    let run = || Haul::run(photos.path(), &out).args(SMALL_BATCHES);
    run().env("HAUL_CPU_TIER", "portable").exits(0);
    let job = out.join("_manifest/job.json");
    let (text, was) = (fs::read_to_string(&job).unwrap(), class(&out));
    for (class, code) in [("bf16-quantum", 2), ("candle-f32-abacus", 2), (Candle::class(), 0)] {
        fs::write(&job, text.replace(&was, class)).unwrap();
        let ran = run().exits(code);
        assert!(
            code == 0 || ran.stderr.contains(&format!("numeric class is `{class}`")),
            "{ran:?}"
        );
    }
    unfinish(&out);
    run().exits(0).says(Candle::class());
    run().args(["--precision", "f32"]).exits(0);
}

/// Runs until it ends by itself, killed at every moment in `after`.
fn kill_and_go_on(photos: &Path, out: &Path, after: impl Iterator<Item = u64>) -> (Ran, usize) {
    let mut kills = 0;
    for millis in after {
        let mut child = Haul::run(photos, out).args(SMALL_BATCHES).arg("--quiet").spawn();
        std::thread::sleep(Duration::from_millis(millis));
        if child.try_wait().unwrap().is_some() {
            return (Ran::of(child.wait_with_output().unwrap()), kills);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    (Haul::run(photos, out).args(SMALL_BATCHES).ran(), kills)
}

#[test]
fn sigkill_loses_nothing() {
    let photos = folder(93);
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    Haul::run(photos.path(), &whole).args(SMALL_BATCHES).exits(0);
    let out = root.path().join("killed");
    // From before the model is read to somewhere in the work.
    let (ran, kills) =
        kill_and_go_on(photos.path(), &out, [1, 3, 8, 15, 25, 40, 60, 90, 130].into_iter());
    assert!(kills >= 4, "only {kills} kills came before the end");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(parts(&out) == parts(&whole), "the parts differ");
    for field in ["planned", "ok", "failed", "parts", "plan_sha256", "parts_sha256"] {
        assert_eq!(success(&out)[field], success(&whole)[field], "{field}");
    }
    Haul::new("verify").arg(&out).exits(0);
    assert_eq!(fs::read_dir(out.join("_manifest/tmp")).unwrap().count(), 0, "nothing is left over");
    // An empty file is left where the kill came between the marker and tidying up.
    let strikes = fs::read(out.join("_manifest/strikes.jsonl")).unwrap_or_default();
    assert!(strikes.is_empty(), "a kill is nobody's fault");
}

#[test]
fn what_haul_died_of_twice_is_left_out_unread() {
    let photos = folder(7);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let plan =
        Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(photos.path()).arg("-o").arg(&out);
    plan.args(["--imgsz", "64"]).exits(0);
    let strikes = out.join("_manifest/strikes.jsonl");
    let twice = "{\"image\":\"1/00001.png\"}\n";
    // A last line that was torn counts for nothing.
    let text =
        format!("{twice}{{\"image\":\"0/00003.jpg\"}}\n{twice}{{\"image\":\"0/00003.jpg\"}}");
    fs::write(&strikes, &text).unwrap();
    // A dry run leaves it out too, and writes nothing.
    let plan =
        Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(photos.path()).arg("-o").arg(&out);
    let ran = plan.args(["--imgsz", "64", "--dry-run", "--json"]).exits(0);
    assert!(ran.stdout.contains("\"probed\": 6,"), "{}", ran.stdout);
    assert_eq!(fs::read_to_string(&strikes).unwrap(), text);
    fs::remove_file(photos.path().join("1/00001.png")).unwrap();
    let ran = Haul::new("resume").arg(&out).exits(3).says("1 × quarantined");
    ran.says("at work on `0/00003.jpg`; it is tried once more");
    let lines = by_image(&out);
    for (image, line) in &lines {
        let code = line.error.as_ref().map(|error| (&*error.code, &*error.stage));
        let expected = (image == "1/00001.png").then_some(("quarantined", "fetch"));
        assert_eq!(code, expected, "{image}");
    }
    assert_eq!(lines.len(), 7);
    Haul::new("verify").arg(&out).exits(3);
    // A new job knows nothing of the old one's strikes.
    fs::copy(testdata("forms/png-rgb8.png"), photos.path().join("1/00001.png")).unwrap();
    Haul::run(photos.path(), &out).arg("--new").exits(0);
    assert!(!strikes.exists());
}

#[test]
fn sigterm_ends_with_75_and_the_same_command_goes_on() {
    let photos = folder(60);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = Haul::run(photos.path(), &out).args(["--max-images", "2", "--grace", "1s"]);
    let mut child = run.slowly().spawn();
    wait_for(&out.join("_manifest/done/00000000.json"), &mut child);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 75, "{}", ran.stderr);
    assert!(ran.stderr.contains("interrupted: 60 planned"), "{}", ran.stderr);
    Haul::new("status").arg(&out).exits(75);
    Haul::new("verify").arg(&out).exits(75);
    Haul::new("export").arg(&out).args(["--to", "csv"]).exits(2).says("is not finished");
    Haul::new("resume").arg(&out).exits(0);
    Haul::new("status").arg(&out).exits(0);
    // A second time there is nothing to do, and the answer is the same.
    Haul::new("resume").arg(&out).exits(0).says("is finished");
}

#[test]
fn a_run_that_is_over_by_the_clock_ends_with_75_and_the_next_goes_on() {
    let photos = folder(60);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out).args(["--max-images", "2", "--grace", "1s"]);
    let ran = run().slowly().args(["--max-runtime", "1ms"]).exits(75);
    ran.says("--max-runtime 1ms is over: finishing").says("interrupted: ");
    Haul::new("status").arg(&out).exits(75);
    Haul::new("resume").arg(&out).slowly().args(["--max-runtime", "1ms"]).exits(75).says("is over");
    // It was a matter of those runs, and within the time nothing is different.
    Haul::new("resume").arg(&out).exits(0);
    run().args(["--max-runtime", "1h"]).exits(0);
    let whole = root.path().join("whole");
    // The slow kernels compute in f32.
    let run = Haul::run(photos.path(), &whole).args(["--max-images", "2", "--precision", "f32"]);
    run.args(["--max-runtime", "1h"]).exits(0);
    assert!(parts(&out) == parts(&whole));
}

#[test]
fn a_first_millisecond_and_an_empty_folder_do_not_stand_in_the_way() {
    let root = tempfile::tempdir().unwrap();
    let (photos, out) = (root.path().join("photos"), root.path().join("out"));
    fs::create_dir(&photos).unwrap();
    Haul::run(&photos, &out).exits(5).says("no picture found");
    Haul::run(&photos, &out).arg("--allow-empty").exits(0);
    // What a kill right after the start leaves.
    fs::create_dir_all(out.join("_manifest/tmp")).unwrap();
    fs::write(out.join("_manifest/tmp/123-0"), b"half a job.js").unwrap();
    fill(&photos, 0..3);
    Haul::run(&photos, &out).args(["--conf", "0.5"]).exits(0);
    assert_eq!(success(&out)["planned"], 3);
}

#[test]
fn where_nothing_is_left_no_picture_is_to_blame() {
    let photos = folder(7);
    let root = tempfile::tempdir().unwrap();
    let (out, kept) = (root.path().join("out"), root.path().join("kept"));
    Haul::run(photos.path(), &out).args(SMALL_BATCHES).exits(0);
    let whole = parts(&out);
    let forget = |names: &[&str]| {
        names.iter().for_each(|name| fs::remove_file(out.join(name)).unwrap());
    };
    let all = ["0", "1", "2"]
        .map(|id| (format!("part-0000000{id}.jsonl"), format!("_manifest/done/0000000{id}.json")));
    forget(&["_SUCCESS.json"]);
    all.iter().for_each(|(part, record)| forget(&[part, record]));
    // The folder itself is still there, and the last picture is alone in its mini-batch.
    fs::create_dir(&kept).unwrap();
    let folders = || ["0", "1", "2"].map(|name| (photos.path().join(name), kept.join(name)));
    folders().iter().for_each(|(from, to)| fs::rename(from, to).unwrap());
    Haul::new("resume").arg(&out).exits(1).says("is it still mounted?");
    assert!(parts(&out).is_empty(), "{:?}", parts(&out).keys());
    folders().iter().for_each(|(from, to)| fs::rename(to, from).unwrap());
    Haul::new("resume").arg(&out).exits(0);
    assert!(parts(&out) == whole);
}

#[test]
fn a_mini_batch_that_takes_too_long_fails_and_is_tried_again() {
    let photos = folder(12);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out).args(["--max-images", "6", "--imgsz", "640"]);
    run().args(["--batch-timeout", "1ms"]).exits(1).says("took longer than --batch-timeout 1ms");
    assert!(!out.join("_SUCCESS.json").exists());
    assert!(out.join("_manifest/failed/00000000-1.json").exists());
    Haul::new("status").arg(&out).exits(75);
    run().exits(0);
    let record = fs::read_to_string(out.join("_manifest/done/00000000.json")).unwrap();
    assert!(!record.contains("\"attempt\":1}"), "{record}");
}

#[test]
fn a_second_signal_stops_at_once() {
    use nix::sys::signal::{Signal, kill};
    let photos = folder(40);
    let root = tempfile::tempdir().unwrap();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let out = root.path().join(code.to_string());
        let run = Haul::run(photos.path(), &out).args(["--max-images", "4", "--grace", "5m"]);
        let mut child = run.slowly().spawn();
        // Then the rate is known, and a whole mini-batch that fits the grace is left to do.
        wait_for(&out.join("_manifest/done/00000000.json"), &mut child);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, signal).unwrap();
        std::thread::sleep(Duration::from_millis(150));
        kill(pid, signal).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert!(ran.stderr.contains("finishing"), "{}", ran.stderr);
        Haul::new("status").arg(&out).exits(75);
    }
}

#[test]
fn a_complete_plan_goes_on_without_the_list_it_was_made_of() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fill(&at("photos"), 0..3);
    fill(&at("more"), 0..3);
    let names = ["0/00000.jpg", "1/00001.png", "never.jpg"];
    let lists = [
        ("photos/l.txt", names.join("\n")),
        ("photos/t.csv", format!("image,site\n{}", names.map(|n| format!("{n},A\n")).concat())),
        ("m.json", format!("[{{\"prefix\":\"photos/\"}},\"{}\"]", names.join("\",\""))),
    ];
    for (list, text) in &lists {
        let out = at("out");
        fs::write(at(list), text).unwrap();
        Haul::run(at(list), &at("whole")).exits(3);
        let plan = |out: &Path| {
            let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(at(list));
            plan.arg("-o").arg(out).args(["--imgsz", "64"]).exits(0);
        };
        plan(&out);
        fs::write(at(list), "\"").unwrap();
        Haul::new("resume").arg(&out).exits(3);
        assert_eq!(concatenated(&out), concatenated(&at("whole")), "{list}");
        // A prefix that was changed meanwhile leads nowhere else.
        fs::remove_dir_all(&out).unwrap();
        fs::write(at(list), text).unwrap();
        plan(&out);
        fs::write(at(list), text.replace("photos", "more")).unwrap();
        Haul::new("resume").arg(&out).exits(3);
        assert_eq!(concatenated(&out), concatenated(&at("whole")), "{list}");
        fs::remove_dir_all(&out).unwrap();
        fs::write(at(list), text).unwrap();
        plan(&out);
        fs::remove_file(at(list)).unwrap();
        Haul::new("resume").arg(&out).exits(3);
        assert_eq!(concatenated(&out), concatenated(&at("whole")), "{list}");
        fs::remove_dir_all(&out).unwrap();
        fs::remove_dir_all(at("whole")).unwrap();
    }
}

#[test]
fn a_finished_job_needs_nothing_of_what_it_was_made_of() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fill(&at("photos"), 0..3);
    fs::write(at("photos/bad.jpg"), b"no picture").unwrap();
    Haul::run(at("photos"), &at("out")).exits(3);
    Haul::new("retry").arg(at("out")).arg("--output").arg(at("again")).exits(3);
    fill(&at("photos"), 3..5);
    Haul::run(at("photos"), &at("new")).arg("--since").arg(at("out")).exits(0);
    // Planned only: its pictures are needed, what it was made since is not.
    let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(at("photos"));
    let plan = plan.arg("-o").arg(at("planned")).arg("--since").arg(at("out"));
    plan.args(["--imgsz", "64"]).exits(0);
    fs::rename(at("out"), at("moved")).unwrap();
    Haul::new("resume").arg(at("planned")).exits(0);
    fs::remove_file(at("planned/_SUCCESS.json")).unwrap();
    fs::remove_dir_all(at("photos")).unwrap();
    for (name, code) in [("moved", 3), ("again", 3), ("new", 0), ("planned", 2)] {
        Haul::new("resume").arg(at(name)).exits(code);
    }
}

#[test]
fn a_signal_ends_a_run_that_waits_for_the_lock() {
    use std::os::unix::process::ExitStatusExt as _;
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let lock = out.join("_manifest/lock");
    fs::create_dir_all(out.join("_manifest")).unwrap();
    let held = haul::store::Lock::acquire(&lock, Duration::ZERO).unwrap();
    let mut child = Haul::run(photos.path(), &out).args(["--if-locked", "wait=1h"]).spawn();
    // It has come to the lock when it has opened it.
    let files = format!("/proc/{}/fd", child.id());
    let opened = || {
        let files = fs::read_dir(&files).unwrap();
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|path| path == lock))
    };
    while !opened() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(nix::libc::SIGTERM));
    drop(held);
    Haul::run(photos.path(), &out).exits(0);
}

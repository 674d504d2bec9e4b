//! The command line as people and schedulers use it: flags, job files, locks, thresholds, exits.

mod common;

use std::fs;
use std::path::Path;

use common::binary::{
    Haul, Ran, by_image, fill, folder, lines, model, parts, success, testdata, wait_for,
};
use haul::engine::{Precision, choose};
use haul::kernels::Tier;

#[test]
fn the_quickstart_job_runs_as_the_readme_says() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/quickstart.toml");
    let seen = root.path().join("seen");
    let run = Haul::new("run").arg(job).arg("--output").arg(&out).arg("--annotate").arg(&seen);
    run.exits(0).says("found: ").says("seconds by stage: list").says("Bounded by ");
    for line in lines(&out) {
        let copy = fs::read(seen.join(format!("{}.annotated.jpg", line.image))).unwrap();
        assert!(copy.starts_with(b"\xff\xd8"), "{}", line.image);
    }
    assert!(lines(&out).iter().flat_map(|l| l.detections.iter().flatten()).count() > 20);
}

#[test]
fn results_go_to_stdout_only_when_asked() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let ran = Haul::run(photos.path(), &root.path().join("a")).exits(0);
    assert_eq!(ran.stdout, "");
    let ran = Haul::run(photos.path(), &root.path().join("b")).args(["--json", "--quiet"]).exits(0);
    assert_eq!(ran.stderr, "");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["state"], &report["ok"]), (&"done".into(), &3.into()));
    assert!(report["peak_memory"].as_u64().unwrap() > 1 << 20);
    let again = Haul::run(photos.path(), &root.path().join("b")).args(["--json", "-q"]).exits(0);
    let again: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&again["state"], &again["ok"]), (&"done".into(), &3.into()));
}

#[test]
fn nobody_has_to_listen() {
    let photos = folder(3);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let mut child = Haul::run(photos.path(), &out).arg("-v").spawn();
    drop((child.stderr.take(), child.stdout.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(success(&out)["ok"], 3);
}

#[test]
fn a_job_file_and_flags_over_it() {
    let photos = folder(4);
    let root = tempfile::tempdir().unwrap();
    let job = root.path().join("job.toml");
    let text = format!(
        "model = {:?}\ninput = {:?}\noutput = 'out'\nimgsz = 64\nconf = 0.9\nclasses = [0, 'boat']\n",
        model(),
        photos.path()
    );
    fs::write(&job, text).unwrap();
    let config =
        Haul::new("run").arg(&job).args(["--conf", "0.1", "--print-config"]).exits(0).stdout;
    for line in
        ["conf = 0.1", "iou = 0.7", "imgsz = 64", "classes = [\"0\", \"boat\"]", "grace = \"25s\""]
    {
        assert!(config.contains(line), "{line} is not in {config}");
    }
    // What is printed is a job file.
    let printed = root.path().join("printed.toml");
    fs::write(&printed, &config).unwrap();
    assert_eq!(Haul::new("run").arg(&printed).arg("--print-config").exits(0).stdout, config);

    Haul::new("run").arg(&job).in_folder(Path::new("/")).exits(0);
    assert_eq!(success(&root.path().join("out"))["planned"], 4);
    fs::write(&job, "max-det = 3").unwrap();
    Haul::new("run").arg(&job).exits(2).says("did you mean `max_det`?");
    Haul::new("run").arg(root.path().join("none.toml")).exits(2).says("none.toml");
}

#[test]
fn mistakes_are_exit_2_and_named() {
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = || Haul::run(photos.path(), &out);
    run().args(["--conf", "2"]).exits(2).says("--conf is 2");
    run().args(["--classes", "unicorn"]).exits(2).says("no class `unicorn`");
    run().args(["--precision", "f16"]).exits(2).says("--precision f16 is for GPUs");
    run().env("HAUL_CPU_TIER", "mmx").exits(2).says("HAUL_CPU_TIER: `mmx` is no tier");
    let contradiction = run().env("HAUL_CPU_TIER", "portable").args(["--precision", "bf16"]);
    contradiction.exits(2).says("`portable` does not compute in bf16");
    run().args(["--include", "[z"]).exits(2).says("--include `[z` is not a pattern");
    run().args(["--memory-budget", "1MiB"]).exits(2).says("one worker needs");
    run().args(["--new", "--no-lock"]).exits(2).says("--new needs the lock");
    Haul::run(root.path().join("nowhere"), &out).exits(2).says("nowhere");
    Haul::run("gs://bucket/prefix/", &out).exits(2).says("files, folders and s3:// only");
    Haul::run("s3://", &out).exits(2).says("names no bucket");
    // Nobody knows us, and nothing is asked of the network.
    let nobody = Haul::run("s3://bucket/prefix/", &out).without_env(&[
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_ENDPOINT_URL_S3",
    ]);
    let nobody = nobody
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("HOME", &root.path().display().to_string());
    nobody.exits(2).says("cannot list `s3://bucket/prefix/`: credentials");
    let url = ["--endpoint-url", "https://me:secret@host"];
    run().args(url).exits(2).says("has credentials in it");
    Haul::run(photos.path(), photos.path()).exits(2).says("the same folder");
    Haul::run(testdata("pictures/sea.jpg"), &out)
        .args(["--model", "/nowhere.pt"])
        .exits(2)
        .says("/nowhere.pt")
        .says("No such file");
    let text = root.path().join("text.pt");
    fs::write(&text, "hello").unwrap();
    Haul::run(photos.path(), &out).arg("--model").arg(&text).exits(2).says("text.pt");
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"/tmp/\xff-out");
    Haul::run(photos.path(), Path::new::<std::ffi::OsStr>(odd)).exits(2).says("is not UTF-8");
    Haul::new("resume").arg(root.path()).exits(2).says("holds no job");
    Haul::new("status").arg(root.path()).exits(2);
    assert!(!out.join("_manifest/job.json").exists());
}

#[test]
fn a_file_a_list_and_standard_input() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fill(&photos, 0..4);
    let one = root.path().join("one");
    Haul::run(photos.join("0/00000.jpg"), &one).exits(0);
    assert_eq!(by_image(&one).into_keys().collect::<Vec<_>>(), ["00000.jpg"]);

    let list = photos.join("list.txt");
    let absolute = photos.join("0/00003.jpg");
    let text = format!(
        "\u{feff}2/00002.jpg\r\n./0/00000.jpg\n\n0/00000.jpg\n{}\nmissing.jpg\n0\n",
        absolute.display()
    );
    fs::write(&list, &text).unwrap();
    let expected = [absolute.to_str().unwrap(), "0/00000.jpg", "2/00002.jpg", "missing.jpg"];
    for (name, run) in [
        ("list", Haul::run(&list, &root.path().join("list"))),
        (
            "stdin",
            Haul::run("-", &root.path().join("stdin"))
                .in_folder(&photos)
                .stdin(fs::File::open(&list).unwrap()),
        ),
    ] {
        run.exits(3).says("1 folders named in the list").says("1 named twice");
        let lines = by_image(&root.path().join(name));
        assert_eq!(lines.keys().collect::<Vec<_>>(), expected, "{name}");
        assert_eq!(lines["missing.jpg"].error.as_ref().unwrap().code, "gone");
    }
    // From another folder, and with nothing on standard input, also what is not finished.
    let stdin = root.path().join("stdin");
    Haul::new("resume").arg(&stdin).exits(3).says("is finished");
    fs::remove_file(stdin.join("_SUCCESS.json")).unwrap();
    fs::remove_file(stdin.join("_manifest/done/00000000.json")).unwrap();
    fs::remove_file(stdin.join("part-00000000.jsonl")).unwrap();
    Haul::new("resume").arg(&stdin).exits(3).says("4 planned");
}

#[test]
fn who_holds_the_output_is_named_and_waited_for() {
    let photos = folder(30);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let mut first = Haul::run(photos.path(), &out).slowly().spawn();
    wait_for(&out.join("_manifest/job.json"), &mut first);
    let holder = format!("process {}", first.id());
    let second = || Haul::run(photos.path(), &out);
    second().exits(11).says(&holder);
    second().args(["--if-locked", "skip"]).exits(0).says(&holder);
    second().args(["--if-locked", "wait=50ms"]).exits(11);
    // Looking needs no lock.
    assert!([0, 75].contains(&Haul::new("status").arg(&out).ran().code));
    assert!(first.try_wait().unwrap().is_none(), "the first run ended before it was tried");
    second().args(["--if-locked", "wait=5m"]).exits(0).says("is finished");
    assert_eq!(first.wait().unwrap().code(), Some(0));
}

#[test]
fn thresholds_stop_with_4() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for number in 0..40 {
        fs::write(photos.join(format!("{number:02}.jpg")), b"not a picture").unwrap();
    }
    let out = |name: &str| root.path().join(name);
    let run = |name: &str| Haul::run(&photos, &out(name)).args(["--max-images", "4"]);
    run("fast").exits(4).says("the first 20 pictures all failed");
    assert!(!out("fast").join("_SUCCESS.json").exists());
    run("fast").args(["--max-failures", "100%"]).exits(3);
    assert_eq!(success(&out("fast"))["failed"], 40);
    run("count").args(["--max-failures", "5"]).exits(4).says("--max-failures is 5");
    let before = parts(&out("count")).len();
    assert!(before <= 1, "5 failures fit into one mini-batch of 4, not {before}");
    fill(&photos, 0..60);
    run("share").args(["--max-failures", "39%"]).exits(4).says("of 100 pictures failed");
    // The same again is no way round, a higher share is.
    run("share").args(["--max-failures", "39%"]).exits(4);
    run("share").args(["--max-failures", "41%"]).exits(3);
}

#[test]
fn exports_and_tables() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir_all(photos.join("a")).unwrap();
    for (from, to) in
        [("sea.jpg", "a/sea.jpg"), ("empty.jpg", "a/none.jpg"), ("table.png", "a/sea.png")]
    {
        fs::copy(testdata("pictures").join(from), photos.join(to)).unwrap();
    }
    fs::write(photos.join("bad.jpg"), b"x").unwrap();
    let out = root.path().join("out");
    Haul::new("run").arg("-m").arg(model()).arg("-i").arg(&photos).arg("-o").arg(&out).exits(3);
    let found: usize = lines(&out).iter().flat_map(|l| &l.detections).map(Vec::len).sum();
    assert!(found > 3);

    let coco = root.path().join("boxes.json");
    Haul::new("export").arg(&out).args(["--to", "coco", "--dest"]).arg(&coco).exits(0);
    let coco: serde_json::Value = serde_json::from_slice(&fs::read(coco).unwrap()).unwrap();
    assert_eq!(coco["images"].as_array().unwrap().len(), 3);
    assert_eq!(coco["annotations"].as_array().unwrap().len(), found);
    assert_eq!(coco["categories"].as_array().unwrap().len(), 8);

    for form in ["coco", "csv"] {
        let mut child = Haul::new("export").arg(&out).args(["--to", form]).spawn();
        drop(child.stdout.take());
        let ran = common::binary::Ran::of(child.wait_with_output().unwrap());
        // It may have been quick enough to write all before the reader went.
        assert_eq!(ran.code, 0, "a reader that has gone is no failure: {}", ran.stderr);
    }
    let csv = Haul::new("export").arg(&out).args(["--to", "csv"]).exits(0).stdout;
    let mut table = csv::Reader::from_reader(csv.as_bytes());
    let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
    assert!(rows.iter().any(|row| &row[0] == "bad.jpg" && &row[10] == "not_an_image"));
    assert_eq!(rows.iter().filter(|row| !row[3].is_empty()).count(), found);

    let labels = root.path().join("labels");
    Haul::new("export").arg(&out).args(["--to", "yolo"]).exits(2);
    Haul::new("export").arg(&out).args(["--to", "yolo", "--dest"]).arg(&labels).exits(0);
    let read = |name: &str| fs::read_to_string(labels.join(name)).unwrap();
    assert_eq!(read("a/none.txt"), "");
    let (first, second) = (read("a/sea.txt"), read("a/sea.png.txt"));
    assert_eq!(first.lines().count() + second.lines().count(), found);
    let values: Vec<f64> = first.split_whitespace().take(6).map(|v| v.parse().unwrap()).collect();
    assert!(values[1..].iter().all(|v| (0.0..=1.0).contains(v)), "{values:?}");

    let table = Haul::new("status").arg(&out).arg("--csv").exits(3).stdout;
    let mut table = csv::Reader::from_reader(table.as_bytes());
    let row = table.records().next().unwrap().unwrap();
    assert_eq!((&row[1], &row[2], &row[6], &row[7]), ("done", "4", "3", "1"));
}

#[test]
fn plans_without_running() {
    let photos = folder(30);
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let plan = |flags: &[&str]| {
        let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(photos.path());
        plan.arg("-o").arg(&out).args(["--imgsz", "64"]).args(flags)
    };
    plan(&["--dry-run", "--max-images", "7"])
        .exits(0)
        .says("30 pictures")
        .says("5 mini-batches")
        .says("images/s");
    assert!(!out.exists(), "a dry run writes nothing");
    plan(&["--json"]).exits(0);
    Haul::new("status").arg(&out).exits(75);
    assert_eq!(parts(&out).len(), 0);
    Haul::new("resume").arg(&out).exits(0);
}

#[test]
fn models_are_inspected_and_converted() {
    let inspected = Haul::new("model").arg("inspect").arg(model()).exits(0).stdout;
    assert!(inspected.contains("balloon"), "{inspected}");
    let json = Haul::new("model").arg("inspect").arg(model()).arg("--json").exits(0).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["info"]["task"], "detect");
    let root = tempfile::tempdir().unwrap();
    let copy = root.path().join("copy.safetensors");
    Haul::new("model").arg("convert").arg(model()).arg("--dest").arg(&copy).exits(0);
    Haul::new("model")
        .arg("convert")
        .arg(model())
        .arg("--dest")
        .arg(&copy)
        .exits(2)
        .says("exists already");
    let again = root.path().join("again.safetensors");
    Haul::new("model").arg("convert").arg(&copy).arg("--dest").arg(&again).exits(0);
    assert!(fs::read(copy).unwrap() == fs::read(again).unwrap(), "its own file is a fixed point");
}

#[test]
fn the_doctor_says_what_each_precision_would_choose() {
    let doctor = || Haul::new("doctor").arg("--model").arg(model());
    let json: serde_json::Value =
        serde_json::from_str(&doctor().arg("--json").exits(0).stdout).unwrap();
    for (precision, asked) in
        [("f32", Precision::F32), ("auto", Precision::Auto), ("bf16", Precision::Bf16)]
    {
        let tier = choose(asked, None, None).ok().map(|tier| tier.name());
        assert_eq!(json["precisions"][precision].as_str(), tier, "{precision}");
    }
    assert_eq!(json["tiers"].as_array().unwrap().len(), Tier::ALL.len());
    assert_eq!(json["model"]["info"]["task"], "detect");
    let text = doctor().exits(0).stdout;
    for words in
        ["kernels", "portable     yes  f32-portable", "decoders   zune-jpeg", "model      "]
    {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let forced = Haul::new("doctor").env("HAUL_CPU_TIER", "portable").exits(0).stdout;
    assert!(forced.contains("auto         portable, class f32-portable"), "{forced}");
    assert!(forced.contains("bf16         no: HAUL_CPU_TIER: `portable` does not"), "{forced}");
}

#[test]
fn bench_measures_what_it_is_asked_for() {
    let bench = |flags: &[&str]| {
        let bench = Haul::new("bench").arg("--model").arg(model()).args(["--imgsz", "64"]);
        let ran = bench.args(["--workers", "2", "--seconds", "0.2", "--json"]).args(flags);
        let ran = ran.arg("--images").arg(testdata("pictures")).exits(0);
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    let rates = |report: &serde_json::Value| {
        let parts = ["model", "model_dense", "end_to_end"];
        parts
            .map(|part| report[format!("{part}_images_per_second")].as_f64().map(|rate| rate > 1.0))
    };
    let all = bench(&["--per-layer", "--latency", "--precision", "f32"]);
    assert_eq!(rates(&all), [Some(true); 3]);
    assert_eq!((&all["workers"], &all["imgsz"]), (&2.into(), &64.into()));
    assert!(all["numeric_class"].as_str().unwrap().starts_with("f32"));
    assert!(all["peak_gflops"].as_f64().unwrap() > 0.1);
    assert!(all["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(all["stages_ms"]["decode"].as_f64().unwrap() > 0.0);
    assert_eq!(all["latency_ms"][1]["threads"], 2);
    let layers = all["layers"]["layers"].as_array().unwrap();
    let sum: f64 = layers.iter().map(|layer| layer["gflop"].as_f64().unwrap()).sum();
    assert!(layers.len() > 50 && sum > 0.001, "{sum} in {} layers", layers.len());
    let square = bench(&["--only", "model", "--square"]);
    assert_eq!(rates(&square), [Some(true), Some(true), None]);
    assert!(square["stages_ms"].is_null() && square["layers"].is_null());
    assert_eq!(rates(&bench(&["--only", "end-to-end"])), [None, None, Some(true)]);

    let one = || Haul::new("bench").arg("--model").arg(model()).arg("--images");
    let text = one().arg(testdata("pictures/sea.jpg")).args(["--seconds", "0.1"]).exits(0).stdout;
    assert!(text.contains("from files to boxes") && text.contains("GFLOP/s"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    one().arg(empty.path()).exits(5).says("no picture found");
    one().arg("/nowhere").exits(2).says("/nowhere");
    one().arg(testdata("pictures")).args(["--seconds", "0"]).exits(2).says("--seconds is 0");
    one().arg(testdata("pictures")).args(["--precision", "f8"]).exits(2).says("`f8`");
}

#[test]
fn help_has_examples_and_the_exit_codes() {
    let help = Haul::new("--help").exits(0).stdout;
    for text in ["Examples:", "haul resume out/", "Exit codes:", "75   interrupted"] {
        assert!(help.contains(text), "{text} is not in {help}");
    }
    for command in [
        "run",
        "resume",
        "plan",
        "status",
        "verify",
        "export",
        "completions",
        "model",
        "doctor",
        "bench",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        assert!(Haul::new(command).arg("--help").exits(0).stdout.contains("Usage:"));
    }
    assert!(Haul::new("run").arg("--help").exits(0).stdout.contains("--if-locked skip"));
    assert!(Haul::new("completions").arg("bash").exits(0).stdout.contains("_haul()"));
    Haul::new("run").exits(2).says("--model is missing");
}

#[test]
fn a_dry_run_reads_no_file_that_a_run_would_refuse() {
    let photos = folder(3);
    let huge = fs::File::create(photos.path().join("0/x.jpg")).unwrap();
    huge.set_len(3 << 30).unwrap();
    let root = tempfile::tempdir().unwrap();
    // Less than the file has.
    let ran = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 2900000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_haul"), "plan"])
        .args(["--dry-run", "--json", "--imgsz", "64", "--workers", "1", "--model"])
        .arg(model())
        .arg("--input")
        .arg(photos.path())
        .arg("--output")
        .arg(root.path().join("out"))
        .output();
    let ran = Ran::of(ran.unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let estimate: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&estimate["plan"]["pictures"], &estimate["probed"]), (&4.into(), &3.into()));
    // What no run could do is no estimate either.
    let plan = Haul::new("plan").arg("--model").arg(model()).arg("--input").arg(photos.path());
    let plan = plan.arg("--output").arg(root.path().join("out")).arg("--dry-run");
    plan.args(["--memory-budget", "64MiB"]).exits(2).says("--memory-budget is 64 MiB");
}

#[test]
fn a_plan_takes_from_a_job_file_what_is_for_runs_and_no_such_flag() {
    let photos = folder(2);
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let out = at("out");
    let plan = || {
        let plan = Haul::new("plan").arg("-m").arg(model()).arg("-i").arg(photos.path());
        plan.arg("-o").arg(&out).args(["--imgsz", "64"])
    };
    for flags in [
        &["--junit", "x.xml"][..],
        &["--prometheus", "x.prom"],
        &["--github"],
        &["--progress", "json"],
        &["--max-runtime", "1h"],
    ] {
        for more in [&[][..], &["--dry-run"]] {
            let expected = format!("{} does not go with plan", flags[0]);
            plan().args(flags).args(more).exits(2).says(&expected);
        }
        let help = Haul::new("plan").arg("--help").exits(0).stdout;
        assert!(!help.lines().any(|line| line.trim_start().starts_with(flags[0])), "{help}");
    }
    // What `resume` would refuse is refused before there is a job.
    fs::write(at("bad.toml"), "junit = 'none/haul.xml'").unwrap();
    plan().arg(at("bad.toml")).exits(2).says("cannot write there");
    assert!(!out.exists());
    fs::write(at("good.toml"), "junit = 'haul.xml'\nmax_runtime = '1h'").unwrap();
    plan().arg(at("good.toml")).exits(0);
    assert!(!at("haul.xml").exists());
    Haul::new("resume").arg(&out).exits(0);
    assert!(at("haul.xml").exists());
    // Outputs that do not count are named by a dry run, too.
    fs::create_dir(at("all")).unwrap();
    plan().arg("-o").arg(at("all/unfinished")).exits(0);
    let since = format!("{}/", at("all").display());
    let plan = plan().arg("-o").arg(at("all/next")).args(["--dry-run", "--since", &since]);
    plan.exits(0).says("warning: --since: `").says("all/unfinished` is not finished");
}

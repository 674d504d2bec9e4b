//! The job files and schedules in jobs/ do what they say: each is read by its own rules, and what
//! can run here runs as its scheduler would run it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::binary::{Haul, Ran, lines, model, success, testdata};
use serde_yaml_ng::Value;
use tempfile::TempDir;

fn jobs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(jobs(name)).unwrap()
}

/// A command as a scheduler runs it: with its own environment, and haul in PATH.
fn shell(program: &[&str], folder: &Path, path: &str, env: &[(&str, &str)]) -> Ran {
    let haul = Path::new(env!("CARGO_BIN_EXE_haul")).parent().unwrap();
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).current_dir(folder).env_clear();
    command.env("PATH", format!("{}:{path}", haul.display())).envs(env.iter().copied());
    Ran::of(command.output().unwrap())
}

/// A folder as the nightly schedules expect it: jobs, pictures, and the model under the name that
/// jobs/nightly.toml has for it.
fn nightly() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join("haul").join(name);
    fs::create_dir_all(at("jobs")).unwrap();
    fs::create_dir(at("photos")).unwrap();
    fs::copy(jobs("nightly.toml"), at("jobs/nightly.toml")).unwrap();
    fs::copy(testdata("pictures/sea.jpg"), at("photos/sea.jpg")).unwrap();
    symlink(model(), at("yolov8n.pt")).unwrap();
    root
}

/// Two nights by a schedule: all pictures, then only those that came between.
fn two_nights(root: &Path, mut night: impl FnMut() -> Ran) {
    let outputs = root.join("haul/outputs");
    let only_output = || {
        let mut found: Vec<PathBuf> =
            fs::read_dir(&outputs).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| !path.ends_with("2001-01-01"));
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    };
    let images = |output: &Path| lines(output).into_iter().map(|l| l.image).collect::<Vec<_>>();
    let ran = night();
    assert_eq!(ran.code, 0, "{ran:?}");
    let today = only_output();
    let name = today.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.len() == 10 && name.starts_with("20") && name.matches('-').count() == 2, "{name}");
    assert_eq!(images(&today), ["sea.jpg"]);
    // Long ago, so that the next night has the date to itself.
    fs::rename(&today, outputs.join("2001-01-01")).unwrap();
    fs::copy(testdata("pictures/hills.jpg"), root.join("haul/photos/hills.jpg")).unwrap();
    let ran = night();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(images(&only_output()), ["hills.jpg"]);
    assert_eq!(success(&only_output())["planned"], 1);
}

#[test]
fn every_job_file_can_be_read_and_printed_again() {
    let root = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(jobs("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|suffix| suffix != "toml") {
            continue;
        }
        let print = |path: &Path| Haul::new("run").arg(path).arg("--print-config").exits(0).stdout;
        let printed = print(&path);
        let again = root.path().join("again.toml");
        fs::write(&again, &printed).unwrap();
        assert_eq!(print(&again), printed, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 4, "{seen}");
}

#[test]
fn the_example_has_every_key() {
    let help = Haul::new("run").arg("--help").exits(0).stdout;
    let example = text("example.toml");
    let own = ["help", "new", "print_config", "json", "quiet", "verbose"];
    let mut seen = 0;
    for line in help.lines() {
        let Some((_, flag)) = line.split_once("--").filter(|(before, _)| {
            before.chars().all(|c| c == ' ' || c == '-' || c == ',' || c.is_ascii_lowercase())
                && before.trim().len() <= 3
        }) else {
            continue;
        };
        let name = flag.split([' ', '[', '.']).next().unwrap().replace('-', "_");
        if own.contains(&name.as_str()) {
            continue;
        }
        let keys = [format!("\n{name} = "), format!("\n# {name} = ")];
        assert!(keys.iter().any(|key| example.contains(key)), "jobs/example.toml: no {name}");
        seen += 1;
    }
    assert!(seen > 30, "{seen}: {help}");
}

#[test]
fn the_job_for_a_folder_runs() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let run = Haul::new("run").arg(jobs("folder.toml")).arg("--model").arg(model());
    let run = run.arg("--input").arg(testdata("pictures")).arg("--output").arg(&out);
    run.args(["--imgsz", "160"]).exits(0).says("gate holds: errors < 2% (measured: 0%, 0 of 14)");
    assert_eq!(success(&out)["ok"], 14);
}

#[test]
fn the_crontab_runs_night_after_night() {
    let mut env = BTreeMap::new();
    let mut commands = Vec::new();
    for line in text("cron").lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=').filter(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase()))
        {
            Some((name, value)) => {
                env.insert(name.to_owned(), value.to_owned());
            }
            None => commands.push(line.to_owned()),
        }
    }
    let [line] = &commands[..] else { panic!("{commands:?}") };
    let mut fields = line.splitn(6, ' ');
    for (field, most) in fields.by_ref().take(5).zip([59, 23, 31, 12, 7]) {
        assert!(field == "*" || field.parse::<u32>().is_ok_and(|number| number <= most), "{line}");
    }
    // To cron a bare % is the end of the command; \% is a %.
    let command = fields.next().unwrap();
    assert!(!command.replace(r"\%", "").contains('%'), "{command}");
    let command = command.replace(r"\%", "%");

    let root = nightly();
    let home = root.path().to_str().unwrap();
    let night = || {
        let env = [("HOME", home), ("LOGNAME", "somebody"), ("SHELL", "/bin/sh")];
        shell(&["/bin/sh", "-c", &command], root.path(), "/usr/local/bin:/usr/bin:/bin", &env)
    };
    assert_eq!(env.into_values().collect::<Vec<_>>(), ["/usr/local/bin:/usr/bin:/bin"]);
    two_nights(root.path(), || {
        let ran = night();
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""), "no mail");
        ran
    });
    // What is wrong is mailed.
    fs::remove_file(root.path().join("haul/yolov8n.pt")).unwrap();
    let ran = night();
    assert_eq!(ran.stdout, "haul ended with exit code 2\n");
    ran.says("yolov8n.pt");
}

/// The values of a unit file by section and key, with the file's own rules for comments.
fn unit(name: &str) -> BTreeMap<(String, String), String> {
    let mut section = String::new();
    let mut values = BTreeMap::new();
    for line in text(name).lines() {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
        values.insert((section.clone(), key.to_owned()), value.to_owned());
    }
    values
}

#[test]
fn the_systemd_units_are_right_and_run_night_after_night() {
    let service = unit("systemd/haul.service");
    let timer = unit("systemd/haul.timer");
    let get = |unit: &BTreeMap<(String, String), String>, section: &str, key: &str| {
        unit.get(&(section.to_owned(), key.to_owned())).cloned().unwrap_or_default()
    };
    assert_eq!(get(&timer, "Install", "WantedBy"), "timers.target");
    assert_eq!(get(&service, "Service", "WorkingDirectory"), "/srv/haul");
    // What starts with sh -c '…': to systemd %% is a %, and $$ a $.
    let start = get(&service, "Service", "ExecStart");
    let command = start.strip_prefix("/bin/sh -c '").and_then(|rest| rest.strip_suffix('\''));
    let command = command.unwrap_or_else(|| panic!("{start}"));
    assert!(!command.replace("%%", "").contains('%') && !command.replace("$$", "").contains('$'));
    let command = command.replace("%%", "%").replace("$$", "$");
    let root = nightly();
    let folder = root.path().join("haul");
    two_nights(root.path(), || {
        shell(&["/bin/sh", "-c", &command], &folder, "/usr/local/bin:/usr/bin:/bin", &[])
    });

    let verify = Command::new("systemd-analyze")
        .arg("verify")
        .args([jobs("systemd/haul.service"), jobs("systemd/haul.timer")])
        .output();
    match verify {
        Err(error) => println!("skipped: systemd-analyze verify ({error})"),
        Ok(output) => {
            // Other units of the machine are none of ours.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("haul.")).collect();
            assert!(ours.is_empty(), "{ours:?}");
        }
    }
}

/// A checkout, as far as the CI files use it.
fn checkout() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("jobs")).unwrap();
    fs::copy(jobs("quickstart.toml"), root.path().join("jobs/quickstart.toml")).unwrap();
    symlink(testdata(""), root.path().join("testdata")).unwrap();
    root
}

fn yaml(name: &str) -> Value {
    serde_yaml_ng::from_str(&text(name)).unwrap()
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn the_github_workflow_runs() {
    let workflow = yaml("github-actions.yml");
    assert!(workflow.get("on").is_some_and(|on| on.get("push").is_some()));
    let steps = workflow["jobs"]["detect"]["steps"].as_sequence().unwrap();
    let root = checkout();
    let at = |name: &str| root.path().join(name);
    let (summary, outputs) = (at("summary.md"), at("outputs"));
    let env = [
        ("CI", "true"),
        ("GITHUB_ACTIONS", "true"),
        ("GITHUB_STEP_SUMMARY", summary.to_str().unwrap()),
        ("GITHUB_OUTPUT", outputs.to_str().unwrap()),
    ];
    let mut ran = Vec::new();
    for step in steps {
        let (name, script) = (word(step, "name"), word(step, "run"));
        // Compiling haul again is not what is tested.
        if script.is_empty() || script.starts_with("cargo install ") {
            continue;
        }
        // GitHub's shell for steps that name none.
        let said = shell(&["bash", "-e", "-c", script], root.path(), "/usr/bin:/bin", &env);
        assert_eq!(said.code, 0, "{name}: {said:?}");
        ran.push(name);
    }
    assert_eq!(ran, ["Run the job", "Prove the results"]);
    assert_eq!(lines(&at("out/ci")).len(), 14);
    let table = fs::read_to_string(summary).unwrap();
    assert!(table.contains("| gate pictures &#62;&#61; 10 | ✅ 14 |"), "{table}");
    assert!(fs::read_to_string(outputs).unwrap().contains("exit_code=0\n"));
    roxmltree::Document::parse(&fs::read_to_string(at("reports/haul.xml")).unwrap()).unwrap();
    // What is kept is what was written, also after a failure.
    let keep = steps.last().unwrap();
    assert!(word(keep, "if").contains("!cancelled()"));
    for path in word(&keep["with"], "path").lines() {
        assert!(at(path).is_dir(), "{path}");
    }
}

#[test]
fn the_gitlab_pipeline_runs() {
    let job = &yaml("gitlab-ci.yml")["detect"];
    let root = checkout();
    let script: Vec<&str> =
        job["script"].as_sequence().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(script.len(), 3);
    let script = script.join("\n");
    let env = [("CI", "true"), ("GITLAB_CI", "true")];
    let said = shell(&["bash", "-e", "-c", &script], root.path(), "/usr/bin:/bin", &env);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(lines(&root.path().join("out/ci")).len(), 14);
    let artifacts = &job["artifacts"];
    assert_eq!(word(artifacts, "when"), "always");
    let report = root.path().join(word(&artifacts["reports"], "junit"));
    let report = fs::read_to_string(report).unwrap();
    let document = roxmltree::Document::parse(&report).unwrap();
    let cases = document.descendants().filter(|node| node.has_tag_name("testcase"));
    assert_eq!(cases.count(), 3);
    for path in artifacts["paths"].as_sequence().unwrap() {
        assert!(root.path().join(path.as_str().unwrap()).is_dir(), "{path:?}");
    }
}

//! What the tests of the binary share: running it, and looking at what it left.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use haul::job::Line;
use tempfile::TempDir;

pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// The small model that comes with haul.
pub(crate) fn model() -> PathBuf {
    testdata("model/shapes.safetensors")
}

/// A run of the real binary.
pub(crate) struct Haul {
    command: Command,
}

/// What it said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Haul {
    pub(crate) fn new(command: &str) -> Haul {
        let mut haul = Command::new(env!("CARGO_BIN_EXE_haul"));
        haul.arg(command)
            .stdin(Stdio::null())
            .env_remove("HAUL_CPU_TIER")
            .env_remove("GITHUB_ACTIONS");
        Haul { command: haul }
    }

    /// `haul run` with the small model at a small size: a few milliseconds a picture.
    pub(crate) fn run(input: impl AsRef<OsStr>, output: &Path) -> Haul {
        Haul::new("run")
            .arg("--model")
            .arg(model())
            .arg("--input")
            .arg(input)
            .arg("--output")
            .arg(output)
            .args(["--imgsz", "64", "--workers", "2"])
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Haul {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Haul {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Haul {
        self.command.env(name, value);
        self
    }

    pub(crate) fn without_env(mut self, names: &[&str]) -> Haul {
        for name in names {
            self.command.env_remove(name);
        }
        self
    }

    /// With the naive kernels, f32 like the others and hundreds of times slower: for tests that
    /// need a run which is still going.
    pub(crate) fn slowly(self) -> Haul {
        self.env("HAUL_CPU_TIER", "reference")
    }

    pub(crate) fn in_folder(mut self, folder: &Path) -> Haul {
        self.command.current_dir(folder);
        self
    }

    pub(crate) fn stdin(mut self, file: std::fs::File) -> Haul {
        self.command.stdin(file);
        self
    }

    /// As another user, whom permissions bind; only root may do that.
    pub(crate) fn user(mut self, uid: u32) -> Haul {
        std::os::unix::process::CommandExt::uid(&mut self.command, uid);
        self
    }

    pub(crate) fn spawn(mut self) -> std::process::Child {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn ran(mut self) -> Ran {
        Ran::of(self.command.output().unwrap())
    }

    /// Runs it and expects an exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Ran {
        let ran = self.ran();
        assert_eq!(ran.code, code, "stdout: {}\nstderr: {}", ran.stdout, ran.stderr);
        ran
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Ran {
        assert!(self.stderr.contains(text), "`{text}` is not in: {}", self.stderr);
        self
    }
}

/// Waits until a run has made a file; fails if it ends before, or takes too long.
#[track_caller]
pub(crate) fn wait_for(path: &Path, child: &mut std::process::Child) {
    let start = std::time::Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "haul ended without {}", path.display());
        assert!(start.elapsed().as_secs() < 120, "no {} in two minutes", path.display());
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
}

/// A folder of `count` small pictures with keys in two levels, all links to two or three files.
pub(crate) fn folder(count: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 0..count);
    dir
}

/// Adds pictures with these numbers.
pub(crate) fn fill(dir: &Path, numbers: std::ops::Range<usize>) {
    let forms = ["jpeg-444.jpg", "png-rgb8.png", "jpeg-progressive-420.jpg"];
    for number in numbers {
        let form = forms[number % forms.len()];
        let suffix = form.rsplit('.').next().unwrap();
        let path = dir.join(format!("{}/{number:05}.{suffix}", number % 3));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(testdata("forms").join(form), path).unwrap();
    }
}

/// All lines of an output, parts in order.
pub(crate) fn lines(output: &Path) -> Vec<Line> {
    let text = concatenated(output);
    text.split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| Line::parse(line).unwrap())
        .collect()
}

/// Lines by what `image` says.
pub(crate) fn by_image(output: &Path) -> BTreeMap<String, Line> {
    lines(output).into_iter().map(|line| (line.image.clone(), line)).collect()
}

/// All parts, in order, as one.
pub(crate) fn concatenated(output: &Path) -> Vec<u8> {
    parts(output).into_values().flatten().collect()
}

/// The parts by name.
pub(crate) fn parts(output: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(output)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name.starts_with("part-"))
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect()
}

/// The success marker as JSON.
pub(crate) fn success(output: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(output.join("_SUCCESS.json")).unwrap()).unwrap()
}

//! What a person may ask for: one list of names for flags, job files and `job.json`.
//!
//! Everything is optional here and nothing is checked; `Spec` is what the runner sees.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::exit::JobError;
use super::shard::check_job_file;
use super::transform;
use crate::store::{Checksums, Place, S3Options, one_line};

/// Declares [`Settings`] together with the table of its names, so that they cannot disagree.
macro_rules! settings {
    ($($(#[$attribute:meta])* $name:ident: $type:ty,)*) => {
        /// Flags and job-file keys; `None` where nothing was said.
        #[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $($(#[$attribute])*
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $name: Option<$type>,)*
        }

        /// Every key of a job file.
        pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];

        impl Settings {
            /// These settings, and those of `below` where nothing was said here.
            #[must_use]
            pub fn over(self, below: Settings) -> Settings {
                Settings { $($name: self.$name.or(below.$name),)* }
            }
        }
    };
}

settings! {
    /// Checkpoint: an Ultralytics .pt, or .safetensors or .haulpack made by `haul model`, or SageMaker's model.tar.gz; also s3://
    #[arg(long, short, value_name = "FILE", help_heading = "What")]
    model: PathBuf,
    /// Folder, picture, s3://BUCKET/PREFIX, list of paths (.txt), SageMaker manifest (.json), table (.csv), or - for a list on stdin
    #[arg(long, short, value_name = "DIR|FILE|LIST|-", help_heading = "What")]
    input: PathBuf,
    /// Folder for the results, or s3://BUCKET/PREFIX/; run again with the same one to go on
    #[arg(long, short, value_name = "DIR", help_heading = "What")]
    output: PathBuf,

    /// Least confidence of a detection [default: 0.25]
    #[arg(long, value_name = "0..1", help_heading = "Detections")]
    conf: f64,
    /// Boxes of one class that overlap more than this are one object [default: 0.7]
    #[arg(long, value_name = "0..1", help_heading = "Detections")]
    iou: f64,
    /// Most detections of a picture [default: 300]
    #[arg(long, value_name = "N", help_heading = "Detections")]
    max_det: usize,
    /// Longest side of the network's input, a multiple of 32 [default: 640, or the model's own]
    #[arg(long, value_name = "N", help_heading = "Detections")]
    imgsz: u32,
    /// Arithmetic of the network: auto (the fastest here), f32, bf16, or f16 on a GPU [default: auto]
    #[arg(long, value_name = "KIND", help_heading = "Detections")]
    precision: String,
    /// Keep these classes only: names or numbers, separated by commas
    #[arg(long, value_name = "NAMES|IDS", value_delimiter = ',', help_heading = "Detections")]
    #[serde(deserialize_with = "words")]
    classes: Vec<String>,
    /// Suppress overlapping boxes of different classes too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Detections")]
    agnostic: bool,
    /// Pad every picture to a square instead of to the smallest multiple of 32
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Detections")]
    square: bool,
    /// Sides of boxes in pixels, or normalized: 0 to 1 of the upright picture [default: pixels]
    #[arg(long, value_name = "UNIT", help_heading = "Detections")]
    boxes: String,

    /// Column of a CSV --input that holds the pictures [default: the one named image, key, path, file or filename]
    #[arg(long, value_name = "NAME", help_heading = "Which pictures")]
    key_column: String,
    /// Take only names that match (repeatable); also takes names without a suffix
    #[arg(long, value_name = "GLOB", help_heading = "Which pictures")]
    #[serde(deserialize_with = "words")]
    include: Vec<String>,
    /// Leave out names that match (repeatable); wins over --include
    #[arg(long, value_name = "GLOB", help_heading = "Which pictures")]
    #[serde(deserialize_with = "words")]
    exclude: Vec<String>,
    /// Take hidden names too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Which pictures")]
    hidden: bool,
    /// Read links that point out of the input folder (links to folders are never descended)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Which pictures")]
    follow_symlinks: bool,
    /// Plan at most so many pictures
    #[arg(long, value_name = "N", help_heading = "Which pictures")]
    limit: u64,
    /// Plan so many pictures, chosen at random; the same ones each time
    #[arg(long, value_name = "N", help_heading = "Which pictures")]
    sample: u64,
    /// Which choice of --sample pictures [default: 0]
    #[arg(long, value_name = "S", help_heading = "Which pictures")]
    seed: u64,
    /// Plan only what is new or changed since these outputs (repeatable; DIR/ means all in it)
    #[arg(long, value_name = "OUT|DIR/", help_heading = "Which pictures")]
    #[serde(deserialize_with = "words")]
    since: Vec<String>,
    /// What tells a changed picture: mtime (with size), size, or sha256; etag or size on S3 [default: mtime, etag]
    #[arg(long, value_name = "KIND", help_heading = "Which pictures")]
    identity: String,
    /// A folder without pictures is fine (exit 0 instead of 5)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Which pictures")]
    allow_empty: bool,

    /// What to do with a file that ends early: reject or accept [default: reject]
    #[arg(long, value_name = "POLICY", help_heading = "Limits")]
    truncated: String,
    /// Largest picture, in pixels [default: 100000000]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    max_pixels: u64,
    /// Largest file, in MB [default: 256]
    #[arg(long, value_name = "MB", help_heading = "Limits")]
    max_file_mb: f64,
    /// Most memory for one picture, file and pixels together [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_picture_memory: String,
    /// Stop (exit 4) when more pictures failed: a number, or a share such as 2%
    #[arg(long, value_name = "N|P%", help_heading = "Limits")]
    max_failures: String,
    /// Longest time for one mini-batch [default: 1h]
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    batch_timeout: String,
    /// After SIGTERM, finish what fits in this time [default: 25s]
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    grace: String,
    /// Stop this run after this time, as SIGTERM would (exit 75); the next one goes on
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    max_runtime: String,

    /// Work on one share of the mini-batches: i/N; auto, as the scheduler says; auto/N
    #[arg(long, value_name = "i/N|auto", help_heading = "Resources")]
    shard: String,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    workers: usize,
    /// Where the network runs: auto (a GPU if there is one), cpu, or GPUs: cuda:0, cuda:0,1 [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "Resources")]
    device: String,
    /// Pictures that a GPU computes together, 1 to 1024 [default: as suits it]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    batch: usize,
    /// Memory for everything [default: what all workers and the largest picture allowed need, at least 384MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    memory_budget: String,
    /// Most MB of pictures in a mini-batch, the unit of commit [default: 100]
    #[arg(long, value_name = "MB", help_heading = "Resources")]
    max_payload_mb: f64,
    /// Most pictures in a mini-batch [default: 100]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    max_images: usize,

    /// Store parts as lines, or compressed: none, gzip or zstd [default: none]
    #[arg(long, value_name = "KIND", help_heading = "Output")]
    compress: String,
    /// Write pictures with boxes and labels into this folder (or s3://), as KEY.annotated.jpg
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    annotate: PathBuf,
    /// When another run holds the output: fail, skip (exit 0), or wait=TIME [default: fail]
    #[arg(long, value_name = "POLICY", help_heading = "Output")]
    if_locked: String,
    /// Run without a lock, where the file system has none
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Output")]
    no_lock: bool,

    /// The S3 server, where it is not AWS [default: AWS_ENDPOINT_URL_S3]
    #[arg(long, value_name = "URL", help_heading = "S3")]
    endpoint_url: String,
    /// The region of the buckets [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "NAME", help_heading = "S3")]
    region: String,
    /// The bucket in the path, not in the host's name [default: where the server is not AWS]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "S3")]
    s3_path_style: bool,
    /// When to use S3's newer checksums: when_supported, or when_required for servers without them [default: when_supported]
    #[arg(long, value_name = "WHEN", help_heading = "S3")]
    s3_checksums: String,
    /// Sign no request: for public buckets
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "S3")]
    no_sign_request: bool,
    /// Pay for requests, in buckets where whoever asks pays
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "S3")]
    request_payer: bool,
    /// How the server encrypts what is written: AES256, aws:kms or aws:kms:dsse [default: the bucket's own way]
    #[arg(long, value_name = "KIND", help_heading = "S3")]
    sse: String,
    /// The key for --sse aws:kms
    #[arg(long, value_name = "ID", help_heading = "S3")]
    sse_kms_key_id: String,

    /// What the finished job must hold, else exit 6: "errors < 2%", "class person == 0" (repeatable)
    #[arg(long, value_name = "METRIC OP N[%]", help_heading = "Reports")]
    #[serde(deserialize_with = "words")]
    gate: Vec<String>,
    /// Write a JUnit report for CI into this file: the job, and each gate
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    junit: PathBuf,
    /// In a step of GitHub Actions: annotations, a table in the step's summary, and outputs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Reports")]
    github: bool,
    /// Write metrics into this file, for node_exporter's textfile collector (it reads *.prom)
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    prometheus: PathBuf,

    /// How to show progress: auto (on stderr), json (messages on stdout), or none [default: auto]
    #[arg(long, value_name = "KIND", help_heading = "Messages")]
    progress: String,
}

impl Settings {
    /// Reads a job file, TOML or a `CreateTransformJob` request (`.json`), and puts flags over it.
    /// The second value says what of a request is ignored.
    ///
    /// # Errors
    /// When it cannot be read, or says what haul does not know or does not do.
    pub fn over_job_file(self, path: &Path) -> Result<(Settings, Vec<String>), JobError> {
        if transform::is_request(path) {
            return transform::read(path, self);
        }
        Ok((self.over(Settings::from_job_file(path)?), Vec::new()))
    }

    /// Reads a job file in TOML. Its paths are relative to its own folder.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, or has keys that do not exist (the message suggests one).
    pub fn from_job_file(path: &Path) -> Result<Settings, JobError> {
        let name = one_line(&path.to_string_lossy());
        let wrong = |what: String| JobError::Usage(format!("job file `{name}`: {what}"));
        let no_toml = |error: toml::de::Error| {
            JobError::Syntax(format!("job file `{name}`: {}", error.to_string().trim_end()))
        };
        let text =
            std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read it: {e}")))?;
        let table: toml::Table = text.parse().map_err(no_toml)?;
        for key in table.keys() {
            if !NAMES.contains(&key.as_str()) {
                return Err(wrong(unknown_key(key)));
            }
        }
        let settings: Settings = table.try_into().map_err(no_toml)?;
        check_job_file(settings.shard.as_deref()).map_err(wrong)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        settings.relative_to(folder)
    }

    /// The settings with paths made absolute, as seen from `folder`.
    ///
    /// # Errors
    /// When the working directory is gone.
    pub fn relative_to(mut self, folder: &Path) -> Result<Settings, JobError> {
        let base = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        // Without links, so that `..` may be taken off it by name.
        let base = base.canonicalize().map_err(|error| {
            JobError::Usage(format!("cannot find the folder `{}`: {error}", base.display()))
        })?;
        let settle = |path: &Path| -> PathBuf {
            let is_url = path.to_str().is_some_and(|text| text.contains("://"));
            if is_url || path == Path::new("-") || path.is_absolute() {
                return path.to_owned();
            }
            let mut settled = base.clone();
            let mut rest = path.components().peekable();
            while let Some(part) =
                rest.next_if(|c| matches!(c, Component::CurDir | Component::ParentDir))
            {
                if part == Component::ParentDir {
                    settled.pop();
                }
            }
            settled.extend(rest);
            settled
        };
        let paths = [
            &mut self.model,
            &mut self.input,
            &mut self.output,
            &mut self.annotate,
            &mut self.junit,
            &mut self.prometheus,
        ];
        for path in paths.into_iter().flatten() {
            Place::parse(path).map_err(JobError::Usage)?;
            *path = settle(path);
        }
        for since in self.since.iter_mut().flatten() {
            Place::parse(Path::new(since.as_str())).map_err(JobError::Usage)?;
            *since = settle(Path::new(since.as_str())).to_string_lossy().into_owned();
        }
        Ok(self)
    }
}

/// How S3 is reached, as settings and the flags of commands without settings say it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct S3Flags {
    /// The S3 server, where it is not AWS [default: AWS_ENDPOINT_URL_S3]
    #[arg(long, value_name = "URL", help_heading = "S3")]
    endpoint_url: Option<String>,
    /// The region of the buckets [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "NAME", help_heading = "S3")]
    region: Option<String>,
    /// The bucket in the path, not in the host's name [default: where the server is not AWS]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "S3")]
    s3_path_style: Option<bool>,
    /// When to use S3's newer checksums: when_supported or when_required
    #[arg(long, value_name = "WHEN", help_heading = "S3")]
    s3_checksums: Option<String>,
    /// Sign no request: for public buckets
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "S3")]
    no_sign_request: Option<bool>,
    /// Pay for requests, in buckets where whoever asks pays
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "S3")]
    request_payer: Option<bool>,
}

impl S3Flags {
    /// The same as settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            endpoint_url: self.endpoint_url.clone(),
            region: self.region.clone(),
            s3_path_style: self.s3_path_style,
            s3_checksums: self.s3_checksums.clone(),
            no_sign_request: self.no_sign_request,
            request_payer: self.request_payer,
            ..Settings::default()
        }
    }

    /// The same, checked.
    ///
    /// # Errors
    /// As [`Settings::s3`].
    pub fn options(&self) -> Result<S3Options, JobError> {
        self.settings().s3()
    }
}

impl Settings {
    /// How S3 is reached.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the setting, its value and what it may be.
    pub fn s3(&self) -> Result<S3Options, JobError> {
        let wrong = |name: &str, value: &str, what: &str| {
            Err(JobError::Usage(format!("--{name} is `{value}`; it is {what}")))
        };
        if let Some(url) = self.endpoint_url.as_deref() {
            let host = url.strip_prefix("http://").or(url.strip_prefix("https://"));
            if url.contains('@') {
                // Not to be shown, nor kept.
                return Err(JobError::Usage(
                    "--endpoint-url has credentials in it; they come from where AWS's tools look"
                        .to_owned(),
                ));
            }
            if host.is_none_or(str::is_empty) {
                return wrong("endpoint-url", url, "a server: https://s3.example.org:9000");
            }
        }
        let checksums = match self.s3_checksums.as_deref() {
            None => None,
            Some("when_supported" | "when-supported") => Some(Checksums::WhenSupported),
            Some("when_required" | "when-required") => Some(Checksums::WhenRequired),
            Some(other) => {
                return wrong("s3-checksums", other, "when_supported or when_required");
            }
        };
        match self.sse.as_deref() {
            None | Some("AES256" | "aws:kms" | "aws:kms:dsse") => {}
            Some(other) => return wrong("sse", other, "AES256, aws:kms or aws:kms:dsse"),
        }
        if let Some(key) = &self.sse_kms_key_id
            && !self.sse.as_deref().is_some_and(|kind| kind.starts_with("aws:kms"))
        {
            return wrong("sse-kms-key-id", key, "for --sse aws:kms");
        }
        Ok(S3Options {
            endpoint_url: self.endpoint_url.clone(),
            region: self.region.clone(),
            path_style: self.s3_path_style,
            checksums,
            unsigned: self.no_sign_request == Some(true),
            request_payer: self.request_payer == Some(true),
            sse: self.sse.clone(),
            sse_kms_key_id: self.sse_kms_key_id.clone(),
        })
    }
}

fn unknown_key(key: &str) -> String {
    match closest(&key.replace('-', "_").to_lowercase(), NAMES) {
        Some(name) => format!("there is no key `{key}`; did you mean `{name}`?"),
        None => format!("there is no key `{key}`; the keys are {}", NAMES.join(", ")),
    }
}

/// The name that somebody may have meant.
pub(super) fn closest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    let likeness = |name: &&'a str| (strsim::jaro_winkler(name, wanted), *name);
    let best = names.iter().map(likeness).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.75).map(|(_, name)| name)
}

/// A list of words, or one word, or numbers: `classes = [0, "car"]`, `include = "*.jpg"`.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    use serde_json::Value;
    let word = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(serde::de::Error::custom(format!("{other} is neither a word nor a number"))),
    };
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::Array(values)) => {
            values.into_iter().map(word).collect::<Result<_, _>>().map(Some)
        }
        Some(value) => Ok(Some(vec![word(value)?])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.toml");
        std::fs::write(&path, text).unwrap();
        Settings::from_job_file(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn unknown_keys_are_errors_that_suggest() {
        for (wrong, right) in
            [("max-det = 1", "max_det"), ("confidence = 1", "conf"), ("Workers = 2", "workers")]
        {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(&format!("did you mean `{right}`?")), "{error}");
        }
        assert!(read("zzzz = 1").unwrap_err().contains("the keys are model, input"));
    }

    #[test]
    fn a_job_file_sets_what_it_names_and_its_paths_are_relative_to_it() {
        let settings =
            read("model = 'm.pt'\ninput = '-'\nclasses = [0, 'car']\ninclude = '*.jpg'").unwrap();
        assert!(settings.model.as_ref().unwrap().is_absolute());
        assert_eq!(settings.input.unwrap(), Path::new("-"));
        assert_eq!(settings.classes.unwrap(), ["0", "car"]);
        assert_eq!(settings.include.unwrap(), ["*.jpg"]);
        assert_eq!(settings.conf, None);
        assert!(read("conf = 'high'").unwrap_err().contains("conf"));
        assert_eq!(read("shard = 'auto'").unwrap().shard.unwrap(), "auto");
        assert!(read("shard = '1/2'").unwrap_err().contains("`shard` is `1/2`: in a job file"));
    }

    #[test]
    fn flags_go_over_the_file() {
        let flags = Settings { conf: Some(0.5), ..Settings::default() };
        let file = Settings { conf: Some(0.1), iou: Some(0.2), ..Settings::default() };
        let both = flags.over(file);
        assert_eq!((both.conf, both.iou), (Some(0.5), Some(0.2)));
    }
}

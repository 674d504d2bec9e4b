//! SageMaker's `CreateTransformJob` requests as job files.
//!
//! Each field is a setting, or is ignored and said to be, or is refused by name with the reason:
//! `docs/job-file.md` has the table. Nothing is passed over silently.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::FromArgMatches as _;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::exit::JobError;
use super::settings::{NAMES, Settings, closest};
use super::shard::check_job_file;
use crate::store::{Location, is_manifest};

/// What settings begin with in `Environment`.
const PREFIX: &str = "HAUL_";

/// Where a model's name is looked for: as it is, then with these suffixes.
const MODEL_SUFFIXES: [&str; 5] = ["", ".pt", ".safetensors", ".tar.gz", ".haulpack"];

/// Fields that say nothing about what haul does.
const IGNORED: [&str; 4] = ["TransformJobName", "TransformResources", "Tags", "ExperimentConfig"];

/// Whether a job file is a request in JSON, by its suffix.
#[must_use]
pub(super) fn is_request(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("json"))
}

/// Reads the request in a file, with flags over it. What flags say is not looked at in the request:
/// so a request for S3 runs with `--input` and `--output`. The second value says what was ignored.
///
/// # Errors
/// [`JobError::Usage`] naming the field, its value and why it cannot be.
pub(super) fn read(path: &Path, flags: Settings) -> Result<(Settings, Vec<String>), JobError> {
    let wrong = |what: String| JobError::Usage(format!("job file `{}`: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read it: {e}")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let Unique(request) = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let Value::Object(map) = &request else {
        let manifest = if request.is_array() { " (is it a manifest, for --input?)" } else { "" };
        return Err(wrong(format!("it is no CreateTransformJob request{manifest}")));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut notes = Vec::new();
    let request = Fields { path: String::new(), map };
    let environment = environment(&request, &mut notes).map_err(wrong)?.relative_to(folder)?;
    let over = flags.over(environment);
    let fields = fields(&request, &over, folder, &mut notes).map_err(wrong)?;
    Ok((over.over(fields.relative_to(folder)?), notes))
}

/// A value whose objects name each field once: of two values JSON's readers take one, and which one
/// is not to be guessed.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Unique;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Unique, A::Error> {
                let mut all = Vec::new();
                while let Some(Unique(value)) = values.next_element()? {
                    all.push(value);
                }
                Ok(Unique(all.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Unique, A::Error> {
                let mut map = Map::new();
                while let Some((name, Unique(value))) = fields.next_entry::<String, _>()? {
                    if map.contains_key(&name) {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    map.insert(name, value);
                }
                Ok(Unique(map.into()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An object of the request, and where it is.
struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field that is there; `null` is none.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Refuses names that the API does not have here.
    fn only(&self, names: &[&str]) -> Result<(), String> {
        match self.map.keys().find(|key| !names.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(match closest(key, names) {
                Some(name) => {
                    format!("there is no field `{}`; did you mean `{name}`?", self.at(key))
                }
                None => format!(
                    "there is no field `{}`; the fields here are {}",
                    self.at(key),
                    names.join(", ")
                ),
            }),
        }
    }

    fn wrong<T>(&self, name: &str, value: &Value, what: &str) -> Result<T, String> {
        Err(format!("{} is {value}; {what}", self.at(name)))
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => self.wrong(name, other, "it is a text"),
        }
    }

    fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ if most == u64::MAX => {
                self.wrong(name, value, &format!("it is a whole number of at least {least}"))
            }
            _ => self.wrong(name, value, &format!("it is a whole number, {least} to {most}")),
        }
    }

    fn object(&self, name: &str) -> Result<Option<Fields<'a>>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { path: self.at(name), map })),
            Some(other) => self.wrong(name, other, "it is an object"),
        }
    }

    /// A word of a few. `reasons` are those that the API knows and haul does not do.
    fn word(
        &self,
        name: &str,
        taken: &[&str],
        reasons: &[(&str, &str)],
    ) -> Result<Option<&'a str>, String> {
        let Some(word) = self.text(name)? else { return Ok(None) };
        if taken.contains(&word) {
            return Ok(Some(word));
        }
        match reasons.iter().find(|(refused, _)| *refused == word) {
            Some((_, reason)) => Err(format!("{} is `{word}`: {reason}", self.at(name))),
            None => Err(format!("{} is `{word}`; it is {}", self.at(name), taken.join(" or "))),
        }
    }
}

/// The settings in `Environment`: a value is what stands behind the flag's `=`.
fn environment(request: &Fields<'_>, notes: &mut Vec<String>) -> Result<Settings, String> {
    let Some(environment) = request.object("Environment")? else { return Ok(Settings::default()) };
    let mut arguments = Vec::new();
    let mut ignored = Vec::new();
    for key in environment.map.keys() {
        let Some(value) = environment.text(key)? else { continue };
        let Some(name) = key.strip_prefix(PREFIX) else {
            ignored.push(key.as_str());
            continue;
        };
        if !NAMES.iter().any(|known| known.to_uppercase() == name) {
            let like = closest(&name.to_lowercase(), NAMES);
            let like =
                like.map(|name| format!("; did you mean `{PREFIX}{}`?", name.to_uppercase()));
            return Err(format!(
                "Environment: there is no setting `{key}`{}",
                like.unwrap_or_else(|| " (docs/job-file.md has them)".to_owned())
            ));
        }
        arguments.push((key, format!("--{}={value}", name.to_lowercase().replace('_', "-"))));
    }
    if !ignored.is_empty() {
        notes.push(format!(
            "Environment: {} ignored, not of haul (its own begin with {PREFIX})",
            ignored.join(", ")
        ));
    }
    let mut settings = Settings::default();
    for (key, argument) in arguments {
        let command = <Settings as clap::Args>::augment_args(clap::Command::new("haul"));
        let matches = command.no_binary_name(true).try_get_matches_from([argument]);
        let one = matches.and_then(|matches| Settings::from_arg_matches(&matches));
        settings = settings.over(one.map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            format!("Environment.{key}: {}", first.strip_prefix("error: ").unwrap_or(first))
        })?);
    }
    check_job_file(settings.shard.as_deref()).map_err(|what| format!("Environment: {what}"))?;
    Ok(settings)
}

/// The settings in the other fields. What is in `over` already is not looked at any further.
fn fields(
    request: &Fields<'_>,
    over: &Settings,
    folder: &Path,
    notes: &mut Vec<String>,
) -> Result<Settings, String> {
    request.only(&[
        "TransformJobName",
        "ModelName",
        "MaxConcurrentTransforms",
        "ModelClientConfig",
        "MaxPayloadInMB",
        "BatchStrategy",
        "Environment",
        "TransformInput",
        "TransformOutput",
        "DataCaptureConfig",
        "TransformResources",
        "DataProcessing",
        "Tags",
        "ExperimentConfig",
    ])?;
    let ignored: Vec<&str> =
        IGNORED.into_iter().filter(|name| request.get(name).is_some()).collect();
    if !ignored.is_empty() {
        notes
            .push(format!("{} ignored: they change nothing in what haul does", ignored.join(", ")));
    }
    if let Some(resources) = request.object("TransformResources")? {
        let names = ["InstanceType", "InstanceCount", "VolumeKmsKeyId", "TransformAmiVersion"];
        resources.only(&names)?;
        if resources.number("InstanceCount", 1, 100)?.is_some_and(|count| count > 1) {
            notes.push("TransformResources.InstanceCount: all is done on this machine".to_owned());
        }
    }
    let client = request.object("ModelClientConfig")?;
    let mut batch_timeout = None;
    if let Some(client) = client {
        client.only(&["InvocationsTimeoutInSeconds", "InvocationsMaxRetries"])?;
        let seconds = client.number("InvocationsTimeoutInSeconds", 1, 3600)?;
        batch_timeout = seconds.map(|seconds| format!("{seconds}s"));
        if client.number("InvocationsMaxRetries", 0, 3)?.is_some() {
            let name = client.at("InvocationsMaxRetries");
            notes.push(format!("{name} ignored: how often haul tries a mini-batch is fixed"));
        }
    }
    let strategy = request.word("BatchStrategy", &["MultiRecord", "SingleRecord"], &[])?;
    let payload = match request.number("MaxPayloadInMB", 0, 100) {
        Ok(payload) => payload.filter(|&megabytes| megabytes > 0),
        Err(what) => {
            return Err(format!("{what} (HAUL_MAX_PAYLOAD_MB in Environment may be more)"));
        }
    };
    let workers = request.number("MaxConcurrentTransforms", 0, u64::MAX)?;
    if request.get("DataCaptureConfig").is_some() {
        return Err("DataCaptureConfig: haul captures nothing; its input and its output stay \
                    where they are (leave it out)"
            .to_owned());
    }
    if let Some(processing) = request.object("DataProcessing")? {
        data_processing(&processing)?;
    }
    let (output, key) = output(request, over)?;
    let key = key.filter(|_| over.sse.is_none());
    Ok(Settings {
        sse: key.is_some().then(|| "aws:kms".to_owned()),
        sse_kms_key_id: key,
        model: match over.model {
            Some(_) => None,
            None => request.text("ModelName")?.map(|name| find_model(name, folder)).transpose()?,
        },
        input: input(request, over)?,
        output,
        batch_timeout,
        workers: workers
            .filter(|&workers| workers > 0)
            .map(|workers| usize::try_from(workers).unwrap_or(usize::MAX)),
        max_payload_mb: payload.map(|megabytes| megabytes as f64),
        max_images: (strategy == Some("SingleRecord")).then_some(1),
        ..Settings::default()
    })
}

fn data_processing(processing: &Fields<'_>) -> Result<(), String> {
    processing.only(&["InputFilter", "OutputFilter", "JoinSource"])?;
    for name in ["InputFilter", "OutputFilter"] {
        let why = "a picture has no fields to choose from, and a line is written whole";
        if let Some(filter) = processing.text(name)?.filter(|filter| !["$", ""].contains(filter)) {
            return Err(format!("{} is `{filter}`: {why} (jq will do)", processing.at(name)));
        }
    }
    let why = "a picture cannot be joined with its result (--input TABLE.csv carries what a table \
               says about each picture to its line)";
    processing.word("JoinSource", &["None"], &[("Input", why)]).map(|_| ())
}

fn input(request: &Fields<'_>, over: &Settings) -> Result<Option<PathBuf>, String> {
    let Some(input) = request.object("TransformInput")? else { return Ok(None) };
    input.only(&["DataSource", "ContentType", "CompressionType", "SplitType"])?;
    let one = "a picture is one record, and is not split";
    let split = [("Line", one), ("RecordIO", one), ("TFRecord", one)];
    input.word("SplitType", &["None"], &split)?;
    let gzip = "haul reads pictures as they are, and does not unpack them";
    input.word("CompressionType", &["None"], &[("Gzip", gzip)])?;
    if let Some(kind) = input.text("ContentType")? {
        let kinds = ["application/x-image", "application/octet-stream", "*/*", ""];
        let plain = kind.split(';').next().unwrap_or_default().trim().to_lowercase();
        if !plain.starts_with("image/") && !kinds.contains(&plain.as_str()) {
            let name = input.at("ContentType");
            return Err(format!(
                "{name} is `{kind}`; haul reads pictures: image/… or application/x-image (what a \
                 file is, its bytes say)"
            ));
        }
    }
    let Some(source) = input.object("DataSource")? else { return Ok(None) };
    source.only(&["S3DataSource"])?;
    let Some(source) = source.object("S3DataSource")? else { return Ok(None) };
    source.only(&["S3DataType", "S3Uri"])?;
    let augmented = "SageMaker does not take it for transform jobs either; a ManifestFile is a \
                     list, and a .csv file as --input carries other columns along";
    let refused =
        [("AugmentedManifestFile", augmented), ("Converse", "it is for training language models")];
    let kind = source.word("S3DataType", &["S3Prefix", "ManifestFile"], &refused)?;
    let (None, Some(uri)) = (&over.input, source.text("S3Uri")?) else { return Ok(None) };
    let path = place(uri, &source.at("S3Uri"))?;
    let name = source.at("S3DataType");
    match (kind, is_manifest(&path)) {
        (None, _) => Err(format!("{name} is missing; it is S3Prefix or ManifestFile")),
        (Some("ManifestFile"), false) => {
            Err(format!("{name} is `ManifestFile`, and `{uri}` does not end in .json or .manifest"))
        }
        (Some("S3Prefix"), true) => Err(format!(
            "{name} is `S3Prefix`, and `{uri}` is a manifest; for that it is `ManifestFile`"
        )),
        _ => Ok(Some(path)),
    }
}

/// The output, and the key of KMS for what is written there.
fn output(
    request: &Fields<'_>,
    over: &Settings,
) -> Result<(Option<PathBuf>, Option<String>), String> {
    let Some(output) = request.object("TransformOutput")? else { return Ok((None, None)) };
    output.only(&["S3OutputPath", "Accept", "AssembleWith", "KmsKeyId"])?;
    output.word("AssembleWith", &["None", "Line"], &[])?;
    if let Some(kind) = output.text("Accept")? {
        let kinds =
            ["application/jsonlines", "application/x-ndjson", "application/json", "*/*", ""];
        let plain = kind.split(';').next().unwrap_or_default().trim().to_lowercase();
        if !kinds.contains(&plain.as_str()) {
            let name = output.at("Accept");
            return Err(format!(
                "{name} is `{kind}`; haul writes JSON Lines, application/jsonlines (`haul export` \
                 makes csv of them)"
            ));
        }
    }
    let path = match (&over.output, output.text("S3OutputPath")?) {
        (None, Some(uri)) => Some(place(uri, &output.at("S3OutputPath"))?),
        _ => None,
    };
    let key = output.text("KmsKeyId")?.filter(|key| !key.is_empty());
    let to = over.output.as_ref().or(path.as_ref());
    if let Some(key) = key
        && !to.is_some_and(|to| to.to_string_lossy().starts_with("s3://"))
    {
        return Err(format!(
            "{} is `{key}`: haul does not encrypt what it writes into a folder (leave it out, and \
             encrypt the disk)",
            output.at("KmsKeyId")
        ));
    }
    Ok((path, key.map(str::to_owned)))
}

/// The place in a field that SageMaker has a URI of S3 in; it may be a path, too.
fn place(uri: &str, name: &str) -> Result<PathBuf, String> {
    let path = match uri.split_once("://") {
        None => uri,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(("s3", _)) => {
            Location::parse(uri).map_err(|what| format!("{name}: {what}"))?;
            uri
        }
        Some(_) => {
            return Err(format!("{name} is `{uri}`; it is s3://BUCKET/PREFIX, or a path"));
        }
    };
    if path.is_empty() { Err(format!("{name} is empty")) } else { Ok(PathBuf::from(path)) }
}

/// The checkpoint of a name: an address of S3, or a path relative to the job file, with or without
/// its suffix.
fn find_model(name: &str, folder: &Path) -> Result<PathBuf, String> {
    if name.starts_with("s3://") {
        return Ok(name.into());
    }
    let candidates = MODEL_SUFFIXES.map(|suffix| format!("{name}{suffix}"));
    let found = candidates.iter().find(|candidate| folder.join(candidate).is_file());
    found.map(PathBuf::from).ok_or_else(|| {
        format!(
            "ModelName is `{name}`, and there is no such file beside the job file, also not with \
             {} behind it (--model FILE goes over it)",
            MODEL_SUFFIXES[1..].join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_with(request: &Value, flags: Settings) -> Result<(Settings, Vec<String>), String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("shapes.safetensors"), b"").unwrap();
        std::fs::write(dir.path().join("both.pt"), b"").unwrap();
        std::fs::write(dir.path().join("both.safetensors"), b"").unwrap();
        let path = dir.path().join("transform.json");
        std::fs::write(&path, request.to_string()).unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (mut settings, notes) = read(&path, flags).map_err(|error| error.to_string())?;
        let paths = [&mut settings.model, &mut settings.input, &mut settings.output];
        for path in paths.into_iter().flatten() {
            *path = path.strip_prefix(&base).unwrap_or(path).to_owned();
        }
        Ok((settings, notes))
    }

    fn settings(request: &Value) -> Settings {
        read_with(request, Settings::default()).unwrap().0
    }

    /// A request with everything that is taken.
    fn full() -> Value {
        json!({
            "TransformJobName": "nightly-2026",
            "ModelName": "shapes",
            "MaxConcurrentTransforms": 3,
            "ModelClientConfig": {"InvocationsTimeoutInSeconds": 90, "InvocationsMaxRetries": 1},
            "MaxPayloadInMB": 6,
            "BatchStrategy": "SingleRecord",
            "Environment": {
                "HAUL_CONF": "0.5", "HAUL_CLASSES": "a,b", "HAUL_SQUARE": "true",
                "HAUL_GRACE": "10", "HAUL_INCLUDE": "IMG*", "LOG_LEVEL": "debug"
            },
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "photos/"}},
                "ContentType": "image/jpeg", "CompressionType": "None", "SplitType": "None"
            },
            "TransformOutput": {
                "S3OutputPath": "file:///data/out", "Accept": "application/jsonlines",
                "AssembleWith": "Line", "KmsKeyId": ""
            },
            "DataProcessing": {"InputFilter": "$", "OutputFilter": "$", "JoinSource": "None"},
            "TransformResources": {"InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
            "Tags": [{"Key": "a", "Value": "b"}],
            "ExperimentConfig": {"ExperimentName": "e"},
            "DataCaptureConfig": null
        })
    }

    #[test]
    fn each_field_is_a_setting_or_is_said_to_be_ignored() {
        let (settings, notes) = read_with(&full(), Settings::default()).unwrap();
        let expected = Settings {
            model: Some("shapes.safetensors".into()),
            input: Some("photos".into()),
            output: Some("/data/out".into()),
            workers: Some(3),
            batch_timeout: Some("90s".into()),
            max_payload_mb: Some(6.0),
            max_images: Some(1),
            conf: Some(0.5),
            classes: Some(vec!["a".into(), "b".into()]),
            square: Some(true),
            grace: Some("10".into()),
            include: Some(vec!["IMG*".into()]),
            ..Settings::default()
        };
        assert_eq!(settings, expected);
        let notes = notes.join("\n");
        for name in ["TransformJobName", "TransformResources", "Tags", "ExperimentConfig"] {
            assert!(notes.contains(name), "{name} is not in {notes}");
        }
        for name in ["InstanceCount", "LOG_LEVEL", "InvocationsMaxRetries"] {
            assert!(notes.contains(name), "{name} is not in {notes}");
        }
    }

    #[test]
    fn a_request_of_sagemakers_runs_as_it_is() {
        let mut request = full();
        request["ModelName"] = json!("s3://b/models/model.tar.gz");
        request["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] = json!("s3://b/in/%2B ");
        request["TransformOutput"]["S3OutputPath"] = json!("s3://b/out/");
        request["TransformOutput"]["KmsKeyId"] = json!("alias/key");
        let settings = settings(&request);
        assert_eq!(settings.model.unwrap(), Path::new("s3://b/models/model.tar.gz"));
        assert_eq!(settings.input.unwrap().to_str().unwrap(), "s3://b/in/%2B ");
        assert_eq!(settings.output.unwrap().to_str().unwrap(), "s3://b/out/");
        assert_eq!(settings.sse.unwrap(), "aws:kms");
        assert_eq!(settings.sse_kms_key_id.unwrap(), "alias/key");
    }

    #[test]
    fn zero_is_what_it_is_to_aws() {
        let zero = json!({"MaxConcurrentTransforms": 0, "MaxPayloadInMB": 0, "BatchStrategy": "MultiRecord"});
        assert_eq!(settings(&zero), Settings::default());
    }

    #[test]
    fn flags_go_over_the_environment_and_that_over_the_fields() {
        let mut request = full();
        request["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] = json!("s3://b/in");
        request["TransformOutput"]["S3OutputPath"] = json!("s3://b/out");
        request["ModelName"] = json!("elsewhere");
        request["Environment"] =
            json!({"HAUL_MODEL": "m.pt", "HAUL_MAX_IMAGES": "7", "HAUL_IOU": "0.1"});
        let flags = Settings {
            input: Some("/in".into()),
            output: Some("/out".into()),
            iou: Some(0.9),
            ..Settings::default()
        };
        let settings = read_with(&request, flags).unwrap().0;
        assert_eq!(settings.model, Some("m.pt".into()));
        assert_eq!((settings.input, settings.output), (Some("/in".into()), Some("/out".into())));
        assert_eq!((settings.max_images, settings.iou), (Some(7), Some(0.9)));
    }

    #[test]
    fn a_model_is_a_path_with_or_without_its_suffix() {
        for (name, file) in [
            ("both", "both.pt"),
            ("both.safetensors", "both.safetensors"),
            ("./shapes", "shapes.safetensors"),
        ] {
            assert_eq!(settings(&json!({"ModelName": name})).model, Some(file.into()), "{name}");
        }
    }

    #[test]
    fn what_is_no_json_or_says_a_thing_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transform.json");
        for (text, expected) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("{} {}", "trailing characters"),
            (r#"{"Tags": [], "Tags": []}"#, "`Tags` is there twice at line 1"),
            (r#"{"Environment": {"HAUL_IOU": "1", "HAUL_IOU": "0"}}"#, "`HAUL_IOU` is there twice"),
            (&"[".repeat(100_000), "recursion limit"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path, Settings::default()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
        std::fs::write(&path, "\u{feff}{}").unwrap();
        assert_eq!(read(&path, Settings::default()).unwrap().0, Settings::default());
    }

    #[test]
    fn what_haul_does_not_do_is_refused_by_name() {
        let source = |kind: &str, uri: &str| json!({"TransformInput": {"DataSource": {"S3DataSource": {"S3DataType": kind, "S3Uri": uri}}}});
        let input = |name: &str, value: &str| json!({"TransformInput": {name: value}});
        let output = |name: &str, value: &str| json!({"TransformOutput": {name: value}});
        let cases = [
            (json!([]), "is it a manifest, for --input?"),
            (json!(5), "it is no CreateTransformJob request"),
            (json!({"ModelNam": "m"}), "there is no field `ModelNam`; did you mean `ModelName`?"),
            (json!({"Zzz": 1}), "the fields here are TransformJobName"),
            (input("SplitTyp", "None"), "`TransformInput.SplitTyp`; did you mean `SplitType`?"),
            (input("SplitType", "Line"), "TransformInput.SplitType is `Line`: a picture is one"),
            (input("SplitType", "Word"), "TransformInput.SplitType is `Word`; it is None"),
            (input("CompressionType", "Gzip"), "does not unpack"),
            (input("ContentType", "text/csv"), "haul reads pictures"),
            (source("AugmentedManifestFile", "a"), "SageMaker does not take it"),
            (source("Converse", "a"), "language models"),
            (source("S3Prefix", "s3://"), "S3DataSource.S3Uri: `s3://` names no bucket"),
            (source("S3Prefix", "https://a/b"), "it is s3://BUCKET/PREFIX, or a path"),
            (source("S3Prefix", "a.manifest"), "for that it is `ManifestFile`"),
            (source("ManifestFile", "photos"), "does not end in .json or .manifest"),
            (output("S3OutputPath", "gs://bucket/a"), "it is s3://BUCKET/PREFIX, or a path"),
            (output("Accept", "text/csv"), "haul writes JSON Lines"),
            (output("AssembleWith", "Comma"), "it is None or Line"),
            (output("KmsKeyId", "arn:aws:kms:x"), "haul does not encrypt"),
            (json!({"DataProcessing": {"JoinSource": "Input"}}), "DataProcessing.JoinSource is"),
            (json!({"DataProcessing": {"OutputFilter": "$.a"}}), "a line is written whole"),
            (json!({"DataCaptureConfig": {"DestinationS3Uri": "s3://a"}}), "captures nothing"),
            (json!({"MaxPayloadInMB": 101}), "MaxPayloadInMB is 101; it is a whole number, 0 to"),
            (json!({"MaxConcurrentTransforms": -1}), "it is a whole number of at least 0"),
            (json!({"BatchStrategy": "Bogus"}), "it is MultiRecord or SingleRecord"),
            (json!({"BatchStrategy": 1}), "BatchStrategy is 1; it is a text"),
            (json!({"TransformInput": 1}), "TransformInput is 1; it is an object"),
            (
                json!({"ModelName": "nothing"}),
                "also not with .pt, .safetensors, .tar.gz, .haulpack",
            ),
            (json!({"Environment": {"HAUL_CONFF": "1"}}), "did you mean `HAUL_CONF`?"),
            (json!({"Environment": {"HAUL_Q": "1"}}), "there is no setting `HAUL_Q`"),
            (json!({"Environment": {"HAUL_CONF": "high"}}), "Environment.HAUL_CONF: invalid value"),
            (json!({"Environment": {"HAUL_SHARD": "1/2"}}), "every process that reads the file"),
            (json!({"Environment": {"HAUL_CONF": 1}}), "Environment.HAUL_CONF is 1; it is a text"),
            (
                json!({"ModelClientConfig": {"InvocationsTimeoutInSeconds": 0}}),
                "ModelClientConfig.InvocationsTimeoutInSeconds is 0; it is a whole number, 1 to 3600",
            ),
            (json!({"TransformResources": {"InstanceCont": 1}}), "did you mean `InstanceCount`?"),
        ];
        for (request, expected) in cases {
            let error = read_with(&request, Settings::default()).unwrap_err();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
    }
}

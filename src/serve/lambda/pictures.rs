//! What is common to pictures of all events: reading them, and what their faults are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::Function;
use super::failed::Failed;
use super::output::Output;
use crate::job::write_error;
use crate::serve::desk::Priority;
use crate::serve::http::blocking;
use crate::serve::invocation::{Form, Options, Picture};
use crate::serve::metrics::Door;
use crate::serve::problem::Problem;
use crate::store::{Place, RootError};

/// What a picture came to, and where the time went.
struct Found {
    line: Vec<u8>,
    model: Duration,
}

impl Function {
    /// The line of a picture: what is in it, or why nothing can be.
    ///
    /// # Errors
    /// [`Problem`] that is the request's, a store's or a worker's; with a line where it is the
    /// picture's own.
    pub(super) async fn line(
        &self,
        picture: Picture,
        options: &Options,
        within: Duration,
    ) -> Result<Vec<u8>, Problem> {
        let begun = Instant::now();
        let found = tokio::time::timeout(within, self.find(picture, options)).await;
        let found = found.unwrap_or_else(|_| Err(Problem::timed_out(within)));
        let (status, model) = match &found {
            Ok(found) => (200, found.model),
            Err(problem) => (problem.status.as_u16(), Duration::ZERO),
        };
        let metrics = self.app.endpoint.metrics();
        metrics.ended(Door::Lambda, status, model, begun.elapsed());
        found.map(|found| found.line)
    }

    async fn find(&self, picture: Picture, options: &Options) -> Result<Found, Problem> {
        let endpoint = &self.app.endpoint;
        let most = self.most_object;
        let (bytes, room) = match picture {
            Picture::Bytes(bytes) => (bytes, None),
            Picture::Location(location) => {
                endpoint.roots().check(&location)?;
                let read = endpoint.read(location, most).await?;
                let (bytes, room) = read.map_err(|error| of_object(options, error))?;
                (bytes, Some(room))
            }
        };
        let answer = endpoint.infer(bytes, options, Form::Json, Priority::RealTime).await;
        drop(room);
        answer.map(|answer| Found { model: answer.model_time(), line: answer.bytes })
    }

    /// Writes a line to an output.
    ///
    /// # Errors
    /// [`Problem`] of the store.
    pub(super) async fn write(
        &self,
        output: &Arc<Output>,
        key: String,
        line: Vec<u8>,
    ) -> Result<String, Problem> {
        let output = output.clone();
        blocking(move || output.write(&key, &line)).await?
    }
}

/// Why an object cannot be read. That it is not there, or too large, is the object's own fault, and
/// has a line as in a batch job.
fn of_object(options: &Options, error: RootError) -> Problem {
    let code = match &error {
        RootError::Gone(_) => "gone",
        RootError::TooLarge(..) => "too_large",
        _ => return error.into(),
    };
    let message = error.to_string();
    let mut line = Vec::new();
    write_error(&mut line, &options.key(), None, code, "fetch", &message);
    Problem { code, line: Some(line), ..error.into() }
}

/// What a picture's output is named after: the key of its object, or what its sender calls it.
pub(super) fn output_key(picture: &Picture, options: &Options, otherwise: &str) -> String {
    let named = options.name.clone();
    let key = match picture {
        Picture::Bytes(_) => named,
        Picture::Location(location) => match Place::parse(location.as_ref()) {
            // Nobody has called it anything else.
            Ok(Place::S3(at)) if named.as_ref() == Some(location) => Some(at.key),
            _ => named,
        },
    };
    key.filter(|key| !key.is_empty()).unwrap_or_else(|| otherwise.to_owned())
}

/// A line as JSON, every byte of it but the line feed.
///
/// # Errors
/// [`Failed`] when it is none, which would be a bug.
pub(super) fn as_json(line: Vec<u8>) -> Result<Box<RawValue>, Failed> {
    let text = String::from_utf8(line).map_err(|error| error.to_string());
    let json = text.and_then(|mut text| {
        text.truncate(text.trim_end().len());
        RawValue::from_string(text).map_err(|error| error.to_string())
    });
    json.map_err(|error| Failed::new("internal", format!("the line is no JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_bytes() {
        let line = br#"{"image":"a","detections":[{"score":0.10,"box":[1.50,2,3e0,4]}]}"#;
        let mut with_end = line.to_vec();
        with_end.push(b'\n');
        assert_eq!(as_json(with_end).unwrap().get().as_bytes(), line);
        assert!(as_json(b"{\n".to_vec()).is_err());
    }

    #[test]
    fn outputs_are_named_after_objects() {
        let named = |name: &str| Options { name: Some(name.to_owned()), ..Options::default() };
        let at = |location: &str| Picture::Location(location.to_owned());
        let here = Picture::Bytes(Vec::new());
        assert_eq!(output_key(&at("s3://b/a/c.jpg"), &named("s3://b/a/c.jpg"), "id"), "a/c.jpg");
        assert_eq!(output_key(&at("s3://b/a/c.jpg"), &named("mine"), "id"), "mine");
        assert_eq!(output_key(&at("in/c.jpg"), &named("in/c.jpg"), "id"), "in/c.jpg");
        assert_eq!(output_key(&here, &named("n.jpg"), "id"), "n.jpg");
        assert_eq!(output_key(&here, &Options::default(), "id"), "id");
    }
}

//! Objects that a bucket tells about, and messages of a queue.

use std::future::Future;
use std::sync::Arc;

use aws_lambda_events::sqs::SqsMessage;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::event::{Asked, Notice, of_message};
use super::failed::Failed;
use super::output::Output;
use super::pictures::{as_json, output_key};
use super::{Function, deadline};
use crate::serve::http::blocking;
use crate::serve::invocation::{Options, Picture};

/// What became of an object; the answer to an event of S3 has a list of these.
#[derive(Debug, Serialize)]
struct Told {
    location: String,
    /// Where its line was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// Its line, where there is no output.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<Box<RawValue>>,
    /// Why there is no line.
    #[serde(skip_serializing_if = "Option::is_none")]
    ignored: Option<String>,
}

#[derive(Serialize)]
struct Results {
    results: Vec<Told>,
}

/// What a queue is told: messages that it must bring again.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct BatchResponse {
    batch_item_failures: Vec<BatchItemFailure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BatchItemFailure {
    item_identifier: String,
}

impl Function {
    /// Reads objects and writes their lines; all of them, also where one fails.
    ///
    /// # Errors
    /// [`Failed`] naming how many failed, and why the first did.
    pub(super) async fn objects(
        self: &Arc<Function>,
        notices: Vec<Notice>,
        until: Instant,
    ) -> Result<Box<RawValue>, Failed> {
        let count = notices.len();
        let work = notices.into_iter().map(|notice| {
            let function = self.clone();
            async move { function.object(notice, until).await }
        });
        let (mut results, mut failures) = (Vec::new(), Vec::new());
        for result in each(work).await {
            match result {
                Ok(told) => results.push(told),
                Err(failed) => failures.push(failed),
            }
        }
        match failures.first() {
            None => to_json(&Results { results }),
            Some(first) => Err(Failed::new(
                &first.kind,
                format!("{} of {count} objects failed: {}", failures.len(), first.message),
            )),
        }
    }

    async fn object(&self, notice: Notice, until: Instant) -> Result<Told, Failed> {
        let location = notice.location();
        let told = Told { location: location.clone(), output: None, line: None, ignored: None };
        let ignored = self.ignored(&notice);
        if ignored.is_some() {
            return Ok(Told { ignored, ..told });
        }
        // As in a batch job over the bucket.
        let options = Options { name: Some(notice.key.clone()), ..Options::default() };
        let picture = Picture::Location(location.clone());
        let line = self.written(picture, &options, until).await;
        let line = line.map_err(|failed| Failed {
            message: format!("`{location}`: {}", failed.message),
            ..failed
        })?;
        match &self.output {
            None => Ok(Told { line: Some(as_json(line)?), ..told }),
            Some(output) => {
                let output = self.write(output, notice.key, line).await?;
                Ok(Told { output: Some(output), ..told })
            }
        }
    }

    /// Why an object has no line.
    fn ignored(&self, notice: &Notice) -> Option<String> {
        let what = notice.what.strip_prefix("s3:").unwrap_or(&notice.what);
        let own = |output: &Arc<Output>| output.is_own(&notice.bucket, &notice.key);
        if !what.starts_with("ObjectCreated:") {
            Some(format!("{what} is not about an object that is new"))
        } else if notice.key.ends_with('/') {
            Some("it stands for a folder".to_owned())
        } else if self.output.as_ref().is_some_and(own) {
            Some("it is an output of this function".to_owned())
        } else {
            None
        }
    }

    /// A picture's line, also where it is about the picture's own fault. Waits for its turn.
    async fn written(
        &self,
        picture: Picture,
        options: &Options,
        until: Instant,
    ) -> Result<Vec<u8>, Failed> {
        let turn = tokio::time::timeout_at(until, self.at_once.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Failed::new("timed_out", "the event's time was over before its turn"));
        };
        let within = deadline::within(until, self.app.doors.timeout);
        match self.line(picture, options, within).await {
            Ok(line) => Ok(line),
            Err(problem) => match problem.line {
                Some(line) => Ok(line),
                None => Err(problem.into()),
            },
        }
    }

    /// Does what the messages of a queue ask for, each for itself.
    ///
    /// # Errors
    /// [`Failed`] when there is no output: whoever sends messages never sees an answer.
    pub(super) async fn queue(
        self: &Arc<Function>,
        messages: Vec<SqsMessage>,
        until: Instant,
    ) -> Result<(Box<RawValue>, usize), Failed> {
        if self.output.is_none() {
            let what = "there is no output, and what messages of a queue come to would be lost \
                (--output or HAUL_OUTPUT names one)";
            return Err(Failed::new("no_output", what));
        }
        let mut work = Vec::with_capacity(messages.len());
        for message in messages {
            let SqsMessage { message_id: Some(id), body, .. } = message else {
                // Nothing could be said about it alone, so all of them come again.
                return Err(Failed::malformed("a record of SQS has no `messageId`"));
            };
            let function = self.clone();
            work.push(async move {
                let done = function.message(&id, body.unwrap_or_default(), until).await;
                done.map_err(|failed| {
                    tracing::warn!(
                        message_id = id,
                        code = failed.kind,
                        error = failed.message,
                        "a message failed, and comes again"
                    );
                    id
                })
            });
        }
        let ended = each(work).await;
        let failed = ended.into_iter().filter_map(Result::err);
        let failures: Vec<_> =
            failed.map(|item_identifier| BatchItemFailure { item_identifier }).collect();
        let count = failures.len();
        Ok((to_json(&BatchResponse { batch_item_failures: failures })?, count))
    }

    async fn message(
        self: &Arc<Function>,
        id: &str,
        body: String,
        until: Instant,
    ) -> Result<(), Failed> {
        // It may hold a picture in base64.
        match blocking(move || of_message(&body)).await?? {
            Asked::Test => Ok(()),
            Asked::Objects(notices) => self.objects(notices, until).await.map(drop),
            Asked::Picture(picture, options) => {
                let key = output_key(&picture, &options, id);
                let line = self.written(picture, &options, until).await?;
                if let Some(output) = &self.output {
                    self.write(output, key, line).await?;
                }
                Ok(())
            }
        }
    }
}

/// Does things at once, and gives what they came to in order. What is dropped ends.
async fn each<T: Send + 'static>(
    work: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut set = JoinSet::new();
    for (index, work) in work.into_iter().enumerate() {
        set.spawn(async move { (index, work.await) });
    }
    let mut ended = set.join_all().await;
    ended.sort_unstable_by_key(|(index, _)| *index);
    ended.into_iter().map(|(_, result)| result).collect()
}

fn to_json(value: &impl Serialize) -> Result<Box<RawValue>, Failed> {
    serde_json::value::to_raw_value(value)
        .map_err(|error| Failed::new("internal", format!("the answer: {error}")))
}

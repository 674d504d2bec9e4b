//! What an event is, by its shape.

use aws_lambda_events::s3::{S3Event, S3EventRecord};
use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use lambda_http::request::LambdaRequest;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::failed::Failed;
use crate::serve::invocation::{Body, Options, Picture};

/// What an event asks for.
pub(super) enum Event {
    /// An HTTP request: API Gateway, a function's URL, a load balancer.
    Http(Box<LambdaRequest>),
    /// Messages of a queue.
    Queue(Vec<SqsMessage>),
    /// Something that queues may bring, too.
    Asked(Asked),
}

/// What an event, or a message of a queue, asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// What a bucket has told about its objects.
    Objects(Vec<Notice>),
    /// One picture.
    Picture(Picture, Options),
    /// Nothing: S3 was trying whether it is let in.
    Test,
}

/// What a bucket has told about an object.
#[derive(Debug)]
pub(super) struct Notice {
    /// Its bucket.
    pub(super) bucket: String,
    /// Its key.
    pub(super) key: String,
    /// What has happened to it: `ObjectCreated:Put`.
    pub(super) what: String,
}

/// As much of an event as tells what it is.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Probe {
    #[serde(rename = "Records")]
    records: Option<Vec<Source>>,
    #[serde(rename = "requestContext")]
    request: Option<IgnoredAny>,
    #[serde(rename = "Event")]
    test: Option<String>,
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(rename = "Message")]
    message: Option<String>,
    bytes: Option<IgnoredAny>,
    location: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Source {
    // SNS has its own spelling.
    #[serde(rename = "eventSource", alias = "EventSource")]
    name: Option<String>,
    #[serde(rename = "Sns")]
    notification: Option<Notification>,
}

#[derive(Deserialize)]
struct Notification {
    #[serde(rename = "Message")]
    message: String,
}

const SHAPES: &str = "it is none of: an HTTP request of API Gateway, a function URL or a load \
    balancer; `Records` of S3, SQS or SNS; JSON with `bytes` or `location`";

/// What an event is.
///
/// # Errors
/// [`Failed`] when it is nothing that there is.
pub(super) fn read(text: &str) -> Result<Event, Failed> {
    let probe = Probe::of(text, "the event")?;
    if probe.request.is_some() {
        return Ok(Event::Http(parse(text, "the HTTP request of the event")?));
    }
    if probe.source() == Some("aws:sqs") {
        let event: SqsEvent = parse(text, "the SQS event")?;
        return Ok(Event::Queue(event.records));
    }
    asked(text, probe).map(Event::Asked)
}

/// What a message of a queue asks for: what S3 has written, also where it came through SNS, or what
/// a direct invocation would say.
///
/// # Errors
/// [`Failed`] when it is neither.
pub(super) fn of_message(text: &str) -> Result<Asked, Failed> {
    let probe = Probe::of(text, "the message")?;
    match (&probe.kind, &probe.message) {
        (Some(kind), Some(inner)) if kind == "Notification" => {
            let probe = Probe::of(inner, "the message in the notification")?;
            asked(inner, probe)
        }
        _ => asked(text, probe),
    }
}

fn asked(text: &str, probe: Probe) -> Result<Asked, Failed> {
    if probe.test.as_deref() == Some("s3:TestEvent") {
        return Ok(Asked::Test);
    }
    if probe.bytes.is_some() || probe.location.is_some() {
        let (picture, options) = Picture::of_body(Body::Json, text.as_bytes().to_vec())?;
        return Ok(Asked::Picture(picture, options));
    }
    match probe.source() {
        Some("aws:s3") => objects(text).map(Asked::Objects),
        Some("aws:sns") => {
            let mut all = Vec::new();
            for record in probe.records.into_iter().flatten() {
                let Some(Notification { message }) = record.notification else {
                    return Err(Failed::malformed("a record of SNS has no `Sns.Message`"));
                };
                match asked(&message, Probe::of(&message, "the message of SNS")?)? {
                    Asked::Objects(some) => all.extend(some),
                    Asked::Test => {}
                    Asked::Picture(..) => {
                        let what = "SNS brings notices of S3 here; a picture comes directly or \
                            through a queue";
                        return Err(Failed::malformed(what));
                    }
                }
            }
            Ok(Asked::Objects(all))
        }
        Some(other) => Err(Failed::malformed(format!("the records are of `{other}`: {SHAPES}"))),
        None if probe.records.as_ref().is_some_and(Vec::is_empty) => Ok(Asked::Objects(Vec::new())),
        None => Err(Failed::malformed(SHAPES)),
    }
}

impl Probe {
    fn of(text: &str, whose: &str) -> Result<Probe, Failed> {
        // A number or a list would be read as one without any members.
        match text.trim_start().starts_with('{') {
            true => parse(text, whose),
            false => Err(Failed::malformed(format!("{whose} is no JSON object: {SHAPES}"))),
        }
    }

    /// Whose records they are.
    fn source(&self) -> Option<&str> {
        self.records.as_ref()?.first()?.name.as_deref()
    }
}

fn parse<T: DeserializeOwned>(text: &str, whose: &str) -> Result<T, Failed> {
    serde_json::from_str(text).map_err(|error| Failed::malformed(format!("{whose}: {error}")))
}

fn objects(text: &str) -> Result<Vec<Notice>, Failed> {
    let event: S3Event = parse(text, "the S3 event")?;
    event.records.into_iter().map(Notice::of).collect()
}

impl Notice {
    fn of(record: S3EventRecord) -> Result<Notice, Failed> {
        let missing = |what| Failed::malformed(format!("a record of S3 has no {what}"));
        let written = record.s3.object.key.ok_or_else(|| missing("`s3.object.key`"))?;
        Ok(Notice {
            bucket: record.s3.bucket.name.ok_or_else(|| missing("`s3.bucket.name`"))?,
            key: decoded(&written)?,
            what: record.event_name.ok_or_else(|| missing("`eventName`"))?,
        })
    }

    /// The address of the object.
    pub(super) fn location(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }
}

/// A key as S3 writes it in events: like a form, with `+` for a space.
fn decoded(written: &str) -> Result<String, Failed> {
    let spaced = written.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    let decoded = decoded.map_err(|_| {
        Failed::malformed(format!("the key `{written}` of a record of S3 is not UTF-8"))
    })?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_as_s3_encodes_them() {
        let key = |written| decoded(written).unwrap();
        assert_eq!(key("a/b.jpg"), "a/b.jpg");
        assert_eq!(key("two+words+%2B+%C3%BC%252F.jpg"), "two words + ü%2F.jpg");
        assert!(decoded("%FF").is_err());
    }

    #[test]
    fn what_is_no_event_is_said_to_be_none() {
        for (text, said) in [
            ("{}", "none of"),
            ("[]", "no JSON object"),
            ("7", "no JSON object"),
            ("null", "no JSON object"),
            (r#""text""#, "no JSON object"),
            (r#"{"Records":7}"#, "the event"),
            (r#"{"Records":[{"eventSource":"aws:kinesis"}]}"#, "aws:kinesis"),
            (r#"{"Records":[{"eventSource":"aws:s3"}]}"#, "the S3 event"),
            (r#"{"bytes":"?"}"#, "base64"),
            (r#"{"bytes":"","location":"a"}"#, "one of"),
            (r#"{"location":"a","confidence":1}"#, "confidence"),
            (r#"{"requestContext":{}}"#, "the HTTP request"),
        ] {
            let Err(failed) = read(text) else { panic!("{text} was taken") };
            assert!(failed.message.contains(said), "{text}: {}", failed.message);
        }
        assert!(
            matches!(read(r#"{"Records":[]}"#), Ok(Event::Asked(Asked::Objects(none))) if none.is_empty())
        );
    }
}

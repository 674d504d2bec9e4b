//! Receivers of notifications: webhooks, what takes SNS's messages over HTTP, and queues of SQS.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::types::MessageAttributeValue;
use reqwest::Url;
use reqwest::redirect::Policy;
use serde_json::json;
use tokio::sync::Mutex;

use super::entry::{Notice, rfc3339};
use crate::store::{S3Options, service};

/// How long a receiver may take for its connection, …
const CONNECT: Duration = Duration::from_secs(5);
/// … and for its answer.
const ANSWER: Duration = Duration::from_secs(15);

/// Somebody who is told how requests ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Receiver {
    /// `http(s)://…`: takes the message itself.
    Webhook(Url),
    /// `sns+http(s)://…`: takes it as SNS delivers it to an HTTP subscriber.
    Sns(Url),
    /// `sqs+http(s)://…/ACCOUNT/QUEUE`: a queue of SQS.
    Sqs(Url),
}

impl Receiver {
    /// Reads a receiver's URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Receiver, String> {
        let (make, rest): (fn(Url) -> Receiver, &str) = match text.split_once('+') {
            Some(("sns", rest)) => (Receiver::Sns, rest),
            Some(("sqs", rest)) => (Receiver::Sqs, rest),
            _ => (Receiver::Webhook, text),
        };
        let shown = Receiver::shown(text);
        let wrong = |what: &str| {
            format!(
                "`{shown}` {what}; a receiver is http(s)://…, sns+http(s)://… or \
                 sqs+http(s)://HOST/ACCOUNT/QUEUE"
            )
        };
        let url = Url::parse(rest).map_err(|error| wrong(&format!("is no URL ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong("is not of http or https"));
        }
        let receiver = make(url);
        match &receiver {
            Receiver::Sqs(url) if url.path().trim_matches('/').is_empty() => {
                Err(wrong("names no queue"))
            }
            _ => Ok(receiver),
        }
    }

    /// A URL for people: its scheme and host. Who knows the path of a webhook may write to it.
    pub(super) fn shown(text: &str) -> String {
        let (kind, url) = match text.split_once('+') {
            Some((kind @ ("sns" | "sqs"), url)) => (format!("{kind}+"), url),
            _ => (String::new(), text),
        };
        let url = Url::parse(url).ok();
        let host = url.as_ref().and_then(|url| Some((url.scheme(), url.host_str()?, url.port())));
        match host {
            Some((scheme, host, Some(port))) => format!("{kind}{scheme}://{host}:{port}/…"),
            Some((scheme, host, None)) => format!("{kind}{scheme}://{host}/…"),
            None => "…".to_owned(),
        }
    }
}

/// The connections to receivers.
pub(super) struct Senders {
    http: reqwest::Client,
    s3: S3Options,
    region: String,
    endpoint: String,
    /// By the servers' origins.
    queues: Mutex<HashMap<String, aws_sdk_sqs::Client>>,
}

impl Senders {
    /// Connections for the endpoint of this name.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(super) fn new(s3: &S3Options, region: &str, endpoint: &str) -> Result<Senders, String> {
        // Somebody else may have done so already, with the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .user_agent(concat!("haul/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("the connection to receivers of notifications: {error}"))?;
        Ok(Senders {
            http,
            s3: s3.clone(),
            region: region.to_owned(),
            endpoint: endpoint.to_owned(),
            queues: Mutex::default(),
        })
    }

    /// Delivers a notification once.
    ///
    /// # Errors
    /// Why it was not taken.
    pub(super) async fn send(&self, receiver: &Receiver, notice: &Notice) -> Result<(), String> {
        match receiver {
            Receiver::Webhook(url) => {
                let request = self.http.post(url.clone());
                let request = request.header("content-type", "application/json");
                posted(request.body(notice.message.clone()), notice).await
            }
            Receiver::Sns(url) => {
                let Senders { region, endpoint, .. } = self;
                let topic = format!("arn:aws:sns:{region}:000000000000:haul-{endpoint}");
                let envelope = json!({
                    "Type": "Notification",
                    "MessageId": notice.id,
                    "TopicArn": topic,
                    "Subject": notice.subject,
                    "Message": notice.message,
                    "Timestamp": rfc3339(notice.since),
                });
                let request = self
                    .http
                    .post(url.clone())
                    .header("content-type", "text/plain; charset=UTF-8")
                    .header("x-amz-sns-message-type", "Notification")
                    .header("x-amz-sns-message-id", &notice.id)
                    .header("x-amz-sns-topic-arn", topic);
                posted(request.body(envelope.to_string()), notice).await
            }
            Receiver::Sqs(url) => self.queued(url, notice).await,
        }
    }

    async fn queued(&self, url: &Url, notice: &Notice) -> Result<(), String> {
        let client = self.queue_client(url).await;
        let id = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(&notice.id)
            .build()
            .map_err(|error| error.to_string())?;
        let mut request = client
            .send_message()
            .queue_url(url.as_str())
            .message_body(&notice.message)
            .message_attributes("haul-notification-id", id);
        if url.path().ends_with(".fifo") {
            request = request.message_group_id(&self.endpoint).message_deduplication_id(&notice.id);
        }
        let sent = tokio::time::timeout(ANSWER, request.send()).await;
        match sent {
            Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
            Ok(Err(error)) => {
                Err(aws_smithy_types::error::display::DisplayErrorContext(error).to_string())
            }
            Ok(Ok(_)) => Ok(()),
        }
    }

    async fn queue_client(&self, url: &Url) -> aws_sdk_sqs::Client {
        let origin = url.origin().ascii_serialization();
        let mut queues = self.queues.lock().await;
        if let Some(client) = queues.get(&origin) {
            return client.clone();
        }
        let config = service(&self.s3, origin.clone()).await;
        let mut builder = aws_sdk_sqs::config::Builder::from(&config);
        // A queue of AWS says in which region it is.
        let host = url.host_str().unwrap_or_default();
        let region = host.strip_prefix("sqs.").and_then(|rest| rest.strip_suffix(".amazonaws.com"));
        if let Some(region) = region {
            builder = builder.region(aws_config::Region::new(region.to_owned()));
        }
        let client = aws_sdk_sqs::Client::from_conf(builder.build());
        queues.insert(origin, client.clone());
        client
    }
}

/// Sends a request; only a 2xx is a yes.
async fn posted(request: reqwest::RequestBuilder, notice: &Notice) -> Result<(), String> {
    let sent = request.header("x-haul-notification-id", &notice.id).send().await;
    // The URL may have a secret in it.
    let response = sent.map_err(|error| chain(&error.without_url()))?;
    match response.status().is_success() {
        true => Ok(()),
        false => Err(format!("it answered {}", response.status())),
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_are_told_apart() {
        let parse = |text: &str| Receiver::parse(text);
        assert!(matches!(parse("http://a/b"), Ok(Receiver::Webhook(_))));
        assert!(matches!(parse("https://a/b?c+d"), Ok(Receiver::Webhook(_))));
        assert!(matches!(parse("sns+http://a/b"), Ok(Receiver::Sns(_))));
        assert!(matches!(
            parse("sqs+https://sqs.eu-west-1.amazonaws.com/1/q"),
            Ok(Receiver::Sqs(_))
        ));
        for wrong in
            ["", "a", "ftp://a", "sqs+http://a", "sqs+http://a/", "sns+file:///a", "x+http://a"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = Receiver::shown;
        assert_eq!(shown("https://user:pass@a/b?token=x"), "https://a/…");
        assert_eq!(
            shown("https://hooks.slack.com/services/T0/B0/xyz"),
            "https://hooks.slack.com/…"
        );
        assert_eq!(shown("sns+http://a:8080/b#c"), "sns+http://a:8080/…");
        assert_eq!(shown("/secret"), "…");
        let said = Receiver::parse("ftp://a/secret").unwrap_err();
        assert!(!said.contains("secret"), "{said}");
    }
}

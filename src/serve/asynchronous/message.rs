//! What is written for clients: failure objects, and the messages of notifications.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::AsyncConfig;
use super::entry::{Decision, Entry, Notice, rfc3339};
use crate::serve::problem::Problem;

/// A larger result is not part of a notification.
const LARGEST_RESPONSE: usize = 128 << 10;

/// What SNS and SQS take, less what they and we put around it.
const LARGEST_MESSAGE: usize = 240 << 10;

/// The decision that a problem is.
pub(super) fn failed(problem: &Problem) -> Decision {
    Decision::Failed {
        code: problem.code.to_owned(),
        message: problem.message.clone(),
        status: problem.status.as_u16(),
    }
}

/// The failure object: what the real-time door would have answered, and which request it is about.
pub(super) fn failure(entry: &Entry, problem: &Problem) -> Vec<u8> {
    let body = serde_json::from_slice(&problem.body());
    let mut body: Map<String, Value> = body.unwrap_or_default();
    body.insert("inferenceId".to_owned(), json!(entry.inference_id));
    body.insert("inputLocation".to_owned(), json!(entry.asked.location));
    let mut text = Value::Object(body).to_string().into_bytes();
    text.push(b'\n');
    text
}

/// The notifications that are owed for a request that ended.
pub(super) fn notices(
    config: &AsyncConfig,
    endpoint: &str,
    entry: &Entry,
    bytes: &[u8],
) -> Vec<Notice> {
    let Some(decision) = entry.decision() else { return Vec::new() };
    let (urls, subject) = match decision {
        Decision::Completed { .. } => (&config.notify_success, "completed"),
        Decision::Failed { .. } => (&config.notify_error, "failed"),
    };
    if urls.is_empty() {
        return Vec::new();
    }
    let mut message = message(&config.region, endpoint, entry, decision);
    if config.notify_response
        && let Some(response) = response(decision, bytes)
        && let Some(members) = message.as_object_mut()
    {
        members.insert("responseBody".to_owned(), response);
        // As a text in another text it may have become larger.
        if Value::String(message.to_string()).to_string().len() > LARGEST_MESSAGE
            && let Some(members) = message.as_object_mut()
        {
            members.remove("responseBody");
        }
    }
    let text = message.to_string();
    let notice = |url: &String| Notice {
        id: Uuid::new_v4().to_string(),
        url: url.clone(),
        message: text.clone(),
        subject: format!("Inference {subject}"),
        since: entry.ended.unwrap_or_default(),
    };
    urls.iter().map(notice).collect()
}

/// The message that SageMaker publishes.
fn message(region: &str, endpoint: &str, entry: &Entry, decision: &Decision) -> Value {
    let mut parameters = json!({
        "endpointName": endpoint,
        "inputLocation": entry.asked.location,
    });
    if let (Some(content_type), Some(parameters)) =
        (&entry.asked.content_type, parameters.as_object_mut())
    {
        parameters.insert("contentType".to_owned(), json!(content_type));
    }
    let mut message = json!({
        "awsRegion": region,
        "eventTime": rfc3339(entry.ended.unwrap_or_default()),
        "receivedTime": rfc3339(entry.received),
        "requestParameters": parameters,
        "inferenceId": entry.inference_id,
        "eventVersion": "1.0",
        "eventSource": "aws:sagemaker",
        "eventName": "InferenceResult",
    });
    let more = match decision {
        Decision::Completed { content_type } => json!({
            "invocationStatus": "Completed",
            "responseParameters": {
                "contentType": content_type,
                "outputLocation": entry.output.location(),
            },
        }),
        Decision::Failed { code, message, status } => {
            let whose = if (400..500).contains(status) { "client" } else { "server" };
            json!({
                "invocationStatus": "Failed",
                "failureReason": format!(
                    "ClientError: Received {whose} error ({status}) from model: {code}: {message}"
                ),
                "responseParameters": { "failureLocation": entry.failure.location() },
            })
        }
    };
    if let (Some(members), Value::Object(more)) = (message.as_object_mut(), more) {
        members.extend(more);
    }
    message
}

/// A result in a message, if it is small.
fn response(decision: &Decision, bytes: &[u8]) -> Option<Value> {
    if bytes.len() > LARGEST_RESPONSE {
        return None;
    }
    let is_text = match decision {
        Decision::Completed { content_type } => content_type == "application/json",
        Decision::Failed { .. } => true,
    };
    match (is_text, std::str::from_utf8(bytes)) {
        (true, Ok(text)) => Some(json!({ "content": text, "encoding": "UTF-8" })),
        _ => Some(json!({ "content": STANDARD.encode(bytes), "encoding": "BASE64" })),
    }
}

//! AWS Lambda: the doors behind Lambda's runtime API instead of a socket.
//!
//! One function takes all events, and tells by their shape what they are (`event`): HTTP requests
//! go to the router (`web`), objects and messages of queues are read and their lines written
//! (`records`), and a picture that is sent directly is answered with its line, byte for byte.

mod deadline;
mod event;
mod failed;
mod output;
mod pictures;
mod records;
mod web;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use lambda_runtime::{Context, LambdaEvent, Runtime};
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use self::event::{Asked, Event};
use self::failed::Failed;
use self::output::Output;
use self::web::Web;
use super::http::blocking;
use super::invocation::{Options, Picture};
use super::metrics::Door;
use super::signals::{self, Signals};
use super::{App, DoorConfig, Endpoint, EndpointConfig, PARTING};
use crate::job::JobError;
use crate::store::{Place, Roots};

/// What Lambda takes and gives at most, in bytes of JSON.
pub const MOST: u64 = 6 << 20;

/// A function, as it was asked for.
#[derive(Clone, Debug)]
pub struct LambdaConfig {
    /// The model.
    pub endpoint: EndpointConfig,
    /// What HTTP requests may have.
    pub doors: DoorConfig,
    /// What events may name.
    pub roots: Vec<Place>,
    /// Where lines go that nobody waits for.
    pub output: Option<Place>,
    /// The largest picture that an event may name.
    pub most_object: u64,
}

/// What answers events.
struct Function {
    app: App,
    output: Option<Arc<Output>>,
    most_object: u64,
    /// Pictures of one event that are read or worked on at once.
    at_once: Semaphore,
}

/// Answers events until Lambda ends the process.
///
/// # Errors
/// When this is no Lambda environment, when the model cannot be loaded, or when the runtime API
/// does not answer.
pub fn serve_lambda(config: LambdaConfig) -> Result<(), JobError> {
    check_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A store that does not answer keeps some for longer than their events last.
        .max_blocking_threads(64)
        .build()
        .map_err(|error| JobError::Internal(format!("cannot start tokio: {error}")))?;
    let served = runtime.block_on(run(config));
    // A store that does not answer is waited for by nobody.
    runtime.shutdown_timeout(PARTING);
    served
}

/// What the crate that speaks to Lambda would panic about.
fn check_environment() -> Result<(), JobError> {
    let wrong = |what: String| {
        JobError::Usage(format!(
            "{what}: `haul lambda` is started by AWS Lambda, or by what imitates it (`haul serve` \
             answers over HTTP)"
        ))
    };
    for name in
        ["AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION"]
    {
        if std::env::var(name).is_ok_and(|value| !value.is_empty()) {
            continue;
        }
        return Err(wrong(format!("{name} is not set")));
    }
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API").unwrap_or_default();
    if api.parse::<http::Uri>().is_err() {
        return Err(wrong(format!("AWS_LAMBDA_RUNTIME_API is `{api}`, which is no host and port")));
    }
    let name = "AWS_LAMBDA_FUNCTION_MEMORY_SIZE";
    match std::env::var(name).map(|text| text.parse::<i32>().map_err(|_| text)) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(text)) => Err(wrong(format!("{name} is `{text}`, which is no number"))),
        Err(_) => Err(wrong(format!("{name} is not set"))),
    }
}

async fn run(config: LambdaConfig) -> Result<(), JobError> {
    let mut signals = Signals::listen()?;
    let roots = Roots::open(&config.roots, &config.endpoint.s3)?;
    let s3 = &config.endpoint.s3;
    let output = config.output.as_ref().map(|place| Arc::new(Output::at(place, s3)));
    let workers = config.endpoint.inference.workers();
    let endpoint = Endpoint::new(config.endpoint.clone(), roots);
    // Before the first event is asked for: this is the time that Lambda gives for it.
    tokio::select! {
        ready = endpoint.ready() => match ready {
            Ok(ready) => super::note(&ready),
            Err(problem) => return Err(super::why_broken(&endpoint, problem)),
        },
        // There is nothing to finish.
        signal = signals.next() => signals::end(signal),
    }
    let function = Arc::new(Function {
        app: App { endpoint: endpoint.clone(), doors: config.doors },
        output,
        most_object: config.most_object,
        // Some are read while others are worked on.
        at_once: Semaphore::new(2 * workers.max(1)),
    });
    let handler = lambda_runtime::service_fn(move |event: LambdaEvent<Box<RawValue>>| {
        let function = function.clone();
        async move { function.answer(event).await }
    });
    let ended = tokio::select! {
        ended = Runtime::new(handler).run() => ended
            .map_err(|error| JobError::Internal(format!("Lambda's runtime API: {error}"))),
        _ = signals.next() => Ok(()),
    };
    endpoint.close();
    ended
}

impl Function {
    /// Answers an event, and logs how it ended.
    async fn answer(
        self: Arc<Function>,
        event: LambdaEvent<Box<RawValue>>,
    ) -> Result<Box<RawValue>, Failed> {
        let begun = Instant::now();
        let LambdaEvent { payload, context } = event;
        let id = context.request_id.clone();
        let mut log = Log { kind: "unknown", failed_messages: 0 };
        let result = self.result(payload, context, &mut log).await;
        tracing::info!(
            door = Door::Lambda.as_str(),
            request_id = id,
            event = log.kind,
            code = result.as_ref().err().map(|failed| failed.kind.as_str()),
            error = result.as_ref().err().map(|failed| failed.message.as_str()),
            failed_messages = log.failed_messages,
            whole_ms = begun.elapsed().as_secs_f64() * 1e3,
            "event"
        );
        result
    }

    async fn result(
        self: &Arc<Function>,
        payload: Box<RawValue>,
        context: Context,
        log: &mut Log,
    ) -> Result<Box<RawValue>, Failed> {
        let until = deadline::of(context.deadline, SystemTime::now());
        // It may hold megabytes of base64.
        let event = blocking(move || event::read(payload.get())).await??;
        let answer = match event {
            Event::Http(request) => {
                log.kind = "http";
                let web = blocking(move || Web::new(*request)).await??;
                let mut app = self.app.clone();
                app.doors.timeout = deadline::within(until, app.doors.timeout);
                web.ask(app, context).await?
            }
            Event::Queue(messages) => {
                log.kind = "sqs";
                let (answer, failed) = self.queue(messages, until).await?;
                log.failed_messages = failed;
                answer
            }
            Event::Asked(Asked::Test) => {
                log.kind = "test";
                pictures::as_json(b"{}".to_vec())?
            }
            Event::Asked(Asked::Objects(notices)) => {
                log.kind = "s3";
                self.objects(notices, until).await?
            }
            Event::Asked(Asked::Picture(picture, options)) => {
                log.kind = "direct";
                self.direct(picture, &options, until).await?
            }
        };
        match answer.get().len() as u64 > MOST {
            false => Ok(answer),
            true => {
                let length = answer.get().len();
                let what = format!("the answer has {length} bytes; Lambda takes {MOST} at most");
                Err(Failed::new("answer_too_large", what))
            }
        }
    }

    /// The line of a picture that was sent directly.
    async fn direct(
        &self,
        picture: Picture,
        options: &Options,
        until: tokio::time::Instant,
    ) -> Result<Box<RawValue>, Failed> {
        let within = deadline::within(until, self.app.doors.timeout);
        let line = self.line(picture, options, within).await?;
        pictures::as_json(line)
    }
}

/// What is logged of an event besides how it ended.
struct Log {
    kind: &'static str,
    failed_messages: usize,
}

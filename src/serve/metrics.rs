//! What Prometheus is told, under the names that SageMaker's metrics have, with their units made
//! Prometheus's: seconds and bytes.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// Through which door a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// `/invocations`, `/endpoints/…/invocations`.
    RealTime,
    /// `/endpoints/…/async-invocations`.
    Async,
    /// AWS Lambda.
    Lambda,
}

impl Door {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Door::RealTime => "real_time",
            Door::Async => "async",
            Door::Lambda => "lambda",
        }
    }
}

/// What one door has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Requests answered or refused.
    pub invocations: u64,
    /// Those answered with 4xx.
    pub errors_4xx: u64,
    /// Those answered with 5xx.
    pub errors_5xx: u64,
    /// Those answered with success, of which are the times.
    pub answers: u64,
    /// Time in which workers were busy with them.
    pub model_seconds: f64,
    /// All other time between their headers and their answers.
    pub overhead_seconds: f64,
}

/// From 1 ms to about a minute.
const BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

/// The metrics of one endpoint.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests that were answered or refused, by door.
    pub invocations: IntCounterVec,
    /// Those answered with 4xx.
    pub errors_4xx: IntCounterVec,
    /// Those answered with 5xx.
    pub errors_5xx: IntCounterVec,
    /// Time in which a worker was busy with the picture.
    pub model_latency: HistogramVec,
    /// All other time between a request's headers and its answer.
    pub overhead_latency: HistogramVec,
    /// Time to have the model ready.
    pub model_setup: Histogram,
    /// Requests that were refused since the queue was full.
    pub shed: IntCounter,
    /// Pictures that were given to workers, also those whose clients did not stay.
    pub pictures: IntCounter,
    /// Requests that are in.
    pub concurrent: IntGauge,
    /// Pictures that wait for a worker.
    pub queue_depth: IntGauge,
    /// Workers of the model that is loaded.
    pub workers: IntGauge,
    /// Workers that are busy.
    pub workers_busy: IntGauge,
    /// 1 where the model is loaded.
    pub model_loaded: IntGauge,
    /// Time that workers waited for pictures, of all models that were loaded.
    pub idle: prometheus::Counter,
}

impl Metrics {
    /// The metrics of the endpoint of this name.
    ///
    /// # Panics
    /// Never: the names are ours, and a test makes them.
    #[must_use]
    pub fn new(endpoint: &str) -> Metrics {
        let labels = [("endpoint".to_owned(), endpoint.to_owned())];
        let registry = Registry::new_custom(Some("haul".into()), Some(labels.into()))
            .expect("the registry's names are wrong. This is a bug.");
        let made = "the metric's name is wrong. This is a bug.";
        let counters = |name: &str, help: &str| {
            keep(&registry, IntCounterVec::new(Opts::new(name, help), &["door"]).expect(made))
        };
        let gauge =
            |name: &str, help: &str| keep(&registry, IntGauge::new(name, help).expect(made));
        let times =
            |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let latency = |name: &str, help: &str| {
            keep(&registry, HistogramVec::new(times(name, help), &["door"]).expect(made))
        };
        Metrics {
            invocations: counters("invocations_total", "Requests answered or refused"),
            errors_4xx: counters("invocation_4xx_errors_total", "Requests answered with 4xx"),
            errors_5xx: counters("invocation_5xx_errors_total", "Requests answered with 5xx"),
            model_latency: latency(
                "model_latency_seconds",
                "Time in which a worker was busy with the picture",
            ),
            overhead_latency: latency(
                "overhead_latency_seconds",
                "All other time between a request's headers and its answer",
            ),
            model_setup: keep(
                &registry,
                Histogram::with_opts(times(
                    "model_setup_time_seconds",
                    "Time to have the model ready",
                ))
                .expect(made),
            ),
            shed: keep(
                &registry,
                IntCounter::new("shed_total", "Requests refused since the queue was full")
                    .expect(made),
            ),
            pictures: keep(
                &registry,
                IntCounter::new("pictures_total", "Pictures given to a worker").expect(made),
            ),
            concurrent: gauge("concurrent_requests", "Requests that are in"),
            queue_depth: gauge("queue_depth", "Pictures that wait for a worker"),
            workers: gauge("workers", "Workers of the model that is loaded"),
            workers_busy: gauge("workers_busy", "Workers that are busy with a picture"),
            model_loaded: gauge("model_loaded", "1 where the model is loaded, else 0"),
            idle: keep(
                &registry,
                prometheus::Counter::new(
                    "worker_idle_seconds_total",
                    "Time that workers waited for pictures, all workers together",
                )
                .expect(made),
            ),
            registry,
        }
    }

    /// Adds a metric of another part of the server; the endpoint's name is its label, and `haul_`
    /// is put before its own name.
    ///
    /// # Panics
    /// When there is one of that name.
    pub fn add<C: Collector + Clone + 'static>(&self, metric: C) -> C {
        keep(&self.registry, metric)
    }

    /// Counts a request that came to its end.
    pub fn ended(&self, door: Door, status: u16, model: Duration, whole: Duration) {
        let label = [door.as_str()];
        self.invocations.with_label_values(&label).inc();
        match status {
            400..500 => self.errors_4xx.with_label_values(&label).inc(),
            500.. => self.errors_5xx.with_label_values(&label).inc(),
            _ => {
                let overhead = whole.saturating_sub(model);
                self.model_latency.with_label_values(&label).observe(model.as_secs_f64());
                self.overhead_latency.with_label_values(&label).observe(overhead.as_secs_f64());
            }
        }
    }

    /// What a door has seen so far.
    #[must_use]
    pub fn seen(&self, door: Door) -> Seen {
        let label = [door.as_str()];
        let model = self.model_latency.with_label_values(&label);
        Seen {
            invocations: self.invocations.with_label_values(&label).get(),
            errors_4xx: self.errors_4xx.with_label_values(&label).get(),
            errors_5xx: self.errors_5xx.with_label_values(&label).get(),
            answers: model.get_sample_count(),
            model_seconds: model.get_sample_sum(),
            overhead_seconds: self.overhead_latency.with_label_values(&label).get_sample_sum(),
        }
    }

    /// Everything in Prometheus's text format.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn keep<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    registry
        .register(Box::new(metric.clone()))
        .expect("a metric of this name is there already. This is a bug.");
    metric
}

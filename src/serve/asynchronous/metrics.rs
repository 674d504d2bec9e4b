//! What Prometheus is told of the queue, under the names that SageMaker's metrics have.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge};

use super::entry::now;
use super::work::Worker;
use crate::serve::metrics::Metrics;

/// From a tenth of a second to the six hours that a request may wait.
const BUCKETS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0,
    21600.0,
];

/// The metrics of one queue.
#[derive(Clone, Debug)]
pub(super) struct Meters {
    pub(super) download_failures: IntCounter,
    pub(super) upload_failures: IntCounter,
    pub(super) notification_failures: IntCounter,
    pub(super) expired: IntCounter,
    pub(super) failures: IntCounter,
    pub(super) processed: IntCounter,
    pub(super) backlog_time: Histogram,
    pub(super) processing_time: Histogram,
    pub(super) in_progress: IntGauge,
}

const MADE: &str = "the metric's name is wrong. This is a bug.";

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Meters {
        let counter =
            |name: &str, help: &str| metrics.add(IntCounter::new(name, help).expect(MADE));
        let times = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            metrics.add(Histogram::with_opts(options).expect(MADE))
        };
        Meters {
            download_failures: counter(
                "request_download_failures_total",
                "Pictures of asynchronous requests that could not be read",
            ),
            upload_failures: counter(
                "response_upload_failures_total",
                "Tries to put a result or a failure that failed",
            ),
            notification_failures: counter(
                "notification_failures_total",
                "Tries to deliver a notification that failed",
            ),
            expired: counter(
                "expired_requests_total",
                "Asynchronous requests that were not begun in time",
            ),
            failures: counter(
                "invocation_failures_total",
                "Asynchronous requests that were begun and have no result",
            ),
            processed: counter(
                "invocations_processed_total",
                "Asynchronous requests that are through, with a result or without",
            ),
            backlog_time: times(
                "time_in_backlog_seconds",
                "Time between a request's acceptance and its begin",
            ),
            processing_time: times(
                "total_processing_time_seconds",
                "Time between a request's acceptance and the publication of what it came to",
            ),
            in_progress: metrics.add(
                IntGauge::new("async_in_progress", "Asynchronous requests in progress")
                    .expect(MADE),
            ),
        }
    }
}

/// What is counted when somebody asks.
#[derive(Clone)]
pub(super) struct Backlog {
    worker: Weak<Worker>,
    size: IntGauge,
    age: Gauge,
    without_capacity: IntGauge,
}

impl Backlog {
    pub(super) fn new(worker: &Arc<Worker>) -> Backlog {
        Backlog {
            worker: Arc::downgrade(worker),
            size: IntGauge::new(
                "approximate_backlog_size",
                "Asynchronous requests that wait or are in progress",
            )
            .expect(MADE),
            age: Gauge::new(
                "approximate_age_of_oldest_request_seconds",
                "How long the oldest of them has been there",
            )
            .expect(MADE),
            without_capacity: IntGauge::new(
                "has_backlog_without_capacity",
                "1 where there are requests and no model is loaded, else 0",
            )
            .expect(MADE),
        }
    }
}

impl Collector for Backlog {
    fn desc(&self) -> Vec<&Desc> {
        [self.size.desc(), self.age.desc(), self.without_capacity.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(worker) = self.worker.upgrade() {
            let (size, oldest) = worker.backlog();
            self.size.set(i64::try_from(size).unwrap_or(i64::MAX));
            self.age.set(oldest.map_or(0.0, |oldest| now().saturating_sub(oldest) as f64 / 1e3));
            let idle = size > 0 && worker.endpoint.loaded().is_none();
            self.without_capacity.set(i64::from(idle));
        }
        [self.size.collect(), self.age.collect(), self.without_capacity.collect()].concat()
    }
}

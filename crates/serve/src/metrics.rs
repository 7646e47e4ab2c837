//! What is measured, in the text format that Prometheus reads.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use strata_generate::engine::Counters;

use crate::catalog::Catalog;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered,
    /// Time was over before an answer was whole.
    TimedOut,
    /// The client went away first.
    Cancelled,
    /// The server failed.
    Failed,
    /// It was not begun.
    Refused,
}

impl Outcome {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::TimedOut => "timeout",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
            Outcome::Refused => "refused",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    route: String,
    status: u16,
}

type Times = Family<ModelLabel, Histogram, fn() -> Histogram>;

/// Everything that is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    http: Family<HttpLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    first_token: Times,
    between_tokens: Times,
    /// Open connections.
    pub connections: Gauge,
}

impl Metrics {
    /// Measures the engines of `catalog` and what handlers tell.
    pub fn new(catalog: Arc<Catalog>) -> Metrics {
        let (http, requests) = (Family::default(), Family::default());
        // From 0.1 ms to 100 s and from 50 µs to 50 s.
        let first_token: Times =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(1e-4, 2.0, 21)));
        let between_tokens: Times =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(5e-5, 2.0, 21)));
        let connections = Gauge::default();
        let mut registry = Registry::with_prefix("strata");
        registry.register("connections", "Open connections", connections.clone());
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The program", Info::new(version));
        registry.register("http_requests", "Requests by route and status", http.clone());
        registry.register("requests", "Requests to models by outcome", requests.clone());
        registry.register(
            "first_token_seconds",
            "Time from a request to its first token",
            first_token.clone(),
        );
        registry.register(
            "between_tokens_seconds",
            "Time between tokens of an answer; of several that came together, their mean",
            between_tokens.clone(),
        );
        registry.register_collector(Box::new(Engines(catalog)));
        Metrics { registry: Mutex::new(registry), http, requests, first_token, between_tokens, connections }
    }

    /// Counts an answer of the server. `route` is the pattern and not the path, so that there are few of them.
    pub fn http(&self, route: &str, status: u16) {
        self.http.get_or_create(&HttpLabels { route: route.into(), status }).inc();
    }

    /// Counts a request to a model.
    pub fn request(&self, model: &str, outcome: Outcome) {
        self.requests.get_or_create(&RequestLabels { model: model.into(), outcome: outcome.name() }).inc();
    }

    /// Notes the time to a first token.
    pub fn first_token(&self, model: &str, time: Duration) {
        self.first_token.get_or_create(&ModelLabel { model: model.into() }).observe(time.as_secs_f64());
    }

    /// Notes the time between two tokens.
    pub fn between_tokens(&self, model: &str, time: Duration) {
        self.between_tokens.get_or_create(&ModelLabel { model: model.into() }).observe(time.as_secs_f64());
    }

    /// Everything as text.
    ///
    /// # Errors
    /// A value cannot be written, which does not happen.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

/// What the engines count themselves, read when somebody asks.
#[derive(Debug)]
struct Engines(Arc<Catalog>);

/// A gauge: name, help, value.
type GaugeRow = (&'static str, &'static str, fn(&Counters) -> usize);
/// A counter: name, help, value.
type CounterRow = (&'static str, &'static str, fn(&Counters) -> u64);

const GAUGES: [GaugeRow; 3] = [
    ("queue_requests", "Requests that wait", |counters| counters.waiting.load(Relaxed)),
    ("batch_sequences", "Sequences that are being written", |counters| counters.running.load(Relaxed)),
    ("cache_bytes", "Bytes of keys and values in memory", |counters| counters.cache_bytes.load(Relaxed)),
];

const COUNTERS: [CounterRow; 5] = [
    ("engine_steps", "Passes through the model", |counters| counters.steps.load(Relaxed)),
    ("engine_step_sequences", "Sequences of all passes", |counters| counters.step_sequences.load(Relaxed)),
    ("prompt_tokens", "Tokens of prompts", |counters| counters.prompt_tokens.load(Relaxed)),
    ("cached_prompt_tokens", "Of those, not computed again", |counters| counters.cached_tokens.load(Relaxed)),
    ("completion_tokens", "Tokens written", |counters| counters.completion_tokens.load(Relaxed)),
];

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.0.counters();
        let kind = prometheus_client::metrics::MetricType::Gauge;
        let loaded = encoder.encode_descriptor("loaded_models", "Models in memory", None, kind)?;
        ConstGauge::new(self.0.loaded() as i64).encode(loaded)?;
        for (name, help, value) in GAUGES {
            let kind = prometheus_client::metrics::MetricType::Gauge;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (model, counters) in &all {
                let labels = ModelLabel { model: model.clone() };
                let sum: usize = counters.iter().map(|counters| value(counters)).sum();
                let gauge = ConstGauge::new(sum as i64);
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let kind = prometheus_client::metrics::MetricType::Counter;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (model, counters) in &all {
                let labels = ModelLabel { model: model.clone() };
                let sum: u64 = counters.iter().map(|counters| value(counters)).sum();
                ConstCounter::new(sum).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

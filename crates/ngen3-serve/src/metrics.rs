//! Measurements in Prometheus' text format, at `/metrics`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of a metric: names and values.
type Labels = Vec<(&'static str, String)>;

/// All measurements of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    responses: Family<Labels, Counter>,
    running: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
    cache_use: Family<Labels, Gauge<f64, AtomicU64>>,
    preemptions: Family<Labels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    generated_tokens: Family<Labels, Counter>,
    first_token_s: Family<Labels, Histogram, fn() -> Histogram>,
}

/// Measurements of one model.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    pub running: Gauge,
    pub waiting: Gauge,
    pub cache_use: Gauge<f64, AtomicU64>,
    pub preemptions: Counter,
    pub prompt_tokens: Counter,
    pub generated_tokens: Counter,
    pub first_token_s: Histogram,
}

impl Metrics {
    pub fn new() -> Self {
        let first_token: fn() -> Histogram = || Histogram::new(exponential_buckets(0.005, 2.0, 14));
        let mut metrics = Self {
            registry: Registry::with_prefix("ngen3"),
            responses: Family::default(),
            running: Family::default(),
            waiting: Family::default(),
            cache_use: Family::default(),
            preemptions: Family::default(),
            prompt_tokens: Family::default(),
            generated_tokens: Family::default(),
            first_token_s: Family::new_with_constructor(first_token),
        };
        let registry = &mut metrics.registry;
        registry.register("http_responses", "HTTP responses by status", metrics.responses.clone());
        registry.register("requests_running", "Texts being generated", metrics.running.clone());
        let help = "Texts that wait to start, or, preempted, to continue";
        registry.register("requests_waiting", help, metrics.waiting.clone());
        registry.register("cache_use", "Share of the key-value cache in use, 0 to 1", metrics.cache_use.clone());
        let help = "Texts preempted because the key-value cache was full";
        registry.register("preemptions", help, metrics.preemptions.clone());
        registry.register("prompt_tokens", "Prompt tokens accepted", metrics.prompt_tokens.clone());
        registry.register("generated_tokens", "Tokens generated", metrics.generated_tokens.clone());
        let help = "Time from a request to its first token, in seconds";
        registry.register("time_to_first_token_seconds", help, metrics.first_token_s.clone());
        metrics
    }

    /// Returns the measurements of a model.
    pub fn of_model(&self, name: &str) -> ModelMetrics {
        let labels = vec![("model", name.to_owned())];
        ModelMetrics {
            running: self.running.get_or_create_owned(&labels),
            waiting: self.waiting.get_or_create_owned(&labels),
            cache_use: self.cache_use.get_or_create_owned(&labels),
            preemptions: self.preemptions.get_or_create_owned(&labels),
            prompt_tokens: self.prompt_tokens.get_or_create_owned(&labels),
            generated_tokens: self.generated_tokens.get_or_create_owned(&labels),
            first_token_s: self.first_token_s.get_or_create_owned(&labels),
        }
    }

    /// Counts a response.
    pub fn count_response(&self, status: u16) {
        self.responses.get_or_create(&vec![("status", status.to_string())]).inc();
    }

    /// Returns all measurements as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

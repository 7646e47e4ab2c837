//! What all handlers share, and the bounds they keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::catalog::Catalog;
use crate::error::ApiError;
use crate::keys::{Key, KeyError, Keys};
use crate::limiter::Limiter;
use crate::metrics::Metrics;

/// What requests may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Messages of a conversation.
    pub messages: usize,
    /// Tokens of an answer, whatever a request asks for.
    pub max_tokens: Option<usize>,
    /// Continuations in one request.
    pub count: usize,
    /// How long an answer may take.
    pub patience: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            body_bytes: 4 << 20,
            messages: 1000,
            max_tokens: None,
            count: 16,
            patience: Duration::from_secs(300),
        }
    }
}

/// What all handlers share.
#[derive(Debug)]
pub struct App {
    /// The models.
    pub catalog: Arc<Catalog>,
    /// The keys.
    pub keys: Keys,
    /// What keys have used.
    pub limiter: Limiter,
    /// What requests may ask for.
    pub bounds: Bounds,
    /// What is measured.
    pub metrics: Metrics,
    /// Whether requests need a key, as far as was seen.
    pub closed: AtomicBool,
    /// Whether the default model was loaded.
    pub ready: AtomicBool,
    /// Whether the server is being stopped.
    pub stopping: AtomicBool,
    /// Whether prompts and answers are written to the log.
    pub log_content: bool,
}

/// [`App`], as handlers get it.
pub type Shared = Arc<App>;

impl App {
    /// Whether a request needs a key: from the beginning where others can reach the server or there is a key, else from
    /// the first key on. A server that was closed once is not opened by revoking the last key.
    ///
    /// # Errors
    /// The key database fails.
    pub fn needs_key(&self) -> Result<bool, KeyError> {
        if !self.closed.load(Relaxed) && self.keys.any()? && !self.closed.swap(true, Relaxed) {
            tracing::info!("requests need a key");
        }
        Ok(self.closed.load(Relaxed))
    }

    /// Counts a request of `client` at the given time.
    ///
    /// # Errors
    /// Its key has used up what it may.
    pub fn limit(&self, client: &Client, now: Instant) -> Result<(), ApiError> {
        let Some(key) = &client.key else { return Ok(()) };
        self.limiter.request(key, now).map_err(|exceeded| {
            let problem = format!("key '{}' may use {} {} a minute", key.name, exceeded.limit, exceeded.what);
            ApiError::limited(problem, exceeded.retry_after.as_secs_f64().ceil() as u64)
        })
    }
}

/// Who sent a request.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// Its key; none where none is needed.
    pub key: Option<Key>,
}

impl Client {
    /// A number of its own.
    pub fn id(&self) -> u64 {
        self.key.as_ref().map_or(0, |key| key.id as u64)
    }

    /// The key's name, for the log.
    pub fn name(&self) -> &str {
        self.key.as_ref().map_or("-", |key| &key.name)
    }
}

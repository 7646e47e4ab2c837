//! What all handlers share, and the bounds they keep.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::catalog::Catalog;
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
    /// Whether only this machine can reach the server.
    pub loopback: bool,
    /// Whether requests are answered at once.
    pub ready: AtomicBool,
    /// Whether prompts and answers are written to the log.
    pub log_content: bool,
}

/// [`App`], as handlers get it.
pub type Shared = Arc<App>;

impl App {
    /// Whether a request needs a key: always where others can reach the server, and as soon as there is a key.
    ///
    /// # Errors
    /// The key database fails.
    pub fn needs_key(&self) -> Result<bool, KeyError> {
        Ok(!self.loopback || self.keys.any()?)
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

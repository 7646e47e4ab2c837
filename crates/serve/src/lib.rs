//! HTTP APIs, the web studio, keys, limits and metrics.
//!
//! A request's way: [`listen`] (connections) → [`router`] (who asks, and what) → a handler of [`openai`] or [`cohere`],
//! which turns its API's form into an [`ask::Ask`] → [`session::Session`] → the [`catalog`]'s model, here
//! ([`local`]) or on another server ([`upstream`]) → [`strata_generate::Engine`]; and back as [`ask::Piece`]s that the
//! handler writes in its API's form, whole or as a [`stream`].

pub mod app;
pub mod ask;
pub mod body;
pub mod catalog;
pub mod cohere;
pub mod error;
mod ids;
pub mod keys;
pub mod limiter;
pub mod listen;
pub mod local;
pub mod metrics;
pub mod openai;
pub mod router;
pub mod session;
pub mod stream;
mod studio;
pub mod upstream;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strata_generate::engine::Settings;
use strata_model::Home;
use strata_tensor::Cpu;
use tokio::net::TcpListener;

pub use app::{App, Bounds};
pub use catalog::Catalog;
pub use keys::{Key, KeyError, Keys};
pub use listen::Connections;
pub use upstream::Upstream;

/// What is served, and how.
#[derive(Debug)]
pub struct Server {
    /// Where models live.
    pub home: Home,
    /// Where only some models are served: their names and folders.
    pub only: Option<Vec<(String, PathBuf)>>,
    /// What computes.
    pub cpu: Cpu,
    /// Bounds of each model's engine.
    pub engine: Settings,
    /// Models in memory at one time.
    pub most_loaded: usize,
    /// Another server with models.
    pub upstream: Option<Upstream>,
    /// The keys.
    pub keys: Keys,
    /// What requests may ask for.
    pub bounds: Bounds,
    /// Bounds on connections.
    pub connections: Connections,
    /// Whether prompts and answers are written to the log.
    pub log_content: bool,
}

impl Server {
    /// Serves on `listener` until `stop` is done and running answers are finished.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn run(self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        let loopback = listener.local_addr()?.ip().is_loopback();
        let upstream = self.upstream.map(Arc::new);
        let catalog = Catalog::new(self.home, self.only, self.cpu, self.engine, self.most_loaded, upstream);
        let catalog = Arc::new(catalog);
        let app = Arc::new(App {
            metrics: metrics::Metrics::new(catalog.clone()),
            catalog,
            keys: self.keys,
            limiter: limiter::Limiter::default(),
            bounds: self.bounds,
            loopback,
            ready: AtomicBool::new(false),
            log_content: self.log_content,
        });
        tokio::spawn(warm_up(app.clone()));
        let stopping = app.clone();
        let stop = async move {
            stop.await;
            stopping.ready.store(false, Ordering::Relaxed);
        };
        listen::listen(listener, router::router(app), self.connections, stop).await
    }
}

/// Loads the model that most requests are for, so that the first one does not wait.
async fn warm_up(app: app::Shared) {
    if let Ok(name) = app.catalog.default_name().await
        && let Err(error) = app.catalog.get(&name).await
    {
        tracing::warn!(model = name, problem = error.message(), "the default model cannot be loaded");
    }
    app.ready.store(true, Ordering::Relaxed);
}

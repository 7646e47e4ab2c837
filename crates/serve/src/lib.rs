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
pub mod turn;
pub mod unfinished;
pub mod upstream;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strata_generate::engine::Settings;
use strata_model::{Home, WeightFormat};
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
    /// What weights are held in.
    pub weights: WeightFormat,
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
    /// The listener or the key database fails, or one of the models that were asked for by name cannot be loaded.
    pub async fn run(self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        let loopback = listener.local_addr()?.ip().is_loopback();
        let closed = !loopback || self.keys.any().map_err(io::Error::other)?;
        let upstream = self.upstream.map(Arc::new);
        let engine = (self.engine, self.weights);
        let catalog = Catalog::new(self.home, self.only, self.cpu, engine, self.most_loaded, upstream);
        let catalog = Arc::new(catalog);
        let app = Arc::new(App {
            metrics: metrics::Metrics::new(catalog.clone()),
            catalog,
            keys: self.keys,
            limiter: limiter::Limiter::default(),
            bounds: self.bounds,
            closed: AtomicBool::new(closed),
            ready: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            log_content: self.log_content,
        });
        let (warming, stopping, open) = (app.clone(), app.clone(), app.metrics.connections.clone());
        let stop = async {
            stop.await;
            stopping.stopping.store(true, Ordering::Relaxed);
        };
        let warmed = async {
            match warm_up(warming).await {
                Ok(()) => std::future::pending().await,
                Err(problem) => problem,
            }
        };
        tokio::select! {
            served = listen::listen(listener, router::router(app), self.connections, open, stop) => served,
            problem = warmed => Err(io::Error::other(problem)),
        }
    }
}

/// Longest time between two attempts to load the model that most requests are for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Loads the models that were asked for by name, or else the one that most requests are for, so that nobody waits; until then the server is not
/// ready. Where there is none yet, or the default one cannot be loaded, it is tried again.
///
/// # Errors
/// One that was asked for by name cannot be loaded.
async fn warm_up(app: app::Shared) -> Result<(), String> {
    let mut named = app.catalog.named();
    if named.is_empty() {
        wait_for_the_default(&app).await;
    } else {
        // In the order in which they are meant; one that cannot even be described is not in the list, and is tried first.
        let listed = app.catalog.list().await.map_err(|error| error.message().to_string())?;
        named.sort_by_key(|name| listed.iter().position(|model| model.name == *name));
        for name in named.iter().take(app.catalog.most_loaded()) {
            app.catalog.get(name).await.map_err(|error| error.message().to_string())?;
        }
    }
    app.ready.store(true, Ordering::Relaxed);
    Ok(())
}

/// Returns once the default model is loaded.
async fn wait_for_the_default(app: &app::Shared) {
    let mut pause = Duration::from_secs(1);
    loop {
        match app.catalog.default_name().await {
            Ok(name) => match app.catalog.get(&name).await {
                Ok(_) => return,
                Err(_) => tracing::warn!(model = name, "not ready: the default model cannot be loaded"),
            },
            Err(error) => tracing::debug!(problem = error.message(), "not ready"),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

//! Connections: how many, how slow they may be, and how they end when the server is stopped.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// As many at one time; more wait to be accepted.
    pub most: usize,
    /// How long a client may take for its headers, and how long an idle connection stays open.
    pub header_timeout: Duration,
    /// How long a client may take none of what is sent to it.
    pub write_timeout: Duration,
    /// How long running answers may take once the server is to stop.
    pub grace: Duration,
}

impl Default for Connections {
    fn default() -> Connections {
        Connections {
            most: 1024,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}

/// Serves until `stop` is done, then takes no new connections and waits for running answers. `open` counts the connections.
///
/// # Errors
/// Those of accepting connections that do not pass by themselves.
pub async fn listen(
    listener: TcpListener,
    router: Router,
    bounds: Connections,
    open: Gauge,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(bounds.most.max(1)));
    let mut stop = std::pin::pin!(stop);
    let (mut full, mut failing) = (Calm::default(), Calm::default());
    loop {
        if places.available_permits() == 0 && full.may() {
            tracing::warn!(connections = bounds.most, "all connections are taken; new ones wait");
        }
        let accepted = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, peer)| (place, stream, peer.ip()))
        };
        let (place, stream, peer) = tokio::select! {
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                // A client that is gone already, or no free file descriptor: neither is a reason to end.
                Err(error) => {
                    if failing.may() {
                        tracing::warn!(%error, "a connection was not accepted");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let connection = graceful.watch(connection(stream, peer, router.clone(), bounds));
        open.inc();
        let open = open.clone();
        tokio::spawn(async move {
            // Whatever ends a connection is the client's own affair; its requests are logged elsewhere.
            let _ = connection.await;
            open.dec();
            drop(place);
        });
    }
    drop(listener);
    let free = places.available_permits();
    tracing::info!(
        connections = bounds.most.saturating_sub(free),
        "stopping; running answers are finished first"
    );
    tokio::select! {
        () = graceful.shutdown() => tracing::info!("stopped"),
        () = tokio::time::sleep(bounds.grace) => tracing::warn!("stopped before all answers were finished"),
    }
    Ok(())
}

type Connection =
    hyper::server::conn::http1::Connection<TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>, WithPeer>;

/// What may be said from time to time only.
#[derive(Debug, Default)]
struct Calm(Option<Instant>);

impl Calm {
    const PAUSE: Duration = Duration::from_secs(10);

    fn may(&mut self) -> bool {
        let now = Instant::now();
        let may = self.0.is_none_or(|last| now - last >= Calm::PAUSE);
        if may {
            self.0 = Some(now);
        }
        may
    }
}

/// Whom a connection is to, as its requests know it.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The router, told whom its requests come from.
struct WithPeer {
    inner: TowerToHyperService<Router>,
    peer: IpAddr,
}

impl Service<Request<Incoming>> for WithPeer {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(Peer(self.peer));
        self.inner.call(request)
    }
}

fn connection(stream: TcpStream, peer: IpAddr, router: Router, bounds: Connections) -> Connection {
    // Tokens are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(bounds.write_timeout));
    let service = WithPeer { inner: TowerToHyperService::new(router), peer };
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
}

//! Connections: how many, how slow they may be, and how they end when the server is stopped.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
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

/// Serves until `stop` is done, then takes no new connections and waits for running answers.
///
/// # Errors
/// Those of accepting connections that do not pass by themselves.
pub async fn listen(
    listener: TcpListener,
    router: Router,
    bounds: Connections,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(bounds.most.max(1)));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (place, stream))
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                // A client that is gone already, or no free file descriptor: neither is a reason to end.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let connection = graceful.watch(connection(stream, router.clone(), bounds));
        tokio::spawn(async move {
            // Whatever ends a connection is the client's own affair; its requests are logged elsewhere.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let open = places.available_permits();
    tracing::info!(
        connections = bounds.most.saturating_sub(open),
        "stopping; running answers are finished first"
    );
    tokio::select! {
        () = graceful.shutdown() => tracing::info!("stopped"),
        () = tokio::time::sleep(bounds.grace) => tracing::warn!("stopped before all answers were finished"),
    }
    Ok(())
}

type Connection = hyper::server::conn::http1::Connection<
    TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>,
    TowerToHyperService<Router>,
>;

fn connection(stream: TcpStream, router: Router, bounds: Connections) -> Connection {
    // Tokens are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(bounds.write_timeout));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
}

//! The listener: connections over TCP, bounded in number and in the time that a header may take, drained on request.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::malformed::Explained;
use crate::config::HttpLimits;
use crate::error::Error;

/// How long an answer may lie unread by its caller.
const UNREAD_MAX: Duration = Duration::from_secs(60);

/// A bound socket.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds; port 0 takes a free one.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await.map_err(Error::io(format!("cannot listen on {address}")))?;
        let address = listener.local_addr().map_err(Error::io("cannot tell the address"))?;
        Ok(Self { listener, address })
    }

    /// The address with its real port.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves until `stop` resolves, then lets what is in flight end for at most `drain`.
pub(crate) async fn serve(
    listener: Listener,
    router: Router,
    limits: HttpLimits,
    stop: impl Future<Output = ()>,
    drain: Duration,
) -> Result<(), Error> {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_ended) = connections.join_next() => continue,
            permit = Arc::clone(&permits).acquire_owned() => {
                let Ok(permit) = permit else { break };
                tokio::select! {
                    () = &mut stop => break,
                    accepted = listener.listener.accept() => accepted.map(|(stream, _)| (stream, permit)),
                }
            }
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = connection(stream, router.clone(), &limits);
                let watched = graceful.watch(connection);
                connections.spawn(async move {
                    if let Err(error) = watched.await {
                        tracing::debug!(%error, "connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: let some connections end first.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let drained = async {
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
    };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::warn!("cutting {} connections that did not end in {drain:?}", connections.len());
        connections.shutdown().await;
    }
    Ok(())
}

type Connection = hyper::server::conn::http1::Connection<Explained<TokioIo<TcpStream>>, TowerToHyperService<Router>>;

fn connection(stream: TcpStream, router: Router, limits: &HttpLimits) -> Connection {
    let _best_effort = stream.set_nodelay(true);
    // A caller that does not read its answer would hold its receipt, its adapters and its plugin instance.
    let _best_effort = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_MAX));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_headers(100);
    builder.serve_connection(Explained::new(TokioIo::new(stream)), TowerToHyperService::new(router))
}

//! Serves HTTP on so many connections at once, and lets go of those that ask nothing.
//!
//! The AI layer compiles this file, too: it knows nothing of the crate it is in.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

/// Pause after a connection could not be accepted: there may be no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the operating system's queue. Default 512: half of the file descriptors that a
    /// process usually may have; the others are for whatever else it needs.
    pub connections: u32,
    /// Longest time until the whole head of a request is there, from the start of the connection or the end of the answer
    /// before. Default 60 s: longer than load balancers keep a connection they do not use.
    pub asks_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 512, asks_within: Duration::from_secs(60) }
    }
}

/// Serves until `closing`, then until the requests under way are answered.
///
/// # Cancel safety
/// Dropping it stops accepting; connections are ended by `closing` alone.
pub async fn serve(listener: TcpListener, routes: Router, limits: Limits, mut closing: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(limits.connections as usize));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.asks_within);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = closes(&mut closing) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(routes.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut closing = closing.clone();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = closes(&mut closing) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
    // Nobody is asked to come in any more; all places are free when the last has left.
    drop(listener);
    let _ = places.acquire_many(limits.connections).await;
}

async fn closes(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn answer(socket: &mut TcpStream) -> String {
        let mut text = String::new();
        let _ = socket.read_to_string(&mut text).await;
        text
    }

    async fn start(limits: Limits) -> (std::net::SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (close, closing) = watch::channel(false);
        let routes = Router::new().route("/", get(async || "yes"));
        (address, close, tokio::spawn(serve(listener, routes, limits, closing)))
    }

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: modax\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn who_asks_nothing_makes_room_for_who_does() {
        let limits = Limits { connections: 1, asks_within: Duration::from_millis(300) };
        let (address, close, served) = start(limits).await;
        let mut silent = TcpStream::connect(address).await.expect("a connection");
        silent.write_all(b"GET / HTT").await.expect("half a question");

        let mut asking = TcpStream::connect(address).await.expect("a connection");
        asking.write_all(ASK).await.expect("a question");

        let heard = tokio::time::timeout(LONG, answer(&mut asking)).await.expect("an answer");
        assert!(heard.ends_with("yes"), "{heard}");
        assert!(!tokio::time::timeout(LONG, answer(&mut silent)).await.expect("let go").contains("yes"));
        close.send(true).expect("it serves");
        tokio::time::timeout(LONG, served).await.expect("in time").expect("no panic");
    }

    #[tokio::test]
    async fn there_are_no_more_connections_than_allowed_and_idle_ones_do_not_hold_up_the_end() {
        let (address, close, served) = start(Limits { connections: 1, ..Limits::default() }).await;
        let first = TcpStream::connect(address).await.expect("a connection");
        let mut second = TcpStream::connect(address).await.expect("the operating system takes it");
        second.write_all(ASK).await.expect("a question");

        let waits = tokio::time::timeout(Duration::from_millis(200), answer(&mut second)).await;
        assert!(waits.is_err(), "there is one place: {waits:?}");
        drop(first);
        let heard = tokio::time::timeout(LONG, answer(&mut second)).await.expect("an answer");
        assert!(heard.ends_with("yes"), "{heard}");

        let _idle = TcpStream::connect(address).await.expect("a connection");
        close.send(true).expect("it serves");
        tokio::time::timeout(LONG, served).await.expect("in time").expect("no panic");
    }
}

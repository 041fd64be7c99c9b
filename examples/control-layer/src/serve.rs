//! Serves HTTP on so many connections at once, and lets go of those that ask nothing or do not read their answer.
//!
//! The AI layer compiles this file, too: it knows nothing of the crate it is in.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{Sleep, sleep},
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
    /// Longest time in which a client takes not one byte of what waits for it; each byte taken starts it anew. Default 30 s:
    /// TCP sends a lost segment again after 0.2 s and waits twice as long each time, so that a link that has lost it
    /// seven times in a row (25 s) still gets its answer, while 512 clients that do not read hold all places no longer.
    pub takes_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 512, asks_within: Duration::from_secs(60), takes_within: Duration::from_secs(30) }
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
                sleep(PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(routes.clone());
        let stream = TokioIo::new(Impatient { stream, takes_within: limits.takes_within, stalled: None });
        let connection = http.serve_connection(stream, service).with_upgrades();
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

/// A stream whose writes fail once its peer has taken nothing for a time; hyper has a deadline for reading a head alone.
struct Impatient<S> {
    stream: S,
    takes_within: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn judge(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.takes_within;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Neither waits on TCP.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
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
        let routes = Router::new().route("/", get(async || "yes")).route("/large", get(async || vec![b'x'; LARGE]));
        (address, close, tokio::spawn(serve(listener, routes, limits, closing)))
    }

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: modax\r\nConnection: close\r\n\r\n";
    /// More than the buffers of two sockets hold.
    const LARGE: usize = 64 << 20;

    #[tokio::test]
    async fn who_asks_nothing_makes_room_for_who_does() {
        let limits = Limits { connections: 1, asks_within: Duration::from_millis(300), ..Limits::default() };
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
    async fn who_does_not_read_the_answer_makes_room_for_who_does() {
        let limits = Limits { connections: 1, takes_within: Duration::from_millis(300), ..Limits::default() };
        let (address, close, served) = start(limits).await;
        let mut deaf = TcpStream::connect(address).await.expect("a connection");
        deaf.write_all(b"GET /large HTTP/1.1\r\nHost: modax\r\n\r\n").await.expect("a question");
        deaf.readable().await.expect("it is being answered");

        let mut asking = TcpStream::connect(address).await.expect("a connection");
        asking.write_all(ASK).await.expect("a question");

        let heard = tokio::time::timeout(LONG, answer(&mut asking)).await.expect("an answer");
        assert!(heard.ends_with("yes"), "{heard}");
        let mut heard = Vec::new();
        // A reset is an end as well.
        let _ = tokio::time::timeout(LONG, deaf.read_to_end(&mut heard)).await.expect("let go");
        assert!(!heard.is_empty() && heard.len() < LARGE, "the answer fitted into the buffers: {}", heard.len());
        close.send(true).expect("it serves");
        tokio::time::timeout(LONG, served).await.expect("in time").expect("no panic");
    }

    /// In virtual time: the last byte is taken long after the deadline of the first one.
    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_not_let_go_and_who_stops_is() {
        let (near, mut far) = tokio::io::duplex(1);
        let takes_within = Duration::from_secs(30);
        let mut near = Impatient { stream: near, takes_within, stalled: None };
        let writing = async {
            near.write_all(&[7; 10]).await.expect("each byte was taken in time");
            let stopped = tokio::time::timeout(2 * takes_within, near.write_all(&[7; 10])).await;
            stopped.expect("let go").map_err(|error| error.kind())
        };
        let reading = async {
            let mut bytes = [0; 10];
            for byte in &mut bytes {
                sleep(Duration::from_secs(29)).await;
                *byte = far.read_u8().await.expect("a byte");
            }
            bytes
        };

        let (written, read) = tokio::join!(writing, reading);

        assert_eq!((written, read), (Err(ErrorKind::TimedOut), [7; 10]));
    }

    #[tokio::test]
    async fn there_are_no_more_connections_than_allowed_and_idle_ones_do_not_hold_up_the_end() {
        let (address, close, served) = start(Limits { connections: 1, ..Limits::default() }).await;
        let mut first = TcpStream::connect(address).await.expect("a connection");
        let mut second = TcpStream::connect(address).await.expect("the operating system takes it");
        second.write_all(ASK).await.expect("a question");

        // Whoever is served at all has an answer before another one has a hundred.
        for _ in 0..100 {
            first.write_all(b"GET / HTTP/1.1\r\nHost: modax\r\n\r\n").await.expect("a question");
            let mut heard = Vec::new();
            while !heard.ends_with(b"yes") {
                assert!(first.read_buf(&mut heard).await.expect("an answer") > 0, "it keeps the connection");
            }
        }
        let unheard = second.try_read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(unheard, Err(ErrorKind::WouldBlock), "there is one place");
        drop(first);
        let heard = tokio::time::timeout(LONG, answer(&mut second)).await.expect("an answer");
        assert!(heard.ends_with("yes"), "{heard}");

        let _idle = TcpStream::connect(address).await.expect("a connection");
        close.send(true).expect("it serves");
        tokio::time::timeout(LONG, served).await.expect("in time").expect("no panic");
    }
}

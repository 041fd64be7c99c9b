//! What carries bytes to a broker, who opens it, and who knows the addresses of a name.
//!
//! A dial gets a broker and a deadline, and yields a [`Transport`]. Built in are TCP and, with the feature `rustls`, TLS.
//! A [`Connector`] puts anything else that reads and writes in TCP's place: a Unix socket, a proxy, a pipe in a test. A
//! [`Resolver`] puts another source of addresses in the place of the system's.

use std::{
    fmt,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::broker::Broker;

/// What is to be reached, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dial {
    /// Which broker. Where [`Broker::is_tls`] holds, TLS is spoken over what the connector opens, not by it.
    pub broker: Broker,
    /// When the attempt is given up, TLS included: 1 s from the start in the first round over all brokers, doubled with
    /// each round up to 30 s. The future is dropped then; it need not watch the clock itself.
    pub deadline: Instant,
}

impl Dial {
    pub(crate) const fn new(broker: Broker, deadline: Instant) -> Self {
        Self { broker, deadline }
    }
}

/// A transport on its way. Its error becomes the `reason` of [`Event::ConnectFailed`](crate::Event::ConnectFailed),
/// word for word, so it must not hold a secret; the broker is then tried again with backoff, or another one is.
///
/// # Cancel safety
/// It is dropped unfinished when its deadline passes, when the client is closed and when another dial overtakes it.
/// Whatever it holds by then has to end with it: what a task of its own opens must not stay open.
pub type Opening = Pin<Box<dyn Future<Output = io::Result<Transport>> + Send>>;

/// Opens transports, in the place of TCP. Any function `Fn(Dial) -> impl Future<Output = io::Result<Transport>>` is one.
///
/// Over a Unix socket beside each broker's TCP port:
///
/// ```
/// # #[cfg(unix)] {
/// use modax_mqtt_failover::{Client, transport::{Dial, Transport}};
/// use tokio::net::UnixStream;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let client = Client::builder("press-7")
///     .brokers(["mqtt://press", "mqtt://hall"])?
///     .connector(|dial: Dial| async move {
///         let path = format!("/run/mqtt/{}.sock", dial.broker.host());
///         Ok(Transport::new(UnixStream::connect(path).await?))
///     })
///     .build()?;
/// # drop(client); Ok::<(), modax_mqtt_failover::ConfigError>(()) }).unwrap();
/// # }
/// ```
pub trait Connector: Send + Sync + 'static {
    /// Opens one transport. Called once a dial, from the client's task: it must not block. A panic in it is a dial that
    /// failed; one in the stream that it gave ends the client.
    fn connect(&self, dial: Dial) -> Opening;
}

impl<F, Fut> Connector for F
where
    F: Fn(Dial) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<Transport>> + Send + 'static,
{
    fn connect(&self, dial: Dial) -> Opening {
        Box::pin(self(dial))
    }
}

/// Addresses on their way.
///
/// # Cancel safety
/// As [`Opening`].
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Finds the addresses of a host name, in the place of the system's resolver. Any function
/// `Fn(Arc<str>) -> impl Future<Output = io::Result<Vec<IpAddr>>>` is one.
///
/// It is asked anew at each dial, never for a host that is an address already. Where it fails, answers nothing usable,
/// or uses up half of the dial's time, the last good answer is used; there is none before the first. The first 16
/// addresses of an answer are tried, without repeats and without those that name no host (0.0.0.0, multicast).
///
/// ```
/// use std::{net::IpAddr, sync::Arc};
/// use modax_mqtt_failover::Client;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let client = Client::builder("press-7")
///     .brokers(["mqtt://broker.plant"])?
///     .resolver(|_host: Arc<str>| async { Ok(vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]) })
///     .build()?;
/// # drop(client); Ok::<(), modax_mqtt_failover::ConfigError>(()) }).unwrap();
/// ```
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of `host`, the preferred one first. Called from the client's task: it must not block.
    fn resolve(&self, host: Arc<str>) -> Resolving;
}

impl<F, Fut> Resolver for F
where
    F: Fn(Arc<str>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
{
    fn resolve(&self, host: Arc<str>) -> Resolving {
        Box::pin(self(host))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Wire {
    Tcp(TcpStream),
    #[cfg(feature = "rustls")]
    Tls(Box<tokio_rustls::client::TlsStream<Transport>>),
    Other(Box<dyn Stream>),
}

/// An open connection to a broker: an ordered stream of bytes both ways.
pub struct Transport {
    wire: Wire,
    traffic: Traffic,
}

/// Bytes that have crossed the border to the operating system, of TLS records too. They show life, and progress, before
/// a record is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) received: u64,
    pub(crate) taken: u64,
}

impl Transport {
    /// Wraps an open connection. It is flushed after each batch of packets; until the flush is done, nothing counts as
    /// written, so that no broker is blamed for what still waits on our side.
    #[must_use]
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::over(Wire::Other(Box::new(stream)))
    }

    pub(crate) fn tcp(stream: TcpStream) -> Self {
        Self::over(Wire::Tcp(stream))
    }

    #[cfg(test)]
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match &self.wire {
            Wire::Tcp(stream) => Some(stream),
            #[cfg(feature = "rustls")]
            Wire::Tls(_) => None,
            Wire::Other(_) => None,
        }
    }

    #[cfg(feature = "rustls")]
    pub(crate) fn tls(stream: tokio_rustls::client::TlsStream<Self>) -> Self {
        Self::over(Wire::Tls(Box::new(stream)))
    }

    const fn over(wire: Wire) -> Self {
        Self { wire, traffic: Traffic { received: 0, taken: 0 } }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        match &self.wire {
            #[cfg(feature = "rustls")]
            Wire::Tls(stream) => stream.get_ref().0.traffic(),
            Wire::Tcp(_) | Wire::Other(_) => self.traffic,
        }
    }

    /// The other side's address, where this crate opened the connection.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        match &self.wire {
            Wire::Tcp(stream) => stream.peer_addr().ok().map(|peer| peer.ip()),
            #[cfg(feature = "rustls")]
            Wire::Tls(stream) => stream.get_ref().0.peer(),
            Wire::Other(_) => None,
        }
    }

    /// Whether the operating system carries it, so that the runtime is one that watches descriptors.
    pub(crate) fn is_socket(&self) -> bool {
        match &self.wire {
            Wire::Tcp(_) => true,
            #[cfg(feature = "rustls")]
            Wire::Tls(stream) => stream.get_ref().0.is_socket(),
            Wire::Other(_) => false,
        }
    }

    /// Tells the other side's kernel at once what has arrived. A broker that leaves Nagle's algorithm on (mosquitto does
    /// by default) holds back each further PUBACK until it hears that, which takes 40 ms when left to the kernel.
    pub(crate) fn acknowledge_at_once(&self) {
        match &self.wire {
            #[cfg(target_os = "linux")]
            Wire::Tcp(stream) => {
                // Only a hint: without it acknowledgements come later.
                let _ = socket2::SockRef::from(stream).set_tcp_quickack(true);
            }
            #[cfg(not(target_os = "linux"))]
            Wire::Tcp(_) => {}
            #[cfg(feature = "rustls")]
            Wire::Tls(stream) => stream.get_ref().0.acknowledge_at_once(),
            Wire::Other(_) => {}
        }
    }
}

impl Wire {
    fn pin(&mut self) -> Pin<&mut dyn Stream> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            #[cfg(feature = "rustls")]
            Self::Tls(stream) => Pin::new(&mut **stream),
            Self::Other(stream) => Pin::new(&mut **stream),
        }
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = self.wire.pin().poll_read(context, buffer);
        let read = buffer.filled().len().saturating_sub(before);
        self.traffic.received = self.traffic.received.saturating_add(count(read));
        result
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.wire.pin().poll_write(context, bytes);
        if let Poll::Ready(Ok(taken)) = result {
            self.traffic.taken = self.traffic.taken.saturating_add(count(taken));
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.pin().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.pin().poll_shutdown(context)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.wire {
            Wire::Tcp(_) => "TCP",
            #[cfg(feature = "rustls")]
            Wire::Tls(_) => "TLS",
            Wire::Other(_) => "other",
        };
        write!(f, "Transport({kind})")
    }
}

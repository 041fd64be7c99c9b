//! Opens a transport: all addresses of the broker's name, one after the other at short intervals, TLS included; the
//! first that stands wins.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tokio::{net::TcpStream, task::JoinSet};

#[cfg(feature = "rustls")]
use super::secure::{Secured, Security};
use super::{now, resolve};
use crate::{
    broker::Broker,
    config::ConfigError,
    handover::Shared,
    transport::{Connector, Dial, Opening, Resolver, Transport},
};

/// Sent data that is not acknowledged by the other host's kernel for this long ends the connection. Linux only; the
/// judge of silence is faster, this holds when the process itself is starved.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// No more than this waits unsent in the kernel, where its last byte would count as written: the clock of its
/// acknowledgement must not run while it queues on a slow link. Linux only.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 16 << 10;
/// Failures of so many addresses are told; more would only repeat them.
const TOLD: usize = 4;

/// How transports are opened; what the builder was told.
#[derive(Clone, Default)]
pub(crate) struct Ways {
    pub(crate) connector: Option<Arc<dyn Connector>>,
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    #[cfg(feature = "rustls")]
    pub(crate) tls: Option<crate::tls::Tls>,
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Ways");
        shown.field("connector", &self.connector.is_some()).field("resolver", &self.resolver.is_some());
        #[cfg(feature = "rustls")]
        shown.field("tls", &self.tls);
        shown.finish_non_exhaustive()
    }
}

/// Opens transports. Cheap to clone; several dials may be under way at once.
#[derive(Clone)]
pub(crate) struct Dialler {
    inner: Arc<Inner>,
}

struct Inner {
    connector: Option<Arc<dyn Connector>>,
    names: resolve::Names,
    #[cfg(feature = "rustls")]
    security: Option<Security>,
}

impl Dialler {
    /// Reads what TLS needs, where a broker wants it.
    pub(crate) fn new(ways: Ways, brokers: &[Broker], shared: &Arc<Shared>) -> Result<Self, ConfigError> {
        #[cfg(not(feature = "rustls"))]
        {
            let _ = shared;
            if let Some(broker) = brokers.iter().find(|broker| broker.is_tls()) {
                let reason = format!("{broker} is mqtts://, which needs the crate's feature `rustls`");
                return Err(ConfigError::Tls { reason });
            }
        }
        let inner = Inner {
            connector: ways.connector,
            names: resolve::Names::new(ways.resolver),
            #[cfg(feature = "rustls")]
            security: Security::new(ways.tls, brokers, shared)?,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Connects to the first address of `broker` that answers; an error of the kind `TimedOut` at `deadline`.
    pub(crate) fn dial(&self, broker: Broker, deadline: Instant) -> Opening {
        let dialler = self.clone();
        Box::pin(async move {
            // Code of others opens it: a panic there, of which its hook has said all, is a failure like any.
            let opening = AssertUnwindSafe(dialler.open(broker, deadline)).catch_unwind();
            let opened = tokio::time::timeout_at(deadline.into(), opening).await;
            opened.map_or_else(
                |_| Err(late("connecting".to_owned())),
                |opened| opened.unwrap_or_else(|_| Err(io::Error::other("opening the connection panicked"))),
            )
        })
    }

    /// Another address of the same name is tried before this one from now on: its host accepts and says nothing.
    pub(crate) fn demote(&self, address: IpAddr) {
        self.inner.names.demote(address);
    }

    async fn open(&self, broker: Broker, deadline: Instant) -> io::Result<Transport> {
        let layer = self.layer(&broker).await;
        if let Some(connector) = &self.inner.connector {
            return layer.over(connector.connect(Dial::new(broker, deadline)).await?).await;
        }
        let addresses = self.inner.names.addresses(broker.host(), deadline).await?;
        race(addresses, broker.port(), deadline, &layer).await
    }

    #[cfg(feature = "rustls")]
    async fn layer(&self, broker: &Broker) -> Layer {
        let Some(security) = self.inner.security.as_ref().filter(|_| broker.is_tls()) else { return Layer::Plain };
        Layer::Tls(security.secure(broker.host()).await)
    }

    #[cfg(not(feature = "rustls"))]
    #[expect(clippy::unused_async, reason = "it waits with the feature `rustls`")]
    async fn layer(&self, _: &Broker) -> Layer {
        Layer::Plain
    }
}

/// What is spoken over the wire.
#[derive(Clone)]
enum Layer {
    Plain,
    #[cfg(feature = "rustls")]
    Tls(Secured),
}

impl Layer {
    #[cfg_attr(not(feature = "rustls"), expect(clippy::unused_async, reason = "it waits with the feature `rustls`"))]
    async fn over(&self, wire: Transport) -> io::Result<Transport> {
        match self {
            Self::Plain => Ok(wire),
            #[cfg(feature = "rustls")]
            Self::Tls(secured) => secured.handshake(wire).await,
        }
    }
}

async fn race(addresses: Vec<IpAddr>, port: u16, deadline: Instant, layer: &Layer) -> io::Result<Transport> {
    let stagger = resolve::stagger(addresses.len(), deadline.saturating_duration_since(now()));
    let mut waiting = addresses.into_iter().map(|address| SocketAddr::new(address, port));
    let mut race = JoinSet::new();
    let mut outcome = Failures::default();
    loop {
        let next = waiting.next();
        let last = next.is_none();
        if let Some(address) = next {
            outcome.unanswered.push(address);
            race.spawn(reach(address, layer.clone()));
        }
        let until = if last { deadline } else { deadline.min(now() + stagger) };
        match tokio::time::timeout_at(until.into(), race.join_next()).await {
            Ok(Some(Ok((_, Ok(transport))))) => return Ok(transport),
            Ok(Some(Ok((address, Err(error))))) => outcome.add(address, &error),
            Ok(None) if last => return Err(outcome.into_error()),
            Err(_) if until == deadline => return Err(outcome.into_error()),
            // Time for the next one; or one panicked, which has said so itself.
            Ok(None | Some(Err(_))) | Err(_) => {}
        }
    }
}

async fn reach(address: SocketAddr, layer: Layer) -> (SocketAddr, io::Result<Transport>) {
    let reached = async {
        let stream = TcpStream::connect(address).await?;
        prepare(&stream)?;
        layer.over(Transport::tcp(stream)).await
    };
    (address, reached.await)
}

fn late(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what + " took too long")
}

/// What became of the addresses.
#[derive(Default)]
struct Failures {
    unanswered: Vec<SocketAddr>,
    kind: Option<io::ErrorKind>,
    told: Vec<String>,
}

impl Failures {
    fn add(&mut self, address: SocketAddr, error: &io::Error) {
        self.unanswered.retain(|other| *other != address);
        self.kind = Some(error.kind());
        self.told.push(format!("{address}: {error}"));
    }

    fn into_error(mut self) -> io::Error {
        // One that is silent costs each try its whole deadline: that outweighs how the others failed.
        let kind = if self.unanswered.is_empty() { self.kind } else { Some(io::ErrorKind::TimedOut) };
        self.told.extend(self.unanswered.iter().map(|address| format!("{address}: no answer in time")));
        let more = self.told.len().saturating_sub(TOLD);
        self.told.truncate(TOLD);
        if more > 0 {
            self.told.push(format!("and {more} more addresses"));
        }
        io::Error::new(kind.unwrap_or(io::ErrorKind::NotFound), self.told.join("; "))
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Small packets, each awaited by somebody: Nagle's delay would be seen as the broker's.
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        // Somewhere (sandboxes, emulated kernels) they are not known. Then the judge of silence has to do without: a dead
        // link is found later, and its clock starts a little early.
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
    }
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn f03_a_dialled_socket_has_the_options_that_bound_silence() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let deadline = now() + Duration::from_secs(60);

        let transport = race(vec![address.ip()], address.port(), deadline, &Layer::Plain).await.unwrap();

        let stream = transport.socket().expect("TCP");
        assert!(stream.nodelay().unwrap());
        let socket = socket2::SockRef::from(stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(10)));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 16 << 10);
    }
}

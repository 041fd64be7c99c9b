//! A TCP proxy that breaks the wire on purpose.
//!
//! It stands between a client and one server on loopback. Faults are set while it runs, each on one direction or on
//! both, and combine: latency with slices, a rate with a cut. A fault that was armed but never met a byte has not
//! happened, so everything that fired is counted ([`Proxy::fired`]) and a test asserts the count.
//!
//! What each fault does to a connection:
//!
//! | fault | existing connections | new ones |
//! |---|---|---|
//! | [`Fault::Latency`] | bytes arrive later, in order, at full throughput | the same |
//! | [`Fault::Blackhole`] | bytes and the end of the stream are held, not lost: after healing they go on, as TCP would after a partition | accepted, then silent |
//! | [`Fault::CutAfterBytes`], [`Fault::CutAfterMatch`] | the first one to get there ends; the receiver gets everything up to there, the sender a reset, and no answer comes back. Fires once | the same |
//! | [`Fault::Reset`] | reset at the next byte in that direction | the same |
//! | [`Fault::Slice`], [`Fault::Rate`] | the bytes dribble | the same |
//! | [`Fault::Refuse`] | untouched (see [`Proxy::cut_all`]) | connection refused |
//! | [`Fault::Toggle`] | reset at each fall | refused while down |

mod carry;
mod fault;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use fault::{Counts, Direction, Fault};

use fault::{Faults, Tally};

/// The seed of a proxy that was not given one.
const SEED: u64 = 0x6d6f_6461_7821;

/// Connections the kernel may hold for the proxy before it accepts them.
const BACKLOG: u32 = 1024;

/// A listening proxy in front of one server. Dropping it resets every connection and frees the port.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

/// What the handle, the accept task and the connections share.
#[derive(Debug)]
struct Shared {
    seed: u64,
    faults: watch::Sender<Faults>,
    /// Counts up at each order to reset every connection that stands.
    resets: watch::Sender<u64>,
    tally: Tally,
    wire: Mutex<Wire>,
}

#[derive(Debug)]
struct Wire {
    addr: Option<SocketAddr>,
    upstream: SocketAddr,
    /// Bound for as long as the proxy lives and never listening: nobody else gets the port while we refuse.
    reservation: Option<TcpSocket>,
    listening: Option<Listening>,
    toggle: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Listening {
    listener: Arc<TcpListener>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port and carries every connection to `upstream`.
    ///
    /// # Errors
    /// When no loopback port can be bound.
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        Self::start_seeded(upstream, SEED).await
    }

    /// The same with a seed of the caller's, from which every jitter is drawn.
    ///
    /// # Errors
    /// When no loopback port can be bound.
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    #[expect(clippy::unused_async, reason = "it spawns tasks, so it must be called inside a runtime")]
    pub async fn start_seeded(upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        let reservation = TcpSocket::new_v4()?;
        reservation.set_reuseaddr(true)?;
        reservation.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = reservation.local_addr()?;

        let shared = Arc::new(Shared {
            seed,
            faults: watch::Sender::new(Faults::default()),
            resets: watch::Sender::new(0),
            tally: Tally::default(),
            wire: Mutex::new(Wire {
                addr: Some(addr),
                upstream,
                reservation: Some(reservation),
                listening: None,
                toggle: None,
            }),
        });
        shared.listen()?;
        Ok(Self { addr, shared })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as a URL, for example `mqtt://127.0.0.1:40123`.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.addr)
    }

    /// Sends connections accepted from here on to another server; those that stand stay where they are.
    pub fn redirect(&self, upstream: SocketAddr) {
        self.shared.wire().upstream = upstream;
    }

    /// Arms a fault. It replaces a fault of the same kind in the same direction and combines with the others.
    ///
    /// [`Fault::Refuse`] and [`Fault::Toggle`] concern the listener: they have no direction, and are in force when
    /// this returns.
    pub fn set(&self, direction: Direction, fault: Fault) {
        match fault {
            Fault::Refuse => {
                self.shared.tally.refused();
                self.shared.wire().refuse();
            }
            Fault::Toggle { up, down } => self.toggle(up, down),
            fault => self.shared.faults.send_modify(|faults| faults.arm(direction, &fault)),
        }
    }

    /// Heals everything: what was held goes on, the listener is back. Connections that were cut stay cut.
    ///
    /// # Panics
    /// When the port cannot be listened on again, although it was reserved all the time.
    pub fn clear(&self) {
        if let Some(toggle) = self.shared.wire().toggle.take() {
            toggle.abort();
        }
        self.shared.faults.send_modify(|faults| *faults = Faults::default());
        self.shared.listen().expect("the port is reserved for as long as the proxy lives");
    }

    /// Resets every connection that stands, in both directions.
    pub fn cut_all(&self) {
        self.shared.reset_all();
    }

    /// How often each kind of fault has met a connection so far.
    pub fn fired(&self) -> Counts {
        self.shared.tally.counts()
    }

    /// Connections that stand at this moment.
    pub fn connections(&self) -> usize {
        self.shared.tally.standing()
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.shared.tally.accepted()
    }

    fn toggle(&self, up: Duration, down: Duration) {
        self.shared.link_down();
        let shared = Arc::clone(&self.shared);
        let flapping = tokio::spawn(async move {
            loop {
                tokio::time::sleep(down).await;
                if shared.listen().is_err() {
                    return;
                }
                tokio::time::sleep(up).await;
                shared.link_down();
            }
        });
        if let Some(previous) = self.shared.wire().toggle.replace(flapping) {
            previous.abort();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut wire = self.shared.wire();
        wire.refuse();
        wire.addr = None;
        wire.reservation = None;
        if let Some(toggle) = wire.toggle.take() {
            toggle.abort();
        }
        drop(wire);
        self.shared.reset_all();
    }
}

impl Shared {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset_all(&self) {
        let standing = u64::try_from(self.tally.standing()).unwrap_or(u64::MAX);
        self.tally.cut_all(standing);
        self.resets.send_modify(|generation| *generation += 1);
    }

    fn link_down(&self) {
        self.tally.toggled();
        self.wire().refuse();
        self.resets.send_modify(|generation| *generation += 1);
    }

    /// Opens the listener, unless it is open already or the proxy is gone.
    fn listen(self: &Arc<Self>) -> io::Result<()> {
        let mut wire = self.wire();
        let Some(addr) = wire.addr else { return Ok(()) };
        if wire.listening.is_some() {
            return Ok(());
        }
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let listener = Arc::new(socket.listen(BACKLOG)?);
        let accepting = tokio::spawn(accept(Arc::clone(self), Arc::clone(&listener)));
        wire.listening = Some(Listening { listener, accepting });
        Ok(())
    }
}

impl Wire {
    /// Closes the listener before it returns: dropping would leave that to the accept task's next poll.
    fn refuse(&mut self) {
        if let Some(Listening { listener, accepting }) = self.listening.take() {
            let _ = rustix::net::shutdown(&*listener, rustix::net::Shutdown::Both);
            accepting.abort();
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: Arc<TcpListener>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let number = shared.tally.accept();
                tokio::spawn(carry::connection(Arc::clone(&shared), client, number));
            }
            // Out of file descriptors, or the listener was shut down and this task is about to be aborted.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[cfg(test)]
mod tests;

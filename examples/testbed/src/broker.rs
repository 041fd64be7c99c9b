//! An MQTT broker, of 3.1.1 and of 5, that follows a script.
//!
//! Without a script it is a plain broker, good enough to stand in for one: several clients, wildcard subscriptions,
//! QoS 0 and 1 in both directions (2 inwards), persistent sessions, retained messages, wills, takeover by client id.
//! Of MQTT 5 it knows limits, reasons and DISCONNECT; other properties are not carried on.
//! With one it misbehaves on purpose, records every packet it got, and counts what it did ([`ScriptedBroker::fired`]).
//!
//! ```
//! # async fn example() -> std::io::Result<()> {
//! use modax_testbed::broker::{Script, ScriptedBroker};
//!
//! let first = ScriptedBroker::start(Script::new().dies_after_publishes(5)).await?;
//! let second = ScriptedBroker::start(Script::new().session_present(false)).await?;
//! println!("{},{}", first.url(), second.url());
//! # Ok(())
//! # }
//! ```

mod connection;
mod hub;
mod script;
mod seen;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use hub::Hub;
pub use script::{BrokerCounts, Connack, Limits, Puback, Script, Suback};
pub use seen::{ConnectSeen, PublishSeen, SubscribeSeen};

/// A listening broker. Dropping it closes every connection and frees the port.
#[derive(Debug)]
pub struct ScriptedBroker {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    addr: SocketAddr,
    hub: Mutex<Hub>,
    /// Bound and never listening: nobody else gets the port while the broker is dead.
    _reservation: TcpSocket,
    listening: Mutex<Option<Listening>>,
    /// Counts up at every change that a test may wait for.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Listening {
    listener: Arc<TcpListener>,
    accepting: JoinHandle<()>,
}

impl ScriptedBroker {
    /// Listens on a free loopback port.
    ///
    /// # Errors
    /// When no loopback port can be bound.
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    #[expect(clippy::unused_async, reason = "it spawns tasks, so it must be called inside a runtime")]
    pub async fn start(script: Script) -> io::Result<Self> {
        let reservation = TcpSocket::new_v4()?;
        reservation.set_reuseaddr(true)?;
        reservation.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = reservation.local_addr()?;
        let shared = Arc::new(Shared {
            addr,
            hub: Mutex::new(Hub::new(script)),
            _reservation: reservation,
            listening: Mutex::new(None),
            changes: watch::Sender::new(0),
        });
        shared.listen()?;
        Ok(Self { addr, shared })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as a URL: `mqtt://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.addr)
    }

    /// Follows another script from the next packet on; its counts of publishes begin at 0.
    pub fn set(&self, script: Script) {
        self.shared.hub().set(script);
    }

    /// Publishes as the broker itself, at most with QoS 1.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>, qos: u8) {
        self.shared.hub().publish(topic, payload.into(), qos.min(1), false);
    }

    /// Closes the connection of one client in order, as a broker does that saw a twin connect.
    pub fn disconnect(&self, client_id: &str) {
        self.shared.hub().disconnect(client_id);
    }

    /// Says DISCONNECT with this reason of MQTT 5 to one client, and closes; to one of 3.1.1 it only closes.
    pub fn disconnect_with(&self, client_id: &str, reason: u8) {
        self.shared.hub().say_goodbye(client_id, reason);
    }

    /// Closes every connection; the listener stays.
    pub fn disconnect_all(&self) {
        self.shared.hub().disconnect_all();
    }

    /// Forgets sessions and retained messages, as a broker without persistence does when it restarts.
    pub fn forget(&self) {
        self.shared.hub().forget();
    }

    /// Dies: the listener and every connection are closed when this returns. Sessions are kept, see
    /// [`ScriptedBroker::forget`].
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When the port cannot be listened on again, although it was reserved all the time.
    pub fn restart(&self) -> io::Result<()> {
        self.shared.listen()
    }

    /// Whether it listens: false after its script, or [`ScriptedBroker::stop`], has ended it.
    pub fn is_running(&self) -> bool {
        self.shared.listening().is_some()
    }

    /// Every CONNECT so far, in order.
    pub fn connects(&self) -> Vec<ConnectSeen> {
        self.shared.hub().seen.connects.clone()
    }

    /// Every PUBLISH from a client so far, in order, repeated ones too.
    pub fn publishes(&self) -> Vec<PublishSeen> {
        self.shared.hub().seen.publishes.clone()
    }

    /// Every subscription asked for so far, in order.
    pub fn subscribes(&self) -> Vec<SubscribeSeen> {
        self.shared.hub().seen.subscribes.clone()
    }

    /// Every filter of an UNSUBSCRIBE so far, in order.
    pub fn unsubscribes(&self) -> Vec<String> {
        self.shared.hub().seen.unsubscribes.clone()
    }

    /// PINGREQs so far.
    pub fn pings(&self) -> u64 {
        self.shared.hub().seen.pings
    }

    /// PUBACKs from clients for what the broker delivered.
    pub fn acks(&self) -> u64 {
        self.shared.hub().seen.acks
    }

    /// Connections that stand at this moment.
    pub fn connections(&self) -> usize {
        self.shared.hub().connections()
    }

    /// What the script has done so far.
    pub fn fired(&self) -> BrokerCounts {
        self.shared.hub().fired
    }

    /// Waits until `holds` does, looked at after each packet; false when `deadline` is over.
    ///
    /// # Cancel safety
    /// Cancel safe: it changes nothing.
    pub async fn wait_until(&self, deadline: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let mut changes = self.shared.changes.subscribe();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                if holds(self) {
                    return;
                }
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(deadline, waiting).await.is_ok()
    }
}

impl Drop for ScriptedBroker {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Shared {
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listening(&self) -> MutexGuard<'_, Option<Listening>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn listen(self: &Arc<Self>) -> io::Result<()> {
        let mut listening = self.listening();
        if listening.is_some() {
            return Ok(());
        }
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.addr)?;
        let listener = Arc::new(socket.listen(1024)?);
        let accepting = tokio::spawn(accept(Arc::clone(self), Arc::clone(&listener)));
        *listening = Some(Listening { listener, accepting });
        Ok(())
    }

    fn stop(&self) {
        if let Some(Listening { listener, accepting }) = self.listening().take() {
            // Closes at once; dropping would leave that to the accept task's next poll.
            let _ = rustix::net::shutdown(&*listener, rustix::net::Shutdown::Both);
            accepting.abort();
        }
        self.hub().disconnect_all();
        self.changed();
    }
}

async fn accept(shared: Arc<Shared>, listener: Arc<TcpListener>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (number, ended) = shared.hub().accept();
                tokio::spawn(connection::serve(Arc::clone(&shared), stream, number, ended));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[cfg(test)]
mod tests;

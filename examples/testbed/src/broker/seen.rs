//! What the broker was sent.

use bytes::Bytes;

/// The most packets of one kind that are recorded; a test that needs more counts for itself.
const MOST: usize = 1_000_000;

/// One CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectSeen {
    /// Which TCP connection it came on, from 1.
    pub connection: u64,
    /// As sent.
    pub client_id: String,
    /// As sent.
    pub clean_session: bool,
    /// As sent, in seconds.
    pub keep_alive: u16,
    /// Whether a will was sent.
    pub has_will: bool,
    /// As sent.
    pub username: Option<String>,
}

/// One PUBLISH from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishSeen {
    /// Which TCP connection it came on, from 1.
    pub connection: u64,
    /// Who sent it.
    pub client_id: String,
    /// As sent.
    pub topic: String,
    /// As sent.
    pub payload: Bytes,
    /// 0, 1 or 2.
    pub qos: u8,
    /// The DUP flag.
    pub duplicate: bool,
    /// The RETAIN flag.
    pub retained: bool,
    /// 0 for QoS 0.
    pub packet_id: u16,
    /// Whether it was acknowledged.
    pub acked: bool,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscribeSeen {
    /// Which TCP connection it came on, from 1.
    pub connection: u64,
    /// Who asked.
    pub client_id: String,
    /// As sent.
    pub filter: String,
    /// As asked: 0, 1 or 2.
    pub qos: u8,
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) connects: Vec<ConnectSeen>,
    pub(super) publishes: Vec<PublishSeen>,
    pub(super) subscribes: Vec<SubscribeSeen>,
    pub(super) unsubscribes: Vec<String>,
    pub(super) pings: u64,
    pub(super) acks: u64,
}

/// Records `item` unless there are too many, and says where it stands.
pub(super) fn record<T>(list: &mut Vec<T>, item: T) -> Option<usize> {
    (list.len() < MOST).then(|| {
        list.push(item);
        list.len() - 1
    })
}

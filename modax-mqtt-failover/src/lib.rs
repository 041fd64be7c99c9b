//! An MQTT client that outlives its brokers: one handle, a list of brokers, and a written promise of what survives what.
//!
//! # What survives what
//!
//! | what fails | a QoS 1 publish that was admitted | subscriptions |
//! |---|---|---|
//! | a broker is killed | acknowledged by another broker | applied again; a [`Received::Gap`] tells the reader that something may be missing |
//! | a broker hangs, or packets vanish | the same; noticed within 500 ms under traffic and 1.5 s when idle, at default settings | the same |
//! | all brokers are gone for hours | kept in memory or on disk, bounded by count and bytes; what happens when full has a name ([`WhenFull`]) | applied again |
//! | the next broker does not have our session | published again under a new packet id, never dropped | applied again |
//! | the same broker comes back with our session | sent again under the same packet id, with DUP, oldest first | asked for again on each connection, so brokers repeat what they keep as retained; a reader that was granted QoS 0 gets a [`Received::Gap`], others do not |
//! | this process is killed (kill -9) | kept when it was admitted to a [disk queue](Queue::disk), and sent in order by the next start; gone with a queue in memory | declared again by the program |
//!
//! - **Delivered means acknowledged by a broker.** What a broker acknowledged and then lost with its memory is the
//!   broker's. mosquitto acknowledges to clients of 3.1.1 also what it drops, above 20 QoS 2 messages half-way in one
//!   session: there are never more than 8 of ours in 3.1.1; with MQTT 5 the broker says how many.
//! - **Order**: first transmissions of one topic and QoS are in publish order, and later ones wait until the earlier
//!   unacknowledged ones have been sent again on the new connection. Repeats may follow. There is no order across QoS
//!   levels, nor end to end across bridged or clustered brokers.
//! - **Once**: QoS 1 may arrive twice, and after a change of broker it sometimes does. QoS 2 is exactly once within one
//!   session of one broker; where that session is lost or cannot be known for ours (a CONNECT went unanswered before, the
//!   broker was restored from an older copy), or another independent broker takes over, it falls back to at least once.
//! - **Never**: a silent drop, an unbounded queue, a wait without a deadline, a verdict of death because *we* were late.
//! - On a *cluster* the cluster's own election counts first: seconds may pass before any node acknowledges. What the
//!   client adds is a fraction of a second in most outages, and seconds in some; the crate's README has figures. Without
//!   [scouts](Scouting) it is up to several rounds of the nodes' own patience (NATS: 4 s each). No bound is promised.
//!
//! Each line of the table is a test: `tests/it` proves them against scripted brokers and in a simulation, `tests/drill.rs`
//! against real ones. The two bounds of time are proven in virtual time; what a client adds to an election is measured by a
//! drill, which prints it and fails for lost messages only.
//!
//! # Use
//!
//! ```no_run
//! use std::time::Duration;
//! use modax_mqtt_failover::{Client, Message, Qos, Received};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("press-7")
//!     .brokers(["mqtt://10.0.0.1", "mqtt://10.0.0.2", "mqtt://10.0.0.3"])?
//!     .build()?; // returns at once, whether a broker is there or not
//!
//! let receipt = client.publish(Message::new("plant/press-7/temperature", "21.5")).await?; // admitted
//! println!("{:?}", receipt.acked().await); // Acked { broker: …, attempts: 1, latency: … }
//!
//! let mut commands = client.subscribe("plant/press-7/commands/#", Qos::AtLeastOnce).await?;
//! while let Some(received) = commands.next().await {
//!     match received {
//!         Received::Delivery(command) => {
//!             // … act on it …
//!             command.ack(); // a crash before this line brings it back
//!         }
//!         Received::Gap { reason } => println!("something may be missing: {reason:?}"),
//!         _ => {}
//!     }
//! }
//! let left = client.close(Duration::from_secs(5)).await;
//! # drop(left); Ok(()) }
//! ```
//!
//! # How a dead broker is found out
//!
//! Every answer has a deadline: srtt + 8 · rttvar, at least 100 ms ([`LivenessConfig`]), and at least twice the slowest
//! answer of the last half minute (up to 500 ms): on a starved machine a verdict takes longer rather than being false. An
//! overdue PUBACK or PINGRESP makes a broker *suspect*; it gets one more probe; when that stays unanswered too it is
//! left, and the one that just failed is tried last. Any byte received is life, unless for 5 s no packet is whole and hardly
//! more comes than answers to probes. When this process was itself late, clocks start anew. A broker that answers probes and
//! does not acknowledge is *slow*, and left after 5 s. Where packets come and an answer does not, a probe tells whether it
//! only stands in line behind them, as over a slow link: for that it has a minute. None of this depends on the keep-alive.
//!
//! # Independent brokers, or a cluster
//!
//! [`Topology::Independent`]: each broker has its own sessions. On the way to another one the client first throws away
//! what session that one may still have under its name (CONNECT clean, DISCONNECT, CONNECT; in MQTT 5 one CONNECT), so
//! that old commands are not replayed. [`Topology::Cluster`]: any node may have the session, and it goes on there.
//!
//! # Back to a preferred broker, and connections beside
//!
//! A node of a cluster that has no leader may drop what it is given and keep what follows. On each connection to one, the
//! first message therefore goes alone, and the others once it is acknowledged.
//!
//! In a [cluster](Topology::Cluster), and there alone, [`Scouting`] (default [`Scouting::probing`]) finds the node that
//! acknowledges by short connections under derived identities, with empty messages to `modax/probe`. All else that opens a
//! connection beside the one that carries messages is off by default:
//!
//! - [`Selection::failback_after`] (default never): back to a more preferred broker once that has been reachable for so
//!   long. Between independent brokers the new connection stands and has every filter before the old one is left.
//! - [`Standby::Probe`] (default [`Standby::None`]): a silent connection proves that the next broker works, which is then
//!   tried first.
//! - [`ClientBuilder::racing`] (default `false`): transports to several brokers are opened side by side, one CONNECT is sent.
//!
//! The simulation runs with all of them, and each is drilled on real brokers: a standby and racing between independent
//! mosquitto brokers, scouts in a NATS cluster, the way back on both.
//!
//! # Once for a handler
//!
//! At least once becomes once where the consumer knows what it has handled. [`dedup::Dedup`] tells first copies from
//! repeats by an identity, in bounded memory:
//!
//! ```no_run
//! use modax_mqtt_failover::{Client, Message, Qos, Received, Version, dedup::{Dedup, Verdict}};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! # fn act_on(_: &modax_mqtt_failover::Delivery) {}
//! let producer = Client::builder("press-7")
//!     .brokers(["mqtt://10.0.0.1", "mqtt://10.0.0.2"])?
//!     .version(Version::V5)
//!     .stamping(true) // each message says which it is, in the user property `modax-id`
//!     .build()?;
//! let consumer = Client::builder("control").brokers(["mqtt://10.0.0.1", "mqtt://10.0.0.2"])?.version(Version::V5).build()?;
//! let mut commands = consumer.subscribe("plant/+/commands/#", Qos::AtLeastOnce).await?;
//! let mut dedup = Dedup::new(10_000.try_into()?); // above what a producer's queue may hold back
//! while let Some(received) = commands.next().await {
//!     let Received::Delivery(command) = received else { continue };
//!     // What says nothing of itself, or is older than the window, may be a repeat as well: here it is acted on.
//!     if dedup.check_delivery(&command) != Verdict::Repeat {
//!         act_on(&command);
//!     }
//!     command.ack();
//! }
//! # drop(producer); Ok(()) }
//! ```
//!
//! - **Where an identity comes from**: [`ClientBuilder::stamping`] adds it as a message is admitted. A message keeps it
//!   when another broker gets it again, and in a queue on disk when another process sends it. Over MQTT 3.1.1, or from
//!   producers of other kinds, [`Dedup::by`](dedup::Dedup::by) reads it out of the payload. Without one the verdict is
//!   [`Verdict::Unidentified`](dedup::Verdict): nothing is dropped for saying nothing.
//! - **What fails meanwhile**: a window in memory ends with its process. Where handling a message writes to a database,
//!   [`Dedup::check_in`](dedup::Dedup::check_in) keeps the window in a table, in the same transaction. Where it fails and
//!   the process lives on, [`Dedup::take_back`](dedup::Dedup::take_back) makes the next copy a first one.
//!
//! # After a restart
//!
//! What an earlier process left in a queue on disk is sent unasked. [`Client::recovered`] has a receipt for each of
//! these messages.
//!
//! A broker that kept the session may hold QoS 2 messages of the earlier process half-way. None of ours is taken for one
//! of these: what is open under an identifier is released before its first use, and some brokers publish it only then,
//! late. When a connection breaks just there, the message may arrive twice.
//!
//! # MQTT 5
//!
//! [`ClientBuilder::version`], or `?version=5` behind a broker's URL. 3.1.1 is the default, and all brokers of one client
//! speak the same. What 5 adds:
//!
//! - **Reasons**: an acknowledgement that says no rejects its message with a [`Rejection`], a broker's goodbye says why in
//!   [`Event::Disconnected`], a refused CONNECT in [`Event::Parked`] or [`Event::ConnectFailed`]. Redirections are told
//!   and not followed: where to go is the configuration's word alone.
//! - **Limits of the broker**: its receive maximum bounds what is on its way; a message that is larger than it takes, above
//!   its highest QoS, or retained where it keeps nothing is rejected to its caller, and what is behind it goes on. In
//!   3.1.1 a broker can only close the connection: see the next section. QoS 2 messages that an earlier process left open
//!   may take all places of its receive maximum: a broker that closes with 0x93 for that gets a new session, and readers
//!   get a [`Received::Gap`]. QoS 2 messages that were on their way in the old one are published again, and may arrive twice.
//! - **Time**: [`Message::expires_in`] goes along, as what is left of it; [`ClientBuilder::session_expiry`] says how long a
//!   broker keeps our session (default one hour), [`ClientBuilder::will_delay`] how long it waits with the will.
//! - **[User properties](Message::user_property)**, also through a disk queue, and [of what arrives](Delivery::user_properties).
//!   A client of 3.1.1 refuses messages with them. Other properties of arriving messages are not passed on.
//! - **Shared subscriptions**: `$share/GROUP/FILTER`. A client that also subscribes to a filter of its own matching the same
//!   topic reads each message once for each copy and filter: MQTT does not say which copy is which.
//!
//! # A message on which brokers close the connection
//!
//! A broker of 3.1.1 that does not take a message (too large, its QoS, retained, its topic), and some of MQTT 5, close the
//! connection on it, and on the next one again. After two connections in a row that ended right after sending and answered
//! nothing, the messages that were on their way are sent one at a time, oldest first, and nothing new meanwhile. The one on
//! which three connections in a row end ([`ClientBuilder::reject_after_closes`]) is given up with
//! [`Rejection::ClosesConnection`], and all else goes on as before; that takes some seconds. Nothing counts but a connection
//!
//! - that stood quiet for 500 ms with a ping answered before and after, then carried the one message, and was closed by the
//!   broker within 3 s and within a twentieth of the quiet time, which grows with slower closes up to 60 s;
//! - and that was not ended by us, nor by a goodbye of MQTT 5 for a reason of the broker's own.
//!
//! One that ends in the quiet time acquits: the link or the broker is at fault, and all is sent as usual again. So does
//! one that takes one message after the other for 5 s. Every broker that can be reached has to have closed on the message.
//! And a broker that can store nothing closes on everything: a message that every broker takes (QoS 0 or 1, not retained, up
//! to 2 KiB), or of a kind that was acknowledged before (its QoS, retained or not, up to twice the size), is rejected only
//! where a message on another topic was acknowledged by the same connection just before. Where there is none on its way,
//! and with a window of one ([`ClientBuilder::max_inflight`]), such a message is sent again until it expires, which
//! [`Event::MessageStuck`] tells: give messages a time to live. Of another kind, which may be what the broker refuses,
//! messages may be rejected one after the other by brokers that store nothing from the start, unless one that every broker
//! takes waits behind them and is not taken either.
//!
//! # Presence
//!
//! [`ClientBuilder::will`] is published by a broker when we vanish, [`ClientBuilder::on_connect`] by us on each connection.
//! A broker that we left may publish the will although we live: on the same topic, the client notices its own will and
//! says the message again.
//!
//! # How a broker is reached
//!
//! Each dial looks the broker's name up anew and tries all its addresses, the families in turn, the next one after
//! 250 ms or as soon as one has failed; the first that stands wins. One that accepted and then said nothing is tried
//! after the others from then on. Names, addresses and the handshake of TLS share one
//! deadline: 1 s in the first round over all brokers, doubled with each round up to 30 s. A resolver that fails or
//! hangs leaves the last good addresses. [`ClientBuilder::connector`] puts anything that reads and writes in TCP's place,
//! [`ClientBuilder::resolver`] another source of addresses in the system's: see the module `transport`.
//!
//! `mqtts://` is TLS (port 8883), with the feature `rustls` and a provider of cryptography that the application
//! installs, or with the feature `ring`. Certificates are always verified; authorities, client certificates and keys
//! come from the platform, files or memory, and files are read again at each dial: see the module `tls`. What holds over
//! TCP holds over TLS: any byte is life, and only what has left for the network counts as written.
//!
//! # Watching it
//!
//! [`Client::events`] and [`Client::status`] for the program, [`Client::stats`] for what polls, [`Observer`] for what counts by
//! itself. The feature `tracing` makes an event of each, and the feature `metrics` reports counters, levels and times to the
//! recorder of the `metrics` facade: see the module `metrics`.
//!
//! # Without tokio
//!
//! `default-features = false` leaves the state machines: [`courier::Courier`] carries messages by itself, given a
//! clock and a transport. The modules [`session`], [`failover`], [`liveness`] and [`queue`] are its parts. They are
//! public for drivers of other kinds and for simulations, and may change more often than the rest.
//!
//! # Coming from another client
//!
//! [`migrating`] shows what changes for users of rumqttc, paho and mqtt.js.
//!
//! # Limits
//!
//! Topic aliases, subscription identifiers, AUTH and redirections of MQTT 5 are not used. Encrypted private keys are not
//! read. Built and tested on Linux; TCP_USER_TIMEOUT and TCP_NOTSENT_LOWAT are set there only. macOS and Windows are
//! meant to work and are not built here.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::disallowed_methods,
        clippy::disallowed_types
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub use bytes::Bytes;

pub mod breaker;
pub mod broker;
pub mod config;
pub mod courier;
pub mod dedup;
mod event;
pub mod failover;
pub mod inflight;
pub mod liveness;
mod message;
pub mod packet;
pub mod policy;
mod properties;
pub mod queue;
mod reason;
pub mod scout;
pub mod session;
pub mod subscription;
pub mod witness;

#[cfg(feature = "tokio")]
mod builder;
#[cfg(feature = "tokio")]
mod client;
#[cfg(feature = "tokio")]
mod delivery;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub mod disk;
#[cfg(feature = "tokio")]
mod driver;
#[cfg(feature = "tokio")]
mod handover;
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub mod metrics;
#[cfg(feature = "tokio")]
mod observer;
#[cfg(feature = "tokio")]
mod receipt;
#[cfg(feature = "rustls")]
#[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
pub mod tls;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub mod transport;

pub use broker::{AddressError, Broker};
pub use config::{ConfigError, TopicError, Topology};
pub use event::{Event, GapReason, Stats, Status};
pub use liveness::LivenessConfig;
pub use message::{Closed, Message, MessageId, Outcome, Undelivered};
pub use packet::{Qos, Version};
pub use policy::{backoff::Backoff, scouting::Scouting, selection::Selection, standby::Standby};
pub use properties::UserProperties;
pub use queue::{Queue, WhenFull};
pub use reason::{Reason, Rejection};

#[cfg(feature = "tokio")]
pub use builder::ClientBuilder;
#[cfg(feature = "tokio")]
pub use client::{Client, Events, PublishError, SubscribeError};
#[cfg(feature = "tokio")]
pub use delivery::{Delivery, Received, Subscription};
#[cfg(feature = "tokio")]
pub use observer::Observer;
#[cfg(feature = "tokio")]
pub use receipt::{Receipt, Recovered};

#[cfg(doc)]
#[doc = include_str!("../MIGRATING.md")]
pub mod migrating {}

/// The example of the README, compiled.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;

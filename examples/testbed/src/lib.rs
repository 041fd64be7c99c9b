//! Brings, starts, breaks and stops real servers, for the drills of the crates and for the demo.
//!
//! | promise | where |
//! |---|---|
//! | a server's program is found on the system, or brought without root and without changing the system | [`bring`] |
//! | a server started here ends with the [`Ground`] it stands on, even after `kill -9` of the test | [`ground`], `guardian.sh` |
//! | to kill or stop a node means the whole node, every descendant of it | [`process`] |
//! | a disk is full and packets are lost in namespaces of a test's own | [`namespace`] |
//! | nothing waits for ever; an error names the server and shows the end of its log | [`error`], [`wait`] |
//!
//! Everything listens on loopback, on ports nobody chose beforehand. The testbed depends on no modax crate: a fault
//! in the code under test cannot hide itself here. Linux only, because it reads `/proc`.
//!
//! ```no_run
//! # async fn example() -> Result<(), modax_testbed::TestbedError> {
//! use modax_testbed::Ground;
//!
//! let ground = Ground::start().await?;
//! let broker = ground.mosquitto().await?;
//! println!("{}", broker.url());
//! broker.kill().await;
//! ground.stop().await;
//! # Ok(())
//! # }
//! ```

pub mod bring;
pub mod broker;
pub mod device;
pub mod error;
pub mod ground;
mod guardian;
pub mod namespace;
pub mod oracle;
pub mod pki;
pub mod prober;
pub mod process;
pub mod proxy;
pub mod servers;
pub mod wait;

pub use error::TestbedError;
pub use ground::Ground;
pub use prober::Prober;
pub use process::{Process, Spawn};
pub use rustix::process::Signal;
pub use servers::{
    etcd::{EtcdCluster, EtcdNode},
    haproxy::Haproxy,
    mosquitto::{Mosquitto, MosquittoOptions},
    nats::{NatsCluster, NatsNode, NatsOptions, Stored},
    patroni::{PatroniCluster, PatroniNode, PatroniOptions},
    postgres::{PostgresCluster, PostgresNode, PostgresOptions},
};

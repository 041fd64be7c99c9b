//! Patroni's REST API as a hint: a change of leader makes the monitor look at once.
//!
//! Never proof. Patroni answers 200 for a leader from the moment it holds the lock, more than a second before that
//! server can be written; and it may lie, hang, or answer with a gigabyte. So: a deadline, a limit of size, and
//! nothing but "look there".

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Shared;
use crate::error::ConfigError;
use std::sync::Arc;

/// Between two questions. Cheaper than a probe, and only a hint.
const INTERVAL: Duration = Duration::from_millis(500);

/// For the whole exchange.
const DEADLINE: Duration = Duration::from_secs(2);

/// A cluster's description has a few kilobytes.
const MOST_BYTES: usize = 1024 * 1024;

/// One REST API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Api {
    host: String,
    port: u16,
}

impl Api {
    /// Reads `http://host[:port]`, port 8008 by default.
    pub(crate) fn read(url: &str) -> Result<Self, ConfigError> {
        let fail = |reason| {
            // Credentials stand before the last `@` of the authority.
            let shown = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
            ConfigError::Patroni { url: shown.to_owned(), reason }
        };
        let rest = url.trim().strip_prefix("http://").ok_or_else(|| fail("only http:// is supported"))?;
        let authority = rest.trim_end_matches('/');
        if authority.contains('@') {
            return Err(fail("credentials are not supported"));
        }
        if authority.contains(['/', '?', '#']) {
            return Err(fail("a path has no place there"));
        }
        let uri: hyper::http::uri::Authority = authority.parse().map_err(|_| fail("no host"))?;
        if uri.host().is_empty() {
            return Err(fail("no host"));
        }
        let host = uri.host().trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(8008) })
    }
}

/// Who leads, by the cluster's own description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaderHint {
    host: String,
    port: u16,
    timeline: Option<u64>,
}

/// Asks until it is aborted.
pub(crate) async fn run(api: Api, shared: Arc<Shared>) {
    let mut known: Option<LeaderHint> = None;
    loop {
        let leader = tokio::time::timeout(DEADLINE, ask(&api)).await.ok().flatten();
        if leader.is_some() && leader != known {
            if let Some(hint) = &leader {
                look_at(&shared, hint);
            }
            known = leader;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The monitor looks at the new leader and at whom it takes for the primary. An address it does not know means that
/// Patroni and the connection URL name servers differently: then it looks at all.
fn look_at(shared: &Shared, hint: &LeaderHint) {
    let id = crate::topology::NodeId::new(&hint.host, hint.port);
    match shared.index_of(&id) {
        Some(node) => {
            shared.suspect(node);
            if let Some(node) = shared.topology().primary().and_then(|primary| shared.index_of(&primary.id)) {
                shared.suspect(node);
            }
        }
        None => (0..shared.servers.len()).for_each(|node| shared.suspect(node)),
    }
}

/// One exchange. `None` for whatever went wrong: a hint that is not there.
async fn ask(api: &Api) -> Option<LeaderHint> {
    let stream = TcpStream::connect((api.host.as_str(), api.port)).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get("/cluster")
        .header("host", format!("{}:{}", api.host, api.port))
        .body(Empty::<Bytes>::new())
        .ok()?;
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await.ok()?.to_bytes();
        read_leader(&body)
    };
    // The connection lives no longer than the exchange.
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // Closed by the server behind its answer, which may still wait to be read.
        _ = connection => exchange.await,
    }
}

/// Reads the member that leads out of `GET /cluster`.
pub(crate) fn read_leader(body: &[u8]) -> Option<LeaderHint> {
    let cluster: serde_json::Value = serde_json::from_slice(body).ok()?;
    cluster.get("members")?.as_array()?.iter().find_map(|member| {
        let role = member.get("role")?.as_str()?;
        if !matches!(role, "leader" | "master" | "primary" | "standby_leader") {
            return None;
        }
        Some(LeaderHint {
            host: member.get("host")?.as_str()?.to_owned(),
            port: u16::try_from(member.get("port")?.as_u64()?).ok()?,
            timeline: member.get("timeline").and_then(serde_json::Value::as_u64),
        })
    })
}

//! Who leads what in the NATS cluster, and asking a leader to step down: a request of NATS's own protocol, which is
//! lines of text.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::Http;

/// Something replicated that has a leader.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Led {
    /// `$MQTT_msgs`
    pub(crate) stream: String,
    /// A consumer of the stream (one for each subscription of a session), or the stream itself.
    pub(crate) consumer: Option<String>,
}

/// Who leads what.
pub(crate) type Leaders = BTreeMap<Led, String>;

/// Where a node listens beside MQTT: for NATS's own protocol, and for questions about its state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doors {
    pub(crate) clients: SocketAddr,
    pub(crate) monitor: SocketAddr,
}

/// Read from the node's configuration, which the testbed wrote.
pub(crate) fn doors(ground: &Path, mqtt: SocketAddr) -> Option<Doors> {
    let text = std::fs::read_to_string(ground.join(format!("nats-{}.conf", mqtt.port()))).ok()?;
    let address = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_matches('"').parse().ok()
    };
    Some(Doors { clients: address("listen:")?, monitor: address("http:")? })
}

/// Who leads what, by one node's account; an empty name while it is being elected.
pub(crate) async fn leaders(http: &Http, monitor: SocketAddr) -> Option<Leaders> {
    let url = format!("http://{monitor}/jsz?accounts=true&streams=true&consumers=true");
    let answer = http.get(&url, Duration::from_secs(2)).await.ok()?;
    Some(parse(&answer.json()))
}

/// Whether all nodes agree on who leads what, nothing is without a leader, and `node` leads nothing.
pub(crate) fn settled_without(accounts: &[Leaders], node: &str) -> bool {
    let mut agreed = Leaders::new();
    for (led, leader) in accounts.iter().flatten() {
        let known = agreed.entry(led.clone()).or_insert_with(|| leader.clone());
        if leader.is_empty() || known != leader || leader == node {
            return false;
        }
    }
    !agreed.is_empty()
}

/// The MQTT client ids connected to a node.
pub(crate) async fn clients_of(http: &Http, monitor: SocketAddr) -> Vec<String> {
    let Ok(answer) = http.get(&format!("http://{monitor}/connz?limit=1000"), Duration::from_secs(2)).await else {
        return Vec::new();
    };
    let connections = answer.json()["connections"].as_array().cloned().unwrap_or_default();
    connections.iter().filter_map(|connection| connection["mqtt_client"].as_str().map(str::to_owned)).collect()
}

/// Who leads the cluster itself: whoever makes sessions and subscriptions. Only an election changes it.
pub(crate) async fn meta_leader(http: &Http, monitor: SocketAddr) -> Option<String> {
    let answer = http.get(&format!("http://{monitor}/jsz"), Duration::from_secs(2)).await.ok()?;
    let leader = answer.json()["meta_cluster"]["leader"].as_str()?.to_owned();
    (!leader.is_empty()).then_some(leader)
}

fn parse(jsz: &Value) -> Leaders {
    let leader = |detail: &Value| detail["cluster"]["leader"].as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut leaders = Leaders::new();
    for stream in list(&jsz["account_details"]).iter().flat_map(|account| list(&account["stream_detail"])) {
        let name = stream["name"].as_str().unwrap_or_default().to_owned();
        for consumer in &list(&stream["consumer_detail"]) {
            let led = Led { stream: name.clone(), consumer: consumer["name"].as_str().map(str::to_owned) };
            leaders.insert(led, leader(consumer));
        }
        leaders.insert(Led { stream: name, consumer: None }, leader(&stream));
    }
    leaders
}

/// Asks the leader of this to let another node lead. The answer is not read: whether it helped is seen in
/// [`leaders`].
pub(crate) async fn step_down(clients: SocketAddr, led: &Led) -> std::io::Result<()> {
    let subject = match &led.consumer {
        Some(consumer) => format!("$JS.API.CONSUMER.LEADER.STEPDOWN.{}.{consumer}", led.stream),
        None => format!("$JS.API.STREAM.LEADER.STEPDOWN.{}", led.stream),
    };
    let conversation = async {
        let mut socket = TcpStream::connect(clients).await?;
        let mut buffer = [0_u8; 8192];
        // The server speaks first: INFO.
        let _ = socket.read(&mut buffer).await?;
        let request = format!("CONNECT {{\"verbose\":false}}\r\nPUB {subject} _INBOX.demo 0\r\n\r\nPING\r\n");
        socket.write_all(request.as_bytes()).await?;
        // PONG: the request has been taken in.
        let mut heard = Vec::new();
        while !heard.windows(4).any(|window| window == b"PONG") {
            let read = socket.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            heard.extend_from_slice(&buffer[..read]);
        }
        Ok(())
    };
    timeout(Duration::from_secs(2), conversation).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn jsz(consumer: &str, stream: &str) -> Value {
        json!({ "account_details": [{ "stream_detail": [
            { "name": "$MQTT_msgs", "cluster": { "leader": stream }, "consumer_detail": [
                { "name": "a", "cluster": { "leader": consumer } },
            ] },
        ] }] })
    }

    #[test]
    fn streams_and_consumers_are_found_with_their_leaders() {
        let leaders = parse(&jsz("n2", "n1"));
        let led = |consumer: Option<&str>| Led { stream: "$MQTT_msgs".into(), consumer: consumer.map(str::to_owned) };
        assert_eq!(leaders.get(&led(None)).map(String::as_str), Some("n1"));
        assert_eq!(leaders.get(&led(Some("a"))).map(String::as_str), Some("n2"));
        assert!(parse(&json!({})).is_empty());
    }

    #[test]
    fn a_node_is_free_when_all_agree_that_others_lead() {
        let account = |consumer, stream| parse(&jsz(consumer, stream));
        assert!(settled_without(&[account("n2", "n1"), account("n2", "n1")], "n3"));
        assert!(!settled_without(&[account("n2", "n1"), account("n2", "n1")], "n2"));
        assert!(!settled_without(&[account("n2", "n1"), account("n1", "n1")], "n3"));
        assert!(!settled_without(&[account("", "n1"), account("", "n1")], "n3"));
        assert!(!settled_without(&[], "n3"));
    }
}

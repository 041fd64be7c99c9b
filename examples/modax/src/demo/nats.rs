//! Who leads what in the NATS cluster, and asking a leader to step down: a request of NATS's own protocol, which is
//! lines of text.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::Http;

/// Something replicated that has a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Led {
    /// `$MQTT_msgs`
    pub(crate) stream: String,
    /// A consumer of the stream (one for each subscription of a session), or the stream itself.
    pub(crate) consumer: Option<String>,
}

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

/// What one node leads, by its own account.
pub(crate) async fn led_by(http: &Http, monitor: SocketAddr, node: &str) -> Option<Vec<Led>> {
    let url = format!("http://{monitor}/jsz?accounts=true&streams=true&consumers=true");
    let answer = http.get(&url, Duration::from_secs(2)).await.ok()?;
    Some(parse(&answer.json(), node))
}

/// Who leads the cluster itself: whoever makes sessions and subscriptions. Only an election changes it.
pub(crate) async fn meta_leader(http: &Http, monitor: SocketAddr) -> Option<String> {
    let answer = http.get(&format!("http://{monitor}/jsz"), Duration::from_secs(2)).await.ok()?;
    let leader = answer.json()["meta_cluster"]["leader"].as_str()?.to_owned();
    (!leader.is_empty()).then_some(leader)
}

fn parse(jsz: &Value, node: &str) -> Vec<Led> {
    let leads = |detail: &Value| detail["cluster"]["leader"] == node;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut led = Vec::new();
    for stream in list(&jsz["account_details"]).iter().flat_map(|account| list(&account["stream_detail"])) {
        let name = stream["name"].as_str().unwrap_or_default().to_owned();
        for consumer in list(&stream["consumer_detail"]).iter().filter(|consumer| leads(consumer)) {
            let consumer = consumer["name"].as_str().map(str::to_owned);
            led.push(Led { stream: name.clone(), consumer });
        }
        if leads(&stream) {
            led.push(Led { stream: name, consumer: None });
        }
    }
    led
}

/// Asks the leader of this to let another node lead. The answer is not read: whether it helped is seen in
/// [`led_by`].
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

    #[test]
    fn streams_and_consumers_of_a_node_are_found() {
        let jsz = json!({ "account_details": [{ "stream_detail": [
            { "name": "$MQTT_msgs", "cluster": { "leader": "n1" }, "consumer_detail": [
                { "name": "a", "cluster": { "leader": "n2" } },
                { "name": "b", "cluster": { "leader": "n1" } },
            ] },
            { "name": "$MQTT_sess", "cluster": { "leader": "n2" } },
        ] }] });
        let led = |stream: &str, consumer: Option<&str>| Led {
            stream: stream.to_owned(),
            consumer: consumer.map(str::to_owned),
        };
        assert_eq!(parse(&jsz, "n1"), [led("$MQTT_msgs", Some("b")), led("$MQTT_msgs", None)]);
        assert_eq!(parse(&jsz, "n2"), [led("$MQTT_msgs", Some("a")), led("$MQTT_sess", None)]);
        assert!(parse(&json!({}), "n1").is_empty());
    }
}

//! As much HTTP as asking a server for its state needs: one request, the connection closed after the answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Loopback answers in milliseconds; a server that is stopped never does.
const LIMIT: Duration = Duration::from_secs(3);

/// More than any state that is asked for.
const SIZE: u64 = 4 << 20;

/// Status and body of the answer to GET, or nothing if there was no proper answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(address, "GET", path, "", LIMIT).await
}

/// The answer to GET as JSON, if the status is 2xx.
pub(crate) async fn json(address: SocketAddr, path: &'static str) -> Option<serde_json::Value> {
    let (status, body) = get(address, path).await?;
    if !(200..300).contains(&status) {
        return None;
    }
    serde_json::from_str(&body).ok()
}

/// Sends one request. HTTP/1.0, so that nobody answers in chunks.
pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> Option<(u16, String)> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(SIZE).read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    };
    tokio::time::timeout(limit, talk).await.ok().flatten()
}

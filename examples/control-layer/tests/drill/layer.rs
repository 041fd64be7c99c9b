//! One control layer under test: the real program, its HTTP interface, its log.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use modax_testbed::{Ground, Process, Spawn, TestbedError, wait};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::LONG;

/// A running layer.
pub(crate) struct Layer {
    /// The process.
    pub(crate) process: Process,
    url: String,
    http: reqwest::Client,
}

impl Layer {
    /// Starts one and waits until it listens.
    pub(crate) async fn start(ground: &Ground, name: &str, pairs: &[(&str, &str)]) -> Result<Self, TestbedError> {
        let mut spawn = Spawn::new(env!("CARGO_BIN_EXE_control-layer"))
            .env("INSTANCE_ID", name)
            .env("API_HOST", "127.0.0.1")
            .env("API_PORT", "0")
            .env("DRAIN_TIME", "0.2")
            .env("AI_ENABLED", "false")
            .log(format!("{name}-{}", ground.port()));
        for (key, value) in pairs {
            spawn = spawn.env(key, value);
        }
        let process = ground.spawn(spawn)?;
        let url = wait::until(LONG, &format!("{name} listens"), || async {
            let log = std::fs::read_to_string(process.log_path()).ok()?;
            let line = log.lines().find(|line| line.contains("\"listening\""))?;
            let line: Value = serde_json::from_str(line).ok()?;
            Some(format!("http://{}", line.get("addr")?.as_str()?))
        })
        .await?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client");
        Ok(Self { process, url, http })
    }

    /// GET: the status and the JSON, null if it is none.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        match self.http.get(format!("{}{path}", self.url)).send().await {
            Ok(answer) => (answer.status(), answer.json().await.unwrap_or(Value::Null)),
            Err(error) => (StatusCode::IM_A_TEAPOT, json!(error.to_string())),
        }
    }

    /// DELETE.
    pub(crate) async fn delete(&self, path: &str) -> StatusCode {
        self.http.delete(format!("{}{path}", self.url)).send().await.expect("an answer").status()
    }

    /// GET as text.
    pub(crate) async fn text(&self, path: &str) -> String {
        self.http.get(format!("{}{path}", self.url)).send().await.expect("an answer").text().await.expect("text")
    }

    /// POST of a command; `Retry-After` as the third part.
    pub(crate) async fn command(&self, body: &Value, key: Option<&str>) -> (StatusCode, Value, bool) {
        self.try_command(body, key).await.expect("an answer")
    }

    /// The same to a layer that may be gone.
    pub(crate) async fn try_command(&self, body: &Value, key: Option<&str>) -> Option<(StatusCode, Value, bool)> {
        let mut request = self.http.post(format!("{}/control/command", self.url)).json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let answer = request.send().await.ok()?;
        let retry = answer.headers().contains_key("retry-after");
        Some((answer.status(), answer.json().await.unwrap_or(Value::Null), retry))
    }

    /// POST of a command that is taken, whatever holds the database up for a moment: the answer.
    pub(crate) async fn taken(&self, body: &Value) -> Value {
        static GIVEN: AtomicU64 = AtomicU64::new(0);
        self.taken_under(body, &format!("taken-{}", GIVEN.fetch_add(1, Ordering::Relaxed))).await
    }

    /// The same under a key of the caller's.
    pub(crate) async fn taken_under(&self, body: &Value, key: &str) -> Value {
        let (status, answer) = self.answered(body, key).await;
        assert_eq!(status, StatusCode::OK, "{body}: {answer}\n{}", self.process.log_tail(20));
        answer
    }

    /// POST of a command, again under its key until the layer had an answer from the database.
    pub(crate) async fn answered(&self, body: &Value, key: &str) -> (StatusCode, Value) {
        let answer = wait::until(LONG, "the database answers", || async {
            let (status, answer, _) = self.try_command(body, Some(key)).await?;
            let is_open =
                status == StatusCode::SERVICE_UNAVAILABLE || answer["details"]["earlier_may_act"] == json!(true);
            (!is_open).then_some((status, answer))
        })
        .await;
        answer.unwrap_or_else(|error| panic!("{body}: {error}\n{}", self.process.log_tail(20)))
    }

    /// Waits until the audit of the command with this answer is closed.
    pub(crate) async fn settled(&self, answer: &Value) -> Value {
        let path = format!("/control/commands/{}", answer["command_id"].as_str().expect("an id"));
        let is_closed = |status: StatusCode, body: &Value| status == StatusCode::OK && body["audit"] != "accepted";
        self.until("it is settled", &path, is_closed).await
    }

    /// Waits until `path` answers so.
    pub(crate) async fn until(&self, what: &str, path: &str, holds: impl Fn(StatusCode, &Value) -> bool) -> Value {
        let answer = wait::until(LONG, what, || async {
            let (status, body) = self.get(path).await;
            holds(status, &body).then_some(body)
        })
        .await;
        match answer {
            Ok(body) => body,
            Err(error) => panic!("{error}\nlast: {:?}\n{}", self.get(path).await, self.process.log_tail(30)),
        }
    }

    /// Waits until it is ready.
    pub(crate) async fn until_ready(&self) {
        self.until("it is ready", "/ready", |status, _| status == StatusCode::OK).await;
    }

    /// Waits until it is ready and the plant safe by what it hears.
    pub(crate) async fn until_safe(&self) {
        self.until("it is safe", "/status", |status, body| status == StatusCode::OK && body["is_safe"] == true).await;
    }

    /// A request byte for byte as given, on a connection of its own: the status, the JSON (null if it is none), and what was heard.
    pub(crate) async fn raw(&self, request: &[u8]) -> (u16, Value, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket =
            tokio::net::TcpStream::connect(self.url.trim_start_matches("http://")).await.expect("a connection");
        // A server that has refused a request may stop reading it.
        let _ = socket.write_all(request).await;
        let (mut heard, mut chunk) = (Vec::new(), [0; 4096]);
        let reading = async {
            loop {
                match socket.read(&mut chunk).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) => heard.extend_from_slice(&chunk[..n]),
                }
            }
        };
        let shown = String::from_utf8_lossy(&request[..request.len().min(120)]).into_owned();
        assert!(tokio::time::timeout(LONG, reading).await.is_ok(), "no end of the answer to {shown}");
        let text = String::from_utf8_lossy(&heard).into_owned();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or(Value::Null), text)
    }

    /// Opens a WebSocket by hand and reads until `wanted` comes.
    pub(crate) async fn hears(&self, path: &str, wanted: &str) -> bool {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.url.trim_start_matches("http://");
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.expect("written");
        let (mut heard, mut chunk) = (Vec::new(), [0; 4096]);
        let reading = async {
            while !String::from_utf8_lossy(&heard).contains(wanted) {
                let n = socket.read(&mut chunk).await.expect("read");
                assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&heard));
                heard.extend_from_slice(&chunk[..n]);
            }
        };
        tokio::time::timeout(LONG, reading).await.is_ok()
    }

    /// GET with an API key.
    pub(crate) async fn get_with_key(&self, path: &str, key: &str) -> StatusCode {
        let request = self.http.get(format!("{}{path}", self.url)).header("X-API-Key", key);
        request.send().await.expect("an answer").status()
    }

    /// A counter of `/metrics`.
    pub(crate) async fn counter(&self, name: &str) -> u64 {
        let text = self.text("/metrics").await;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }
}

//! What a stream holds, read over NATS's own protocol: for an oracle that does not rely on a subscriber's session.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For one answer of a cluster that is whole.
const ANSWER: Duration = Duration::from_secs(10);
/// No message of a test is larger.
const LARGEST: usize = 1 << 20;
/// What JetStream answers behind the last message.
const NO_MESSAGE_FOUND: u64 = 10037;

/// A message that a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the stream.
    pub sequence: u64,
    /// `$MQTT.msgs.drill.0` for the MQTT topic `drill/0`.
    pub subject: String,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// All messages of a stream, in their order.
pub(super) async fn read(clients: SocketAddr, stream: &str) -> io::Result<Vec<Stored>> {
    let mut conversation = Conversation::begin(clients).await?;
    let mut stored = Vec::new();
    let mut sequence = 1;
    while let Some(message) = conversation.message(stream, sequence).await? {
        sequence = message.sequence + 1;
        stored.push(message);
    }
    Ok(stored)
}

struct Conversation {
    socket: BufReader<TcpStream>,
}

impl Conversation {
    async fn begin(clients: SocketAddr) -> io::Result<Self> {
        let mut socket = BufReader::new(TcpStream::connect(clients).await?);
        socket.write_all(b"CONNECT {\"verbose\":false}\r\nSUB _INBOX.stored 1\r\n").await?;
        Ok(Self { socket })
    }

    /// The first message of a stream at `sequence` or behind it.
    async fn message(&mut self, stream: &str, sequence: u64) -> io::Result<Option<Stored>> {
        let question = format!("{{\"seq\":{sequence},\"next_by_subj\":\">\"}}");
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        let request = format!("PUB {subject} _INBOX.stored {}\r\n{question}\r\n", question.len());
        self.socket.write_all(request.as_bytes()).await?;
        let answer = timeout(ANSWER, self.answer()).await??;
        if let Some(error) = answer.get("error") {
            let is_end = error.get("err_code").and_then(Value::as_u64) == Some(NO_MESSAGE_FOUND);
            return if is_end { Ok(None) } else { Err(io::Error::other(format!("{stream}: {error}"))) };
        }
        let message = answer.get("message").and_then(parse);
        message.map(Some).ok_or_else(|| io::Error::other(format!("{stream}: not understood: {answer}")))
    }

    /// The next message to our inbox; pings are answered meanwhile.
    async fn answer(&mut self) -> io::Result<Value> {
        loop {
            let mut line = String::new();
            if self.socket.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut words = line.split_whitespace();
            match words.next() {
                Some("PING") => self.socket.write_all(b"PONG\r\n").await?,
                Some("MSG") => {
                    let length = words.last().and_then(|length| length.parse().ok());
                    let length: usize = length.filter(|length| *length <= LARGEST).ok_or(io::ErrorKind::InvalidData)?;
                    let mut body = vec![0; length + 2];
                    self.socket.read_exact(&mut body).await?;
                    return Ok(serde_json::from_slice(body.trim_ascii_end())?);
                }
                Some("-ERR") => return Err(io::Error::other(line)),
                _ => {}
            }
        }
    }
}

fn parse(message: &Value) -> Option<Stored> {
    // An empty payload has no field of its own.
    let data = message.get("data").and_then(Value::as_str).unwrap_or_default();
    Some(Stored {
        sequence: message.get("seq")?.as_u64()?,
        subject: message.get("subject")?.as_str()?.to_owned(),
        payload: BASE64_STANDARD.decode(data).ok()?,
    })
}

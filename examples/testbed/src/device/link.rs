//! The device's connection: one broker at a time, the next one when it does not answer.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Codec, Connect, ConnectReturnCode, Packet, PubAck, Subscribe};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout};
use tokio_util::codec::Framed;

use super::Shared;

const COMMANDS: &str = "modax/control/commands";

/// Pause after a round over all brokers in which none answered.
const PAUSE: Duration = Duration::from_millis(200);

/// The broker ends the connection after one and a half of it without a packet.
const KEEP_ALIVE: u16 = 15;

/// Between two PINGREQs: the device publishes all the time, so this only matters when it is told to be quiet.
const PING: Duration = Duration::from_secs(5);

type Wire = Framed<TcpStream, Codec>;

pub(super) async fn run(shared: Arc<Shared>) {
    let mut failed_in_a_row = 0;
    for broker in shared.config.brokers.iter().cycle() {
        let reason = match open(&shared, broker).await {
            Ok(wire) => {
                failed_in_a_row = 0;
                shared.readings().connected(broker);
                shared.changed();
                carry(&shared, wire).await
            }
            Err(error) => {
                failed_in_a_row += 1;
                error
            }
        };
        shared.readings().left(broker, reason.to_string());
        shared.changed();
        if failed_in_a_row >= shared.config.brokers.len() {
            failed_in_a_row = 0;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn late(what: &'static str) -> impl Fn(tokio::time::error::Elapsed) -> io::Error {
    move |_| io::Error::new(io::ErrorKind::TimedOut, format!("no {what} in time"))
}

async fn open(shared: &Shared, broker: &str) -> io::Result<Wire> {
    let config = &shared.config;
    let address = broker.strip_prefix("mqtt://").unwrap_or(broker);
    let connecting = TcpStream::connect(address);
    let stream = timeout(config.answer_deadline, connecting).await.map_err(late("connection"))??;
    stream.set_nodelay(true)?;
    let mut wire = Framed::new(stream, Codec { max_incoming_size: 1 << 20, max_outgoing_size: 1 << 20 });
    let mut connect = Connect::new(&config.device_id);
    connect.clean_session = config.clean_session;
    connect.keep_alive = KEEP_ALIVE;
    send(&mut wire, Packet::Connect(connect)).await?;
    match timeout(config.answer_deadline, next(&mut wire)).await.map_err(late("CONNACK"))?? {
        Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {}
        other => return Err(io::Error::other(format!("refused: {other:?}"))),
    }
    // Packet ids of publishes come from the other end of the range.
    let subscribe = Subscribe { pkid: u16::MAX, ..Subscribe::new(COMMANDS, QoS::AtLeastOnce) };
    send(&mut wire, Packet::Subscribe(subscribe)).await?;
    Ok(wire)
}

async fn send(wire: &mut Wire, packet: Packet) -> io::Result<()> {
    wire.send(packet).await.map_err(io::Error::other)
}

async fn next(wire: &mut Wire) -> io::Result<Packet> {
    match wire.next().await {
        Some(packet) => packet.map_err(io::Error::other),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Returns why the connection is over.
async fn carry(shared: &Shared, wire: Wire) -> io::Error {
    let mut reboots = shared.reboots.subscribe();
    tokio::select! {
        result = exchange(shared, wire) => result.err().unwrap_or_else(|| io::Error::other("closed")),
        _ = reboots.changed() => io::Error::other("rebooted"),
    }
}

async fn exchange(shared: &Shared, mut wire: Wire) -> io::Result<()> {
    let deadline = shared.config.answer_deadline;
    let mut ping = tokio::time::interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        timeout(deadline, send_ready(shared, &mut wire)).await.map_err(late("room to write"))??;
        let answer_due = shared.readings().answer_due(deadline);
        let overdue = async {
            match answer_due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            packet = next(&mut wire) => handle(shared, &mut wire, packet?).await?,
            () = overdue => return Err(late_puback()),
            () = shared.ready.notified() => {}
            _ = ping.tick() => send(&mut wire, Packet::PingReq).await?,
        }
    }
}

fn late_puback() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no PUBACK in time")
}

async fn send_ready(shared: &Shared, wire: &mut Wire) -> io::Result<()> {
    loop {
        let publish = shared.readings().next_to_send(Instant::now());
        let Some(publish) = publish else { return wire.flush().await.map_err(io::Error::other) };
        wire.feed(Packet::Publish(publish)).await.map_err(io::Error::other)?;
    }
}

async fn handle(shared: &Shared, wire: &mut Wire, packet: Packet) -> io::Result<()> {
    match packet {
        Packet::PubAck(ack) => shared.readings().acknowledged(ack.pkid),
        Packet::Publish(publish) => {
            if publish.topic == COMMANDS {
                let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                shared.readings().command(&publish.payload, u64::try_from(unix.as_millis()).unwrap_or(u64::MAX));
            }
            if publish.qos != QoS::AtMostOnce {
                send(wire, Packet::PubAck(PubAck::new(publish.pkid))).await?;
            }
        }
        _ => {}
    }
    shared.changed();
    Ok(())
}

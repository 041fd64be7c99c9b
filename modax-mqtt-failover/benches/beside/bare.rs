//! No client at all: PUBLISH packets made beforehand, written as many at a time as the window has room for, and the
//! acknowledgements counted by their bytes. What is left is the broker and the kernel.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::contestant::{Broker, INFLIGHT, PAYLOAD};

/// CONNECT, clean, as `bare`; MQTT 3.1.1, 3.1.
const CONNECT: &[u8] = b"\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04bare";
/// Bytes of a CONNACK and of a PUBACK.
const ANSWER: usize = 4;
/// Answers gather before they are read: waking us for each would cost the broker too. The system
/// makes some 60 µs of this.
const GATHER: Duration = Duration::from_micros(10);
const SILENCE: Duration = Duration::from_secs(30);

/// On a thread of its own: no runtime stands between.
pub(crate) async fn throughput(broker: &Broker, messages: u32) -> io::Result<f64> {
    let addr = broker.addr();
    tokio::task::spawn_blocking(move || flood(addr, messages)).await?
}

fn flood(addr: SocketAddr, messages: u32) -> io::Result<f64> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(CONNECT)?;
    stream.read_exact(&mut [0; ANSWER])?;
    let all: Vec<u8> =
        (0..messages).flat_map(|number| publish(u16::try_from(number % 65_535 + 1).unwrap_or(1))).collect();
    let each = publish(1).len();
    let (total, window) = (usize::try_from(messages).unwrap_or(0), usize::from(INFLIGHT));
    let (mut sent, mut acked, mut answers) = (0, 0, 0);
    let mut buffer = vec![0; 64 << 10];
    let started = Instant::now();
    while acked < total {
        let next = total.min(acked + window);
        if sent < next {
            stream.write_all(&all[sent * each..next * each])?;
            sent = next;
        }
        std::thread::sleep(GATHER);
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => answers += bytes,
        }
        // As ours does, or Nagle's algorithm on the broker's side would be measured.
        socket2::SockRef::from(&stream).set_tcp_quickack(true)?;
        acked = answers / ANSWER;
    }
    Ok(f64::from(messages) / started.elapsed().as_secs_f64())
}

/// QoS 1 to `bench`.
fn publish(id: u16) -> Vec<u8> {
    let length = u8::try_from(2 + 5 + 2 + PAYLOAD.len()).unwrap_or(u8::MAX);
    [&[0x32, length, 0, 5][..], b"bench", &id.to_be_bytes(), &PAYLOAD].concat()
}

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Direction, Fault, Proxy};

const DEADLINE: Duration = Duration::from_secs(30);

/// A server that answers every byte with itself and reports what it read.
async fn echo() -> (SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (seen, reports) = mpsc::channel(1024);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let _ = seen.send(buffer[..length].to_vec()).await;
                    if stream.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
                let _ = seen.send(Vec::new()).await;
            });
        }
    });
    (addr, reports)
}

async fn read_exactly(stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    timeout(DEADLINE, stream.read_exact(&mut buffer)).await.expect("an answer in time")?;
    Ok(buffer)
}

async fn seen_until_end(reports: &mut mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(part) = timeout(DEADLINE, reports.recv()).await.expect("the server reports in time") {
        if part.is_empty() {
            break;
        }
        all.extend(part);
    }
    all
}

async fn settled(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what} in time"));
}

#[tokio::test]
async fn without_faults_bytes_and_ends_pass_both_ways() {
    let (server, mut reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();

    client.write_all(b"hello").await.unwrap();

    assert_eq!(read_exactly(&mut client, 5).await.unwrap(), b"hello");
    client.shutdown().await.unwrap();
    assert_eq!(seen_until_end(&mut reports).await, b"hello");
    assert_eq!(proxy.fired(), super::Counts::default());
    settled("the connection ends", || proxy.connections() == 0).await;
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn a_blackhole_holds_bytes_and_healing_delivers_them() {
    let (server, _reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"a").await.unwrap();
    read_exactly(&mut client, 1).await.unwrap();

    proxy.set(Direction::ToClient, Fault::Blackhole);
    client.write_all(b"b").await.unwrap();
    settled("the blackhole fires", || proxy.fired().blackhole == 1).await;
    assert!(timeout(Duration::from_millis(50), client.read_u8()).await.is_err());

    proxy.clear();
    assert_eq!(read_exactly(&mut client, 1).await.unwrap(), b"b");
}

#[tokio::test]
async fn a_connection_made_into_a_blackhole_is_accepted_and_silent() {
    let (server, mut reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    proxy.set(Direction::Both, Fault::Blackhole);

    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"x").await.unwrap();

    settled("the blackhole fires", || proxy.fired().blackhole == 1).await;
    assert!(reports.try_recv().is_err());
    proxy.clear();
    assert_eq!(read_exactly(&mut client, 1).await.unwrap(), b"x");
}

#[tokio::test]
async fn a_cut_after_bytes_delivers_exactly_these_and_no_answer() {
    let (server, mut reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    proxy.set(Direction::ToServer, Fault::CutAfterBytes(7));
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();

    client.write_all(b"0123456789").await.unwrap();

    assert_eq!(seen_until_end(&mut reports).await, b"0123456");
    assert_eq!(proxy.fired().cut, 1);
    let answer = timeout(DEADLINE, client.read_u8()).await.unwrap();
    assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_cut_after_a_match_finds_it_across_pieces_and_fires_once() {
    let (server, mut reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"begin COM").await.unwrap();
    read_exactly(&mut client, 9).await.unwrap();
    proxy.set(Direction::ToServer, Fault::CutAfterMatch(b"OK".to_vec()));
    client.write_all(b"MIT O").await.unwrap();
    read_exactly(&mut client, 5).await.unwrap();

    client.write_all(b"K and more").await.unwrap();

    assert_eq!(seen_until_end(&mut reports).await, b"begin COMMIT OK");
    assert!(client.read_u8().await.is_err());
    assert_eq!(proxy.fired().cut, 1);
    let mut second = TcpStream::connect(proxy.addr()).await.unwrap();
    second.write_all(b"OK").await.unwrap();
    assert_eq!(read_exactly(&mut second, 2).await.unwrap(), b"OK");
    assert_eq!(proxy.fired().cut, 1);
}

#[tokio::test]
async fn a_cut_towards_the_client_gives_it_the_bytes_before() {
    let (server, _reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    proxy.set(Direction::ToClient, Fault::CutAfterMatch(b"ack".to_vec()));
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();

    client.write_all(b"one ack two").await.unwrap();

    let mut got = Vec::new();
    timeout(DEADLINE, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, b"one ack");
}

#[tokio::test]
async fn a_reset_and_cut_all_reach_both_sides() {
    let (server, mut reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    proxy.set(Direction::ToServer, Fault::Reset);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let answer = timeout(DEADLINE, client.read_u8()).await.unwrap();
    assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.fired().reset, 1);
    assert_eq!(seen_until_end(&mut reports).await, b"");

    proxy.clear();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"y").await.unwrap();
    read_exactly(&mut client, 1).await.unwrap();
    proxy.cut_all();
    let answer = timeout(DEADLINE, client.read_u8()).await.unwrap();
    assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.fired().reset, 2);
}

#[tokio::test]
async fn refusing_is_in_force_at_once_and_heals_on_the_same_port() {
    let (server, _reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    let mut standing = TcpStream::connect(proxy.addr()).await.unwrap();
    standing.write_all(b"a").await.unwrap();
    read_exactly(&mut standing, 1).await.unwrap();

    for round in 1..=3 {
        proxy.set(Direction::Both, Fault::Refuse);
        let refused = TcpStream::connect(proxy.addr()).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(proxy.fired().refuse, round);
        standing.write_all(b"b").await.unwrap();
        assert_eq!(read_exactly(&mut standing, 1).await.unwrap(), b"b");

        proxy.clear();
        let mut again = TcpStream::connect(proxy.addr()).await.unwrap();
        again.write_all(b"c").await.unwrap();
        assert_eq!(read_exactly(&mut again, 1).await.unwrap(), b"c");
    }
}

#[tokio::test]
async fn a_toggled_link_falls_resets_and_comes_back() {
    let (server, _reports) = echo().await;
    let proxy = Proxy::start(server).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"a").await.unwrap();
    read_exactly(&mut client, 1).await.unwrap();

    let millis = Duration::from_millis;
    proxy.set(Direction::Both, Fault::Toggle { up: millis(30), down: millis(30) });

    assert!(TcpStream::connect(proxy.addr()).await.is_err());
    assert!(timeout(DEADLINE, client.read_u8()).await.unwrap().is_err());
    settled("three falls", || proxy.fired().toggle >= 3).await;
    proxy.clear();
    assert!(TcpStream::connect(proxy.addr()).await.is_ok());
}

#[tokio::test]
async fn latency_slices_and_rate_keep_every_byte_in_order() {
    let (server, _reports) = echo().await;
    let proxy = Proxy::start_seeded(server, 7).await.unwrap();
    let millis = Duration::from_millis;
    proxy.set(Direction::Both, Fault::Latency { fixed: millis(2), jitter: millis(4) });
    proxy.set(Direction::ToServer, Fault::Slice { bytes: 100, delay: Duration::ZERO });
    proxy.set(Direction::ToClient, Fault::Rate { bytes_per_second: 1_000_000 });
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let sent: Vec<u8> = (0..10_000_u32).map(|byte| u8::try_from(byte % 251).unwrap()).collect();

    client.write_all(&sent).await.unwrap();

    assert_eq!(read_exactly(&mut client, sent.len()).await.unwrap(), sent);
    let fired = proxy.fired();
    assert!(fired.latency >= 2 && fired.slice >= 100 && fired.rate >= 1, "{fired:?}");
}

#[tokio::test]
async fn a_reset_by_the_server_reaches_the_client_as_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (server, _) = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();

    server.set_zero_linger().unwrap();
    drop(server);

    let answer = timeout(DEADLINE, client.read_u8()).await.unwrap();
    assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

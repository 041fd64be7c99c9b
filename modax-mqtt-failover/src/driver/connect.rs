//! Opens a transport: name to addresses at each dial, all of them, one after the other at short intervals.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
};

use crate::broker::Broker;

/// The next address joins the race after this, or as soon as one has failed (RFC 8305, section 8: 250 ms recommended,
/// 10 ms at least; brokers stand in plants, not across oceans).
const STAGGER: Duration = Duration::from_millis(100);
/// More addresses than this are not tried in one dial.
const MOST_ADDRESSES: usize = 16;
/// Sent data that is not acknowledged by the other host's kernel for this long ends the connection. Linux only; the
/// judge of silence is faster, this holds when the process itself is starved.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to the first address of `broker` that answers. Has no deadline of its own: the attempt has.
pub(crate) async fn dial(broker: Broker) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host((broker.host(), broker.port())).await?.take(MOST_ADDRESSES).collect();
    let mut waiting = addresses.into_iter();
    let mut race = JoinSet::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let next = waiting.next();
        let last = next.is_none();
        if let Some(address) = next {
            race.spawn(TcpStream::connect(address));
        }
        let finished = match tokio::time::timeout(STAGGER, race.join_next()).await {
            Ok(finished) => finished,
            Err(_) if last => race.join_next().await,
            Err(_) => continue,
        };
        match finished {
            Some(Ok(Ok(stream))) => return prepare(&stream).map(|()| stream),
            Some(Ok(Err(error))) => failure = error,
            Some(Err(join)) => failure = io::Error::other(join),
            None if last => return Err(failure),
            None => {}
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Small packets, each awaited by somebody: Nagle's delay would be seen as the broker's.
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

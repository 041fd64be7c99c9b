//! Carries one connection: two pumps, each a reader that stamps pieces with the time they are due and a writer that
//! applies the faults.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Shared;
use super::fault::{After, Armed, Cut, Direction, Faults, count};

/// Bytes read at once.
const PIECE: usize = 16 * 1024;

/// Pieces under way in one direction: with latency, the bytes in flight are bounded by this many pieces.
const IN_FLIGHT: usize = 64;

/// How long the receiver of a cut connection is listened to, so that what it still sends is swallowed, not refused.
const SWALLOW: Duration = Duration::from_secs(5);

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both sides have finished.
    Orderly,
    /// Both sides get a reset.
    Reset,
    /// The receiver in this direction keeps what it got; the sender gets a reset.
    Cut(Direction),
}

/// What travels between a pump's reader and its writer.
enum Piece {
    Bytes { due: Instant, bytes: Bytes },
    Fin { due: Instant },
}

pub(super) async fn connection(shared: Arc<Shared>, mut client: TcpStream, number: u64) {
    let mut resets = shared.resets.subscribe();
    let life = Life { shared: &shared, number, resets: *resets.borrow_and_update() };
    let mut server = None;
    // Biased: a cut followed at once by healing must not let out what was held before the cut.
    let end = tokio::select! {
        biased;
        _ = resets.changed() => End::Reset,
        end = carry(life, &mut client, &mut server) => end,
    };
    match end {
        End::Orderly => {}
        End::Reset => {
            reset(client);
            server.into_iter().for_each(reset);
        }
        End::Cut(Direction::ToClient) => {
            server.into_iter().for_each(reset);
            swallow(client).await;
        }
        End::Cut(Direction::ToServer | Direction::Both) => {
            reset(client);
            if let Some(server) = server {
                swallow(server).await;
            }
        }
    }
    shared.tally.ended();
}

/// A connection, as its two pumps know it.
#[derive(Clone, Copy)]
struct Life<'a> {
    shared: &'a Shared,
    number: u64,
    /// Orders to reset that had been given before it began.
    resets: u64,
}

async fn carry(life: Life<'_>, client: &mut TcpStream, server: &mut Option<TcpStream>) -> End {
    let mut faults = life.shared.faults.subscribe();
    hold(life, &mut faults, Direction::ToServer).await;
    let upstream = life.shared.wire().upstream;
    let Ok(connected) = TcpStream::connect(upstream).await else { return End::Reset };
    let server = server.insert(connected);
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);

    let cut = AtomicBool::new(false);
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = server.split();
    let up = Pump::new(life, Direction::ToServer, &cut).run(client_reads, server_writes);
    let down = Pump::new(life, Direction::ToClient, &cut).run(server_reads, client_writes);
    tokio::pin!(up, down);
    tokio::select! {
        end = &mut up => if end == End::Orderly { down.await } else { end },
        end = &mut down => if end == End::Orderly { up.await } else { end },
    }
}

/// Closes with a reset instead of an end of stream.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
    drop(stream);
}

/// Ends the stream in order, and throws away what still comes.
async fn swallow(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut sink = [0; 1024];
    let rest = async { while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {} };
    let _ = tokio::time::timeout(SWALLOW, rest).await;
}

/// Waits until no blackhole is in the way; counts when there was one. Does not return where the connection is to be reset: the
/// order may have come before the healing, while this was on its way here.
async fn hold(life: Life<'_>, faults: &mut watch::Receiver<Faults>, direction: Direction) {
    if faults.borrow_and_update().of(direction).blackhole {
        count(&life.shared.tally.blackhole);
        // The sender lives in `shared`, so this cannot fail.
        let _ = faults.wait_for(|faults| !faults.of(direction).blackhole).await;
    }
    if *life.shared.resets.borrow() != life.resets {
        std::future::pending::<()>().await;
    }
}

/// One direction of one connection.
struct Pump<'a> {
    life: Life<'a>,
    direction: Direction,
    faults: watch::Receiver<Faults>,
    random: SplitMix,
    progress: Progress,
    /// Set by whichever pump cuts, so that the other delivers nothing after it.
    cut: &'a AtomicBool,
}

impl<'a> Pump<'a> {
    fn new(life: Life<'a>, direction: Direction, cut: &'a AtomicBool) -> Self {
        let Life { shared, number, .. } = life;
        let faults = shared.faults.subscribe();
        let lane = number << 1 | u64::from(direction == Direction::ToClient);
        let random = SplitMix(shared.seed ^ lane.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { life, direction, faults, random, progress: Progress::default(), cut }
    }

    async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> End {
        let (pieces, queue) = mpsc::channel(IN_FLIGHT);
        let Self { life, direction, faults, random, progress, cut } = self;
        let reading = read(life.shared, direction, faults.clone(), random, from, pieces);
        let writing = Writer { life, direction, faults, progress, cut, to }.run(queue);
        tokio::pin!(reading, writing);
        tokio::select! {
            end = &mut writing => end,
            Err(_) = &mut reading => End::Reset,
        }
    }
}

async fn read(
    shared: &Shared,
    direction: Direction,
    mut faults: watch::Receiver<Faults>,
    mut random: SplitMix,
    mut from: ReadHalf<'_>,
    pieces: mpsc::Sender<Piece>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut newest_due = Instant::now();
    loop {
        let length = from.read(&mut buffer).await?;
        if let Some((fixed, jitter)) = faults.borrow_and_update().of(direction).latency {
            count(&shared.tally.latency);
            newest_due = newest_due.max(Instant::now() + fixed + random.part_of(jitter));
        }
        let (due, bytes) = (newest_due, Bytes::copy_from_slice(&buffer[..length]));
        let piece = if length == 0 { Piece::Fin { due } } else { Piece::Bytes { due, bytes } };
        if pieces.send(piece).await.is_err() || length == 0 {
            return Ok(());
        }
    }
}

struct Writer<'a> {
    life: Life<'a>,
    direction: Direction,
    faults: watch::Receiver<Faults>,
    progress: Progress,
    cut: &'a AtomicBool,
    to: WriteHalf<'a>,
}

impl Writer<'_> {
    async fn run(mut self, mut queue: mpsc::Receiver<Piece>) -> End {
        while let Some(piece) = queue.recv().await {
            let (due, bytes) = match piece {
                Piece::Bytes { due, bytes } => (due, Some(bytes)),
                Piece::Fin { due } => (due, None),
            };
            tokio::time::sleep_until(due).await;
            hold(self.life, &mut self.faults, self.direction).await;
            let Some(bytes) = bytes else {
                let _ = self.to.shutdown().await;
                return End::Orderly;
            };
            if self.cut.load(Ordering::Relaxed) {
                // The other pump is writing its last bytes and will end the connection.
                return std::future::pending().await;
            }
            if let Some(end) = self.deliver(&bytes).await {
                return end;
            }
        }
        // The reader failed and says so itself.
        std::future::pending().await
    }

    async fn deliver(&mut self, bytes: &[u8]) -> Option<End> {
        let armed = self.faults.borrow_and_update().of(self.direction).clone();
        if armed.reset {
            count(&self.life.shared.tally.reset);
            return Some(End::Reset);
        }
        if let Some(cut) = &armed.cut
            && let Some(upto) = self.progress.reaches(cut, bytes)
            && self.fire(cut.number)
        {
            self.cut.store(true, Ordering::Relaxed);
            let _ = self.write(&bytes[..upto], &armed).await;
            return Some(End::Cut(self.direction));
        }
        self.write(bytes, &armed).await.err().map(|_| End::Reset)
    }

    fn fire(&self, cut: u64) -> bool {
        let fired = self.life.shared.faults.send_if_modified(|faults| faults.fire_cut(cut));
        if fired {
            count(&self.life.shared.tally.cut);
        }
        fired
    }

    async fn write(&mut self, bytes: &[u8], armed: &Armed) -> io::Result<()> {
        let Armed { slice, rate, .. } = armed;
        if slice.is_none() && rate.is_none() {
            return self.to.write_all(bytes).await;
        }
        // Ten pieces a second are smooth enough for a slow line.
        let by_rate = rate.map_or(usize::MAX, |rate| usize::try_from(rate.div_ceil(10)).unwrap_or(usize::MAX));
        let size = slice.map_or(usize::MAX, |(size, _)| size).min(by_rate);
        for part in bytes.chunks(size) {
            self.to.write_all(part).await?;
            if let Some((_, delay)) = slice {
                count(&self.life.shared.tally.slice);
                tokio::time::sleep(*delay).await;
            }
            if let Some(rate) = rate {
                count(&self.life.shared.tally.rate);
                tokio::time::sleep(Duration::from_secs_f64(part.len() as f64 / *rate as f64)).await;
            }
        }
        Ok(())
    }
}

/// How far one connection has come towards a cut.
#[derive(Debug, Default)]
struct Progress {
    number: u64,
    bytes: u64,
    /// The end of what was carried, as long as a match can still begin in it.
    tail: Vec<u8>,
}

impl Progress {
    /// How many of `bytes` still pass when the cut falls into them.
    fn reaches(&mut self, cut: &Cut, bytes: &[u8]) -> Option<usize> {
        if self.number != cut.number {
            *self = Self { number: cut.number, ..Self::default() };
        }
        match &cut.after {
            After::Bytes(limit) => {
                let left = usize::try_from(limit.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
                self.bytes = self.bytes.saturating_add(bytes.len() as u64);
                (bytes.len() >= left).then_some(left)
            }
            After::Match(wanted) => {
                let seen = self.tail.len();
                self.tail.extend_from_slice(bytes);
                let found = self.tail.windows(wanted.len().max(1)).position(|window| window == wanted);
                if let Some(at) = found {
                    return Some((at + wanted.len()).saturating_sub(seen));
                }
                let keep = wanted.len().saturating_sub(1).min(self.tail.len());
                self.tail.drain(..self.tail.len() - keep);
                None
            }
        }
    }
}

/// SplitMix64: small, and the same numbers for the same seed on every machine.
#[derive(Clone, Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn part_of(&mut self, most: Duration) -> Duration {
        let fraction = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        most.mul_f64(fraction)
    }
}

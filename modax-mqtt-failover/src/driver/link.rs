//! One transport with its buffers: packets in, packets out, many packets a system call.

use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::wire::{self, WireError};
use crate::{
    packet::{Packet, Version},
    transport::{Traffic, Transport},
};

/// Read at most this much before the driver looks at anything else.
const READ_CHUNK: usize = 64 << 10;
/// No more is encoded while this much waits for the socket.
const WRITE_HIGH: usize = 256 << 10;
/// Nothing is read while this many packets wait for the socket: four for each packet identifier, more than any exchange is owed.
const ANSWERS_HIGH: u64 = 1 << 18;

/// What [`Link::poll`] found.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes were taken by the socket, or it has begun to take none.
    pub(crate) wrote: bool,
    /// Bytes that arrived, of whatever.
    pub(crate) heard: u64,
    /// The other side closed, or the socket failed.
    pub(crate) ended: Option<String>,
}

/// A mark stands for so many bytes: exact enough for a clock, and cheap.
const MARKED: u64 = 4096;

/// Packets that count as written together.
struct Mark {
    /// Bytes encoded before the first of them, and behind the last.
    begin: u64,
    end: u64,
    /// Packets encoded up to there.
    packets: u64,
}

pub(crate) struct Link {
    pub(crate) attempt: u64,
    version: Version,
    transport: Transport,
    /// What had crossed the border to the operating system when we last looked.
    traffic: Traffic,
    input: BytesMut,
    output: BytesMut,
    /// Bytes encoded, taken by the transport, and flushed so far. TLS takes more than it can pass on: only what was
    /// flushed has been written.
    encoded: u64,
    taken: u64,
    written: u64,
    packets_encoded: u64,
    packets_written: u64,
    /// What is not written yet, in order.
    marks: VecDeque<Mark>,
    stalled: Option<Instant>,
}

impl Link {
    pub(crate) fn new(attempt: u64, version: Version, transport: Transport) -> Self {
        Self {
            attempt,
            version,
            traffic: transport.traffic(),
            transport,
            input: BytesMut::with_capacity(READ_CHUNK),
            output: BytesMut::with_capacity(READ_CHUNK),
            encoded: 0,
            taken: 0,
            written: 0,
            packets_encoded: 0,
            packets_written: 0,
            marks: VecDeque::new(),
            stalled: None,
        }
    }

    /// Appends a packet to what is to be written.
    pub(crate) fn send(&mut self, packet: &Packet) -> Result<(), WireError> {
        let before = self.output.len();
        wire::encode(self.version, packet, &mut self.output)?;
        let added = self.output.len().saturating_sub(before);
        self.encoded = self.encoded.saturating_add(u64::try_from(added).unwrap_or(u64::MAX));
        self.packets_encoded = self.packets_encoded.saturating_add(1);
        match self.marks.back_mut() {
            Some(mark) if self.encoded.saturating_sub(mark.begin) <= MARKED => {
                (mark.end, mark.packets) = (self.encoded, self.packets_encoded);
            }
            Some(_) | None => {
                let begin = self.encoded.saturating_sub(u64::try_from(added).unwrap_or(u64::MAX));
                self.marks.push_back(Mark { begin, end: self.encoded, packets: self.packets_encoded });
            }
        }
        Ok(())
    }

    /// The next whole packet that arrived.
    pub(crate) fn receive(&mut self) -> Result<Option<Packet>, WireError> {
        if self.input.is_empty() { Ok(None) } else { wire::decode(self.version, &mut self.input) }
    }

    /// The address of a peer that was greeted and has said nothing at all, though its kernel took the connection.
    pub(crate) fn silent_peer(&self) -> Option<IpAddr> {
        self.transport.peer().filter(|_| self.packets_written > 0 && self.transport.traffic().received == 0)
    }

    /// Whether the operating system carries it.
    pub(crate) fn is_socket(&self) -> bool {
        self.transport.is_socket()
    }

    /// Whether more may be encoded.
    pub(crate) fn has_room(&self) -> bool {
        self.output.len() < WRITE_HIGH
    }

    /// Packets written, whole.
    pub(crate) const fn packets_written(&self) -> u64 {
        self.packets_written
    }

    /// Since when the socket has taken nothing although something waits.
    pub(crate) const fn stalled(&self) -> Option<Instant> {
        self.stalled
    }

    /// Writes and reads what can be without waiting; one step of each. `read` is false while a reader is slow, and in a rest.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, now: impl Fn() -> Instant, read: bool) -> Poll<Progress> {
        let mut progress = Progress::default();
        let was_stalled = self.stalled.is_some();
        match self.poll_write(context, now) {
            Poll::Ready(Ok(())) => progress.wrote = true,
            Poll::Ready(Err(error)) => progress.ended = Some(error.to_string()),
            // The judge of silence has to hear of the beginning of a stall.
            Poll::Pending => progress.wrote = !was_stalled && self.stalled.is_some(),
        }
        // A broker that asks for ever and takes no answer is to wait for itself.
        let read = read && self.packets_encoded.saturating_sub(self.packets_written) < ANSWERS_HIGH;
        // Also after a failed write: what the broker said before it closed still counts.
        if read || progress.ended.is_some() {
            match self.poll_read(context) {
                Poll::Ready(Ok(0)) => progress.ended = Some("closed by the broker".to_owned()),
                Poll::Ready(Ok(read)) => progress.heard = u64::try_from(read).unwrap_or(u64::MAX),
                Poll::Ready(Err(error)) => progress.ended = Some(error.to_string()),
                Poll::Pending => {}
            }
            // A part of a TLS record is life too.
            let received = self.transport.traffic().received;
            progress.heard = progress.heard.max(received.saturating_sub(self.traffic.received));
            self.traffic.received = received;
            if progress.heard > 0 {
                self.transport.acknowledge_at_once();
            }
        }
        if progress.wrote || progress.heard > 0 || progress.ended.is_some() {
            Poll::Ready(progress)
        } else {
            Poll::Pending
        }
    }

    /// Writes what can be without waiting and ends our side in order; ready when nothing is left, or nothing more can
    /// be done.
    pub(crate) fn poll_finish(&mut self, context: &mut Context<'_>, now: impl Fn() -> Instant) -> Poll<()> {
        while self.written < self.encoded {
            match self.poll_write(context, &now) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Pin::new(&mut self.transport).poll_shutdown(context).map(drop)
    }

    /// Reads what still comes and forgets it, until the broker has closed too. A socket that is closed over unread bytes is
    /// reset, and a reset can overtake the acknowledgements that we sent last.
    pub(crate) fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.input.clear();
            match self.poll_read(context) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// One batch: what the last one left to be flushed comes first.
    fn poll_write(&mut self, context: &mut Context<'_>, now: impl Fn() -> Instant) -> Poll<io::Result<()>> {
        if self.written == self.encoded {
            return Poll::Pending;
        }
        let result = self.try_write(context);
        let taken = self.transport.traffic().taken;
        let moved = taken > self.traffic.taken;
        self.traffic.taken = taken;
        self.stalled = match self.stalled {
            _ if self.written == self.encoded => None,
            Some(since) if !moved && result.is_pending() => Some(since),
            Some(_) | None => Some(now()),
        };
        if moved && result.is_pending() { Poll::Ready(Ok(())) } else { result }
    }

    fn try_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.taken == self.written {
            match ready!(Pin::new(&mut self.transport).poll_write(context, &self.output))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                taken => {
                    self.output.advance(taken);
                    self.taken = self.taken.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
                }
            }
        }
        ready!(Pin::new(&mut self.transport).poll_flush(context))?;
        self.written = self.taken;
        while let Some(mark) = self.marks.front().filter(|mark| mark.end <= self.written) {
            self.packets_written = mark.packets;
            self.marks.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(READ_CHUNK);
        poll_read_buf(Pin::new(&mut self.transport), context, &mut self.input)
    }
}

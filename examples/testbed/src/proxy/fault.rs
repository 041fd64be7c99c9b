//! The faults, what is armed, and what has fired.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Which way the bytes travel that a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
    /// Each of the two.
    Both,
}

/// One thing that goes wrong; [the module](super) says what each does to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Delays bytes by `fixed` plus a seeded random part of `jitter`. Order is kept.
    Latency {
        /// The delay every byte has.
        fixed: Duration,
        /// The most that chance adds.
        jitter: Duration,
    },
    /// Nothing arrives until the fault is cleared.
    Blackhole,
    /// Ends the first connection that has carried this many bytes since the fault was set.
    CutAfterBytes(u64),
    /// Ends the first connection that carries these bytes, just behind them.
    CutAfterMatch(Vec<u8>),
    /// Resets each connection at its next byte.
    Reset,
    /// Delivers pieces of at most `bytes` with `delay` between them.
    Slice {
        /// The size of a piece; 0 counts as 1.
        bytes: usize,
        /// The pause after each piece.
        delay: Duration,
    },
    /// Delivers at most this many bytes a second on each connection.
    Rate {
        /// Bytes a second; 0 counts as 1.
        bytes_per_second: u64,
    },
    /// The listener is closed.
    Refuse,
    /// The link falls at once, comes back after `down`, falls again after `up`, and so on until cleared.
    Toggle {
        /// How long it stands.
        up: Duration,
        /// How long it is away.
        down: Duration,
    },
}

/// How often each kind of fault has met a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Pieces that were delayed.
    pub latency: u64,
    /// Pieces (or ends of stream, or new connections) that were held.
    pub blackhole: u64,
    /// Connections ended by a cut after bytes or after a match.
    pub cut: u64,
    /// Connections reset, by [`Fault::Reset`] or by `cut_all`.
    pub reset: u64,
    /// Pieces that were cut smaller.
    pub slice: u64,
    /// Pieces that were slowed.
    pub rate: u64,
    /// Times the listener was closed. The kernel answers the refused clients, so they cannot be counted.
    pub refuse: u64,
    /// Times the link fell by [`Fault::Toggle`].
    pub toggle: u64,
}

/// What is armed, in each direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) to_server: Armed,
    pub(super) to_client: Armed,
    /// Numbers the cuts, so that a connection knows a fresh one from the one it has counted for.
    cuts: u64,
}

/// What is armed in one direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Armed {
    pub(super) latency: Option<(Duration, Duration)>,
    pub(super) blackhole: bool,
    pub(super) cut: Option<Cut>,
    pub(super) reset: bool,
    pub(super) slice: Option<(usize, Duration)>,
    pub(super) rate: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub(super) number: u64,
    pub(super) after: After,
}

#[derive(Clone, Debug)]
pub(super) enum After {
    Bytes(u64),
    Match(Vec<u8>),
}

impl Faults {
    pub(super) fn of(&self, direction: Direction) -> &Armed {
        match direction {
            Direction::ToServer | Direction::Both => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }

    pub(super) fn arm(&mut self, direction: Direction, fault: &Fault) {
        self.cuts += 1;
        let number = self.cuts;
        if direction != Direction::ToClient {
            self.to_server.arm(number, fault);
        }
        if direction != Direction::ToServer {
            self.to_client.arm(number, fault);
        }
    }

    /// Takes the cut out, in both directions; false when another connection was first.
    pub(super) fn fire_cut(&mut self, number: u64) -> bool {
        let mut fired = false;
        for armed in [&mut self.to_server, &mut self.to_client] {
            if armed.cut.as_ref().is_some_and(|cut| cut.number == number) {
                armed.cut = None;
                fired = true;
            }
        }
        fired
    }
}

impl Armed {
    fn arm(&mut self, number: u64, fault: &Fault) {
        match fault {
            Fault::Latency { fixed, jitter } => self.latency = Some((*fixed, *jitter)),
            Fault::Blackhole => self.blackhole = true,
            Fault::CutAfterBytes(bytes) => self.cut = Some(Cut { number, after: After::Bytes(*bytes) }),
            Fault::CutAfterMatch(bytes) => self.cut = Some(Cut { number, after: After::Match(bytes.clone()) }),
            Fault::Reset => self.reset = true,
            Fault::Slice { bytes, delay } => self.slice = Some(((*bytes).max(1), *delay)),
            Fault::Rate { bytes_per_second } => self.rate = Some((*bytes_per_second).max(1)),
            Fault::Refuse | Fault::Toggle { .. } => {}
        }
    }
}

/// The counters behind [`Counts`].
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) latency: AtomicU64,
    pub(super) blackhole: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) reset: AtomicU64,
    pub(super) slice: AtomicU64,
    pub(super) rate: AtomicU64,
    refuse: AtomicU64,
    toggle: AtomicU64,
    accepted: AtomicU64,
    standing: AtomicUsize,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            latency: read(&self.latency),
            blackhole: read(&self.blackhole),
            cut: read(&self.cut),
            reset: read(&self.reset),
            slice: read(&self.slice),
            rate: read(&self.rate),
            refuse: read(&self.refuse),
            toggle: read(&self.toggle),
        }
    }

    pub(super) fn refused(&self) {
        count(&self.refuse);
    }

    pub(super) fn toggled(&self) {
        count(&self.toggle);
    }

    pub(super) fn cut_all(&self, standing: u64) {
        self.reset.fetch_add(standing, Ordering::Relaxed);
    }

    /// Counts one more standing connection and gives its number, from 1.
    pub(super) fn accept(&self) -> u64 {
        self.standing.fetch_add(1, Ordering::Relaxed);
        self.accepted.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn ended(&self) {
        self.standing.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn standing(&self) -> usize {
        self.standing.load(Ordering::Relaxed)
    }
}

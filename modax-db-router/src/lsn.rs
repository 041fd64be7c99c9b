//! Positions and identities in PostgreSQL's write-ahead log, and the proof of a write made of them.
//!
//! An [`Lsn`] is ordered within one history only: after a promotion the same number may name other bytes. What
//! compares positions across histories is the [`Fence`](crate::Fence), never a bare comparison.

use std::fmt;
use std::str::FromStr;

/// PostgreSQL's page of the log, the header a page begins with, and that of a file's first page.
const PAGE: u64 = 8192;
const PAGE_HEADER: u64 = 24;
const FILE_HEADER: u64 = 40;

/// A write position in PostgreSQL's log, in bytes. Ordered within one [`Timeline`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// The position `bytes` after the beginning of the log.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the beginning of the log.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Where the last record before this *insert* position ends. At the beginning of a page that position lies behind the
    /// page's header, or a file's longer one, and a replica that has replayed everything stands before it.
    ///
    /// The step back hides nothing: no record ends in a header, nor sixteen bytes behind one if another ended before it,
    /// because a record has at least 24 bytes.
    #[must_use]
    pub const fn end_of_record(self) -> Self {
        match self.0 % PAGE {
            into @ (PAGE_HEADER | FILE_HEADER) => Self(self.0.saturating_sub(into)),
            _ => self,
        }
    }

    /// Bytes from `earlier` to `self`; zero if `earlier` is ahead.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    /// Reads PostgreSQL's own text, two hexadecimal halves with a slash between them (`16/B374D848`).
    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let high = hex_u32(high).ok_or(ParseLsnError)?;
        let low = hex_u32(low).ok_or(ParseLsnError)?;
        Ok(Self((u64::from(high) << 32) | u64::from(low)))
    }
}

/// `from_str_radix` accepts a sign; the log's text has none.
fn hex_u32(text: &str) -> Option<u32> {
    let digits_only = !text.is_empty() && text.len() <= 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if digits_only { u32::from_str_radix(text, 16).ok() } else { None }
}

fn hex_u64(text: &str) -> Option<u64> {
    let digits_only = !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if digits_only { u64::from_str_radix(text, 16).ok() } else { None }
}

/// The text is not a log position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a log position: two hexadecimal halves with a slash between them are expected")]
pub struct ParseLsnError;

/// The number of a history branch; a promotion takes the next one it knows of.
///
/// Two different histories can bear the same number, so a number alone proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(u32);

impl Timeline {
    /// The timeline with this number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Reads the first eight hexadecimal digits of the name of a log file.
    ///
    /// # Errors
    /// [`ParseLsnError`] if these are not eight hexadecimal digits.
    pub fn from_wal_file_name(name: &str) -> Result<Self, ParseLsnError> {
        let digits = name.get(..8).ok_or(ParseLsnError)?;
        hex_u32(digits).map(Self).ok_or(ParseLsnError)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The identity `initdb` gives to a database cluster; every standby of it has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(u64);

impl SystemId {
    /// The identity with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Proof of a write: a read that is given it sees that write, on whatever node it runs.
///
/// One token serves the whole cluster. Its text form ([`Display`](fmt::Display), [`FromStr`]) is opaque and may
/// travel to other processes in a header or a message; keep the newest of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriteToken {
    system: SystemId,
    timeline: Timeline,
    lsn: Lsn,
}

impl WriteToken {
    /// The token of a write that ended at or before `lsn` on that history.
    #[must_use]
    pub const fn new(system: SystemId, timeline: Timeline, lsn: Lsn) -> Self {
        Self { system, timeline, lsn }
    }

    /// Which database cluster was written.
    #[must_use]
    pub const fn system(&self) -> SystemId {
        self.system
    }

    /// On which timeline.
    #[must_use]
    pub const fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The position that a node must have replayed.
    #[must_use]
    pub const fn lsn(&self) -> Lsn {
        self.lsn
    }
}

impl fmt::Display for WriteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w1-{:x}-{:x}-{:x}", self.system.0, self.timeline.0, self.lsn.0)
    }
}

impl FromStr for WriteToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let mut parts = text.split('-');
        if parts.next() != Some("w1") {
            return Err(ParseTokenError);
        }
        let mut field = || parts.next().and_then(hex_u64).ok_or(ParseTokenError);
        let (system, timeline, lsn) = (field()?, field()?, field()?);
        let timeline = u32::try_from(timeline).map_err(|_| ParseTokenError)?;
        if parts.next().is_some() {
            return Err(ParseTokenError);
        }
        Ok(Self::new(SystemId(system), Timeline(timeline), Lsn(lsn)))
    }
}

/// The text is not a write token of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a write token")]
pub struct ParseTokenError;

//! What a log does on a full disk: outcomes are written into room that was kept, and files make room as they can.

use std::io;

use super::{Log, length};
use crate::queue::{
    segment::{HEADER_BYTES, Record},
    storage::Storage,
};

/// Whether somebody can mend it by deleting files.
pub(super) const fn is_full(error: io::ErrorKind) -> bool {
    matches!(error, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl<S: Storage> Log<S> {
    /// Outcomes alone, where there was no room for messages: the room kept for them is given free if it must be. False
    /// when they are not on disk.
    pub(super) fn write_outcomes(&mut self, records: &[Record]) -> bool {
        let outcomes: Vec<_> = records.iter().filter(|it| matches!(it, Record::Settled(_))).cloned().collect();
        if outcomes.is_empty() && self.unwritten.is_empty() {
            return true;
        }
        for _ in 0..2 {
            if self.begun && self.write_to_current(&outcomes).is_ok() {
                return true;
            }
            // The file may be at its end and not the disk. One that holds nothing yet needs no successor.
            let is_empty = self.begun && self.current_bytes() <= length(HEADER_BYTES);
            if !self.closed && !is_empty && self.begin_segment().is_ok() && self.write_to_current(&outcomes).is_ok() {
                return true;
            }
            if self.closed || !self.storage.release() {
                return false;
            }
        }
        false
    }

    /// Nothing is live: the last file makes room as well, and takes with it whatever could not be trusted. A new one
    /// follows where it can, so that a folder with a queue always looks like one.
    pub(super) fn retire(&mut self) {
        if self.begun && !self.closed && self.current_bytes() <= length(HEADER_BYTES) {
            return;
        }
        self.begun = false;
        self.delete_settled_files();
        self.closed &= !self.segments.is_empty();
        if !self.closed {
            let _later = self.begin_segment();
        }
    }
}

//! Lines of stdin, read on a thread of their own.
//!
//! A read of stdin cannot be cancelled. On a thread apart it holds up neither a signal nor the end of the process.

use std::io::{BufRead, Read as _};

use tokio::sync::mpsc;

/// The longest line taken in; MQTT and PostgreSQL allow more, a line of text does not need it.
pub(crate) const LONGEST_LINE_BYTES: usize = 16 << 20;
/// Lines read ahead of the command.
const READ_AHEAD_LINES: usize = 64;

/// One line of input.
pub(crate) struct Line {
    /// Counts input lines from 0.
    pub(crate) seq: u64,
    /// The bytes without the line end, or why they cannot be had.
    pub(crate) bytes: Result<Vec<u8>, String>,
}

/// Starts reading; the channel closes at the end of input.
pub(crate) fn lines() -> mpsc::Receiver<Line> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD_LINES);
    std::thread::spawn(move || read_lines(&mut std::io::stdin().lock(), &sender));
    receiver
}

fn read_lines(input: &mut impl BufRead, sender: &mpsc::Sender<Line>) {
    for seq in 0.. {
        let bytes = match next_line(input) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(error) => {
                let _ = sender.blocking_send(Line { seq, bytes: Err(format!("cannot read stdin: {error}")) });
                return;
            }
        };
        if sender.blocking_send(Line { seq, bytes }).is_err() {
            return;
        }
    }
}

/// One line, `Err` inside when it is too long (then all of it has been skipped), `None` at the end of input.
fn next_line(input: &mut impl BufRead) -> std::io::Result<Option<Result<Vec<u8>, String>>> {
    let mut bytes = Vec::new();
    let limit = LONGEST_LINE_BYTES as u64 + 1;
    if input.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        return Ok(Some(Ok(bytes)));
    }
    if bytes.len() <= LONGEST_LINE_BYTES {
        return Ok(Some(Ok(bytes)));
    }
    loop {
        bytes.clear();
        let read = input.by_ref().take(limit).read_until(b'\n', &mut bytes)?;
        if read == 0 || bytes.last() == Some(&b'\n') {
            return Ok(Some(Err(format!("line longer than {LONGEST_LINE_BYTES} bytes"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8]) -> Vec<Result<Vec<u8>, String>> {
        let mut input = input;
        let mut lines = Vec::new();
        while let Ok(Some(line)) = next_line(&mut input) {
            lines.push(line);
        }
        lines
    }

    #[test]
    fn line_ends_are_cut_and_a_last_line_needs_none() {
        assert_eq!(all(b"a\nb\r\n\nc"), [Ok(b"a".to_vec()), Ok(b"b".to_vec()), Ok(vec![]), Ok(b"c".to_vec())]);
    }

    #[test]
    fn a_line_that_is_too_long_is_one_error_and_the_next_line_is_read() {
        let mut input = vec![b'x'; LONGEST_LINE_BYTES + 5];
        input.extend_from_slice(b"\nnext\n");
        let lines = all(&input);
        assert!(lines[0].is_err());
        assert_eq!(lines[1], Ok(b"next".to_vec()));
        assert_eq!(lines.len(), 2);
    }
}

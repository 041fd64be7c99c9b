//! Packets, as far as a judge has to tell them apart: where one ends, what it is, whom it is for.

use modax_mqtt_failover::Version;

pub(super) const PUBLISH: u8 = 3;
pub(super) const PUBACK: u8 = 4;
pub(super) const PUBREC: u8 = 5;
pub(super) const PUBREL: u8 = 6;
pub(super) const PUBCOMP: u8 = 7;

/// One packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'b> {
    /// All of it.
    pub(super) bytes: &'b [u8],
    body: &'b [u8],
}

/// What a PUBLISH says.
pub(super) struct Said<'b> {
    pub(super) qos: u8,
    /// Zero for QoS 0.
    pub(super) id: u16,
    pub(super) topic: &'b [u8],
    pub(super) payload: &'b [u8],
}

/// All whole packets from the beginning.
pub(super) fn frames(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut found = Vec::new();
    while let Some((length, at)) = bytes.get(1..).and_then(varint) {
        let Some(body) = bytes.get(1 + at..1 + at + length) else { break };
        found.push(Frame { bytes: &bytes[..1 + at + length], body });
        bytes = &bytes[1 + at + length..];
    }
    found
}

/// A number and its length (MQTT 3.1.1, 2.2.3).
fn varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(4).enumerate() {
        number |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((number, place + 1));
        }
    }
    None
}

fn short(bytes: &[u8]) -> Option<(u16, &[u8])> {
    bytes.split_first_chunk::<2>().map(|(number, rest)| (u16::from_be_bytes(*number), rest))
}

impl<'b> Frame<'b> {
    pub(super) fn kind(&self) -> u8 {
        self.bytes.first().map_or(0, |first| first >> 4)
    }

    /// Identifier and reason of PUBACK, PUBREC, PUBREL and PUBCOMP.
    pub(super) fn ack(&self, version: Version) -> Option<(u16, u8)> {
        let (id, rest) = short(self.body).filter(|_| (PUBACK..=PUBCOMP).contains(&self.kind()))?;
        let code = if version == Version::V5 { rest.first().copied().unwrap_or(0) } else { 0 };
        Some((id, code))
    }

    pub(super) fn publish(&self, version: Version) -> Option<Said<'b>> {
        let (length, rest) = short(self.body).filter(|_| self.kind() == PUBLISH)?;
        let (topic, mut rest) = rest.split_at_checked(usize::from(length))?;
        let (qos, mut id) = (self.bytes.first()? >> 1 & 3, 0);
        if qos > 0 {
            (id, rest) = short(rest)?;
        }
        if version == Version::V5 {
            let (length, at) = varint(rest)?;
            rest = rest.get(at + length..)?;
        }
        Some(Said { qos, id, topic, payload: rest })
    }
}

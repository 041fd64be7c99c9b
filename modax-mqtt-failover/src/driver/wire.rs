//! Our packets to and from bytes.
//!
//! For MQTT 3.1.1 by rumqttc's public codec. For MQTT 5 by our own: rumqttc 0.25.1 swallows a packet whose inside is
//! shorter than its length says (a DISCONNECT without properties, the CONNACK of a broker that knows only 3.1.1), and
//! puts bytes of the third subscription identifier into the payload. The tests compare the two where it is right.

mod reading;
mod v311;
mod v5;

use bytes::BytesMut;

use crate::packet::{Packet, Version};

/// The protocol's own limit of what follows the fixed header (MQTT 3.1.1, 2.2.3; MQTT 5, 2.1.4).
const MAX_REMAINING: usize = 268_435_455;
/// Payloads below this are copied, so that a small one kept for long does not hold a whole read buffer.
const COPY_BELOW: usize = 4096;

/// A packet cannot be written or read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed packet: {0}")]
pub(crate) struct WireError(String);

impl WireError {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Appends `packet` to `out`, which is left as it was when that fails.
pub(crate) fn encode(version: Version, packet: &Packet, out: &mut BytesMut) -> Result<(), WireError> {
    let before = out.len();
    let coded = match version {
        Version::V311 => v311::encode(packet, out),
        Version::V5 => v5::encode(packet, out),
    };
    if coded.is_err() {
        out.truncate(before);
    }
    coded
}

/// Takes one packet from `input`, if there is a whole one.
pub(crate) fn decode(version: Version, input: &mut BytesMut) -> Result<Option<Packet>, WireError> {
    // What only clients send is not even parsed; DISCONNECT and AUTH go both ways in MQTT 5.
    let known = |kind: u8| matches!(kind, 2..=7 | 9 | 11 | 13) || (version == Version::V5 && matches!(kind, 14 | 15));
    if input.first().is_some_and(|first| !known(first >> 4)) {
        return Err(WireError::new("a packet that only clients send"));
    }
    match version {
        Version::V311 => v311::decode(input),
        Version::V5 => reading::decode(input),
    }
}

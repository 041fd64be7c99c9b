//! Bytes of MQTT 5 to our packets: what brokers send, and nothing else.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::{COPY_BELOW, WireError};
use crate::{
    packet::{ConnectCode, Limits, Packet, PacketId, Publish, PublishProperties, Qos},
    reason::Reason,
};

/// Takes one packet from `input`, if there is a whole one.
pub(super) fn decode(input: &mut BytesMut) -> Result<Option<Packet>, WireError> {
    let Some((first, rest)) = input.split_first() else { return Ok(None) };
    let first = *first;
    let Some((remaining, length_bytes)) = varint(rest)? else { return Ok(None) };
    let head = 1 + length_bytes;
    if input.len() < head + remaining {
        return Ok(None);
    }
    let mut body = input.split_to(head + remaining).freeze();
    body.advance(head);
    let mut reader = Reader { body };
    let packet = match (first >> 4, first & 0x0F) {
        (2, 0) => read_connack(&mut reader)?,
        (3, flags) => return read_publish(flags, reader).map(|publish| Some(Packet::Publish(publish))),
        (4, 0) => reader.ack().map(|(id, code)| Packet::PubAck { id, code })?,
        (5, 0) => reader.ack().map(|(id, code)| Packet::PubRec { id, code })?,
        (6, 2) => reader.ack().map(|(id, code)| Packet::PubRel { id, code })?,
        (7, 0) => reader.ack().map(|(id, code)| Packet::PubComp { id, code })?,
        (9, 0) => {
            let id = reader.id()?;
            reader.skip_properties()?;
            Packet::SubAck { id, codes: reader.rest().to_vec() }
        }
        (11, 0) => {
            let id = reader.id()?;
            reader.skip_properties()?;
            reader.rest();
            Packet::UnsubAck(id)
        }
        (13, 0) => Packet::PingResp,
        (14, 0) => {
            let reason = if reader.is_empty() { 0 } else { reader.byte()? };
            reader.skip_last_properties()?;
            Packet::Disconnect(Reason::new(reason))
        }
        // The session calls it a violation; what it says does not matter.
        (15, 0) => return Ok(Some(Packet::Auth)),
        (_, flags) => return Err(WireError::new(format!("flags {flags:#x} of packet type {}", first >> 4))),
    };
    if reader.is_empty() { Ok(Some(packet)) } else { Err(WireError::new("bytes behind the end of a packet")) }
}

fn read_connack(reader: &mut Reader) -> Result<Packet, WireError> {
    let session_present = match reader.byte()? {
        0 => false,
        1 => true,
        _ => return Err(WireError::new("unknown flags in CONNACK")),
    };
    let code = reader.byte()?;
    if reader.is_empty() {
        // A broker that knows only 3.1.1 says so in its own words (MQTT 3.1.1, 3.2.2.3).
        let code = match code {
            0 => return Err(WireError::new("a CONNACK of MQTT 3.1.1")),
            1 | 0x84 => ConnectCode::ProtocolVersion,
            2 => ConnectCode::ClientId,
            3 => ConnectCode::Unavailable,
            4 => ConnectCode::Credentials,
            5 => ConnectCode::NotAuthorised,
            other => connect_code(Reason::new(other)),
        };
        return Ok(Packet::ConnAck { session_present: false, code, limits: Limits::default() });
    }
    let mut limits = Limits::default();
    reader.properties(|id, value| {
        match (id, value) {
            (0x21, Value::Number(number)) => limits.receive_maximum = nonzero(number)?,
            (0x24, Value::Number(number)) => {
                let level = u8::try_from(number).ok().and_then(Qos::from_level);
                limits.max_qos = level.ok_or_else(|| WireError::new("maximum QoS above 2"))?;
            }
            (0x25, Value::Number(number)) => limits.retain_available = number != 0,
            (0x28, Value::Number(number)) => limits.wildcards_available = number != 0,
            (0x2A, Value::Number(number)) => limits.shared_available = number != 0,
            (0x27, Value::Number(number)) => limits.max_packet_bytes = Some(nonzero(number)?),
            (0x13, Value::Number(number)) => limits.keep_alive_seconds = u16::try_from(number).ok(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Packet::ConnAck { session_present, code: connect_code(Reason::new(code)), limits })
}

fn connect_code(reason: Reason) -> ConnectCode {
    match reason.number() {
        0x00 => ConnectCode::Accepted,
        0x84 => ConnectCode::ProtocolVersion,
        0x85 => ConnectCode::ClientId,
        0x86 => ConnectCode::Credentials,
        0x87 => ConnectCode::NotAuthorised,
        0x88 => ConnectCode::Unavailable,
        _ => ConnectCode::Refused(reason),
    }
}

fn read_publish(flags: u8, mut reader: Reader) -> Result<Publish, WireError> {
    let qos = Qos::from_level(flags >> 1 & 0b11).ok_or_else(|| WireError::new("QoS 3"))?;
    let topic: Arc<str> = Arc::from(reader.text()?.as_str());
    if topic.is_empty() {
        return Err(WireError::new("an empty topic"));
    }
    let id = if qos == Qos::AtMostOnce { None } else { Some(reader.id()?) };
    let mut properties = PublishProperties::default();
    reader.properties(|id, value| {
        match (id, value) {
            (0x02, Value::Number(seconds)) => properties.expiry_seconds = Some(seconds),
            (0x26, Value::Pair(name, value)) => properties.user.push(name, value),
            (0x23, _) => return Err(WireError::new("a topic alias, which we never allowed")),
            _ => {}
        }
        Ok(())
    })?;
    let payload = match reader.rest() {
        small if small.len() < COPY_BELOW => Bytes::copy_from_slice(&small),
        large => large,
    };
    let (retain, duplicate) = (flags & 0b0001 != 0, flags & 0b1000 != 0);
    Ok(Publish { topic, payload, qos, retain, duplicate, id, properties })
}

/// A limit of zero is no limit but a mistake (MQTT 5, 3.2.2.3.3 and 3.2.2.3.6).
fn nonzero<T: TryFrom<u32>>(number: u32) -> Result<T, WireError> {
    let nonzero = if number == 0 { None } else { T::try_from(number).ok() };
    nonzero.ok_or_else(|| WireError::new("a limit of zero in CONNACK"))
}

/// The value and its length; `None` when there is more to come.
fn varint(bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(4).enumerate() {
        number |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((number, place + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(WireError::new("a length of more than four bytes")) }
}

/// What a property holds (MQTT 5, 2.2.2.2); what nobody here looks at is `Other`.
enum Value {
    Number(u32),
    Pair(String, String),
    Other,
}

/// What is left of one packet, or of its properties.
struct Reader {
    body: Bytes,
}

impl Reader {
    fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.body)
    }

    fn take(&mut self, count: usize) -> Result<Bytes, WireError> {
        if count > self.body.len() {
            return Err(WireError::new("a packet shorter than it says"));
        }
        Ok(self.body.split_to(count))
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        self.take(1).map(|mut bytes| bytes.get_u8())
    }

    fn short(&mut self) -> Result<u16, WireError> {
        self.take(2).map(|mut bytes| bytes.get_u16())
    }

    fn id(&mut self) -> Result<PacketId, WireError> {
        PacketId::new(self.short()?).ok_or_else(|| WireError::new("packet identifier zero"))
    }

    fn text(&mut self) -> Result<String, WireError> {
        let length = usize::from(self.short()?);
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| WireError::new("a text that is not UTF-8"))
    }

    fn varint(&mut self) -> Result<usize, WireError> {
        let (number, bytes) = varint(&self.body)?.ok_or_else(|| WireError::new("a packet shorter than it says"))?;
        self.body.advance(bytes);
        Ok(number)
    }

    /// Identifier and reason of an acknowledgement; the reason may be missing, and its properties too.
    fn ack(&mut self) -> Result<(PacketId, u8), WireError> {
        let id = self.id()?;
        let code = if self.is_empty() { 0 } else { self.byte()? };
        self.skip_last_properties()?;
        Ok((id, code))
    }

    /// Properties that end a packet, and may be missing altogether.
    fn skip_last_properties(&mut self) -> Result<(), WireError> {
        if self.is_empty() { Ok(()) } else { self.skip_properties() }
    }

    fn skip_properties(&mut self) -> Result<(), WireError> {
        self.properties(|_, _| Ok(()))
    }

    fn properties(&mut self, mut see: impl FnMut(u8, Value) -> Result<(), WireError>) -> Result<(), WireError> {
        let length = self.varint()?;
        let mut properties = Self { body: self.take(length)? };
        while !properties.is_empty() {
            let id = properties.byte()?;
            let value = properties.value(id)?;
            see(id, value)?;
        }
        Ok(())
    }

    fn value(&mut self, id: u8) -> Result<Value, WireError> {
        Ok(match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => Value::Number(u32::from(self.byte()?)),
            0x13 | 0x21..=0x23 => Value::Number(u32::from(self.short()?)),
            0x02 | 0x11 | 0x18 | 0x27 => Value::Number(self.take(4)?.get_u32()),
            0x26 => Value::Pair(self.text()?, self.text()?),
            0x0B => {
                self.varint()?;
                Value::Other
            }
            0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => {
                let length = usize::from(self.short()?);
                self.take(length)?;
                Value::Other
            }
            unknown => return Err(WireError::new(format!("unknown property {unknown:#04x}"))),
        })
    }
}

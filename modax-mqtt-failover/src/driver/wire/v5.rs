//! Our packets to bytes of MQTT 5.

use bytes::{BufMut, BytesMut};

use super::{MAX_REMAINING, WireError};
use crate::{
    packet::{Connect, Packet, PacketId, Publish, PublishProperties, Qos},
    reason::Reason,
};

/// Appends `packet` to `out`.
pub(super) fn encode(packet: &Packet, out: &mut BytesMut) -> Result<(), WireError> {
    match packet {
        Packet::Connect(connect) => write_connect(connect, out),
        Packet::Publish(publish) => write_publish(publish, out),
        Packet::PubAck { id, code } => write_ack(0x40, *id, *code, out),
        Packet::PubRec { id, code } => write_ack(0x50, *id, *code, out),
        Packet::PubRel { id, code } => write_ack(0x62, *id, *code, out),
        Packet::PubComp { id, code } => write_ack(0x70, *id, *code, out),
        Packet::Subscribe { id, filters } => {
            let mut body = with_id(*id);
            for (filter, qos) in filters {
                put_text(&mut body, filter.as_bytes())?;
                body.put_u8(qos.level());
            }
            put_frame(0x82, &body, out)
        }
        Packet::Unsubscribe { id, filters } => {
            let mut body = with_id(*id);
            for filter in filters {
                put_text(&mut body, filter.as_bytes())?;
            }
            put_frame(0xA2, &body, out)
        }
        Packet::PingReq => put_frame(0xC0, &[], out),
        Packet::Disconnect(Reason::SUCCESS) => put_frame(0xE0, &[], out),
        Packet::Disconnect(reason) => put_frame(0xE0, &[reason.number()], out),
        Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::UnsubAck(_) | Packet::PingResp | Packet::Auth => {
            Err(WireError::new("a packet that only brokers send"))
        }
    }
}

fn write_connect(connect: &Connect, out: &mut BytesMut) -> Result<(), WireError> {
    let mut properties = BytesMut::new();
    if connect.session_expiry_seconds > 0 {
        properties.put_u8(0x11);
        properties.put_u32(connect.session_expiry_seconds);
    }
    if connect.receive_maximum < u16::MAX {
        properties.put_u8(0x21);
        properties.put_u16(connect.receive_maximum);
    }
    if let Some(bytes) = connect.max_packet_bytes {
        properties.put_u8(0x27);
        properties.put_u32(bytes);
    }
    let mut flags = u8::from(connect.clean_session) << 1;
    if let Some(will) = &connect.will {
        flags |= 0x04 | will.qos.level() << 3 | u8::from(will.retain) << 5;
    }
    let (user, password) = connect.credentials.as_ref().map_or(("", ""), |pair| (pair.user(), pair.password()));
    flags |= u8::from(!user.is_empty()) << 7 | u8::from(!password.is_empty()) << 6;

    let mut body = BytesMut::from(&b"\0\x04MQTT\x05"[..]);
    body.put_u8(flags);
    body.put_u16(connect.keep_alive_seconds);
    put_varint(&mut body, properties.len())?;
    body.extend_from_slice(&properties);
    put_text(&mut body, connect.client_id.as_bytes())?;
    if let Some(will) = &connect.will {
        let delay = if connect.will_delay_seconds > 0 { 5 } else { 0 };
        put_varint(&mut body, will.properties.encoded_bytes().saturating_add(delay))?;
        if delay > 0 {
            body.put_u8(0x18);
            body.put_u32(connect.will_delay_seconds);
        }
        put_properties(&mut body, &will.properties)?;
        put_text(&mut body, will.topic.as_bytes())?;
        put_text(&mut body, &will.payload)?;
    }
    for text in [user, password].into_iter().filter(|text| !text.is_empty()) {
        put_text(&mut body, text.as_bytes())?;
    }
    put_frame(0x10, &body, out)
}

fn write_publish(publish: &Publish, out: &mut BytesMut) -> Result<(), WireError> {
    let properties = publish.properties.encoded_bytes();
    let id = if publish.id.is_some() { 2 } else { 0 };
    let head = 2 + publish.topic.len() + id + crate::packet::varint_bytes(properties) + properties;
    if publish.id.is_none() && publish.qos != Qos::AtMostOnce {
        return Err(WireError::new("a message without its packet identifier"));
    }
    out.reserve(publish.encoded_bytes());
    out.put_u8(0x30 | u8::from(publish.duplicate) << 3 | publish.qos.level() << 1 | u8::from(publish.retain));
    put_varint(out, head.saturating_add(publish.payload.len()))?;
    put_text(out, publish.topic.as_bytes())?;
    if let Some(id) = publish.id {
        out.put_u16(id.number());
    }
    put_varint(out, properties)?;
    put_properties(out, &publish.properties)?;
    out.extend_from_slice(&publish.payload);
    Ok(())
}

fn put_properties(out: &mut BytesMut, properties: &PublishProperties) -> Result<(), WireError> {
    if let Some(seconds) = properties.expiry_seconds {
        out.put_u8(0x02);
        out.put_u32(seconds);
    }
    for (name, value) in properties.user.iter() {
        out.put_u8(0x26);
        put_text(out, name.as_bytes())?;
        put_text(out, value.as_bytes())?;
    }
    Ok(())
}

/// The reason may be left out where it is success (MQTT 5, 3.4.2.1).
fn write_ack(first: u8, id: PacketId, code: u8, out: &mut BytesMut) -> Result<(), WireError> {
    let [high, low] = id.number().to_be_bytes();
    let body = [high, low, code];
    put_frame(first, if code == 0 { body.split_at(2).0 } else { &body }, out)
}

/// The beginning of SUBSCRIBE and UNSUBSCRIBE: identifier, no properties.
fn with_id(id: PacketId) -> BytesMut {
    let mut body = BytesMut::with_capacity(64);
    body.put_u16(id.number());
    body.put_u8(0);
    body
}

fn put_frame(first: u8, body: &[u8], out: &mut BytesMut) -> Result<(), WireError> {
    out.put_u8(first);
    put_varint(out, body.len())?;
    out.extend_from_slice(body);
    Ok(())
}

/// Text or binary data with its length before it.
fn put_text(out: &mut BytesMut, bytes: &[u8]) -> Result<(), WireError> {
    let length = u16::try_from(bytes.len()).map_err(|_| WireError::new("a text of more than 65535 bytes"))?;
    out.put_u16(length);
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_varint(out: &mut BytesMut, number: usize) -> Result<(), WireError> {
    if number > MAX_REMAINING {
        return Err(WireError::new("larger than MQTT allows"));
    }
    let mut rest = number;
    loop {
        let low = u8::try_from(rest & 0x7F).unwrap_or_default();
        rest >>= 7;
        out.put_u8(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;

//! A broker and its address.

use std::{fmt, sync::Arc};

use crate::packet::{Credentials, Version};

/// One broker, known by host and port, and whether it is spoken to over TLS. Shows as `host:port`, never with
/// credentials.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Broker {
    host: Arc<str>,
    port: u16,
    tls: bool,
}

impl Broker {
    /// A broker at this host (name or address) and port, without TLS.
    #[must_use]
    pub fn new(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self { host: host.into(), port, tls: false }
    }

    /// The same over TLS.
    #[must_use]
    pub fn over_tls(self) -> Self {
        Self { tls: true, ..self }
    }

    /// Name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is spoken to over TLS (`mqtts://`).
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broker({self})")
    }
}

/// Why a broker URL was not understood. Says nothing of the part that may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Neither `mqtt://` nor `mqtts://`.
    #[error("scheme is not mqtt:// or mqtts://")]
    Scheme,
    /// Nothing, or nothing usable, where the host belongs.
    #[error("host is missing or malformed")]
    Host,
    /// Not a number from 1 to 65535.
    #[error("port is not a number from 1 to 65535")]
    Port,
    /// A path, a fragment, or a query other than `?version=…`: MQTT over TCP or TLS has none.
    #[error("a path, fragment or query other than version has no meaning here")]
    Path,
    /// `?version=` is neither 3.1.1 nor 5.
    #[error("version is neither 3.1.1 nor 5")]
    Version,
    /// User name or password is not percent-encoded UTF-8.
    #[error("user name or password is not percent-encoded UTF-8")]
    Credentials,
    /// User name or password does not go into a CONNECT packet.
    #[error("user name or password is longer than 65535 bytes, or the user name holds a NUL character")]
    Unsendable,
}

/// A parsed broker URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host and port.
    pub broker: Broker,
    /// From `user:password@`.
    pub credentials: Option<Credentials>,
    /// From `?version=5` or `?version=3.1.1`.
    pub version: Option<Version>,
}

impl Address {
    /// Reads `mqtt://[user:password@]host[:1883][?version=5]`, or `mqtts://[user:password@]host[:8883][?version=5]` for TLS.
    ///
    /// # Errors
    /// [`AddressError`] names the part that is wrong, and never repeats it.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let (tls, rest) = match (url.strip_prefix("mqtt://"), url.strip_prefix("mqtts://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(AddressError::Scheme),
        };
        let (rest, version) = split_version(rest)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((pair, place)) => (Some(parse_credentials(pair)?), place),
            None => (None, rest),
        };
        if place.contains(['/', '?', '#']) {
            return Err(AddressError::Path);
        }
        let (host, port) = split_port(place)?;
        let port = match port {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or(AddressError::Port)?
            }
            Some(_) => return Err(AddressError::Port),
            None if tls => 8883,
            None => 1883,
        };
        let broker = Broker::new(host, port);
        Ok(Self { broker: if tls { broker.over_tls() } else { broker }, credentials, version })
    }
}

/// Cuts `?version=…` off the end. A question mark in a password is percent-encoded, so the last one begins the query.
fn split_version(url: &str) -> Result<(&str, Option<Version>), AddressError> {
    match url.rsplit_once("?version=") {
        Some((rest, "5")) => Ok((rest, Some(Version::V5))),
        Some((rest, "3.1.1")) => Ok((rest, Some(Version::V311))),
        Some(_) => Err(AddressError::Version),
        None => Ok((url, None)),
    }
}

fn split_port(place: &str) -> Result<(&str, Option<&str>), AddressError> {
    let (host, port) = if let Some(bracketed) = place.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or(AddressError::Host)?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(AddressError::Host);
        }
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(AddressError::Host),
        }
    } else {
        match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        }
    };
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(plain) {
        return Err(AddressError::Host);
    }
    Ok((host, port))
}

fn parse_credentials(pair: &str) -> Result<Credentials, AddressError> {
    let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
    Ok(Credentials::new(percent_decode(user)?, percent_decode(password)?))
}

fn percent_decode(text: &str) -> Result<String, AddressError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|hex| char::from(hex).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(AddressError::Credentials) };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| AddressError::Credentials)?);
    }
    String::from_utf8(bytes).map_err(|_| AddressError::Credentials)
}

//! What a message is, wherever and however often it arrives.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::properties::UserProperties;

/// What makes two copies the same message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Identity {
    /// Counted by its producer, so that very old ones can be told from new ones by number alone.
    Counted {
        /// Who published it: its client id.
        producer: Arc<str>,
        /// Random, made whenever the producer opens its queue: its numbers may begin anew then.
        epoch: u64,
        /// Its number, growing by one.
        sequence: u64,
    },
    /// An id without order, for example a UUID out of the payload; at most [`MAX_BYTES`](Self::MAX_BYTES). Of a longer one
    /// take a hash.
    Opaque(Bytes),
}

impl Identity {
    /// The user property (MQTT 5) in which a message carries its identity.
    pub const PROPERTY: &'static str = "modax-id";

    /// The longest value of that property, and the longest [`Opaque`](Self::Opaque) id, in bytes: room for any sensible
    /// client id, and a bound on what a stranger can make a [`Dedup`](super::Dedup) remember. To it a longer one is none.
    pub const MAX_BYTES: usize = 1024;

    /// Bytes of a value beside its producer, at most: two colons, 16 hexadecimal and 20 decimal digits.
    pub(crate) const NUMBERS_BYTES: usize = 2 + 16 + 20;

    /// Whether it is short enough to be remembered.
    pub(super) fn is_bounded(&self) -> bool {
        match self {
            Self::Counted { producer, .. } => producer.len() <= Self::MAX_BYTES,
            Self::Opaque(id) => id.len() <= Self::MAX_BYTES,
        }
    }

    /// The identity that these properties carry: the first [`PROPERTY`](Self::PROPERTY), if it is one.
    #[must_use]
    pub fn of(properties: &UserProperties) -> Option<Self> {
        properties.get(Self::PROPERTY).and_then(Self::parse)
    }

    /// Reads `producer:epoch:sequence` as a producer writes it: 16 hexadecimal digits in lower case, then a decimal number
    /// without leading zeros. The producer may hold colons.
    ///
    /// Whatever else stands there is no identity: taken for one, it could make two messages the same.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, sequence) = text.rsplit_once(':')?;
        let (producer, epoch) = rest.rsplit_once(':')?;
        let is_epoch = epoch.len() == 16 && epoch.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_number = sequence.bytes().all(|byte| byte.is_ascii_digit());
        let is_short = !sequence.starts_with('0') || sequence == "0";
        if producer.is_empty() || text.len() > Self::MAX_BYTES || !(is_epoch && is_number && is_short) {
            return None;
        }
        let (epoch, sequence) = (u64::from_str_radix(epoch, 16).ok()?, sequence.parse().ok()?);
        Some(Self::Counted { producer: Arc::from(producer), epoch, sequence })
    }
}

/// One text for each identity: a counted one as [`parse`](Identity::parse) reads it, an opaque one as `~` and hexadecimal
/// digits. Fit for a key in a database.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted { producer, epoch, sequence } => write!(f, "{producer}:{epoch:016x}:{sequence}"),
            Self::Opaque(id) => write!(f, "~{id:x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identities() -> impl Strategy<Value = Identity> {
        prop_oneof![
            (".{1,30}", any::<u64>(), any::<u64>()).prop_map(|(producer, epoch, sequence)| Identity::Counted {
                producer: producer.into(),
                epoch,
                sequence
            }),
            any::<Vec<u8>>().prop_map(|id| Identity::Opaque(id.into())),
        ]
    }

    proptest! {
        #[test]
        fn a_counted_identity_is_read_as_it_was_written_and_an_opaque_one_is_never_taken_for_one(identity in identities()) {
            let read = Identity::parse(&identity.to_string());
            match identity {
                Identity::Counted { .. } => prop_assert_eq!(read, Some(identity)),
                Identity::Opaque(_) => prop_assert_eq!(read, None),
            }
        }

        #[test]
        fn two_identities_have_two_texts(one in identities(), other in identities()) {
            prop_assert_eq!(one == other, one.to_string() == other.to_string());
        }

        #[test]
        fn what_is_read_is_written_the_same(text in "[a:]{0,3}:[0-9a-fA-F]{14,17}:[+0-9]{0,22}") {
            if let Some(identity) = Identity::parse(&text) {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }

    #[test]
    fn only_what_a_producer_writes_is_an_identity() {
        let counted =
            |producer: &str, epoch, sequence| Some(Identity::Counted { producer: producer.into(), epoch, sequence });
        let long = |bytes: usize| format!("{}:0000000000000001:7", "p".repeat(bytes - 19));
        let table = [
            ("press-7:00000000000000ff:12", counted("press-7", 255, 12)),
            ("a:b::0000000000000001:0", counted("a:b:", 1, 0)),
            ("p:ffffffffffffffff:18446744073709551615", counted("p", u64::MAX, u64::MAX)),
            (&long(1024), counted(&"p".repeat(1005), 1, 7)),
            (&long(1025), None),
            ("", None),
            (":", None),
            ("::", None),
            ("p", None),
            ("p:0000000000000001", None),
            (":0000000000000001:1", None),
            ("p:1:1", None),
            ("p:00000000000000001:1", None),
            ("p:00000000000000FF:1", None),
            ("p:+00000000000000f:1", None),
            ("p:0000000000000001:", None),
            ("p:0000000000000001:01", None),
            ("p:0000000000000001:+1", None),
            ("p:0000000000000001:-1", None),
            ("p:0000000000000001: 1", None),
            ("p:0000000000000001:1 ", None),
            ("p:0000000000000001:0x1", None),
            ("p:0000000000000001:١", None),
            ("p:0000000000000001:18446744073709551616", None),
            ("7b1e6b0a-64a0-4c1e-9d43-6a0c9f1f2b7d", None),
        ];
        for (text, expected) in table {
            assert_eq!(Identity::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_first_property_of_the_name_counts() {
        let of = |pairs: &[(&str, &str)]| Identity::of(&pairs.iter().copied().collect());
        let good = "p:0000000000000001:1";
        assert_eq!(of(&[("unit", "C"), ("modax-id", good)]), Identity::parse(good));
        assert_eq!(of(&[("modax-id", "mine"), ("modax-id", good)]), None);
        assert_eq!(of(&[("Modax-Id", good)]), None);
        assert_eq!(of(&[]), None);
    }
}

//! User properties of MQTT 5: names with values that travel beside a payload.

use std::{fmt, sync::Arc};

use crate::config::TopicError;

type Pair = (Box<str>, Box<str>);

/// Names with values, in order; a name may stand there twice. Cheap to clone, nothing when empty.
///
/// Brokers hand them on unchanged (MQTT 5, 3.3.2.3.7). They are the sender's own words, so `Debug` shows only how many
/// there are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserProperties {
    pairs: Option<Arc<Vec<Pair>>>,
}

impl UserProperties {
    /// Adds one pair at the end.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let pair = (name.into().into_boxed_str(), value.into().into_boxed_str());
        Arc::make_mut(self.pairs.get_or_insert_default()).push(pair);
    }

    /// Name and value of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().flat_map(|pairs| pairs.iter()).map(|(name, value)| (&**name, &**value))
    }

    /// The value of the first with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.as_ref().map_or(0, |pairs| pairs.len())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all of them in a packet: five of each beside its name and value (MQTT 5, 2.2.2.2).
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let bytes = |(name, value): (&str, &str)| name.len().saturating_add(value.len()).saturating_add(5);
        self.iter().map(bytes).fold(0, usize::saturating_add)
    }

    /// Bytes of all of them in memory, where each text has a place of its own.
    pub(crate) fn held_bytes(&self) -> usize {
        const PAIR: usize = 64;
        self.encoded_bytes().saturating_add(self.len().saturating_mul(PAIR))
    }

    /// As many as a disk queue can hold of one message.
    pub(crate) const MOST: usize = 65_535;

    /// Whether each fits a packet, and a disk queue all of them: up to 65535.
    ///
    /// # Errors
    /// [`TopicError::TooMany`], [`TopicError::TooLong`] or [`TopicError::Nul`], the rules for every text of MQTT (MQTT 5, 1.5.4).
    pub fn check(&self) -> Result<(), TopicError> {
        if self.len() > Self::MOST {
            return Err(TopicError::TooMany);
        }
        for text in self.iter().flat_map(|(name, value)| [name, value]) {
            if text.len() > usize::from(u16::MAX) {
                return Err(TopicError::TooLong);
            }
            if text.contains('\0') {
                return Err(TopicError::Nul);
            }
        }
        Ok(())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for UserProperties {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut properties = Self::default();
        for (name, value) in pairs {
            properties.push(name, value);
        }
        properties
    }
}

impl fmt::Debug for UserProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserProperties({})", self.len())
    }
}

//! Gives each message its identity as it is admitted.

use std::sync::Arc;

use super::Identity;
use crate::{
    message::{Message, MessageId},
    packet::Qos,
};

/// Writes a message's identity into its user properties, from where the queue on disk keeps it too: a copy that is sent
/// after a failover or by the next process says the same.
///
/// The epoch belongs to one opening of a queue and not to its directory. Numbers may begin anew when a queue is opened,
/// after damage, with an older copy of its files, or because nothing was left in it, and a number that was given to two
/// messages would make a consumer drop the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    producer: Arc<str>,
    epoch: u64,
}

impl Stamp {
    /// For messages of `producer` admitted to a queue that was opened under this `epoch`, which has to be random.
    #[must_use]
    pub const fn new(producer: Arc<str>, epoch: u64) -> Self {
        Self { producer, epoch }
    }

    /// The message with its identity; `None` where it needs none: it has a property of this name already, or QoS 0, which
    /// is never sent twice.
    #[must_use]
    pub fn stamped(&self, message: &Message, id: MessageId) -> Option<Message> {
        if message.qos == Qos::AtMostOnce || message.user_properties.get(Identity::PROPERTY).is_some() {
            return None;
        }
        let producer = Arc::clone(&self.producer);
        let identity = Identity::Counted { producer, epoch: self.epoch, sequence: id.number() };
        Some(message.clone().user_property(Identity::PROPERTY, identity.to_string()))
    }
}

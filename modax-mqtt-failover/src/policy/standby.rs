//! Whether another broker is held ready.

/// Whether another broker is held ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standby {
    /// None. The default: a second connection of every client doubles what the brokers carry, and a broker that works is
    /// found in milliseconds without it.
    #[default]
    None,
    /// A connected, silent session on the broker that would be next, under the identity `<client id>~standby`: clean,
    /// without subscriptions, pinged at the probe interval. A dead or blocked next broker is then known before it is
    /// needed ([`StandbyLost`](crate::Event::StandbyLost)), and the one that stands is tried first.
    Probe,
}

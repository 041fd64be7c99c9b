//! A [`Dedup`] over deliveries: where their identities come from, and a window that lives with the caller.

use std::future::Future;

use super::{Dedup, Identity, Verdict};
use crate::delivery::Delivery;

/// Finds out what a delivery is.
pub(super) type Identify = Box<dyn Fn(&Delivery) -> Option<Identity> + Send + Sync>;

impl Dedup {
    /// Takes identities from `identify` instead of the user property [`Identity::PROPERTY`]: out of the payload, where
    /// messages come over MQTT 3.1.1 or from somebody who writes no such property. What is longer than
    /// [`Identity::MAX_BYTES`] counts as none. Default: that property, because it is the one that
    /// [`stamping`](crate::ClientBuilder::stamping) writes.
    ///
    /// ```
    /// # use modax_mqtt_failover::{Bytes, dedup::{Dedup, Identity}};
    /// // Payloads that begin with an id and a space.
    /// let dedup = Dedup::new(10_000.try_into().unwrap()).by(|delivery| {
    ///     let end = delivery.payload().iter().position(|byte| *byte == b' ')?;
    ///     Some(Identity::Opaque(delivery.payload().slice(..end)))
    /// });
    /// # drop(dedup);
    /// ```
    #[must_use]
    pub fn by(mut self, identify: impl Fn(&Delivery) -> Option<Identity> + Send + Sync + 'static) -> Self {
        self.identify = Some(Box::new(identify));
        self
    }

    /// What makes this delivery the same as another one; `None` when it does not say.
    #[must_use]
    pub fn identity(&self, delivery: &Delivery) -> Option<Identity> {
        let found = match &self.identify {
            Some(identify) => identify(delivery),
            None => Identity::of(delivery.user_properties()),
        };
        found.filter(Identity::is_bounded)
    }

    /// As [`check`](Self::check); [`Verdict::Unidentified`] when the delivery does not say what it is.
    pub fn check_delivery(&mut self, delivery: &Delivery) -> Verdict {
        match self.identity(delivery) {
            Some(identity) => self.check(&identity),
            None => self.count(Verdict::Unidentified),
        }
    }

    /// Says what this delivery is by a memory of the caller's, for example a table in the transaction in which it is
    /// handled: then a crash cannot come between what was done and the memory of it.
    ///
    /// `remember` writes an identity down and says whether it was new. It is not called for a delivery without one, which
    /// is [`Verdict::Unidentified`]. The window of this `Dedup` is neither asked nor changed, because it could not be
    /// rolled back. How long to remember is the caller's to decide: longer than a producer may hold a message back.
    ///
    /// ```
    /// # use modax_mqtt_failover::{Delivery, dedup::{Dedup, Verdict}};
    /// # struct Transaction; type Error = std::io::Error;
    /// # impl Transaction {
    /// #     async fn execute(&self, _: &str, _: &[&str]) -> Result<u64, Error> { Ok(1) }
    /// #     async fn commit(self) -> Result<(), Error> { Ok(()) }
    /// # }
    /// // create table seen (id text primary key, at timestamptz not null default now())
    /// async fn handle(dedup: &mut Dedup, delivery: Delivery, transaction: Transaction) -> Result<(), Error> {
    ///     let verdict = dedup
    ///         .check_in(&delivery, async |identity| {
    ///             let insert = "insert into seen (id) values ($1) on conflict do nothing";
    ///             Ok::<_, Error>(transaction.execute(insert, &[&identity.to_string()]).await? == 1)
    ///         })
    ///         .await?;
    ///     if verdict != Verdict::Repeat {
    ///         transaction.execute("insert into readings (payload) values ($1)", &["…"]).await?;
    ///     }
    ///     transaction.commit().await?;
    ///     delivery.ack(); // a crash before this line brings it back, and then it is a repeat
    ///     Ok(())
    /// }
    /// # drop(handle);
    /// ```
    ///
    /// # Errors
    /// Whatever `remember` says. The delivery is not to be acknowledged then; it comes again.
    ///
    /// # Cancel safety
    /// As that of `remember`: whether it wrote is unknown, so roll its transaction back.
    pub async fn check_in<F, E>(
        &mut self,
        delivery: &Delivery,
        remember: impl FnOnce(Identity) -> F,
    ) -> Result<Verdict, E>
    where
        F: Future<Output = Result<bool, E>>,
    {
        let is_new = match self.identity(delivery) {
            Some(identity) => Some(remember(identity).await?),
            None => None,
        };
        let verdict = match is_new {
            Some(true) => Verdict::First,
            Some(false) => Verdict::Repeat,
            None => Verdict::Unidentified,
        };
        Ok(self.count(verdict))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        packet::{Publish, PublishProperties, Qos},
        properties::UserProperties,
    };

    fn delivery(payload: &str, properties: &[(&str, &str)]) -> Delivery {
        let user: UserProperties = properties.iter().copied().collect();
        let publish = Publish {
            topic: "t".into(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            qos: Qos::AtLeastOnce,
            retain: false,
            duplicate: false,
            id: None,
            properties: PublishProperties { user, expiry_seconds: None },
        };
        Delivery::new(&publish, None)
    }

    fn stamped(sequence: u64) -> Delivery {
        delivery("x", &[("modax-id", &format!("p:0000000000000001:{sequence}"))])
    }

    #[test]
    fn what_is_too_long_to_be_remembered_is_not_given_to_a_caller_s_memory_either() {
        let mut dedup = Dedup::without_window().by(|delivery| Some(Identity::Opaque(delivery.payload().clone())));
        let long = delivery(&"x".repeat(Identity::MAX_BYTES + 1), &[]);
        let verdict = dedup.check_in(&long, async |_| -> Result<bool, ()> { panic!("remembered") }).now_or_never();
        assert_eq!(verdict, Some(Ok(Verdict::Unidentified)));
    }

    #[test]
    fn what_a_message_carries_makes_it_a_repeat_and_what_says_nothing_never_is_one() {
        let mut dedup = Dedup::new(10.try_into().unwrap());
        assert_eq!(dedup.check_delivery(&stamped(1)), Verdict::First);
        assert_eq!(dedup.check_delivery(&stamped(2)), Verdict::First);
        assert_eq!(dedup.check_delivery(&stamped(1)), Verdict::Repeat);
        for unknown in [delivery("x", &[]), delivery("x", &[("modax-id", "no identity")])] {
            assert_eq!(dedup.check_delivery(&unknown), Verdict::Unidentified);
            assert_eq!(dedup.check_delivery(&unknown), Verdict::Unidentified);
        }
        let stats = dedup.stats();
        assert_eq!((stats.first, stats.repeats, stats.unidentified), (2, 1, 4));
    }

    #[test]
    fn an_extractor_reads_the_payload_instead() {
        let by = |delivery: &Delivery| {
            (!delivery.payload().is_empty()).then(|| Identity::Opaque(delivery.payload().clone()))
        };
        let mut dedup = Dedup::new(10.try_into().unwrap()).by(by);
        assert_eq!(dedup.check_delivery(&delivery("a", &[("modax-id", "p:0000000000000001:1")])), Verdict::First);
        assert_eq!(dedup.check_delivery(&delivery("b", &[("modax-id", "p:0000000000000001:1")])), Verdict::First);
        assert_eq!(dedup.check_delivery(&delivery("a", &[])), Verdict::Repeat);
        assert_eq!(dedup.check_delivery(&delivery("", &[])), Verdict::Unidentified);
    }

    #[test]
    fn a_task_may_wait_for_the_memory_on_any_thread() {
        async fn handle(dedup: &mut Dedup, delivery: Delivery, seen: &BTreeSet<String>) -> Result<Verdict, ()> {
            dedup.check_in(&delivery, async |identity| Ok(!seen.contains(&identity.to_string()))).await
        }
        fn is_send<T: Send>(future: T) -> T {
            future
        }
        let (mut dedup, seen) = (Dedup::without_window(), BTreeSet::new());
        let verdict = is_send(handle(&mut dedup, stamped(1), &seen)).now_or_never();
        assert_eq!(verdict, Some(Ok(Verdict::First)));
    }

    /// What becomes of the transaction in which a delivery is handled. None of it is acknowledged, so that all come again.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        RolledBack,
        StoreFails,
        Committed,
    }

    fn arrivals() -> impl Strategy<Value = Vec<(Option<u64>, Fate)>> {
        let fate = prop_oneof![Just(Fate::RolledBack), Just(Fate::StoreFails), Just(Fate::Committed)];
        prop::collection::vec((prop::option::of(0..8u64), fate), 0..100)
    }

    proptest! {
        /// The reference: an identity is done when a delivery of it was committed for the first time, and never again.
        #[test]
        fn with_the_window_in_the_transaction_an_effect_is_there_once_whatever_is_rolled_back(arrivals in arrivals()) {
            let mut dedup = Dedup::without_window();
            // The database: committed memory, and how often each message took effect.
            let (mut seen, mut effects) = (BTreeSet::new(), BTreeMap::<Option<u64>, u32>::new());
            let mut reference = BTreeMap::<Option<u64>, u32>::new();
            for (sequence, fate) in arrivals {
                let delivery = sequence.map_or_else(|| delivery("x", &[]), stamped);
                let mut transaction = seen.clone();
                let verdict = dedup.check_in(&delivery, async |identity| match fate {
                    Fate::StoreFails => Err("gone"),
                    Fate::RolledBack | Fate::Committed => Ok(transaction.insert(identity.to_string())),
                });
                let verdict = verdict.now_or_never().expect("nothing to wait for");
                let Ok(verdict) = verdict else {
                    prop_assert!(matches!(fate, Fate::StoreFails) && sequence.is_some());
                    continue;
                };
                if matches!(fate, Fate::RolledBack) {
                    continue;
                }
                seen = transaction;
                if verdict != Verdict::Repeat {
                    *effects.entry(sequence).or_default() += 1;
                }
                match sequence {
                    Some(_) => drop(reference.insert(sequence, 1)),
                    None => *reference.entry(None).or_default() += 1,
                }
            }
            prop_assert_eq!(effects, reference);
        }
    }
}

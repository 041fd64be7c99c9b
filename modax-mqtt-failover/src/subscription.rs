//! Which filters are wanted, and what the present session knows of it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    event::{Filter, GapReason},
    packet::Qos,
};

/// One wanted filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The level wanted.
    pub qos: Qos,
    /// Whether a broker of this process has ever granted it, or an earlier process may have left it in a session that is
    /// about to be given up: else a first grant is no gap.
    pub granted_before: bool,
    /// Whether the present session has granted it.
    pub granted: bool,
}

/// The desired state: applied to a session, and again to the next.
#[derive(Clone, Debug, Default)]
pub struct Subscriptions {
    wishes: BTreeMap<Filter, Wish>,
}

impl Subscriptions {
    /// Wants `filter`; true when a broker has to hear of it.
    pub fn want(&mut self, filter: Filter, qos: Qos) -> bool {
        let wish = self.wishes.entry(filter).or_insert(Wish { qos, granted_before: false, granted: false });
        let heard = wish.granted && wish.qos >= qos;
        wish.qos = wish.qos.max(qos);
        wish.granted = heard;
        !heard
    }

    /// Wants it no more; true when it was wanted.
    pub fn drop_wish(&mut self, filter: &Filter) -> bool {
        self.wishes.remove(filter).is_some()
    }

    /// The wish for this filter.
    #[must_use]
    pub fn get(&self, filter: &Filter) -> Option<&Wish> {
        self.wishes.get(filter)
    }

    /// How many wanted filters match this topic.
    #[must_use]
    pub fn matching(&self, topic: &str) -> usize {
        self.wishes.keys().filter(|filter| matches(filter, topic)).count()
    }

    /// A broker granted it.
    pub fn granted(&mut self, filter: &Filter) {
        if let Some(wish) = self.wishes.get_mut(filter) {
            wish.granted = true;
            wish.granted_before = true;
        }
    }

    /// The session that knew of them is gone, or may not know.
    pub fn forget_grants(&mut self) {
        for wish in self.wishes.values_mut() {
            wish.granted = false;
        }
    }

    /// The session is about to be given up, with all that it may have kept for them.
    pub fn expect_gaps(&mut self) {
        for wish in self.wishes.values_mut() {
            wish.granted_before = true;
        }
    }

    /// What the present session has not granted.
    #[must_use]
    pub fn ungranted(&self) -> Vec<(Filter, Qos)> {
        let ungranted = self.wishes.iter().filter(|(_, wish)| !wish.granted);
        ungranted.map(|(filter, wish)| (Arc::clone(filter), wish.qos)).collect()
    }

    /// The filters whose readers may have missed something, and why. `kept` says that the session went on.
    #[must_use]
    pub fn gaps(&self, kept: bool, reason: GapReason) -> Vec<(Filter, GapReason)> {
        let missed = |wish: &Wish| match (wish.granted_before, kept, wish.qos) {
            (false, _, _) | (true, true, Qos::AtLeastOnce | Qos::ExactlyOnce) => None,
            (true, true, Qos::AtMostOnce) => Some(GapReason::Reconnected),
            (true, false, _) => Some(reason),
        };
        self.wishes.iter().filter_map(|(filter, wish)| Some((Arc::clone(filter), missed(wish)?))).collect()
    }
}

/// Whether `filter` matches `topic` (MQTT 3.1.1, 4.7). A shared subscription matches by what stands after its group.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    let shared = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
    let filter = shared.map_or(filter, |(_group, filter)| filter);
    // A leading wildcard does not match the broker's own topics (4.7.2).
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            Some(_) | None => return false,
        }
    }
    levels.next().is_none()
}

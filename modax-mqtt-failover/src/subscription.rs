//! Which filters are wanted, and what the present session knows of it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    event::{Filter, GapReason},
    packet::Qos,
};

/// After a refusal that may pass, a broker is asked again after this time, then after twice that.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// So often the time is doubled: up to 64 s.
const DOUBLINGS: u32 = 6;

/// One wanted filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The level wanted.
    pub qos: Qos,
    /// The level a broker of this process granted last, if one ever did: else a first grant is no gap.
    pub granted_before: Option<Qos>,
    /// Whether the present session has granted it.
    pub granted: bool,
    /// The code of a refusal that may pass, or that is this broker's alone, until a broker grants it again.
    pub refused: Option<u8>,
    /// Whether a SUBSCRIBE for it went out in this session.
    pub told: bool,
    /// Whether that has no answer yet.
    asked: bool,
    /// Whether it is not asked for before its time.
    waits: bool,
}

/// The desired state: applied to a session, and again to the next.
#[derive(Clone, Debug, Default)]
pub struct Subscriptions {
    wishes: BTreeMap<Filter, Wish>,
    /// When the present broker is asked again for what it refused, and how often it was.
    ask_at: Option<Instant>,
    asked: u32,
    /// The session is given up with what an earlier process may have left in it: a gap for all.
    given_up: bool,
}

impl Subscriptions {
    /// Wants `filter`; true when a broker has to hear of it.
    pub fn want(&mut self, filter: Filter, qos: Qos) -> bool {
        let wish =
            Wish { qos, granted_before: None, granted: false, refused: None, told: false, asked: false, waits: false };
        let wish = self.wishes.entry(filter).or_insert(wish);
        let heard = wish.granted && wish.qos >= qos;
        // What is under way asks for less.
        wish.asked &= wish.qos >= qos;
        wish.qos = wish.qos.max(qos);
        wish.granted = heard;
        wish.waits = false;
        !heard
    }

    /// Wants it no more; the wish, if it was wanted.
    pub fn drop_wish(&mut self, filter: &Filter) -> Option<Wish> {
        self.wishes.remove(filter)
    }

    /// A SUBSCRIBE for these is sent.
    pub fn mark_asked<'a>(&mut self, filters: impl Iterator<Item = &'a Filter>) {
        for filter in filters {
            if let Some(wish) = self.wishes.get_mut(filter) {
                (wish.told, wish.asked) = (true, true);
            }
        }
    }

    /// A SUBSCRIBE at this level was answered; the wish, if it stands.
    pub fn answered(&mut self, filter: &Filter, requested: Qos) -> Option<Wish> {
        let wish = self.wishes.get_mut(filter)?;
        wish.asked &= wish.qos > requested;
        Some(*wish)
    }

    /// It is to be asked for again although it was granted.
    pub fn forget_grant(&mut self, filter: &Filter) {
        if let Some(wish) = self.wishes.get_mut(filter) {
            (wish.granted, wish.asked) = (false, false);
        }
    }

    /// The session is another one, and has heard of nothing.
    pub fn forget_told(&mut self) {
        self.wishes.values_mut().for_each(|wish| wish.told = false);
    }

    /// The wish for this filter.
    #[must_use]
    pub fn get(&self, filter: &Filter) -> Option<&Wish> {
        self.wishes.get(filter)
    }

    /// Whether another wanted filter than the topic itself matches it.
    #[must_use]
    pub fn has_other(&self, topic: &str) -> bool {
        self.wishes.keys().any(|filter| &**filter != topic && matches(filter, topic))
    }

    /// A broker granted it at this level; the code of the refusal that this ends.
    pub fn granted(&mut self, filter: &Filter, level: Qos) -> Option<u8> {
        let wish = self.wishes.get_mut(filter)?;
        wish.granted = true;
        wish.granted_before = Some(level);
        let ended = wish.refused.take();
        if ended.is_some() && self.wishes.values().all(|wish| wish.refused.is_none()) {
            self.asked = 0;
        }
        ended
    }

    /// A broker refused what had been granted before: the next one is asked at once, and this one later. True when that is
    /// the first refusal since.
    pub fn postpone(&mut self, now: Instant, filter: &Filter, code: u8) -> bool {
        let is_first = self.suspend(filter, code);
        if self.ask_at.is_none() {
            self.ask_at = now.checked_add(FIRST_WAIT.saturating_mul(1 << self.asked.min(DOUBLINGS)));
            self.asked = self.asked.saturating_add(1);
        }
        is_first
    }

    /// The same for what this broker never takes: only the next one is asked.
    pub fn suspend(&mut self, filter: &Filter, code: u8) -> bool {
        let Some(wish) = self.wishes.get_mut(filter) else { return false };
        wish.waits = true;
        wish.refused.replace(code).is_none()
    }

    /// What the present broker refuses although it was granted before.
    pub fn refused(&self) -> impl Iterator<Item = &Filter> {
        self.wishes.iter().filter(|(_, wish)| wish.waits).map(|(filter, _)| filter)
    }

    /// When a broker is to be asked again.
    #[must_use]
    pub const fn ask_at(&self) -> Option<Instant> {
        self.ask_at
    }

    /// Whether it is time to ask again.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.ask_at.take_if(|at| *at <= now).is_some();
        if is_due {
            self.wishes.values_mut().for_each(|wish| wish.waits = false);
        }
        is_due
    }

    /// The session that knew of them is gone, or may not know.
    pub fn forget_grants(&mut self) {
        for wish in self.wishes.values_mut() {
            (wish.granted, wish.asked, wish.waits) = (false, false, false);
        }
        (self.ask_at, self.asked) = (None, 0);
    }

    /// The session is about to be given up, with all that it may have kept for them.
    pub const fn expect_gaps(&mut self) {
        self.given_up = true;
    }

    /// What the present session has not granted.
    #[must_use]
    pub fn ungranted(&self) -> Vec<(Filter, Qos)> {
        let ungranted = self.wishes.iter().filter(|(_, wish)| !wish.granted && !wish.asked && !wish.waits);
        ungranted.map(|(filter, wish)| (Arc::clone(filter), wish.qos)).collect()
    }

    /// The filters that a topic matches.
    pub(crate) fn matching(&self, topic: &str) -> impl Iterator<Item = Filter> {
        self.wishes.keys().filter(move |filter| matches(filter, topic)).cloned()
    }

    /// The filters whose readers may have missed something, and why. `kept` says that the session went on.
    #[must_use]
    pub fn gaps(&mut self, kept: bool, reason: GapReason) -> Vec<(Filter, GapReason)> {
        let given_up = std::mem::take(&mut self.given_up);
        let missed = |wish: &Wish| match (wish.granted_before, kept) {
            (None, _) if given_up => Some(reason),
            (None, _) | (Some(Qos::AtLeastOnce | Qos::ExactlyOnce), true) => None,
            (Some(Qos::AtMostOnce), true) => Some(GapReason::Reconnected),
            (Some(_), false) => Some(reason),
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

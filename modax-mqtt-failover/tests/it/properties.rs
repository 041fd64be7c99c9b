//! Queue and ledger against models that are slow and obviously right.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    LivenessConfig, Message, MessageId, Qos, Queue, WhenFull,
    config::Config,
    inflight::{Inflight, Phase},
    packet::PacketId,
    queue::{Admission, Admitted, Backlog},
    subscription::matches,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Admit { topic: u8, size: usize, expires: Option<u64> },
    Take,
    Settle(usize),
    Expire,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8, 0..200_usize, proptest::option::of(1..50_u64))
            .prop_map(|(topic, size, expires)| Step::Admit { topic, size, expires }),
        2 => Just(Step::Take),
        2 => any::<usize>().prop_map(Step::Settle),
        1 => Just(Step::Expire),
        1 => (1..30_u64).prop_map(Step::Pass),
    ]
}

fn policy() -> impl Strategy<Value = WhenFull> {
    prop_oneof![
        Just(WhenFull::Wait),
        Just(WhenFull::Reject),
        Just(WhenFull::ShedOldest),
        Just(WhenFull::ShedNewest),
        Just(WhenFull::LatestPerTopic),
    ]
}

/// A list, searched from the front.
#[derive(Default)]
struct Model {
    waiting: Vec<(MessageId, Message, Option<Instant>)>,
    taken: Vec<(MessageId, usize)>,
}

impl Model {
    fn cost(&self) -> usize {
        let waiting = self.waiting.iter().map(|(_, message, _)| message.cost_bytes()).sum::<usize>();
        waiting + self.taken.iter().map(|(_, cost)| cost).sum::<usize>()
    }

    fn count(&self) -> usize {
        self.waiting.len() + self.taken.len()
    }

    /// Who makes room for `newcomer`: one with a newer message of its topic, the newcomer included, else the oldest.
    fn victim(&self, policy: WhenFull, newcomer: &Message) -> Option<usize> {
        let superseded = |index: usize| {
            let topic = self.waiting[index].1.topic();
            topic == newcomer.topic() || self.waiting[index + 1..].iter().any(|(_, other, _)| other.topic() == topic)
        };
        let by_topic = (0..self.waiting.len()).find(|index| policy == WhenFull::LatestPerTopic && superseded(*index));
        by_topic.or((!self.waiting.is_empty()).then_some(0))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_does_what_a_list_does(policy in policy(), steps in proptest::collection::vec(step(), 1..120)) {
        const MESSAGES: usize = 6;
        const BYTES: usize = 1200;
        let mut now = Instant::now();
        let mut backlog = Backlog::new(Queue::memory().max_messages(MESSAGES).max_bytes(BYTES).when_full(policy));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Admit { topic, size, expires } => {
                    let mut message = Message::new(format!("t{topic}"), vec![0; size]);
                    if let Some(ms) = expires {
                        message = message.expires_in(Duration::from_millis(ms));
                    }
                    let cost = message.cost_bytes();
                    let fits = |model: &Model| model.count() < MESSAGES && model.cost() + cost <= BYTES;
                    match backlog.admit(now, &message) {
                        Admission::Admitted { id, shed } => {
                            for (victim, _) in shed {
                                prop_assert!(!fits(&model), "shed without need");
                                let index = model.victim(policy, &message).expect("somebody waits");
                                prop_assert_eq!(model.waiting.remove(index).0, victim);
                            }
                            prop_assert!(fits(&model), "admitted beyond the limits");
                            model.waiting.push((id, message, expires.map(|ms| now + Duration::from_millis(ms))));
                        }
                        Admission::Shed => {
                            prop_assert_eq!(policy, WhenFull::ShedNewest);
                            prop_assert!(!fits(&model));
                        }
                        Admission::Full => {
                            prop_assert!(!fits(&model));
                            let room_without_waiting = model.taken.len() < MESSAGES
                                && model.taken.iter().map(|(_, cost)| cost).sum::<usize>() + cost <= BYTES;
                            prop_assert!(matches!(policy, WhenFull::Wait | WhenFull::Reject) || !room_without_waiting);
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Take => {
                    let next = model.waiting.iter().position(|(_, _, at)| at.is_none_or(|at| at > now));
                    let taken = backlog.take(now);
                    prop_assert_eq!(taken.as_ref().map(|taken| taken.id), next.map(|index| model.waiting[index].0));
                    if let Some(index) = next {
                        let (id, message, _) = model.waiting.remove(index);
                        model.taken.push((id, message.cost_bytes()));
                    }
                }
                Step::Settle(which) if !model.taken.is_empty() => {
                    let (id, _) = model.taken.remove(which % model.taken.len());
                    backlog.settle(id);
                }
                Step::Settle(_) => backlog.settle(MessageId::new(u64::MAX)),
                Step::Expire => {
                    while let Some(expired) = backlog.expire(now) {
                        let index = model.waiting.iter().position(|(id, _, _)| *id == expired.id).expect("it waited");
                        let (_, _, at) = model.waiting.remove(index);
                        prop_assert!(at.is_some_and(|at| at <= now));
                    }
                    prop_assert!(model.waiting.iter().all(|(_, _, at)| at.is_none_or(|at| at > now)));
                }
                Step::Pass(ms) => now += Duration::from_millis(ms),
            }
            prop_assert_eq!((backlog.messages(), backlog.bytes()), (model.count(), model.cost()));
            let due = model.waiting.iter().filter_map(|(_, _, at)| *at).min();
            prop_assert_eq!(backlog.poll_timeout(), due);
        }
    }

    #[test]
    fn the_ledger_holds_each_id_once_and_sends_oldest_first(steps in proptest::collection::vec((0..6_u8, any::<u16>()), 1..150)) {
        let now = Instant::now();
        let mut backlog = Backlog::new(Queue::memory());
        let mut ledger = Inflight::default();
        let mut present: BTreeMap<MessageId, Option<PacketId>> = BTreeMap::new();
        let mut pending: BTreeSet<MessageId> = BTreeSet::new();
        let mut sequence = 0;
        for (what, number) in steps {
            let pick = |from: &BTreeMap<MessageId, Option<PacketId>>| {
                from.keys().nth(usize::from(number) % from.len().max(1)).copied()
            };
            match what {
                0 | 1 => {
                    let message = Message::new("t", "").qos(if number % 2 == 0 { Qos::AtLeastOnce } else { Qos::ExactlyOnce });
                    let admitted = matches!(backlog.admit(now, &message), Admission::Admitted { .. });
                    prop_assert!(admitted);
                    let admitted: Admitted = backlog.take(now).expect("it waits");
                    present.insert(admitted.id, None);
                    pending.insert(admitted.id);
                    ledger.insert(admitted);
                }
                2 => {
                    let id = PacketId::new(number % 40 + 1).expect("not zero");
                    let next = ledger.next_pending();
                    prop_assert_eq!(next, pending.first().copied());
                    if let Some(message) = next {
                        let known = present.get(&message).copied().flatten();
                        let id = known.unwrap_or(id);
                        if known.is_some() || !ledger.holds(id) {
                            sequence += 1;
                            ledger.mark_sent(message, id, sequence);
                            present.insert(message, Some(id));
                            pending.remove(&message);
                        }
                    }
                }
                3 => {
                    if let Some(message) = pick(&present) {
                        prop_assert!(ledger.remove(message).is_some());
                        present.remove(&message);
                        pending.remove(&message);
                    }
                }
                4 => {
                    ledger.disconnect();
                    pending.extend(present.keys());
                }
                _ => {
                    ledger.disconnect();
                    ledger.forget_packet_ids();
                    pending.extend(present.keys());
                    for id in present.values_mut() {
                        *id = None;
                    }
                }
            }
            prop_assert_eq!(ledger.len(), present.len());
            for (message, id) in &present {
                let entry = ledger.get(*message).expect("present");
                prop_assert_eq!(entry.id, *id);
                prop_assert_eq!(matches!(entry.phase, Phase::Pending | Phase::ReleasePending), pending.contains(message));
                if let Some(id) = id {
                    prop_assert_eq!(ledger.by_packet(*id).map(|entry| entry.admitted.id), Some(*message));
                }
            }
        }
    }

    #[test]
    fn filters_match_as_the_standard_says(filter in "[ab+#$/]{0,6}", topic in "[ab$/]{1,6}") {
        prop_assert_eq!(matches(&filter, &topic), slow_match(&filter, &topic), "{} {}", filter, topic);
    }
}

/// The rule of 4.7, level by level, without care for speed. Malformed filters never reach a session, and match alike.
fn slow_match(filter: &str, topic: &str) -> bool {
    fn levels(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#", ..], _) | ([], []) => true,
            ([first, filter @ ..], [level, topic @ ..]) => (first == level || *first == "+") && levels(filter, topic),
            _ => false,
        }
    }
    let wild = filter.starts_with('+') || filter.starts_with('#');
    if topic.starts_with('$') && wild {
        return false;
    }
    let filter: Vec<&str> = filter.split('/').collect();
    let topic: Vec<&str> = topic.split('/').collect();
    levels(&filter, &topic)
}

#[test]
fn what_waits_for_the_disk_is_neither_shed_nor_expired_past_the_limits() {
    for policy in [WhenFull::ShedOldest, WhenFull::LatestPerTopic] {
        let now = Instant::now();
        let mut backlog = Backlog::new(Queue::disk("unused").max_messages(2).when_full(policy));
        backlog.recover(Vec::new(), 0);
        let message = Message::new("t", "x").expires_in(Duration::from_millis(1));
        let admitted = |admission| matches!(admission, Admission::Admitted { .. });
        assert!(admitted(backlog.admit(now, &message)) && admitted(backlog.admit(now, &message)));
        let later = now + Duration::from_secs(1);

        assert_eq!(backlog.admit(later, &message), Admission::Full, "{policy:?}: its record waits in memory");
        assert_eq!((backlog.expire(later), backlog.poll_timeout()), (None, None));

        backlog.written(MessageId::new(1));
        assert!(backlog.expire(later).is_some_and(|first| first.id == MessageId::new(0)));
        assert_eq!(backlog.expire(later), None);
        backlog.written(MessageId::new(2));
        assert!(admitted(backlog.admit(later, &message)));
        assert!(admitted(backlog.admit(later, &message)), "{policy:?}: the one on disk makes room");
    }
}

#[test]
fn a_limit_that_no_clock_can_say_is_refused_by_name() {
    let mut config = Config::from_urls("x", ["mqtt://a"]).expect("valid");
    config.liveness = LivenessConfig::default().slow_after(Duration::MAX);
    let refused = config.check().expect_err("no deadline can be made of it").to_string();
    assert!(refused.contains("liveness.slow_after"), "{refused}");
}

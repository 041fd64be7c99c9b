//! The rule against a small model of a log that is cut, grows again, and gives lost numbers away.

use modax_db_router::commit::{Evidence, Settled, UnknownBecause, Verdict, judge, read_status};
use modax_db_router::fence::{Floor, Life, Lineage};
use modax_db_router::observation::{Incarnation, StartTime};
use modax_db_router::{Lsn, NodeId, SystemId, Timeline};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Record {
    /// A transaction assigned itself this number.
    Assign(u64),
    Commit(u64),
    Other,
}

/// The log of one cluster; a position is an index. Nothing else survives a restart.
#[derive(Debug, Default)]
struct Log {
    records: Vec<Record>,
}

impl Log {
    fn next_xid(&self) -> u64 {
        self.records
            .iter()
            .filter_map(|record| if let Record::Assign(xid) = record { Some(xid + 1) } else { None })
            .max()
            .unwrap_or(3)
    }

    /// What `pg_xact_status` says; `Err` is SQLSTATE 22023.
    fn status(&self, xid: u64) -> Result<&'static str, ()> {
        if xid >= self.next_xid() {
            return Err(());
        }
        let committed = self.records.iter().any(|record| matches!(record, Record::Commit(known) if *known == xid));
        Ok(if committed { "committed" } else { "aborted" })
    }
}

#[derive(Clone, Debug)]
struct Step {
    /// How much of the log is lost, in records from its end.
    lost: usize,
    promotion: bool,
    floor_known: bool,
    /// What others do afterwards: whether each transaction commits.
    others: Vec<bool>,
}

fn step() -> impl Strategy<Value = Step> {
    (0_usize..12, any::<bool>(), prop::bool::weighted(0.8), prop::collection::vec(any::<bool>(), 0..6))
        .prop_map(|(lost, promotion, floor_known, others)| Step { lost, promotion, floor_known, others })
}

fn life(number: i64, timeline: u32, floor: Floor) -> Life {
    let incarnation = Incarnation {
        system: SystemId::new(1),
        timeline: Timeline::new(timeline),
        started: StartTime::from_micros(number),
        floor: None,
    };
    Life::new(NodeId::new("db", 1), incarnation, floor)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_rule_is_never_wrong_and_settles_what_can_be_settled(
        before in 0_usize..5,
        between in 0_usize..4,
        committed: bool,
        after in 0_usize..4,
        steps in prop::collection::vec(step(), 0..4),
    ) {
        let mut log = Log::default();
        log.records.resize(before, Record::Other);
        let xid = log.next_xid();
        log.records.push(Record::Assign(xid));
        log.records.resize(log.records.len() + between, Record::Other);
        let evidence_at = Lsn::new(log.records.len() as u64);
        let mut commit_at = None;
        if committed {
            commit_at = Some(log.records.len());
            log.records.push(Record::Commit(xid));
        }
        log.records.resize(log.records.len() + after, Record::Other);

        let mut lives = vec![life(0, 1, Floor::Unknown)];
        let origin = lives[0].incarnation;
        let (mut timeline, mut survived) = (1, committed);
        for (index, step) in steps.iter().enumerate() {
            let floor = log.records.len().saturating_sub(step.lost);
            log.records.truncate(floor);
            survived &= commit_at.is_some_and(|at| at < floor);
            timeline += u32::from(step.promotion);
            let known = if step.floor_known { Floor::At(Lsn::new(floor as u64)) } else { Floor::Unknown };
            lives.push(life(i64::try_from(index).expect("few") + 1, timeline, known));
            for commits in &step.others {
                let other = log.next_xid();
                log.records.push(Record::Assign(other));
                if *commits {
                    log.records.push(Record::Commit(other));
                }
            }
        }

        let evidence = Evidence { xid: Some(xid), lsn: evidence_at, origin };
        let all_known = steps.iter().all(|step| step.floor_known);
        let settled = match judge(&evidence, &Lineage::new(lives)) {
            Verdict::NotCommitted => Settled::NotCommitted,
            Verdict::Unknown(because) => Settled::Unknown(because),
            Verdict::Ask { xid, believe_committed } => match log.status(xid) {
                Ok(status) => read_status(Some(status), believe_committed),
                Err(()) => Settled::Unknown(UnknownBecause::NotOnRecord),
            },
        };
        match settled {
            Settled::Committed => prop_assert!(survived, "called committed, and is not there"),
            Settled::NotCommitted => prop_assert!(!survived, "called not committed, and is there"),
            Settled::Unknown(_) => prop_assert!(!all_known, "every floor was known"),
            Settled::InProgress => prop_assert!(false, "nothing is in progress"),
        }
    }
}

#[test]
fn pg_xact_status_alone_would_lie() {
    // Number 3 was lost in a crash in place; somebody else got it and committed.
    let mut log = Log { records: vec![Record::Other, Record::Assign(3), Record::Commit(3)] };
    log.records.truncate(1);
    let other = log.next_xid();
    log.records.extend([Record::Assign(other), Record::Commit(other)]);
    assert_eq!(log.status(3), Ok("committed"));

    let lives = vec![life(0, 1, Floor::Unknown), life(1, 1, Floor::At(Lsn::new(1)))];
    let evidence = Evidence { xid: Some(3), lsn: Lsn::new(2), origin: lives[0].incarnation };
    assert_eq!(judge(&evidence, &Lineage::new(lives)), Verdict::NotCommitted);
}

#[test]
fn what_cannot_be_known_is_said_so() {
    let lives = vec![life(0, 1, Floor::Unknown)];
    let origin = lives[0].incarnation;
    let lineage = Lineage::new(lives);
    let nothing = Evidence { xid: None, lsn: Lsn::new(1), origin };
    assert_eq!(judge(&nothing, &lineage), Verdict::Unknown(UnknownBecause::NoTransactionId));
    // A life this router never saw: only "aborted" is believed.
    let stranger = Incarnation { started: StartTime::from_micros(99), ..origin };
    let evidence = Evidence { xid: Some(7), lsn: Lsn::new(1), origin: stranger };
    assert_eq!(judge(&evidence, &lineage), Verdict::Ask { xid: 7, believe_committed: false });
    assert_eq!(read_status(Some("aborted"), false), Settled::NotCommitted);
    assert_eq!(read_status(Some("committed"), false), Settled::Unknown(UnknownBecause::FloorUnknown));
    assert_eq!(read_status(Some("in progress"), true), Settled::InProgress);
    assert_eq!(read_status(None, true), Settled::Unknown(UnknownBecause::NotOnRecord));
}

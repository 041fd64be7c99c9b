//! What is known around a commit: taken before it, so that it can be settled, and behind it, to judge its copies.

use tokio_postgres::SimpleQueryMessage;

use crate::commit::Evidence;
use crate::lsn::Lsn;
use crate::observation::Incarnation;
use crate::write::Durability;

/// Taken behind the last statement and before COMMIT: what the rule needs, and the first half of the proof of copies.
pub(crate) const BEFORE_COMMIT: &str = "SELECT pg_current_xact_id_if_assigned()::text, pg_current_wal_insert_lsn(), \
    current_setting('synchronous_standby_names') <> '', current_setting('synchronous_commit'), pg_conf_load_time(), \
    extract(epoch FROM pg_catalog.now())";

/// Taken behind COMMIT in the same flight: what the token's position is made of, and the second half of the proof.
pub(crate) const AFTER_COMMIT: &str = "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn(), \
    current_setting('synchronous_standby_names') <> '', pg_conf_load_time()";

/// The row of [`BEFORE_COMMIT`].
pub(crate) type BeforeRow = [Option<String>; 6];

/// The same, read.
pub(crate) struct Before {
    pub(crate) evidence: Evidence,
    pub(crate) synchronous: Option<bool>,
    pub(crate) commit_level: Option<String>,
    pub(crate) loaded: Option<String>,
    /// When the transaction began, by the server's clock.
    pub(crate) began: Option<String>,
}

/// The columns of the first row, as text.
pub(crate) fn columns<const N: usize>(messages: &[SimpleQueryMessage]) -> Option<[Option<String>; N]> {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })?;
    Some(std::array::from_fn(|index| row.try_get(index).ok().flatten().map(str::to_owned)))
}

pub(crate) fn read_before(row: BeforeRow, origin: Incarnation) -> Option<Before> {
    let [xid, lsn, synchronous, commit_level, loaded, began] = row;
    let xid = xid.map(|text| text.parse()).transpose().ok()?;
    let evidence = Evidence { xid, lsn: lsn?.parse().ok()?, origin };
    Some(Before { evidence, synchronous: synchronous.map(|text| text == "t"), commit_level, loaded, began })
}

/// The token's position. A commit that waited for the disk is below what is flushed; what was inserted behind it, by others, need
/// not outlive a crash of the server, and a token that asked for it would be called lost with its own write in place.
pub(crate) fn token_position(before: &Before, inserted: Option<&str>, flushed: Option<&str>) -> Option<Lsn> {
    // Without a write of its own it waited for nothing, and may have read what others have not flushed.
    let wrote = before.evidence.xid.is_some();
    let waited = wrote && matches!(before.commit_level.as_deref(), Some(level) if level != "off");
    let position = if waited { flushed } else { inserted };
    position.and_then(|text| text.parse().ok()).map(Lsn::end_of_record)
}

/// Judges the copies of a commit that was acknowledged.
pub(crate) fn durability(before: &Before, after: Option<bool>, unchanged: bool, warned: bool) -> Durability {
    let level_waits = matches!(before.commit_level.as_deref(), Some("on" | "remote_apply"));
    match (before.synchronous, after) {
        (Some(true), Some(true)) if unchanged && level_waits && !warned => Durability::Synchronous,
        (Some(true), Some(true)) if unchanged && !level_waits => Durability::Local,
        (Some(false), Some(false)) if unchanged => Durability::Local,
        _ => Durability::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_asks_for_what_outlives_a_crash_where_the_commit_waited_for_the_disk() {
        let of = |xid: Option<&str>, level: Option<&str>| {
            let row = [xid.map(str::to_owned), Some("0/100".to_owned()), None, level.map(str::to_owned), None, None];
            let incarnation = Incarnation {
                system: crate::lsn::SystemId::new(1),
                timeline: crate::lsn::Timeline::new(1),
                started: crate::observation::StartTime::from_micros(0),
                floor: None,
            };
            let before = read_before(row, incarnation).expect("a position");
            token_position(&before, Some("0/300"), Some("0/200")).map(|lsn| lsn.to_string())
        };
        for level in ["on", "local", "remote_write", "remote_apply"] {
            assert_eq!(of(Some("7"), Some(level)).as_deref(), Some("0/200"), "{level}");
            assert_eq!(of(None, Some(level)).as_deref(), Some("0/300"), "{level}: it wrote nothing");
        }
        for level in [Some("off"), None] {
            assert_eq!(of(Some("7"), level).as_deref(), Some("0/300"), "{level:?}");
        }
    }
}

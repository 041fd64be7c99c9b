//! What is known around a commit: taken before it, so that it can be settled, and behind it, to judge its copies.

use tokio_postgres::SimpleQueryMessage;

use crate::commit::Evidence;
use crate::observation::Incarnation;
use crate::write::Durability;

/// Taken behind the last statement and before COMMIT: what the rule needs, and the first half of the proof of copies.
pub(crate) const BEFORE_COMMIT: &str = "SELECT pg_current_xact_id_if_assigned()::text, pg_current_wal_insert_lsn(), \
    current_setting('synchronous_standby_names') <> '', current_setting('synchronous_commit'), pg_conf_load_time(), \
    extract(epoch FROM pg_catalog.now())";

/// Taken behind COMMIT in the same flight: the token's position, and the second half of the proof.
pub(crate) const AFTER_COMMIT: &str = "SELECT pg_current_wal_insert_lsn(), \
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

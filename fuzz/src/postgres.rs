//! What PostgreSQL, or somebody who claims to be it, answers; and tokens that travelled through other hands.

use modax_db_router::observation::parse_probe;
use modax_db_router::{Lsn, WriteToken};

use crate::text;

/// A log position: what is shown is read as the same.
pub(crate) fn lsn(data: &[u8]) {
    let Some(lsn) = text(data).and_then(|text| text.parse::<Lsn>().ok()) else { return };
    assert_eq!(lsn.to_string().parse(), Ok(lsn));
    assert_eq!(lsn.bytes_since(lsn), 0);
}

/// A write token: what is shown is read as the same.
pub(crate) fn write_token(data: &[u8]) {
    let Some(token) = text(data).and_then(|text| text.parse::<WriteToken>().ok()) else { return };
    assert_eq!(token.to_string().parse(), Ok(token));
}

/// The row of a probe: a column a line, `\N` for NULL. It is understood or named, and understood the same way twice.
pub(crate) fn probe_row(data: &[u8]) {
    let Some(row) = text(data) else { return };
    let columns: Vec<Option<&str>> = row.split('\n').map(|column| Some(column).filter(|it| *it != "\\N")).collect();
    let read = || parse_probe(|index| columns.get(index).copied().flatten());
    match (read(), read()) {
        (Ok(one), Ok(other)) => assert_eq!(format!("{one:?}"), format!("{other:?}")),
        (Err(one), Err(other)) => assert_eq!(one, other),
        (one, other) => panic!("{one:?} and then {other:?}"),
    }
}

//! `modax read`: one line in, one line of rows out.

use std::sync::Arc;

use modax_db_router::{ReadError, ReadPreference, Router, Rows};
use serde::Serialize;
use tokio_postgres::types::{Kind, Type};

use super::param::Statement;
use super::value::Object;
use super::{close, router, run_lines, value};
use crate::Exit;
use crate::args::{Preference, ReadArgs};
use crate::output::{Output, chain};

/// Runs each line of stdin as one query.
pub(crate) async fn read(args: ReadArgs, output: Output) -> Exit {
    let Some(router) = router(&args.database, args.deadline) else { return Exit::Usage };
    let options = Arc::new(args);
    let work = {
        let router = router.clone();
        move |seq, bytes: Result<Vec<u8>, String>| {
            let (router, options) = (router.clone(), options.clone());
            async move { read_line(&router, &options, seq, bytes).await }
        }
    };
    let exit = run_lines(&router, 1, &output, work, not_read).await;
    close(&router).await;
    exit
}

/// One line of output.
#[derive(Serialize)]
struct Answer {
    seq: u64,
    node: Option<String>,
    rows: Vec<Object>,
    staleness_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn not_read(seq: u64, error: &str) -> Answer {
    Answer { seq, node: None, rows: Vec::new(), staleness_ms: None, error: Some(error.to_owned()) }
}

async fn read_line(router: &Router, options: &ReadArgs, seq: u64, bytes: Result<Vec<u8>, String>) -> (bool, Answer) {
    let read = async {
        let statement = Statement::parse(&bytes?)?;
        rows(router, options, &statement).await
    };
    match read.await {
        Ok((rows, values)) => {
            let staleness_ms = rows.staleness.map(|age| age.as_secs_f64() * 1e3);
            let node = Some(rows.node.to_string());
            (true, Answer { seq, node, rows: values, staleness_ms, error: None })
        }
        Err(error) => (false, not_read(seq, &error)),
    }
}

async fn rows(router: &Router, options: &ReadArgs, statement: &Statement) -> Result<(Rows, Vec<Object>), String> {
    let mut rows = query(router, options, statement, &statement.sql).await.map_err(|error| chain(&error))?;
    let Some(first) = rows.rows.first() else { return Ok((rows, Vec::new())) };
    let names: Vec<String> = first.columns().iter().map(|column| column.name().to_owned()).collect();
    let types: Vec<Type> = first.columns().iter().map(|column| column.type_().clone()).collect();
    if let Some(name) = twice(&names) {
        return Err(format!("two columns are named {name:?}, and a row is an object: give one another name with AS"));
    }
    if let Some(unknown) = types.iter().position(|ty| !value::is_known(ty)) {
        let sql = as_text(&statement.sql, &types);
        rows = query(router, options, statement, &sql).await.map_err(|error| {
            let (name, ty) = (&names[unknown], &types[unknown]);
            format!(
                "column {name:?} is of type {ty}, which is shown only as text: cast it with ::text ({})",
                chain(&error)
            )
        })?;
    }
    let values = rows.rows.iter().map(|row| value::row(&names, row)).collect::<Result<Vec<_>, _>>();
    let values = values.map_err(|error| chain(&error))?;
    Ok((rows, values))
}

async fn query(router: &Router, options: &ReadArgs, statement: &Statement, sql: &str) -> Result<Rows, ReadError> {
    let preference = match options.preference {
        Preference::Primary => ReadPreference::Primary,
        Preference::PreferReplica => ReadPreference::PreferReplica,
        Preference::Replica => ReadPreference::Replica,
    };
    let mut read = router.read(preference).deadline(options.deadline);
    if let Some(bound) = options.max_staleness {
        read = read.max_staleness(bound);
    }
    if let Some(token) = &options.at_least {
        read = read.at_least(token);
    }
    read.query(sql, &statement.params()).await
}

/// A name that stands there more than once.
fn twice(names: &[String]) -> Option<&String> {
    names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)).map(|(_, name)| name)
}

/// The same query with the server's own text for each column of a type that is not known here: the driver asks for the
/// binary form of everything.
fn as_text(sql: &str, types: &[Type]) -> String {
    let column = |(index, ty): (usize, &Type)| match ty.kind() {
        _ if value::is_known(ty) => format!("c{index}"),
        Kind::Array(_) => format!("c{index}::text[]"),
        _ => format!("c{index}::text"),
    };
    let columns: Vec<String> = types.iter().enumerate().map(column).collect();
    let names: Vec<String> = (0..types.len()).map(|index| format!("c{index}")).collect();
    let sql = sql.trim_end_matches(|c: char| c.is_ascii_whitespace() || c == ';');
    format!("SELECT {} FROM (\n{sql}\n) AS t ({})", columns.join(", "), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_columns_of_unknown_types_are_asked_for_as_text() {
        let sql = as_text("SELECT 1, '(1,2)'::point -- here\n;", &[Type::INT4, Type::POINT, Type::POINT_ARRAY]);
        assert_eq!(
            sql,
            "SELECT c0, c1::text, c2::text[] FROM (\nSELECT 1, '(1,2)'::point -- here\n) AS t (c0, c1, c2)"
        );
    }

    #[test]
    fn a_name_that_stands_there_twice_is_found() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(twice(&names(&["a", "b", "a"])).map(String::as_str), Some("a"));
        assert_eq!(twice(&names(&["a", "b", "A"])), None);
    }
}

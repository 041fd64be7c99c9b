//! Parameters: JSON scalars as values of whatever type the server infers for `$1`, `$2`, …
//!
//! Each goes out in the type's text form, so that the server's own parser decides and names a mismatch. A string is
//! that text itself, as in psql; this reaches every type, also numeric, uuid, timestamptz and json. A JSON array is an
//! array, in several dimensions where it is nested.

use std::error::Error;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_postgres::types::{Format, IsNull, Kind, ToSql, Type, to_sql_checked};

/// One line of stdin.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with \"sql\" and \"params\"")]
pub(crate) struct Statement {
    /// The text, with `$1`… for the parameters.
    pub(crate) sql: String,
    /// The parameters, in order.
    #[serde(default)]
    pub(crate) params: Vec<Param>,
}

impl Statement {
    /// Reads one line.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        let broken = |why: &str| format!("not a {{\"sql\",\"params\"}} line: {why}");
        match line.trim_ascii_start().first() {
            None => return Err(broken("it is empty")),
            // A JSON array would do as an object without names.
            Some(b'[') => return Err(broken("it is a JSON array")),
            Some(_) => {}
        }
        let statement: Self = serde_json::from_slice(line).map_err(|error| broken(&error.to_string()))?;
        if statement.sql.contains('\0') {
            return Err("the SQL text holds the character U+0000, which PostgreSQL cannot read".to_owned());
        }
        match transaction_command(&statement.sql) {
            Some(command) => Err(format!(
                "{command} is not run: each line is a transaction of its own, begun and ended by this command"
            )),
            None => Ok(statement),
        }
    }

    /// The parameters as the driver takes them.
    pub(crate) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.params.iter().map(|param| param as &(dyn ToSql + Sync)).collect()
    }
}

/// The first word, if it begins, ends or divides a transaction. A line is one statement, which the server sees to, so
/// nothing hides behind the first word; what a statement ends in another way, the router notices.
fn transaction_command(sql: &str) -> Option<String> {
    const COMMANDS: [&str; 9] =
        ["BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "PREPARE"];
    let mut words = without_comments(sql).split_ascii_whitespace();
    let bare = |word: &str| word.trim_matches(';').to_ascii_uppercase();
    let first = words.next().map(bare)?;
    // PREPARE name AS … prepares a statement, and goes with the session.
    let is_one = COMMANDS.contains(&first.as_str())
        && (first != "PREPARE" || words.next().map(bare).as_deref() == Some("TRANSACTION"));
    is_one.then_some(first)
}

/// What is left behind the spaces, empty statements and comments at the beginning. Comments nest, as in PostgreSQL.
fn without_comments(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once(['\n', '\r']).map_or("", |(_, behind)| behind);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = behind_comment(comment);
        } else {
            return rest;
        }
    }
}

fn behind_comment(comment: &str) -> &str {
    let (mut depth, mut rest) = (1, comment);
    while depth > 0 {
        let Some(at) = rest.find(['/', '*']) else { return "" };
        rest = &rest[at..];
        let step = if rest.starts_with("*/") {
            (-1, 2)
        } else if rest.starts_with("/*") {
            (1, 2)
        } else {
            (0, 1)
        };
        depth += step.0;
        rest = &rest[step.1..];
    }
    rest
}

/// One JSON value on its way to the server, letter for letter: a number keeps every digit for `numeric`.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Param(Box<RawValue>);

impl ToSql for Param {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(text) = text(&self.0, ty)? else { return Ok(IsNull::Yes) };
        if text.contains('\0') {
            return Err("PostgreSQL cannot store the character U+0000".into());
        }
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

type Failure = Box<dyn Error + Sync + Send>;

/// The text form of a value, `None` for null.
fn text(value: &RawValue, ty: &Type) -> Result<Option<String>, Failure> {
    let raw = value.get();
    let is_json = *ty == Type::JSON || *ty == Type::JSONB;
    match (raw.as_bytes().first(), ty.kind()) {
        (Some(b'n'), _) => Ok(None),
        (Some(b'"'), _) => Ok(Some(serde_json::from_str(raw)?)),
        (Some(b'['), Kind::Array(member)) => Ok(Some(array(value, member)?)),
        (Some(b'[' | b'{'), Kind::Domain(base)) => text(value, base),
        (Some(b'['), _) if !is_json => {
            Err(format!("a JSON array is for array types and json, this one is {ty}").into())
        }
        (Some(b'{'), _) if !is_json => Err(format!("a JSON object is for json and jsonb, this one is {ty}").into()),
        _ => Ok(Some(raw.to_owned())),
    }
}

/// `{…}` as PostgreSQL reads it: every member in quotes, but for null. An array in an array is a further dimension,
/// unless the members are json.
fn array(value: &RawValue, member: &Type) -> Result<String, Failure> {
    let is_json = *member == Type::JSON || *member == Type::JSONB;
    let members: Vec<Box<RawValue>> = serde_json::from_str(value.get())?;
    let mut shown = Vec::with_capacity(members.len());
    for value in &members {
        shown.push(match value.get().as_bytes().first() {
            Some(b'[') if !is_json => array(value, member)?,
            // Within an array of json a string is json, too.
            Some(b'"') if is_json => quoted(value.get()),
            _ => text(value, member)?.map_or_else(|| "NULL".to_owned(), |text| quoted(&text)),
        });
    }
    // The one type that has another sign between its values: its own hold commas.
    let between = if *member == Type::BOX { ";" } else { "," };
    Ok(format!("{{{}}}", shown.join(between)))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str, ty: &Type) -> Result<Option<String>, String> {
        let param: Param = serde_json::from_str(json).unwrap();
        let mut out = BytesMut::new();
        match param.to_sql(ty, &mut out) {
            Ok(IsNull::Yes) => Ok(None),
            Ok(IsNull::No) => Ok(Some(String::from_utf8(out.to_vec()).unwrap())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn scalars_go_out_in_the_types_text_form() {
        assert_eq!(text("12", &Type::INT4), Ok(Some("12".into())));
        assert_eq!(text("18446744073709551615", &Type::NUMERIC), Ok(Some("18446744073709551615".into())));
        for exact in ["12345678901234567890.123456789", "1.10", "1e400"] {
            assert_eq!(text(exact, &Type::NUMERIC), Ok(Some(exact.into())));
        }
        assert_eq!(text("0.1", &Type::FLOAT8), Ok(Some("0.1".into())));
        assert_eq!(text("true", &Type::BOOL), Ok(Some("true".into())));
        assert_eq!(text("\"5 minutes\"", &Type::INTERVAL), Ok(Some("5 minutes".into())));
        assert_eq!(text("null", &Type::TEXT), Ok(None));
        assert_eq!(text("{\"a\":[1]}", &Type::JSONB), Ok(Some("{\"a\":[1]}".into())));
    }

    #[test]
    fn a_json_array_is_an_array() {
        let array = |json, ty| text(json, &ty).map(|text| text.expect("not null"));
        assert_eq!(array("[1,null,3]", Type::INT4_ARRAY), Ok(r#"{"1",NULL,"3"}"#.into()));
        assert_eq!(array("[[1,2],[3,4]]", Type::INT8_ARRAY), Ok(r#"{{"1","2"},{"3","4"}}"#.into()));
        let strange = r#"["", "null", "a\"b", "c\\d", "{,}"]"#;
        assert_eq!(array(strange, Type::TEXT_ARRAY), Ok(r#"{"","null","a\"b","c\\d","{,}"}"#.into()));
        assert_eq!(array("[]", Type::TEXT_ARRAY), Ok("{}".into()));
        assert_eq!(
            array("[[1], {\"a\": \"b\"}, \"s\"]", Type::JSONB_ARRAY),
            Ok(r#"{"[1]","{\"a\": \"b\"}","\"s\""}"#.into())
        );
        let boxes = "[\"(1,1),(0,0)\", \"(2,2),(1,1)\"]";
        assert_eq!(array(boxes, Type::BOX_ARRAY), Ok(r#"{"(1,1),(0,0)";"(2,2),(1,1)"}"#.into()));
        assert!(text("[{}]", &Type::INT4_ARRAY).unwrap_err().contains("int4"));
    }

    #[test]
    fn what_begins_or_ends_a_transaction_is_found_by_its_first_word() {
        for sql in [
            "commit",
            " COMMIT;",
            "begin",
            "Start Transaction",
            "rollback to x",
            "savepoint a",
            "release a",
            "end",
            "abort",
            "prepare transaction 'x'",
            "-- c\n/* a /* b */ c */ ;; commit and chain",
        ] {
            let line = serde_json::json!({ "sql": sql }).to_string();
            let error = Statement::parse(line.as_bytes()).expect_err(sql);
            assert!(error.contains("is not run"), "{error}");
        }
        for sql in [
            "SELECT 'commit'",
            "INSERT INTO begin VALUES (1)",
            "/* commit */ SELECT 1",
            "prepare p as select 1",
            "",
            "-- commit",
            "/* commit",
            "commitment",
        ] {
            let line = serde_json::json!({ "sql": sql }).to_string();
            assert!(Statement::parse(line.as_bytes()).is_ok(), "{sql}");
        }
    }

    #[test]
    fn what_has_no_text_form_is_a_clear_error() {
        assert!(text("[1]", &Type::INT4).unwrap_err().contains("int4"));
        assert!(text("\"a\\u0000b\"", &Type::TEXT).unwrap_err().contains("U+0000"));
    }

    #[test]
    fn a_broken_line_says_what_is_missing() {
        assert!(Statement::parse(b"{\"params\":[]}").unwrap_err().contains("sql"));
        assert!(Statement::parse(b"{\"sql\":\"x\",\"parms\":[]}").unwrap_err().contains("parms"));
        assert!(Statement::parse(b"nonsense").is_err());
        assert!(Statement::parse(b" ").unwrap_err().contains("empty"));
        assert!(Statement::parse(b"[\"SELECT 1\",[]]").unwrap_err().contains("array"));
        assert!(Statement::parse(b"5").unwrap_err().contains("an object with"));
        assert!(Statement::parse(b"{\"sql\":\"SELECT '\\u0000'\"}").unwrap_err().contains("U+0000"));
    }
}

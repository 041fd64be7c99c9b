//! Parameters: JSON scalars as values of whatever type the server infers for `$1`, `$2`, …
//!
//! Each goes out in the type's text form, so that the server's own parser decides and names a mismatch. A string is
//! that text itself, as in psql; this reaches every type, also numeric, uuid, timestamptz and json.

use std::error::Error;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

/// One line of stdin.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
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
        serde_json::from_slice(line).map_err(|error| format!("not a {{\"sql\",\"params\"}} line: {error}"))
    }

    /// The parameters as the driver takes them.
    pub(crate) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.params.iter().map(|param| param as &(dyn ToSql + Sync)).collect()
    }
}

/// One JSON value on its way to the server, letter for letter: a number keeps every digit for `numeric`.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Param(Box<RawValue>);

impl ToSql for Param {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let raw = self.0.get();
        let text = match raw.as_bytes().first() {
            Some(b'n') => return Ok(IsNull::Yes),
            Some(b'"') => serde_json::from_str::<String>(raw)?,
            Some(b'[' | b'{') if *ty != Type::JSON && *ty != Type::JSONB => {
                return Err(format!("a JSON array or object is only for json and jsonb, this one is {ty}").into());
            }
            Some(_) | None => raw.to_owned(),
        };
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
    fn what_has_no_text_form_is_a_clear_error() {
        assert!(text("[1]", &Type::INT4).unwrap_err().contains("int4"));
        assert!(text("\"a\\u0000b\"", &Type::TEXT).unwrap_err().contains("U+0000"));
    }

    #[test]
    fn a_broken_line_says_what_is_missing() {
        assert!(Statement::parse(b"{\"params\":[]}").unwrap_err().contains("sql"));
        assert!(Statement::parse(b"{\"sql\":\"x\",\"parms\":[]}").unwrap_err().contains("parms"));
        assert!(Statement::parse(b"nonsense").is_err());
    }
}

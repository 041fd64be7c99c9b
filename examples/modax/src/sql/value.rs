//! Rows as JSON: numbers, booleans, null and json as themselves, everything else as PostgreSQL would print it, times in
//! the form of RFC 3339.
//!
//! A `numeric` is always a string, with every digit it has: a JSON number would lose some in most readers. So are NaN and
//! the infinities of a float. What is json in the database is passed on letter for letter, with every digit and every
//! repeated key. A type that is not listed here is asked of the server as text; see [`is_known`].

use std::error::Error;
use std::fmt::Write as _;

use serde::{Serialize, Serializer};
use serde_json::json;
use serde_json::value::{RawValue, Value, to_raw_value};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Kind, Type};

/// Microseconds from 1970 to 2000, where PostgreSQL starts counting.
const EPOCH_2000_MICROS: i128 = 946_684_800_000_000;
const DAY_MICROS: i128 = 86_400_000_000;

/// One row as `{column: value}`, in the order of the columns.
pub(crate) struct Object(Vec<(String, Option<Cell>)>);

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Reads one row.
pub(crate) fn row(names: &[String], row: &Row) -> Result<Object, tokio_postgres::Error> {
    let cell = |(index, name): (usize, &String)| Ok((name.clone(), row.try_get(index)?));
    names.iter().enumerate().map(cell).collect::<Result<_, _>>().map(Object)
}

/// Whether the binary form of that type is understood here.
pub(crate) fn is_known(ty: &Type) -> bool {
    const KNOWN: [Type; 23] = [
        Type::BOOL,
        Type::INT2,
        Type::INT4,
        Type::INT8,
        Type::OID,
        Type::XID,
        Type::CID,
        Type::XID8,
        Type::FLOAT4,
        Type::FLOAT8,
        Type::NUMERIC,
        Type::JSON,
        Type::JSONB,
        Type::UUID,
        Type::BYTEA,
        Type::TIMESTAMP,
        Type::TIMESTAMPTZ,
        Type::DATE,
        Type::TIME,
        Type::INTERVAL,
        Type::PG_LSN,
        Type::INET,
        Type::CIDR,
    ];
    match ty.kind() {
        Kind::Array(inner) | Kind::Domain(inner) => is_known(inner),
        _ => KNOWN.contains(ty) || *ty == Type::VOID || is_text(ty),
    }
}

#[derive(Serialize)]
struct Cell(Box<RawValue>);

impl<'a> FromSql<'a> for Cell {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        decode(ty, raw).map(Cell)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

type Failure = Box<dyn Error + Sync + Send>;
type Decoded = Result<Box<RawValue>, Failure>;

fn decode(ty: &Type, raw: &[u8]) -> Decoded {
    match ty.kind() {
        Kind::Array(member) => return array(member, raw),
        Kind::Domain(base) => return decode(base, raw),
        _ => {}
    }
    match *ty {
        Type::JSON => verbatim(raw),
        Type::JSONB => verbatim(raw.get(1..).unwrap_or_default()),
        _ => Ok(to_raw_value(&scalar(ty, raw)?)?),
    }
}

/// Line ends can only stand between its tokens.
fn verbatim(json: &[u8]) -> Decoded {
    Ok(RawValue::from_string(std::str::from_utf8(json)?.replace(['\n', '\r'], " "))?)
}

fn scalar(ty: &Type, raw: &[u8]) -> Result<Value, Failure> {
    Ok(match *ty {
        Type::BOOL => json!(bool::from_sql(ty, raw)?),
        Type::INT2 => json!(i16::from_sql(ty, raw)?),
        Type::INT4 => json!(i32::from_sql(ty, raw)?),
        Type::INT8 => json!(i64::from_sql(ty, raw)?),
        Type::OID | Type::XID | Type::CID => json!(u32::from_be_bytes(raw.try_into()?)),
        Type::XID8 => json!(u64::from_be_bytes(raw.try_into()?)),
        Type::FLOAT4 => float(f64::from(f32::from_sql(ty, raw)?), &f32::from_sql(ty, raw)?.to_string()),
        Type::FLOAT8 => float(f64::from_sql(ty, raw)?, &f64::from_sql(ty, raw)?.to_string()),
        Type::NUMERIC => json!(numeric(raw)?),
        Type::UUID => json!(uuid::Uuid::from_sql(ty, raw)?.to_string()),
        Type::BYTEA => json!(hex(raw)),
        Type::TIMESTAMP => json!(timestamp(i64::from_be_bytes(raw.try_into()?), "")),
        Type::TIMESTAMPTZ => json!(timestamp(i64::from_be_bytes(raw.try_into()?), "Z")),
        Type::DATE => json!(date(i32::from_be_bytes(raw.try_into()?))),
        Type::TIME => json!(time_of_day(i128::from(i64::from_be_bytes(raw.try_into()?)))),
        Type::INTERVAL => json!(interval(raw)?),
        Type::PG_LSN => {
            let lsn = u64::from_be_bytes(raw.try_into()?);
            json!(format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF))
        }
        Type::INET | Type::CIDR => json!(address(raw).unwrap_or_else(|| hex(raw))),
        Type::VOID => json!(""),
        _ if matches!(ty.kind(), Kind::Enum(_)) => json!(std::str::from_utf8(raw)?),
        _ if is_text(ty) => json!(<&str>::from_sql(ty, raw)?),
        _ => return Err(format!("{ty} is not understood").into()),
    })
}

fn is_text(ty: &Type) -> bool {
    <&str as FromSql>::accepts(ty) || matches!(ty.kind(), Kind::Enum(_))
}

/// JSON has no NaN and no infinity: those are strings.
fn float(value: f64, text: &str) -> Value {
    let exact = text.parse().ok().filter(|parsed: &f64| parsed.is_finite()).unwrap_or(value);
    serde_json::Number::from_f64(exact).map_or_else(|| json!(float_name(value)), Value::Number)
}

fn float_name(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// numeric: base-10000 digits, weight of the first, sign, decimals to show.
fn numeric(raw: &[u8]) -> Result<String, Failure> {
    let words: Vec<u16> = raw.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    let [count, weight, sign, scale, digits @ ..] = words.as_slice() else {
        return Err("numeric value is too short".into());
    };
    match *sign {
        0xC000 => return Ok("NaN".to_owned()),
        0xD000 => return Ok("Infinity".to_owned()),
        0xF000 => return Ok("-Infinity".to_owned()),
        _ => {}
    }
    if digits.len() != usize::from(*count) {
        return Err("numeric value is too short".into());
    }
    let weight = i32::from(i16::from_be_bytes(weight.to_be_bytes()));
    let digit = |position: i32| -> u16 {
        usize::try_from(weight - position).ok().and_then(|index| digits.get(index)).copied().unwrap_or(0)
    };
    let mut text = String::new();
    for position in (0..=weight.max(0)).rev() {
        let _ = write!(text, "{:04}", digit(position));
    }
    let whole = text.trim_start_matches('0');
    let mut shown = String::from(if *sign == 0x4000 { "-" } else { "" });
    shown.push_str(if whole.is_empty() { "0" } else { whole });
    let scale = usize::from(*scale);
    if scale > 0 {
        let mut decimals = String::new();
        let mut position = -1;
        while decimals.len() < scale {
            let _ = write!(decimals, "{:04}", digit(position));
            position -= 1;
        }
        shown.push('.');
        shown.push_str(&decimals[..scale]);
    }
    Ok(shown)
}

fn array(member: &Type, raw: &[u8]) -> Decoded {
    let word = |at: usize| -> Result<i32, Failure> {
        let bytes = raw.get(at..at + 4).ok_or("array value is too short")?;
        Ok(i32::from_be_bytes(bytes.try_into()?))
    };
    let dimensions = usize::try_from(word(0)?)?;
    if dimensions == 0 {
        return Ok(to_raw_value(&json!([]))?);
    }
    let mut lengths = Vec::new();
    for dimension in 0..dimensions {
        lengths.push(usize::try_from(word(12 + 8 * dimension)?)?);
    }
    let mut at = 12 + 8 * dimensions;
    let mut flat = Vec::new();
    while at < raw.len() {
        let length = word(at)?;
        at += 4;
        let Ok(length) = usize::try_from(length) else {
            flat.push(to_raw_value(&Value::Null)?);
            continue;
        };
        flat.push(decode(member, raw.get(at..at + length).ok_or("array value is too short")?)?);
        at += length;
    }
    for length in lengths.iter().skip(1).rev() {
        flat = flat.chunks((*length).max(1)).map(to_raw_value).collect::<Result<_, _>>()?;
    }
    Ok(to_raw_value(&flat)?)
}

fn hex(raw: &[u8]) -> String {
    raw.iter().fold(String::from("\\x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whole days from 1970 as year-month-day (Gregorian, by the days of a 400-year cycle that starts in March), and what
/// stands behind it all in the years before the first.
fn date_from_days(days: i128) -> (String, &'static str) {
    let shifted = days + 719_468;
    let cycle = shifted.div_euclid(146_097);
    let day = shifted.rem_euclid(146_097);
    let year_of_cycle = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_cycle + cycle * 400 + i128::from(month <= 2);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day_of_month:02}"), era)
}

fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        _ => {
            let (day, era) = date_from_days(i128::from(days) + EPOCH_2000_MICROS / DAY_MICROS);
            format!("{day}{era}")
        }
    }
}

fn timestamp(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        _ => {
            let since_1970 = i128::from(micros) + EPOCH_2000_MICROS;
            let (day, era) = date_from_days(since_1970.div_euclid(DAY_MICROS));
            format!("{day}T{}{zone}{era}", time_of_day(since_1970.rem_euclid(DAY_MICROS)))
        }
    }
}

fn time_of_day(micros: i128) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { text } else { format!("{text}.{fraction:06}").trim_end_matches('0').to_owned() }
}

/// As PostgreSQL's own style has it: `1 year 2 mons -3 days +04:05:06`.
fn interval(raw: &[u8]) -> Result<String, Failure> {
    let [time @ .., _, _, _, _, _, _, _, _] = raw else { return Err("interval value is too short".into()) };
    let micros = i128::from(i64::from_be_bytes(time.try_into()?));
    let days = i32::from_be_bytes(raw[8..12].try_into()?);
    let months = i32::from_be_bytes(raw[12..].try_into()?);
    let mut parts: Vec<String> = Vec::new();
    // A sign is told where it differs from what stands before it.
    let mut is_negative = false;
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count != 0 {
            let sign = if is_negative && count > 0 { "+" } else { "" };
            let plural = if count == 1 { "" } else { "s" };
            parts.push(format!("{sign}{count} {unit}{plural}"));
            is_negative = count < 0;
        }
    }
    if micros != 0 || parts.is_empty() {
        let sign = match (micros < 0, is_negative) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        parts.push(format!("{sign}{}", time_of_day(micros.abs())));
    }
    Ok(parts.join(" "))
}

/// inet and cidr: family, bits, is cidr, length, address.
fn address(raw: &[u8]) -> Option<String> {
    let [_, bits, is_cidr, _, bytes @ ..] = raw else { return None };
    let (address, full) = if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        (std::net::IpAddr::from(bytes), 32)
    } else {
        (std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?), 128)
    };
    Some(if *bits == full && *is_cidr == 0 { address.to_string() } else { format!("{address}/{bits}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(ty: &Type, raw: &[u8]) -> Result<Value, Failure> {
        Ok(serde_json::from_str(super::decode(ty, raw)?.get())?)
    }

    fn number(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Value {
        let mut raw = Vec::new();
        raw.extend_from_slice(&u16::try_from(digits.len()).unwrap().to_be_bytes());
        raw.extend_from_slice(&weight.to_be_bytes());
        for word in [sign, scale].iter().chain(digits) {
            raw.extend_from_slice(&word.to_be_bytes());
        }
        decode(&Type::NUMERIC, &raw).unwrap()
    }

    #[test]
    fn a_numeric_is_a_string_with_every_digit() {
        assert_eq!(number(0, 0, 0, &[]), json!("0"));
        assert_eq!(number(1, 0, 0, &[1, 2345]), json!("12345"));
        assert_eq!(number(1, 0x4000, 2, &[1, 0, 5000]), json!("-10000.50"));
        assert_eq!(number(-1, 0, 4, &[5]), json!("0.0005"));
        assert_eq!(number(0, 0, 1, &[1, 5000]), json!("1.5"));
        assert_eq!(number(4, 0, 0, &[1, 0, 0, 0, 0]), json!("10000000000000000"));
        assert_eq!(number(5, 0, 0, &[1, 0, 0, 0, 0, 1]), json!("100000000000000000001"));
        assert_eq!(number(0, 0xC000, 0, &[]), json!("NaN"));
    }

    #[test]
    fn times_are_printed_as_rfc_3339() {
        assert_eq!(timestamp(0, "Z"), "2000-01-01T00:00:00Z");
        assert_eq!(timestamp(-1, "Z"), "1999-12-31T23:59:59.999999Z");
        assert_eq!(timestamp(762_652_800_500_000, ""), "2024-03-02T00:00:00.5");
        assert_eq!(date(-10_957), "1970-01-01");
        assert_eq!(date(59), "2000-02-29");
        assert_eq!(timestamp(i64::MAX, "Z"), "infinity");
        assert_eq!(date(-2_451_507), "4713-01-01 BC");
        assert_eq!(timestamp(-63_082_281_600_000_001, "Z"), "0001-12-31T23:59:59.999999Z BC");
    }

    #[test]
    fn an_interval_is_told_as_the_server_tells_it() {
        let told = |months: i32, days: i32, micros: i64| {
            let raw = [&micros.to_be_bytes()[..], &days.to_be_bytes(), &months.to_be_bytes()].concat();
            interval(&raw).unwrap()
        };
        assert_eq!(told(14, -3, 14_706_789_000), "1 year 2 mons -3 days +04:05:06.789");
        assert_eq!(told(-1, 2, -500_000), "-1 mons +2 days -00:00:00.5");
        assert_eq!(told(0, 1, 0), "1 day");
        assert_eq!(told(-25, 0, 0), "-2 years -1 mons");
        assert_eq!(told(0, 0, 0), "00:00:00");
        assert!(interval(&[0; 7]).is_err() && interval(&[0; 17]).is_err());
    }

    #[test]
    fn json_is_passed_on_letter_for_letter() {
        let json = "{\"a\": 1.10, \"a\": 12345678901234567890123,\n\"b\": 1e400, \"c\": \"\\ud800\"}";
        let told = super::decode(&Type::JSON, json.as_bytes()).unwrap();
        assert_eq!(told.get(), json.replace('\n', " "));
    }

    #[test]
    fn arrays_keep_their_nulls_and_dimensions() {
        let mut raw = Vec::new();
        for word in [2_i32, 1, 23, 2, 1, 2, 1] {
            raw.extend_from_slice(&word.to_be_bytes());
        }
        for member in [Some(1_i32), None, Some(3), Some(4)] {
            match member {
                Some(value) => {
                    raw.extend_from_slice(&4_i32.to_be_bytes());
                    raw.extend_from_slice(&value.to_be_bytes());
                }
                None => raw.extend_from_slice(&(-1_i32).to_be_bytes()),
            }
        }
        assert_eq!(decode(&Type::INT4_ARRAY, &raw).unwrap(), json!([[1, null], [3, 4]]));
    }

    #[test]
    fn what_is_not_text_is_shown_as_bytes() {
        assert_eq!(decode(&Type::BYTEA, &[0, 255]).unwrap(), json!("\\x00ff"));
        assert!(!is_known(&Type::POINT) && !is_known(&Type::POINT_ARRAY) && decode(&Type::POINT, &[0, 1]).is_err());
        assert_eq!(decode(&Type::TEXT, b"a\nb").unwrap(), json!("a\nb"));
        assert_eq!(decode(&Type::FLOAT8, &f64::NAN.to_be_bytes()).unwrap(), json!("NaN"));
        assert_eq!(decode(&Type::FLOAT4, &0.1_f32.to_be_bytes()).unwrap(), json!(0.1));
    }
}

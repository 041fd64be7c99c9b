//! Encoders of a [`Report`]: plain functions over one snapshot, so that no two answers contradict each other.
//!
//! None of them contains an error text that its author did not mark public: the reason is then `withheld`.

use std::{fmt::Write, time::Duration};

use crate::{CheckReport, Condition, Report, Scope, Status, report::BUCKETS};

/// Media type of [`modax_json`].
pub const JSON: &str = "application/json";
/// Media type of [`prometheus`].
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Media type of [`kubernetes`].
pub const TEXT: &str = "text/plain; charset=utf-8";

/// MODAX's own JSON: `status`, `timestamp` and `checks` (name to whether it works), as the HMI's layer always said it;
/// beside them `ready`, `live`, `started`, `draining` and `details` for whoever wants more than a boolean.
#[must_use]
pub fn modax_json(report: &Report) -> String {
    object(report, report.status)
}

/// [`modax_json`] as the answer of `/ready`: its `status` is [`Report::readiness`].
#[must_use]
pub fn readiness_json(report: &Report) -> String {
    object(report, report.readiness())
}

fn object(report: &Report, status: Status) -> String {
    let mut out = String::with_capacity(256 + 192 * report.checks.len());
    let _ = write!(out, r#"{{"status":"{status}","timestamp":"{}","#, Iso(report.unix_time));
    let _ = write!(
        out,
        r#""live":{},"ready":{},"started":{},"draining":{},"checks":{{"#,
        report.live, report.ready, report.started, report.draining
    );
    for (at, check) in report.checks.iter().enumerate() {
        let _ = write!(out, "{}{}:{}", comma(at), Quoted(&check.name), check.status != Status::Unhealthy);
    }
    out.push_str(r#"},"details":{"#);
    for (at, check) in report.checks.iter().enumerate() {
        let _ = write!(out, "{}{}:", comma(at), Quoted(&check.name));
        push_check(&mut out, check);
    }
    out.push_str(r#"},"watchdogs":{"#);
    for (at, watchdog) in report.watchdogs.iter().enumerate() {
        let _ = write!(out, "{}{}:{}", comma(at), Quoted(&watchdog.name), !watchdog.missed);
    }
    out.push_str("}}");
    out
}

/// One check alone, as in `details` of [`modax_json`].
#[must_use]
pub fn check_json(check: &CheckReport) -> String {
    let mut out = String::with_capacity(192);
    push_check(&mut out, check);
    out
}

fn push_check(out: &mut String, check: &CheckReport) {
    let need = if check.need == crate::Need::Required { "required" } else { "optional" };
    let scope = if check.scope == Scope::Private { "private" } else { "shared" };
    let _ = write!(
        out,
        r#"{{"status":"{}","condition":"{}","need":"{need}","scope":"{scope}""#,
        check.status,
        check.condition.as_str()
    );
    if let Condition::Stuck { age } | Condition::Stale { age } = check.condition {
        let _ = write!(out, r#","age_seconds":{:.3}"#, age.as_secs_f64());
    }
    if let Some(duration) = check.duration {
        let _ = write!(out, r#","duration_seconds":{:.6}"#, duration.as_secs_f64());
    }
    if let Some(changed) = check.changed_at {
        let _ = write!(out, r#","changed_at":"{}""#, Iso(changed));
    }
    if check.status != Status::Healthy {
        let _ = write!(out, r#","reason":{}"#, Quoted(reason(check)));
    }
    out.push('}');
}

fn reason(check: &CheckReport) -> &str {
    match (check.condition, &check.reason) {
        (Condition::Pending, _) => "no result yet",
        (_, Some(reason)) => reason,
        _ => "withheld",
    }
}

/// Kubernetes' verbose text, as its API server answers `?verbose`: one line a check, the verdict last.
#[must_use]
pub fn kubernetes(report: &Report, endpoint: &str, passed: bool) -> String {
    let mut out = String::with_capacity(64 * (1 + report.checks.len()));
    for watchdog in &report.watchdogs {
        let _ = if watchdog.missed {
            writeln!(out, "[-]{} failed: not bumped for {:.1}s", watchdog.name, watchdog.age.as_secs_f64())
        } else {
            writeln!(out, "[+]{} ok", watchdog.name)
        };
    }
    for check in &report.checks {
        let _ = match check.status {
            Status::Healthy => writeln!(out, "[+]{} ok", check.name),
            Status::Degraded => writeln!(out, "[+]{} degraded: reason {}", check.name, one_line(reason(check))),
            Status::Unhealthy => writeln!(out, "[-]{} failed: reason {}", check.name, one_line(reason(check))),
        };
    }
    if report.draining {
        out.push_str("[-]drain in progress\n");
    }
    let _ = writeln!(out, "{endpoint} check {}", if passed { "passed" } else { "failed" });
    out
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Prometheus text. Names follow Kubernetes' component SLIs (KEP-3466), the only published convention for checks.
#[must_use]
pub fn prometheus(report: &Report) -> String {
    let mut out = String::with_capacity(512 + 1024 * report.checks.len());
    let head = |out: &mut String, name: &str, kind: &str, help: &str| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    };
    head(&mut out, "modax_health_status", "gauge", "1 for the status the whole has.");
    for status in [Status::Healthy, Status::Degraded, Status::Unhealthy] {
        let _ = writeln!(out, r#"modax_health_status{{state="{status}"}} {}"#, u8::from(report.status == status));
    }
    head(&mut out, "modax_health_probe", "gauge", "What each probe is answered: 1 for 200.");
    for (probe, on) in [("live", report.live), ("ready", report.ready), ("startup", report.started)] {
        let _ = writeln!(out, r#"modax_health_probe{{probe="{probe}"}} {}"#, u8::from(on));
    }
    head(&mut out, "modax_health_draining", "gauge", "1 while the instance is leaving.");
    let _ = writeln!(out, "modax_health_draining {}", u8::from(report.draining));
    head(&mut out, "modax_healthcheck", "gauge", "1 while the check is not unhealthy.");
    for check in &report.checks {
        let up = u8::from(check.status != Status::Unhealthy);
        let _ = writeln!(out, r#"modax_healthcheck{{name="{}",type="{}"}} {up}"#, check.name, kind(check));
    }
    for watchdog in &report.watchdogs {
        let up = u8::from(!watchdog.missed);
        let _ = writeln!(out, r#"modax_healthcheck{{name="{}",type="livez"}} {up}"#, watchdog.name);
    }
    head(&mut out, "modax_healthchecks_total", "counter", "Results by status.");
    for check in &report.checks {
        let pending = check.counts.started.saturating_sub(check.counts.passed.saturating_add(check.counts.failed));
        for (status, count) in [("success", check.counts.passed), ("error", check.counts.failed), ("pending", pending)]
        {
            let (name, kind) = (&check.name, kind(check));
            let _ =
                writeln!(out, r#"modax_healthchecks_total{{name="{name}",type="{kind}",status="{status}"}} {count}"#);
        }
    }
    head(&mut out, "modax_healthcheck_stuck_seconds", "gauge", "Age of a run past its deadline; 0 without one.");
    for check in &report.checks {
        let age = if let Condition::Stuck { age } = check.condition { age } else { Duration::ZERO };
        let _ = writeln!(out, r#"modax_healthcheck_stuck_seconds{{name="{}"}} {}"#, check.name, age.as_secs_f64());
    }
    let transition = "modax_healthcheck_last_transition_timestamp_seconds";
    head(&mut out, transition, "gauge", "When the status of the check last changed.");
    for check in &report.checks {
        if let Some(at) = check.changed_at {
            let _ = writeln!(out, r#"{transition}{{name="{}"}} {:.3}"#, check.name, at.as_secs_f64());
        }
    }
    head(&mut out, "modax_healthcheck_duration_seconds", "histogram", "How long runs took that ended.");
    for check in &report.checks {
        push_histogram(&mut out, check);
    }
    out
}

fn push_histogram(out: &mut String, check: &CheckReport) {
    let (metric, name) = ("modax_healthcheck_duration_seconds", &check.name);
    let mut total = 0_u64;
    for (at, count) in check.counts.buckets.iter().enumerate() {
        total = total.saturating_add(*count);
        let _ = match BUCKETS.get(at) {
            Some(bound) => writeln!(out, r#"{metric}_bucket{{name="{name}",le="{bound}"}} {total}"#),
            None => writeln!(out, r#"{metric}_bucket{{name="{name}",le="+Inf"}} {total}"#),
        };
    }
    let _ = writeln!(out, r#"{metric}_sum{{name="{name}"}} {}"#, check.counts.duration_sum.as_secs_f64());
    let _ = writeln!(out, r#"{metric}_count{{name="{name}"}} {total}"#);
}

/// Kubernetes' `type` label: which probe the check can fail.
fn kind(check: &CheckReport) -> &'static str {
    if check.can_unready() { "readyz" } else { "healthz" }
}

const fn comma(at: usize) -> &'static str {
    if at == 0 { "" } else { "," }
}

/// A JSON string.
struct Quoted<'a>(&'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// RFC 3339 in UTC with milliseconds, from the time since the Unix epoch.
struct Iso(Duration);

impl std::fmt::Display for Iso {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Days since 1 March of year 0, in eras of 400 years: leap days then fall at the end of a year.
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.0.subsec_millis()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Iso, Quoted};
    use std::time::Duration;

    #[test]
    fn timestamps_are_the_ones_gnu_date_prints() {
        // Each line: `date -u -d @N +%FT%T`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (4_107_456_000, "2100-02-28T00:00:00.000Z"),
        ] {
            assert_eq!(Iso(Duration::from_secs(seconds)).to_string(), text, "{seconds}");
        }
    }

    #[test]
    fn strings_survive_quotes_backslashes_and_control_characters() {
        let text = "a\"b\\c\n\u{7}é\u{85}";
        let back: String = serde_json::from_str(&Quoted(text).to_string()).expect("valid JSON");

        assert_eq!(back, text);
    }
}

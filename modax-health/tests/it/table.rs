//! The tables under `tables/`: what happens and what must be seen, readable without knowing Rust.

use std::time::Duration;

use modax_health::{CheckConfig, Need, Scope, Watchdog};

use crate::world::{Behaviour, World};

struct Table {
    world: World,
    dogs: Vec<Watchdog>,
    expectations: u32,
}

/// `1.5s`, `200ms`.
fn duration(text: &str) -> Duration {
    match text.strip_suffix("ms") {
        Some(number) => Duration::from_secs_f64(number.parse::<f64>().expect(text) / 1000.0),
        None => Duration::from_secs_f64(text.trim_end_matches('s').parse().expect(text)),
    }
}

fn check(words: &[&str]) -> CheckConfig {
    let mut check = CheckConfig::new(words[0], || async { Ok::<(), String>(()) })
        .interval(Duration::from_secs(1))
        .timeout(Duration::from_millis(500))
        .jitter(0.0);
    for word in &words[1..] {
        check = match word.split_once('=') {
            None => match *word {
                "required" => check.need(Need::Required),
                "optional" => check.need(Need::Optional),
                "shared" => check.scope(Scope::Shared),
                "private" => check.scope(Scope::Private),
                "gate" => check.startup_gate(true),
                other => panic!("unknown rule {other}"),
            },
            Some(("interval", value)) => check.interval(duration(value)),
            Some(("timeout", value)) => check.timeout(duration(value)),
            Some(("stale_after", value)) => check.stale_after(duration(value)),
            Some(("rise", value)) => check.rise(value.parse().expect(value)),
            Some(("fall", value)) => check.fall(value.parse().expect(value)),
            Some(other) => panic!("unknown rule {other:?}"),
        };
    }
    check
}

fn play(name: &str, text: &str) {
    let lines = || text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines = || lines().enumerate().filter(|(_, line)| !line.is_empty());
    let mut checks = Vec::new();
    let mut dogs = Vec::new();
    for (_, line) in lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "check" => checks.push(check(&words[1..])),
            "watchdog" => dogs.push(Watchdog::new(words[1], duration(words[2]))),
            _ => {}
        }
    }
    let mut table = Table { world: World::new(checks, dogs.clone(), 0), dogs, expectations: 0 };
    for (number, line) in lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !matches!(words[0], "check" | "watchdog") {
            table.line(&format!("{name}:{}: {line}", number + 1), &words);
        }
    }
    assert!(table.expectations > 0, "{name} expects nothing");
}

impl Table {
    fn line(&mut self, place: &str, words: &[&str]) {
        let at = duration(words[0]);
        assert!(at >= self.world.now, "{place}: time runs back");
        // What stands at 0 s is so before the first turn.
        if at > Duration::ZERO {
            self.world.run_until(at);
        }
        match &words[1..] {
            ["drain"] => self.world.drain(),
            ["bump", dog] => self.dogs.iter().find(|d| d.name() == *dog).expect(place).bump(),
            ["expect", rest @ ..] => self.expect(place, rest),
            [check, "release"] => {
                let check = self.world.index(check);
                self.world.release(check);
            }
            [check, behaviour] => {
                let check = self.world.index(check);
                self.world.behaviours[check] = match *behaviour {
                    "passes" => Behaviour::Pass,
                    "degrades" => Behaviour::Degrade,
                    "fails" => Behaviour::Fail,
                    "panics" => Behaviour::Panic,
                    "hangs" => Behaviour::Hang,
                    "sticks" => Behaviour::Stick,
                    other => panic!("{place}: unknown behaviour {other}"),
                };
            }
            other => panic!("{place}: cannot read {other:?}"),
        }
    }

    fn expect(&mut self, place: &str, words: &[&str]) {
        self.expectations += 1;
        let report = self.world.report();
        for word in words {
            let holds = match *word {
                "ready" => report.ready,
                "unready" => !report.ready,
                "live" => report.live,
                "dead" => !report.live,
                "started" => report.started,
                "starting" => !report.started,
                "draining" => report.draining,
                other => match other.split_once('=') {
                    Some(("status", value)) => report.status.as_str() == value,
                    Some(("starts", value)) => self.world.starts.iter().sum::<u64>().to_string() == value,
                    Some((check, value)) => {
                        let check = report.check(check).unwrap_or_else(|| panic!("{place}: no check {check}"));
                        check.status.as_str() == value || check.condition.as_str() == value
                    }
                    None => panic!("{place}: unknown expectation {other}"),
                },
            };
            assert!(holds, "{place}: not {word}: {report:#?}\nevents: {:#?}", self.world.events);
        }
    }
}

#[test]
fn startup_waits_for_first_results_and_gates() {
    play("startup.txt", include_str!("tables/startup.txt"));
}

#[test]
fn need_and_scope_decide_who_is_unready() {
    play("need_and_scope.txt", include_str!("tables/need_and_scope.txt"));
}

#[test]
fn rise_and_fall_damp_in_both_directions() {
    play("rise_fall.txt", include_str!("tables/rise_fall.txt"));
}

#[test]
fn a_hanging_or_stuck_run_is_counted_and_never_doubled() {
    play("stuck.txt", include_str!("tables/stuck.txt"));
}

#[test]
fn a_result_that_grew_old_no_longer_counts() {
    play("stale.txt", include_str!("tables/stale.txt"));
}

#[test]
fn liveness_follows_the_watchdogs_and_nothing_else() {
    play("liveness.txt", include_str!("tables/liveness.txt"));
}

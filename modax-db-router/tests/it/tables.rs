//! The tables in `tables/`: what servers say, line by line, and who may then be written.
//!
//! A line is one of
//! - `nodes NAME…` first;
//! - `NAME primary tl=N lsn=HEX start=N [floor=HEX] [system=N] [draining]`: from here on it answers so;
//! - `NAME standby tl=N lsn=HEX start=N [received=N] [system=N]`: the same for a server in recovery;
//! - `NAME frozen`, `down`, `starting`, `full`: it does not answer, nobody listens, it says that it starts, or that it
//!   has no connection left;
//! - `run MILLISECONDS`, `pause`, `resume`, `accept NAME`;
//! - `writes NAME` or `closed WHY`: who may be written, or why nobody;
//! - `state NAME STATE`: what a server may be used for;
//! - `event KIND NAME`: an event that came since the last `run` began.

use std::time::Duration;

use modax_db_router::monitor::Input;
use modax_db_router::observation::{Activity, Observation, ProbeFailure, StartTime};
use modax_db_router::{Event, Lsn, SystemId, Timeline};

use crate::harness::{Answer, Harness};

struct Table<'a> {
    harness: Harness,
    names: Vec<&'a str>,
    answers: Vec<Answer>,
}

fn field<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number<T: std::str::FromStr>(words: &[&str], name: &str) -> Option<T> {
    field(words, name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn lsn(words: &[&str], name: &str) -> Option<Lsn> {
    field(words, name).map(|text| Lsn::new(u64::from_str_radix(text, 16).expect("hexadecimal")))
}

fn facts(words: &[&str]) -> Observation {
    let timeline = Timeline::new(number(words, "tl").expect("tl="));
    let position = lsn(words, "lsn").expect("lsn=");
    let activity = if words[1] == "primary" {
        Activity::Writing { timeline, insert: position, floor: lsn(words, "floor") }
    } else {
        let received = number(words, "received").map(Timeline::new);
        Activity::Replaying { replayed: Some(position), at_least: timeline, received }
    };
    let system = SystemId::new(number(words, "system").unwrap_or(7));
    let started = StartTime::from_micros(number(words, "start").expect("start="));
    let mut observation = Observation::new(system, started, activity);
    observation.read_only = words.contains(&"draining");
    observation
}

impl<'a> Table<'a> {
    fn index(&self, name: &str) -> usize {
        self.names.iter().position(|known| *known == name).unwrap_or_else(|| panic!("no server {name}"))
    }

    fn line(&mut self, words: &[&'a str]) {
        match *words {
            ["run", milliseconds] => {
                self.harness.events.clear();
                let span = Duration::from_millis(milliseconds.parse().expect("milliseconds"));
                let end = self.harness.now + span;
                let answers = self.answers.clone();
                self.harness.run(end, |node, _| (answers[node].clone(), Duration::from_millis(1)), |_| {});
            }
            ["pause"] => self.harness.input(Input::Pause(true)),
            ["resume"] => self.harness.input(Input::Pause(false)),
            ["accept", name] => self.harness.input(Input::Accept { node: self.index(name) }),
            ["writes", name] => {
                let topology = &self.harness.topology;
                let primary = topology.primary().map(|node| node.id.to_string());
                assert_eq!(primary, Some(format!("{name}:1")), "{:?}", topology.writes_closed());
            }
            ["closed", why] => {
                let closed = self.harness.topology.writes_closed();
                assert_eq!(closed.map(|why| format!("{why:?}")).as_deref(), Some(why));
            }
            ["state", name, state] => {
                let node = &self.harness.topology.nodes()[self.index(name)];
                assert_eq!(format!("{:?}", node.state), state, "{node:?}");
            }
            ["event", kind, name] => {
                let told = self.harness.events.iter().any(|event| is_event(event, kind, &format!("{name}:1")));
                assert!(told, "no event {kind} {name} in {:?}", self.harness.events);
            }
            ["quiet"] => assert!(self.harness.events.is_empty(), "{:?}", self.harness.events),
            [name, "primary" | "standby", ..] => {
                let node = self.index(name);
                self.answers[node] = Answer::Facts(facts(words));
            }
            [name, how] => {
                let node = self.index(name);
                self.answers[node] = match how {
                    "frozen" => Answer::Silence,
                    "down" => Answer::Fails(ProbeFailure::Unreachable),
                    "full" => Answer::Fails(ProbeFailure::TooManyConnections),
                    "starting" => Answer::Fails(ProbeFailure::NotAccepting),
                    other => panic!("what is {other}?"),
                };
            }
            _ => panic!("not understood"),
        }
    }
}

fn is_event(event: &Event, kind: &str, name: &str) -> bool {
    let (found, node) = match event {
        Event::PrimaryFound { node, .. } => ("PrimaryFound", node),
        Event::PrimaryLost { node, .. } => ("PrimaryLost", node),
        Event::FailedOver { to, .. } => ("FailedOver", to),
        Event::SplitBrain { nodes } => ("SplitBrain", &nodes[0]),
        Event::Fenced { node, .. } => ("Fenced", node),
        Event::HistoryAccepted { node } => ("HistoryAccepted", node),
        Event::Draining { node } => ("Draining", node),
        Event::ReplicaEjected { node, .. } => ("ReplicaEjected", node),
        Event::ReplicaReturned { node } => ("ReplicaReturned", node),
        other => panic!("unknown event {other:?}"),
    };
    found == kind && node.to_string() == name
}

fn run_table(name: &str, text: &str) {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.split('#').next().unwrap_or("")));
    let (_, first) = lines.find(|(_, line)| !line.trim().is_empty()).expect("a table has lines");
    let names: Vec<&str> = first.split_whitespace().skip(1).collect();
    let answers = vec![Answer::Fails(ProbeFailure::Unreachable); names.len()];
    let mut table = Table { harness: Harness::new(&names), names, answers };
    for (number, line) in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.line(&words)));
        assert!(told.is_ok(), "{name}, line {number}: {}", line.trim());
    }
}

macro_rules! tables {
    ($($test:ident $file:literal;)*) => {
        $(#[test] fn $test() { run_table($file, include_str!(concat!("tables/", $file))); })*
    };
}

tables! {
    a_killed_primary_is_followed "failover.txt";
    f36_a_frozen_primary_that_comes_back_is_refused "stale.txt";
    f36_two_heads_at_once_stop_writes "split.txt";
    a_number_of_a_timeline_alone_never_wins "fork.txt";
    a_switchover_holds_writes_without_a_split "switchover.txt";
    a_restart_in_place_is_followed "restart.txt";
    f42_a_full_server_is_not_taken_for_a_dead_one "full.txt";
    an_operator_ends_an_outage_by_accepting_a_history "accept.txt";
    a_standby_is_read_only_where_it_is_proved "standbys.txt";
    the_first_primary_is_taken_when_everybody_was_heard "start.txt";
}

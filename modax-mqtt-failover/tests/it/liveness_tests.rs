//! The judge of silence, in virtual time.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    LivenessConfig,
    liveness::{Input, Liveness, Output, Reason},
};

const MS: Duration = Duration::from_millis(1);

struct Bench {
    now: Instant,
    liveness: Liveness,
}

impl Bench {
    fn connected() -> Self {
        let now = Instant::now();
        let mut liveness = Liveness::new(LivenessConfig::default(), Duration::from_secs(60), now);
        liveness.handle_input(now, Input::Opened { same_broker: false, electing: false });
        Self { now, liveness }
    }

    fn tell(&mut self, input: Input) {
        self.liveness.handle_input(self.now, input);
    }

    /// A round trip that takes this long.
    fn measured(&mut self, took: Duration) {
        for _ in 0..30 {
            self.tell(Input::Acknowledged(took));
        }
    }

    /// Lets time pass, on time at every deadline; returns what was said and when.
    fn pass(&mut self, time: Duration) -> Vec<(Duration, Output)> {
        let (begin, end) = (self.now, self.now + time);
        let mut said = Vec::new();
        loop {
            while let Some(output) = self.liveness.poll_output() {
                said.push((self.now - begin, output));
                if output == Output::Probe {
                    self.tell(Input::Sent);
                    self.tell(Input::ProbeSent);
                }
            }
            match self.liveness.poll_timeout().filter(|at| *at <= end) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.liveness.handle_timeout(self.now);
                }
                None => break,
            }
        }
        self.now = end;
        said
    }
}

fn verdict(said: &[(Duration, Output)]) -> Option<(Duration, Reason)> {
    said.iter().find_map(|(at, output)| match output {
        Output::Dead { reason, .. } => Some((*at, *reason)),
        _ => None,
    })
}

#[test]
fn f02_a_broker_that_hangs_under_traffic_is_left_within_half_a_second() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));

    let said = bench.pass(Duration::from_secs(2));

    assert_eq!(said.first().map(|(_, output)| *output), Some(Output::Suspected(Reason::AckOverdue)));
    let (at, reason) = verdict(&said).expect("a verdict");
    assert_eq!((at, reason), (200 * MS, Reason::AckOverdue));
}

#[test]
fn f02_an_idle_broker_that_hangs_is_left_within_one_and_a_half_seconds() {
    let mut bench = Bench::connected();
    bench.measured(MS);

    let (at, reason) = verdict(&bench.pass(Duration::from_secs(5))).expect("a verdict");

    assert_eq!(reason, Reason::ProbeUnanswered);
    assert!(at <= 1500 * MS, "{at:?}");
}

#[test]
fn f02_a_client_that_only_reads_leaves_each_broker_that_hangs_as_soon_as_the_first() {
    let mut bench = Bench::connected();
    let mut verdicts = Vec::new();
    for _ in 0..5 {
        // Messages all the time, and nothing of its own that would be acknowledged.
        for _ in 0..40 {
            bench.tell(Input::Heard(2));
            if bench.pass(50 * MS).iter().any(|(_, output)| *output == Output::Probe) {
                bench.tell(Input::ProbeAnswered);
            }
        }
        let (at, _) = verdict(&bench.pass(Duration::from_secs(60))).expect("a verdict");
        verdicts.push(at);
        bench.tell(Input::Closed);
        bench.tell(Input::Opened { same_broker: false, electing: false });
        bench.tell(Input::Accepted(MS));
    }
    // Nothing was measured of the first.
    assert!(verdicts.iter().skip(1).all(|at| *at <= 1500 * MS), "{verdicts:?}");
}

#[test]
fn f02_idle_brokers_that_hang_a_moment_after_they_accepted_are_each_left_as_soon_as_the_first() {
    let mut bench = Bench::connected();
    let mut verdicts = Vec::new();
    for round in 0..5 {
        bench.tell(Input::Accepted(MS));
        let asked = bench.pass(MS).iter().any(|(_, output)| *output == Output::Probe);
        assert_eq!(asked, round > 0, "after a verdict the next one is asked at once");
        if asked {
            bench.tell(Input::ProbeAnswered);
        }
        let (at, _) = verdict(&bench.pass(Duration::from_secs(60))).expect("a verdict");
        verdicts.push(at);
        bench.tell(Input::Closed);
        bench.tell(Input::Opened { same_broker: false, electing: false });
    }
    assert!(verdicts.iter().all(|at| *at <= 1500 * MS), "{verdicts:?}");
}

#[test]
fn any_byte_is_life() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    let mut said = Vec::new();
    for _ in 0..30 {
        said.extend(bench.pass(90 * MS));
        bench.tell(Input::Heard(2));
    }
    // Whether the acknowledgement only stands in line is asked, and no more.
    assert_eq!(said.iter().map(|(_, output)| *output).collect::<Vec<_>>(), [Output::Probe]);
}

/// A link with a round trip of its own; every answer to what was sent on a connection comes one round trip later.
struct Link {
    round_trip: Duration,
    /// Of the present connection: when a message went out, and the probes.
    message: Option<Instant>,
    probes: VecDeque<Instant>,
    verdicts: u32,
}

impl Link {
    fn new(round_trip: Duration) -> Self {
        Self { round_trip, message: None, probes: VecDeque::new(), verdicts: 0 }
    }

    fn heard_at(&self) -> Option<(Instant, bool)> {
        let message = self.message.map(|sent| (sent + self.round_trip, true));
        let probe = self.probes.front().map(|sent| (*sent + self.round_trip, false));
        [message, probe].into_iter().flatten().min()
    }

    /// Sends messages one after the other until so many are acknowledged, on as many connections as it takes.
    fn carry(&mut self, bench: &mut Bench, messages: u32) {
        for _ in 0..messages {
            self.send(bench);
            for _ in 0..1000 {
                if self.message.is_some() {
                    self.step(bench);
                }
            }
            assert_eq!(self.message, None, "never acknowledged, after {} verdicts", self.verdicts);
        }
    }

    fn send(&mut self, bench: &mut Bench) {
        self.message = Some(bench.now);
        bench.tell(Input::Sent);
        bench.tell(Input::Waiting(self.message));
    }

    fn step(&mut self, bench: &mut Bench) {
        let answer = self.heard_at();
        let due = bench.liveness.poll_timeout().expect("something is waited for");
        if let Some((at, is_message)) = answer.filter(|(at, _)| *at <= due) {
            bench.now = bench.now.max(at);
            bench.tell(Input::Heard(2));
            if is_message {
                self.message = None;
                bench.tell(Input::Acknowledged(self.round_trip));
                bench.tell(Input::Waiting(None));
            } else {
                self.probes.pop_front();
                bench.tell(Input::ProbeAnswered);
            }
        } else {
            bench.now = bench.now.max(due);
            bench.liveness.handle_timeout(bench.now);
        }
        while let Some(output) = bench.liveness.poll_output() {
            match output {
                Output::Probe => {
                    self.probes.push_back(bench.now);
                    bench.tell(Input::Sent);
                    bench.tell(Input::ProbeSent);
                }
                Output::Dead { .. } => return self.reconnect(bench),
                Output::Suspected(_) | Output::Slow => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Answers to the old connection never come; one round trip for the transport, one for CONNECT.
    fn reconnect(&mut self, bench: &mut Bench) {
        self.verdicts += 1;
        self.probes.clear();
        bench.tell(Input::Closed);
        bench.now += self.round_trip * 2;
        bench.tell(Input::Opened { same_broker: true, electing: false });
        bench.tell(Input::Accepted(self.round_trip));
        self.send(bench);
    }
}

#[test]
fn f09_a_round_trip_that_jumps_to_seconds_costs_a_few_verdicts_and_none_once_it_is_known() {
    // Up to twice the deadline, the probe is answered in time; beyond, each verdict doubles the patience. Above 5 s a
    // broker that answers is slow until the mean says that it always takes so long.
    for (round_trip, at_first, later) in [(190, 0, 0), (2000, 4, 0), (5000, 5, 0), (7000, 6, 6)] {
        let mut bench = Bench::connected();
        let mut link = Link::new(50 * MS);
        link.carry(&mut bench, 30);
        assert_eq!((link.verdicts, bench.liveness.deadline()), (0, 100 * MS));

        link.round_trip = round_trip * MS;
        link.carry(&mut bench, 1);
        let first = link.verdicts;
        assert!(first <= at_first && (first > 0) == (at_first > 0), "{round_trip} ms: {first} verdicts");
        link.carry(&mut bench, 20);
        let verdicts = link.verdicts;
        assert!(verdicts <= first + later, "{round_trip} ms: {verdicts} after {first} verdicts");
        link.carry(&mut bench, 20);
        assert_eq!(link.verdicts, verdicts, "{round_trip} ms: it is known to be slow");

        // Back to normal, a broker that hangs is found out as fast as before.
        link.round_trip = 50 * MS;
        link.carry(&mut bench, 1000);
        assert_eq!((link.verdicts, bench.liveness.deadline()), (verdicts, 100 * MS));
    }
}

#[test]
fn f55_a_broker_that_was_slow_once_is_borne_the_next_time_until_that_is_forgotten() {
    let mut bench = Bench::connected();
    bench.tell(Input::Acknowledged(180 * MS));
    bench.measured(MS);
    assert!(bench.liveness.deadline() >= 350 * MS, "{:?}", bench.liveness.deadline());

    for _ in 0..60 {
        bench.pass(500 * MS);
        bench.measured(MS);
    }

    assert_eq!(bench.liveness.deadline(), 100 * MS);
}

#[test]
fn probes_answered_and_packets_not_is_slow_and_ends_after_five_seconds() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    let begin = bench.now;
    let mut said = Vec::new();
    for _ in 0..70 {
        let now = bench.pass(100 * MS);
        said.extend(now.iter().map(|(_, output)| *output));
        if now.iter().any(|(_, output)| *output == Output::Probe) {
            bench.tell(Input::ProbeAnswered);
        }
        if said.iter().any(|output| matches!(output, Output::Dead { .. })) {
            break;
        }
    }

    assert!(said.contains(&Output::Slow));
    assert_eq!(said.iter().filter(|output| matches!(output, Output::Suspected(_))).count(), 1, "{said:?}");
    assert!(matches!(said.last(), Some(Output::Dead { reason: Reason::Slow, .. })), "{said:?}");
    let took = bench.now - begin;
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn f55_our_own_lateness_condemns_nobody() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    for _ in 0..5 {
        let due = bench.liveness.poll_timeout().expect("a deadline");
        bench.now = bench.now.max(due) + Duration::from_secs(3);
        bench.liveness.handle_timeout(bench.now);
        let said: Vec<_> = std::iter::from_fn(|| bench.liveness.poll_output()).collect();
        assert!(!said.iter().any(|output| matches!(output, Output::Dead { .. })), "{said:?}");
    }
    assert!(bench.liveness.deadline() > Duration::from_secs(1), "lateness lengthens the deadline");
}

#[test]
fn f55_a_process_that_is_always_a_little_late_still_comes_to_a_verdict() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    let begin = bench.now;
    for _ in 0..20 {
        let Some(due) = bench.liveness.poll_timeout() else { break };
        bench.now = bench.now.max(due) + 60 * MS;
        bench.liveness.handle_timeout(bench.now);
        while let Some(output) = bench.liveness.poll_output() {
            match output {
                Output::Probe => bench.tell(Input::ProbeSent),
                Output::Dead { .. } => return assert!(bench.now - begin < Duration::from_secs(3)),
                _ => {}
            }
        }
    }
    panic!("no verdict after {:?}", bench.now - begin);
}

#[test]
fn f55_a_machine_that_was_suspended_for_an_hour_condemns_nobody() {
    // The monotonic clock may jump then, which is lateness of ours. The wall clock cannot reach this machine.
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.now += Duration::from_secs(3600);
    bench.liveness.handle_timeout(bench.now);

    let said: Vec<_> = std::iter::from_fn(|| bench.liveness.poll_output()).collect();
    assert!(said.iter().all(|output| matches!(output, Output::Probe)), "{said:?}");
}

#[test]
fn while_reading_is_paused_silence_proves_nothing() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    bench.tell(Input::Paused(true));
    assert_eq!(verdict(&bench.pass(Duration::from_secs(20))), None);

    bench.tell(Input::Paused(false));

    let (at, _) = verdict(&bench.pass(Duration::from_secs(20))).expect("a verdict");
    assert!(at >= 200 * MS, "judged by what was not read: {at:?}");
}

#[test]
fn a_node_that_may_be_electing_is_borne_until_its_own_deadline_but_not_after_its_first_acknowledgement() {
    let mut bench = Bench::connected();
    bench.tell(Input::Opened { same_broker: false, electing: true });
    bench.tell(Input::Waiting(Some(bench.now)));
    assert_eq!(verdict(&bench.pass(Duration::from_millis(4400))), None);
    assert!(verdict(&bench.pass(Duration::from_millis(200))).is_some(), "it is not borne for ever");

    bench.tell(Input::Opened { same_broker: false, electing: true });
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    let (at, _) = verdict(&bench.pass(Duration::from_secs(2))).expect("a verdict");
    assert_eq!(at, 200 * MS);
}

#[test]
fn a_socket_that_takes_nothing_is_stalled() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Stalled(Some(bench.now)));

    let said = bench.pass(Duration::from_secs(5));

    assert!(matches!(verdict(&said), Some((at, Reason::WriteStalled)) if at <= 1200 * MS), "{said:?}");
}

#[test]
fn f02_a_broker_that_hangs_right_after_a_prompt_welcome_is_left_within_one_and_a_half_seconds() {
    let mut bench = Bench::connected();
    bench.tell(Input::Accepted(5 * MS));

    let (at, reason) = verdict(&bench.pass(Duration::from_secs(5))).expect("a verdict");

    assert_eq!(reason, Reason::ProbeUnanswered);
    assert!(at <= 1500 * MS, "{at:?}");
}

#[test]
fn a_welcome_that_took_long_or_came_after_a_measure_changes_no_deadline() {
    let mut bench = Bench::connected();
    let first = bench.liveness.deadline();
    bench.tell(Input::Accepted(201 * MS));
    assert_eq!(bench.liveness.deadline(), first);

    bench.measured(MS);
    let measured = bench.liveness.deadline();
    bench.tell(Input::Accepted(150 * MS));
    assert_eq!(bench.liveness.deadline(), measured);
}

/// Answers come so long after their question, also to probes: only patience that grows ever hears one.
fn borne_in_the_end(answer: Duration) -> Bench {
    let mut bench = Bench::connected();
    bench.measured(MS);
    let mut verdicts = Vec::new();
    loop {
        bench.tell(Input::Waiting(Some(bench.now)));
        let Some((at, _)) = verdict(&bench.pass(answer)) else { break };
        verdicts.push(at);
        assert!(verdicts.len() < 20, "never acknowledged: {verdicts:?}");
        bench.tell(Input::Closed);
        bench.tell(Input::Opened { same_broker: true, electing: false });
    }
    assert!(verdicts.len() > 1 && verdicts.is_sorted(), "{verdicts:?}");
    bench
}

#[test]
fn f12_a_link_slower_than_every_deadline_is_borne_in_the_end_and_a_fast_one_is_judged_as_before() {
    // A large message on a slow link that holds a minute's worth of it.
    borne_in_the_end(Duration::from_secs(60));
    let mut bench = borne_in_the_end(Duration::from_secs(5));

    bench.tell(Input::Heard(2));
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    bench.pass(Duration::from_secs(60));
    bench.tell(Input::Closed);
    bench.tell(Input::Opened { same_broker: false, electing: false });
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    let (at, _) = verdict(&bench.pass(Duration::from_secs(2))).expect("a verdict");
    assert_eq!(at, 200 * MS);
}

#[test]
fn answers_in_the_midst_of_a_packet_that_never_ends_are_no_life_for_ever() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    // A reader: nothing waits for an acknowledgement. The answer to each probe is swallowed by the packet.
    let begun = bench.now;
    let mut verdict = None;
    while verdict.is_none() && bench.now - begun < Duration::from_secs(30) {
        let said = bench.pass(10 * MS);
        verdict = dead(&said);
        if said.iter().any(|(_, output)| *output == Output::Probe) {
            bench.tell(Input::Heard(2));
        }
    }
    assert!(matches!(verdict, Some(Output::Dead { reason: Reason::ProbeUnanswered, .. })), "{verdict:?}");
    let took = bench.now - begun;
    assert!((Duration::from_secs(5)..Duration::from_secs(7)).contains(&took), "{took:?}");
}

/// A probe is out and every gap is longer than its deadline; what comes between them ends each suspicion.
fn with_gaps(between: &[Input]) {
    let mut bench = Bench::connected();
    bench.measured(MS);
    let mut suspicions = bench.pass(Duration::from_millis(1150));
    for _ in 0..100 {
        for input in between {
            bench.tell(*input);
        }
        suspicions.extend(bench.pass(150 * MS));
    }
    assert_eq!(dead(&suspicions), None, "after {between:?}");
    let suspicions = suspicions.iter().filter(|(_, output)| matches!(output, Output::Suspected(_))).count();
    assert!(suspicions > 50, "{suspicions}");
}

#[test]
fn a_large_packet_over_a_link_with_gaps_is_waited_for_and_whole_packets_are_life() {
    with_gaps(&[Input::Heard(1460)]);
    with_gaps(&[Input::Heard(2), Input::Packet]);
}

#[test]
fn f12_an_acknowledgement_behind_a_large_packet_that_comes_slowly_is_waited_for() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));
    // 27 kB a second: three minutes for 5 MB.
    let mut said = Vec::new();
    for _ in 0..1200 {
        said.extend(bench.pass(150 * MS));
        bench.tell(Input::Heard(4096));
    }
    assert_eq!(dead(&said), None);
    // Then it falls silent in the midst of the packet.
    let (at, reason) = verdict(&bench.pass(Duration::from_secs(10))).expect("a verdict");
    assert!(at < Duration::from_secs(1), "{at:?}, {reason:?}");
}

fn dead(said: &[(Duration, Output)]) -> Option<Output> {
    said.iter().map(|(_, output)| *output).find(|output| matches!(output, Output::Dead { .. }))
}

/// Whole packets of the broker's, so often, for so long; what was said meanwhile.
fn deliveries(bench: &mut Bench, every: Duration, time: Duration) -> Vec<(Duration, Output)> {
    let (begin, mut said) = (bench.now, Vec::new());
    while bench.now < begin + time {
        let at = bench.now - begin;
        said.extend(bench.pass(every).into_iter().map(|(after, output)| (at + after, output)));
        bench.tell(Input::Heard(100));
        bench.tell(Input::Packet);
    }
    said
}

#[test]
fn f12_an_acknowledgement_that_stands_in_line_behind_many_small_packets_is_waited_for() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    bench.tell(Input::Waiting(Some(bench.now)));

    let said = deliveries(&mut bench, 90 * MS, Duration::from_secs(30));
    assert_eq!(
        said.iter().map(|(_, output)| *output).collect::<Vec<_>>(),
        [Output::Probe],
        "it stands in line as well"
    );
    bench.tell(Input::ProbeAnswered);

    // It overtook: what was sent before it is not acknowledged.
    let said = deliveries(&mut bench, 90 * MS, Duration::from_secs(30));
    assert_eq!(said.first().map(|(_, output)| *output), Some(Output::Slow));
    let (at, reason) = verdict(&said).expect("a verdict");
    assert!(reason == Reason::Slow && at > Duration::from_secs(4), "{said:?}");
}

#[test]
fn f14_a_broker_that_delivers_and_never_answers_is_left() {
    for waiting in [true, false] {
        let mut bench = Bench::connected();
        bench.measured(MS);
        bench.tell(Input::Waiting(waiting.then_some(bench.now)));

        let said = deliveries(&mut bench, 90 * MS, Duration::from_secs(600));

        let (at, reason) = verdict(&said).expect("a verdict");
        let expected = if waiting { Reason::AckOverdue } else { Reason::ProbeUnanswered };
        assert_eq!((reason, at < Duration::from_secs(100)), (expected, true), "{at:?}");
        // One to ask, and what the keep-alive promises.
        assert!(said.iter().filter(|(_, output)| *output == Output::Probe).count() < 5, "{said:?}");
    }
}

#[test]
fn f55_answers_that_nobody_read_for_minutes_say_nothing_of_the_broker() {
    for stopped in [true, false] {
        let mut bench = Bench::connected();
        bench.measured(MS);
        let sent = bench.now;
        bench.tell(Input::Waiting(Some(sent)));
        bench.tell(Input::ProbeSent);
        if stopped {
            let due = bench.liveness.poll_timeout().expect("something is due");
            bench.now += Duration::from_secs(600);
            bench.tell(Input::Late(bench.now - due));
        } else {
            bench.tell(Input::Paused(true));
            bench.pass(Duration::from_secs(600));
            bench.tell(Input::Paused(false));
        }
        // What is there is read before anybody judges.
        bench.tell(Input::Heard(100));
        bench.tell(Input::Acknowledged(bench.now - sent));
        bench.tell(Input::Waiting(None));
        for _ in 0..20 {
            bench.tell(Input::ProbeAnswered);
        }
        bench.liveness.handle_timeout(bench.now);
        // Where it was stopped, its own lateness asks for more until it has been on time for a while.
        assert!(stopped || bench.liveness.deadline() <= 100 * MS, "{:?}", bench.liveness.deadline());
        deliveries(&mut bench, 90 * MS, Duration::from_secs(60));
        assert!(bench.liveness.deadline() <= 300 * MS, "{:?}", bench.liveness.deadline());
    }
}

#[test]
fn f12_an_acknowledgement_stands_in_line_also_where_earlier_ones_have_come() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    let sent = bench.now;
    bench.now += MS;
    bench.tell(Input::Acknowledged(MS));
    bench.tell(Input::Answered);
    bench.tell(Input::Waiting(Some(sent)));

    let said = deliveries(&mut bench, 90 * MS, Duration::from_secs(30));

    assert_eq!(verdict(&said), None, "nothing that was sent later has been acknowledged");
    bench.tell(Input::Acknowledged(MS));
    let said = deliveries(&mut bench, 90 * MS, Duration::from_secs(30));
    let (at, reason) = verdict(&said).expect("a verdict");
    assert_eq!((at, reason), (Duration::from_secs(20), Reason::AckOverdue), "it was passed over");
}

#[test]
fn f30_a_reader_that_pauses_now_and_then_does_not_put_off_the_verdict_for_ever() {
    for waiting in [true, false] {
        let mut bench = Bench::connected();
        bench.measured(MS);
        bench.tell(Input::Waiting(waiting.then_some(bench.now)));
        let mut read = Duration::ZERO;
        let at = loop {
            if let Some((at, _)) = verdict(&deliveries(&mut bench, 90 * MS, Duration::from_secs(10))) {
                break read + at;
            }
            read += Duration::from_secs(10);
            assert!(read < Duration::from_secs(200), "no verdict");
            bench.tell(Input::Paused(true));
            bench.pass(Duration::from_secs(10));
            bench.tell(Input::Paused(false));
        };
        assert!(at > Duration::from_secs(55), "{at:?}");
    }
}

#[test]
fn f12_a_probe_behind_a_large_packet_that_takes_minutes_is_waited_for_and_counts_nobody_late() {
    let mut bench = Bench::connected();
    bench.measured(MS);
    let probed = bench.pass(Duration::from_secs(1));
    assert_eq!(probed.iter().map(|(_, output)| *output).collect::<Vec<_>>(), [Output::Probe]);
    for _ in 0..700 {
        bench.tell(Input::Heard(8000));
        assert_eq!(verdict(&bench.pass(100 * MS)), None);
    }

    bench.tell(Input::Packet);
    assert_eq!(verdict(&bench.pass(50 * MS)), None);
    bench.tell(Input::ProbeAnswered);

    bench.tell(Input::Closed);
    bench.tell(Input::Opened { same_broker: false, electing: false });
    bench.measured(MS);
    assert_eq!(bench.liveness.deadline(), 100 * MS, "it was not late itself");
}

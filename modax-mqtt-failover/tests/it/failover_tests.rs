//! The choice of broker, in virtual time.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{
    Backoff, Scouting, Selection, Standby, Topology, Version,
    config::Config,
    failover::{Failover, Input, Output},
    packet::ConnectCode,
    policy::backoff::Jitter,
};

struct Bench {
    begin: Instant,
    now: Instant,
    failover: Failover,
    /// (time, attempt, broker) of each dial.
    dials: Vec<(Duration, u64, usize)>,
    said: Vec<Output>,
}

impl Bench {
    fn new(brokers: usize, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::from_urls("x", (0..brokers).map(|index| format!("mqtt://b{index}"))).unwrap();
        config.seed = 7;
        change(&mut config);
        let begin = Instant::now();
        let mut bench =
            Self { begin, now: begin, failover: Failover::new(&config), dials: Vec::new(), said: Vec::new() };
        bench.tell(Input::Start);
        bench
    }

    fn tell(&mut self, input: Input) {
        self.failover.handle_input(self.now, input);
        self.listen();
    }

    fn listen(&mut self) {
        while let Some(output) = self.failover.poll_output() {
            if let Output::Dial { attempt, broker, .. } = output {
                self.dials.push((self.now - self.begin, attempt, broker));
            }
            self.said.push(output);
        }
    }

    fn last(&self) -> (u64, usize) {
        let (_, attempt, broker) = *self.dials.last().expect("a dial");
        (attempt, broker)
    }

    fn accept(&mut self) -> usize {
        let (attempt, broker) = self.last();
        self.tell(Input::Opened { attempt });
        let wipe = self
            .said
            .iter()
            .any(|said| matches!(said, Output::Greet { attempt: at, wipe: true, .. } if *at == attempt));
        self.tell(Input::Answered { attempt, code: ConnectCode::Accepted });
        if wipe { self.accept() } else { broker }
    }

    fn lose(&mut self, by_peer: bool) {
        let (attempt, _) = self.last();
        self.tell(Input::Lost { attempt, by_peer });
    }

    /// Lets every wait pass until another dial.
    fn wait(&mut self) {
        let before = self.dials.len();
        while self.dials.len() == before {
            self.now = self.failover.poll_timeout().expect("it never gives up");
            self.failover.handle_timeout(self.now);
            self.listen();
        }
    }
}

#[test]
fn the_broker_that_failed_comes_last_whatever_its_priority() {
    let mut bench = Bench::new(3, |_| {});
    assert_eq!(bench.accept(), 0);

    bench.lose(true);
    assert_eq!(bench.last().1, 1, "another one, at once");
    bench.lose(true);
    assert_eq!(bench.last().1, 2, "not the head of the list again");
    bench.lose(true);
    bench.wait();
    bench.accept();
}

#[test]
fn a_silent_broker_is_tried_after_those_that_live() {
    let mut bench = Bench::new(3, |config| config.topology = Topology::Cluster);
    bench.accept();
    bench.now += Duration::from_secs(60);
    bench.lose(false);
    // The others accept and close again, as nodes do that elect a leader.
    let mut tried = Vec::new();
    for _ in 0..4 {
        tried.push(bench.accept());
        bench.now += Duration::from_secs(4);
        bench.lose(true);
        if bench.failover.current().is_none() {
            bench.wait();
        }
    }
    assert!(!tried.contains(&0), "a deadline was spent on the silent one: {tried:?}");

    // Those that refuse are no better than it.
    for _ in 0..8 {
        bench.lose(true);
        if bench.failover.current().is_none() {
            bench.wait();
        }
    }
    assert!(bench.dials.iter().skip(5).any(|(_, _, broker)| *broker == 0), "{:?}", bench.dials);
}

#[test]
fn round_robin_goes_on_where_it_was() {
    let mut bench = Bench::new(3, |config| config.selection = Selection::round_robin());
    let mut seen = vec![bench.accept()];
    for _ in 0..5 {
        bench.now += Duration::from_secs(60);
        bench.lose(true);
        seen.push(bench.accept());
    }
    assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn f04_deadlines_double_with_every_round_and_start_anew_after_a_success() {
    let mut bench = Bench::new(2, |_| {});
    for _ in 0..14 {
        bench.wait();
    }
    let gaps: Vec<_> = bench.dials.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0).as_secs()).collect();
    assert_eq!(gaps[..2], [1, 1]);
    assert!(gaps[4] >= 4 && gaps[6] >= 8, "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 33), "{gaps:?}");

    bench.accept();
    bench.lose(true);
    let before = bench.now;
    bench.wait();
    assert!(bench.now - before <= Duration::from_secs(2), "{:?}", bench.now - before);
}

/// What a try with broker 0, which accepts transports, lasts until it is given up; broker 1 refuses.
fn hung_try(bench: &mut Bench) -> Duration {
    while bench.last().1 == 1 {
        bench.lose(true);
        if bench.last().1 == 1 {
            bench.wait();
        }
    }
    let (attempt, _) = bench.last();
    let began = bench.now;
    bench.tell(Input::Opened { attempt });
    let given_up = |said: &Output| matches!(said, Output::GiveUp { attempt: at, .. } if *at == attempt);
    while !bench.said.iter().any(given_up) {
        bench.now = bench.failover.poll_timeout().expect("a deadline");
        bench.failover.handle_timeout(bench.now);
        bench.listen();
    }
    let lasted = bench.now - began;
    if bench.last().0 == attempt {
        bench.wait();
    }
    lasted
}

#[test]
fn f02_a_broker_that_refuses_is_not_kept_waiting_by_one_that_hangs() {
    let mut bench = Bench::new(2, |_| {});
    for _ in 0..64 {
        hung_try(&mut bench);
    }
    let asked: Vec<_> = bench.dials.iter().filter(|dial| dial.2 == 1).map(|(at, ..)| *at).collect();
    let gaps = asked.windows(2).map(|pair| pair[1].abs_diff(pair[0]).as_secs_f64());
    // From a random moment to the next try.
    let (squares, sum) = gaps.fold((0.0, 0.0), |(squares, sum), gap| (squares + gap * gap, sum + gap));
    assert!(squares / sum / 2.0 < 8.0, "{} s to wait on the average", squares / sum / 2.0);
}

#[test]
fn f12_a_broker_that_needs_ten_seconds_for_a_connack_is_reached_beside_one_that_refuses() {
    let mut bench = Bench::new(2, |_| {});
    let mut longest = Duration::ZERO;
    while longest < Duration::from_secs(10) {
        longest = longest.max(hung_try(&mut bench));
        assert!(bench.now - bench.begin < Duration::from_secs(90), "no more than {longest:?}");
    }
}

#[test]
fn f05_tries_back_off_and_never_end() {
    let mut bench = Bench::new(1, |_| {});
    for _ in 0..500 {
        bench.lose(true);
        bench.wait();
    }
    let first_second = bench.dials.iter().filter(|(at, ..)| *at < Duration::from_secs(1)).count();
    assert!((3..=20).contains(&first_second), "{first_second} tries in the first second");
    let gaps: Vec<_> = bench.dials.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0)).collect();
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_secs(2)));
    let late: Duration = gaps[100..].iter().sum();
    assert!(late > Duration::from_secs(300), "full jitter below 2 s is 1 s on average: {late:?} for 400 tries");
}

#[test]
fn f08_a_flapping_broker_is_tried_less_and_less() {
    let mut bench = Bench::new(1, |_| {});
    for _ in 0..20 {
        bench.accept();
        bench.now += Duration::from_millis(10);
        bench.lose(false);
        bench.wait();
    }
    assert!(bench.now - bench.begin > Duration::from_secs(8), "20 switches in {:?}", bench.now - bench.begin);
}

/// When and to which broker each of 500 clients dials in the half minute after all of them lost one broker in the same
/// instant and all brokers refuse at once, which is the fastest they can be asked again.
fn herd(brokers: usize) -> Vec<(Duration, usize)> {
    let mut dials = Vec::new();
    for seed in 1..=500 {
        let mut bench = Bench::new(brokers, |config| config.seed = seed);
        bench.accept();
        bench.now += Duration::from_secs(60);
        let lost = bench.now;
        let before = bench.dials.len();
        bench.lose(true);
        while bench.now - lost < Duration::from_secs(30) {
            match bench.failover.current() {
                Some(_) => bench.lose(true),
                None => bench.wait(),
            }
        }
        let since = |at: Duration| at.saturating_sub(lost - bench.begin);
        dials.extend(bench.dials[before..].iter().map(|(at, _, broker)| (since(*at), *broker)));
    }
    dials
}

/// How many of them fall into each slot of this length.
fn histogram(dials: impl Iterator<Item = Duration>, slot: Duration) -> Vec<usize> {
    let mut counts = vec![0; usize::try_from(30_000 / slot.as_millis()).unwrap()];
    for at in dials {
        let index = usize::try_from(at.as_millis() / slot.as_millis()).unwrap();
        if let Some(count) = counts.get_mut(index) {
            *count += 1;
        }
    }
    counts
}

const SLOT: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn f23_five_hundred_clients_that_lost_their_only_broker_come_back_spread_out() {
    let dials = herd(1);
    let fine = histogram(dials.iter().map(|(at, _)| *at), SLOT);
    let seconds = histogram(dials.iter().map(|(at, _)| *at), SECOND);
    eprintln!("per 10 ms: {:?}, then at most {:?}; per second: {seconds:?}", &fine[..30], fine[30..].iter().max());

    assert!(fine.iter().all(|count| *count <= 100), "a fifth of them within 10 ms");
    assert!(seconds[0] <= 5 * 500, "{} in the first second", seconds[0]);
    assert!(seconds[3..].iter().all(|count| (350..=700).contains(count)), "one a second each, on average: {seconds:?}");
}

#[test]
fn f23_five_hundred_clients_with_three_brokers_go_on_at_once_and_then_spread_out() {
    let dials = herd(3);
    let first: Vec<_> = dials.iter().filter(|(at, _)| at.is_zero()).collect();
    let later = || dials.iter().filter(|(at, _)| !at.is_zero());
    eprintln!("at once: {}", first.len());

    // The next broker is asked in the instant of the loss, and the one after it in that of its refusal: nobody waits.
    for broker in [1, 2] {
        assert_eq!(first.iter().filter(|(_, to)| *to == broker).count(), 500);
    }
    assert_eq!(first.len(), 1000, "each once, and the lost one not at all");
    for broker in 0..3 {
        let fine = histogram(later().filter(|(_, to)| *to == broker).map(|(at, _)| *at), SLOT);
        let seconds = histogram(later().filter(|(_, to)| *to == broker).map(|(at, _)| *at), SECOND);
        eprintln!(
            "broker {broker}, per 10 ms: {:?}, then at most {:?}; per second: {seconds:?}",
            &fine[..30],
            fine[30..].iter().max()
        );
        assert!(fine.iter().all(|count| *count <= 100), "a fifth of them within 10 ms at {broker}");
        assert!(seconds[0] <= 5 * 500, "{} in the first second at {broker}", seconds[0]);
        assert!(seconds[3..].iter().all(|count| (350..=700).contains(count)), "one a second each: {seconds:?}");
    }
}

#[test]
fn a_stale_session_of_another_independent_broker_is_thrown_away_first() {
    let mut bench = Bench::new(2, |_| {});
    bench.accept();
    bench.now += Duration::from_secs(60);
    bench.lose(true);
    assert_eq!(bench.accept(), 1);

    let greetings: Vec<_> = bench
        .said
        .iter()
        .filter_map(|said| match said {
            Output::Greet { broker, wipe, .. } => Some((*broker, *wipe)),
            _ => None,
        })
        .collect();
    assert_eq!(greetings, [(0, false), (1, true), (1, false)]);

    let mut cluster = Bench::new(2, |config| config.topology = Topology::Cluster);
    cluster.accept();
    cluster.now += Duration::from_secs(60);
    cluster.lose(true);
    cluster.accept();
    assert!(!cluster.said.iter().any(|said| matches!(said, Output::Greet { wipe: true, .. })));
}

#[test]
fn f24_takeovers_of_one_identity_are_counted_only_where_the_broker_lives_on() {
    let mut fight = Bench::new(1, |_| {});
    for _ in 0..8 {
        fight.accept();
        fight.now += Duration::from_millis(100);
        fight.lose(true);
        fight.wait();
    }
    assert!(fight.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. })));
    let gaps = fight.dials.windows(2).skip(3).map(|pair| pair[1].0.saturating_sub(pair[0].0).as_secs());
    assert_eq!(gaps.collect::<Vec<_>>(), [4, 8, 16, 30, 30], "it fights on");

    // Three brokers that die one after the other are no twin, nor is one that is started again and again.
    for (brokers, topology) in [(3, Topology::Independent), (3, Topology::Cluster), (1, Topology::Independent)] {
        let mut deaths = Bench::new(brokers, |config| config.topology = topology);
        for _ in 0..6 {
            let dead = deaths.accept();
            deaths.now += Duration::from_millis(2500);
            deaths.lose(true);
            if deaths.failover.current().is_none() {
                deaths.wait();
            }
            // Refused, by whoever asks it before it is back.
            if deaths.last().1 == dead {
                deaths.lose(true);
            }
            if deaths.failover.current().is_none() {
                deaths.wait();
            }
        }
        let twin = deaths.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. }));
        assert!(!twin, "{topology:?}: {:?}", deaths.said);
    }
}

#[test]
fn f24_a_twin_that_chases_us_around_a_cluster_is_noticed_after_five_lost_connections() {
    let mut chase = Bench::new(3, |config| config.topology = Topology::Cluster);
    let noticed = |bench: &Bench| bench.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. }));
    let mut connections = 0;
    while !noticed(&chase) && connections < 10 {
        chase.accept();
        connections += 1;
        chase.now += Duration::from_millis(100);
        chase.lose(true);
        if chase.failover.current().is_none() {
            chase.wait();
        }
    }
    // The sixth is where the count is full.
    assert_eq!(connections, 6, "{:?}", chase.said);
}

#[test]
fn f24_moves_of_our_own_are_no_takeovers_whatever_the_broker_says_of_them() {
    for version in [Version::V311, Version::V5] {
        let mut bench = Bench::new(2, |config| {
            config.topology = Topology::Cluster;
            config.version = Some(version);
        });
        let mut broker = bench.accept();
        for _ in 0..8 {
            let (old, _) = bench.last();
            broker = 1 - broker;
            bench.tell(Input::Return { broker });
            let (attempt, _) = bench.last();
            bench.tell(Input::Opened { attempt });
            bench.tell(Input::Switch { attempt });
            // Two CONNECTs under one identity: the node that was left says that another client took our place.
            bench.tell(Input::TakenOver { attempt: old });
            bench.tell(Input::Lost { attempt: old, by_peer: true });
            bench.tell(Input::Answered { attempt, code: ConnectCode::Accepted });
            assert_eq!(bench.failover.holder(), Some(attempt), "the move did not come about");
            // What ends the next connection, too late for a takeover, is not put down to one either.
            bench.now += Duration::from_secs(4);
            bench.lose(true);
            broker = bench.accept();
        }
        assert!(!bench.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. })), "{:?}", bench.said);
    }
}

#[test]
fn f24_while_a_twin_is_suspected_a_dead_broker_still_costs_no_long_wait() {
    let mut bench = Bench::new(3, |config| config.topology = Topology::Cluster);
    while !bench.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. })) {
        bench.accept();
        bench.now += Duration::from_millis(100);
        bench.lose(true);
        if bench.failover.current().is_none() {
            bench.wait();
        }
    }
    bench.accept();
    bench.now += Duration::from_secs(4);
    let lost_at = bench.now - bench.begin;
    bench.lose(true);
    let (dialled_at, _, _) = *bench.dials.last().expect("a dial");
    assert_eq!(dialled_at, lost_at, "another broker, at once");
}

#[test]
fn f25_a_parked_broker_is_tried_once_a_minute() {
    let mut bench = Bench::new(1, |_| {});
    let (attempt, _) = bench.last();
    bench.tell(Input::Opened { attempt });
    bench.tell(Input::Answered { attempt, code: ConnectCode::NotAuthorised });

    bench.wait();

    assert!(bench.said.iter().any(|said| matches!(said, Output::Parked { code: ConnectCode::NotAuthorised, .. })));
    assert_eq!(bench.dials[1].0, Duration::from_secs(60));
}

#[test]
fn words_of_an_old_attempt_change_nothing() {
    let mut bench = Bench::new(2, |_| {});
    let (old, _) = bench.last();
    bench.lose(true);
    let now = bench.last();
    bench.tell(Input::Opened { attempt: old });
    bench.tell(Input::Answered { attempt: old, code: ConnectCode::Accepted });
    bench.tell(Input::Lost { attempt: old, by_peer: true });
    assert_eq!(bench.last(), now);
    assert_eq!(bench.failover.current(), Some(now.0));
}

#[test]
fn waits_stay_between_zero_and_the_ceiling_and_repeat_by_seed() {
    let backoff = Backoff::default();
    let draw = |seed| {
        let mut jitter = Jitter::new(seed);
        (1..200).map(|failures| backoff.wait(failures, &mut jitter)).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    for (failures, wait) in (1..200).zip(draw(3)) {
        assert!(wait <= backoff.ceiling(failures) && backoff.ceiling(failures) <= Duration::from_secs(2));
    }
    assert_eq!(backoff.ceiling(1), Duration::from_millis(100));
    assert_eq!(backoff.ceiling(3), Duration::from_millis(400));
}

#[cfg(feature = "backoff")]
#[test]
fn a_policy_of_the_backoff_crate_keeps_its_intervals_and_never_gives_up() {
    let theirs = backoff::ExponentialBackoff {
        initial_interval: Duration::from_millis(50),
        multiplier: 3.0,
        max_interval: Duration::from_secs(1),
        max_elapsed_time: Some(Duration::from_secs(900)),
        ..backoff::ExponentialBackoff::default()
    };
    let ours = Backoff::from(theirs);
    assert_eq!(ours.ceiling(1), Duration::from_millis(50));
    assert_eq!(ours.ceiling(2), Duration::from_millis(150));
    assert_eq!(ours.ceiling(u32::MAX), Duration::from_secs(1));
}

#[test]
fn what_opens_more_connections_than_one_is_off_by_default_but_for_scouts_in_a_cluster() {
    let config = Config::from_urls("x", ["mqtt://a", "mqtt://b"]).unwrap();

    assert_eq!((config.standby, config.racing), (Standby::None, false));
    assert_eq!((config.topology, config.scouting), (Topology::Independent, Scouting::probing()));
    assert_eq!(config.selection, Selection::priority());
}

#[test]
fn without_racing_a_dial_has_its_whole_deadline_to_itself() {
    let mut bench = Bench::new(3, |_| {});

    bench.wait();

    assert_eq!(bench.dials[1].0, Duration::from_secs(1));
}

#[test]
fn racing_brokers_get_one_connect_between_them() {
    let mut bench = Bench::new(3, |config| config.racing = true);
    bench.wait();
    assert_eq!(bench.dials[1].0, Duration::from_millis(200));
    let (first, second) = (bench.dials[0].1, bench.last().0);

    bench.tell(Input::Opened { attempt: second });
    bench.tell(Input::Opened { attempt: first });

    let greeted: Vec<_> = bench.said.iter().filter(|said| matches!(said, Output::Greet { .. })).collect();
    assert!(matches!(greeted[..], [Output::Greet { attempt, .. }] if *attempt == second), "{greeted:?}");
    assert!(bench.said.contains(&Output::Drop { attempt: first }));
    assert_eq!(bench.failover.under_way(), [second]);
}

#[test]
fn a_return_that_does_not_come_about_leaves_the_present_broker_serving() {
    let mut bench = Bench::new(2, |_| {});
    bench.lose(true);
    assert_eq!(bench.accept(), 1);
    let serving = bench.failover.current();

    bench.tell(Input::Return { broker: 0 });
    bench.lose(true);

    assert!(bench.said.iter().any(|said| matches!(said, Output::NotReturned { broker: 0, .. })), "{:?}", bench.said);
    assert_eq!((bench.failover.current(), bench.failover.is_moving()), (serving, false));
}

#[test]
fn f24_a_takeover_that_the_broker_tells_counts_however_long_the_connection_stood() {
    let mut fight = Bench::new(1, |_| {});
    for _ in 0..4 {
        fight.accept();
        fight.now += Duration::from_secs(4);
        let (attempt, _) = fight.last();
        fight.tell(Input::TakenOver { attempt });
        fight.lose(true);
        fight.wait();
    }

    assert!(fight.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. })), "{:?}", fight.said);
}

#[test]
fn f08_a_link_that_is_cut_soon_again_and_again_is_no_twin_where_brokers_would_tell() {
    let mut bench = Bench::new(1, |config| config.version = Some(Version::V5));
    for _ in 0..8 {
        bench.accept();
        bench.now += Duration::from_millis(100);
        bench.lose(true);
        bench.wait();
    }

    assert!(!bench.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. })), "{:?}", bench.said);
}

#[test]
fn f24_a_twin_of_which_a_broker_of_mqtt_5_says_nothing_is_noticed_later() {
    let mut fight = Bench::new(1, |config| config.version = Some(Version::V5));
    let noticed = |bench: &Bench| bench.said.iter().any(|said| matches!(said, Output::DuplicateClientId { .. }));
    let mut connections = 0;
    while !noticed(&fight) && connections < 20 {
        fight.accept();
        connections += 1;
        fight.now += Duration::from_millis(10);
        fight.lose(true);
        fight.wait();
    }
    assert_eq!(connections, 11, "the eleventh shows that the broker lives");
}

//! The session against tables that can be read without Rust: see `tables/README.md`.

use std::{
    fmt::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Bytes, Message, MessageId, Qos, Reason, Rejection, Topology, Version,
    config::Config,
    packet::{ConnectCode, Limits, Packet, PacketId, Publish, PublishProperties},
    queue::{Admission, Backlog},
    session::{End, Input, Output, Session},
};

struct Player {
    now: Instant,
    session: Session,
    backlog: Backlog,
    requests_answered: u32,
}

impl Player {
    fn new(options: &str) -> Self {
        let mut config = Config::from_urls("table", ["mqtt://a", "mqtt://b"]).unwrap();
        for option in options.split_whitespace() {
            match option {
                "cluster" => config.topology = Topology::Cluster,
                "clean" => config.clean_session = true,
                "presence" => {
                    config.will = Some(Message::new("who", "gone").retained());
                    config.on_connect = Some(Message::new("who", "here").retained());
                }
                "v5" => config.version = Some(Version::V5),
                other => panic!("unknown option {other}"),
            }
        }
        let now = Instant::now();
        Self { now, session: Session::new(&config), backlog: Backlog::new(config.queue), requests_answered: 0 }
    }

    fn play(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let input = match words[..] {
            ["wait", ms] => {
                self.now += Duration::from_millis(ms.parse().unwrap());
                self.session.handle_timeout(self.now);
                return self.outputs();
            }
            ["publish", payload, level, ref rest @ ..] => {
                let mut message = Message::new("t", Bytes::copy_from_slice(payload.as_bytes())).qos(qos(level));
                for word in rest {
                    message = match *word {
                        "retained" => message.retained(),
                        "property" => message.user_property("name", "value"),
                        ms => message.expires_in(Duration::from_millis(ms.parse().unwrap())),
                    };
                }
                let Admission::Admitted { .. } = self.backlog.admit(self.now, &message) else { panic!("no room") };
                Input::Publish(self.backlog.take(self.now).unwrap())
            }
            ["greet", broker] => Input::Greet { broker: broker.parse().unwrap(), wipe: false },
            ["greet", broker, "wipe"] => Input::Greet { broker: broker.parse().unwrap(), wipe: true },
            ["lost"] => Input::Lost,
            ["subscribe", filter, level] => Input::Subscribe { filter: Arc::from(filter), qos: qos(level) },
            ["unsubscribe", filter] => Input::Unsubscribe { filter: Arc::from(filter) },
            ["ack", number, serial] => Input::Acknowledge { id: id(number), serial: serial.parse().unwrap() },
            ["abandon", number, serial] => Input::Abandon { id: id(number), serial: serial.parse().unwrap() },
            ["flushed", packets] => Input::Flushed(packets.parse().unwrap()),
            ["probe"] => Input::Probe,
            ["goodbye"] => Input::Goodbye,
            _ => Input::Received(packet(&words)),
        };
        self.session.handle_input(self.now, input);
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(output) = self.session.poll_output() {
            if let Output::Settled { admitted, .. } = &output {
                self.backlog.settle(admitted.id);
            }
            // Of every request: it would stand in each table and tell nothing there.
            match output {
                Output::RequestAnswered => self.requests_answered += 1,
                told => lines.push(show(&told)),
            }
        }
        lines
    }
}

fn qos(level: &str) -> Qos {
    Qos::from_level(level.parse().unwrap()).unwrap()
}

fn id(number: &str) -> PacketId {
    PacketId::new(number.parse().unwrap()).unwrap()
}

fn packet(words: &[&str]) -> Packet {
    match *words {
        ["CONNACK", "refused", "4"] => {
            let limits = Limits::default();
            Packet::ConnAck { session_present: false, code: ConnectCode::Credentials, limits }
        }
        ["CONNACK", "refused", number] => {
            let code = ConnectCode::Refused(Reason::new(number.parse().unwrap()));
            Packet::ConnAck { session_present: false, code, limits: Limits::default() }
        }
        ["CONNACK", present, ref limits @ ..] => {
            Packet::ConnAck { session_present: present == "1", code: ConnectCode::Accepted, limits: limits_of(limits) }
        }
        ["PUBACK", number] => Packet::PubAck { id: id(number), code: 0 },
        ["PUBACK", number, code] => Packet::PubAck { id: id(number), code: code.parse().unwrap() },
        ["PUBREC", number] => Packet::PubRec { id: id(number), code: 0 },
        ["PUBREC", number, code] => Packet::PubRec { id: id(number), code: code.parse().unwrap() },
        ["PUBREL", number] => Packet::PubRel { id: id(number), code: 0 },
        ["PUBREL", number, code] => Packet::PubRel { id: id(number), code: code.parse().unwrap() },
        ["PUBCOMP", number] => Packet::PubComp { id: id(number), code: 0 },
        ["PUBCOMP", number, code] => Packet::PubComp { id: id(number), code: code.parse().unwrap() },
        ["DISCONNECT", code] => Packet::Disconnect(Reason::new(code.parse().unwrap())),
        ["AUTH"] => Packet::Auth,
        ["PUBLISH", number, payload, level, ref rest @ ..] => Packet::Publish(Publish {
            topic: Arc::from(if rest == ["who"] { "who" } else { "c" }),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            qos: qos(level),
            retain: false,
            duplicate: rest == ["dup"],
            id: PacketId::new(number.parse().unwrap()),
            properties: PublishProperties::default(),
        }),
        ["SUBACK", number, ref codes @ ..] => {
            Packet::SubAck { id: id(number), codes: codes.iter().map(|code| code.parse().unwrap()).collect() }
        }
        ["UNSUBACK", number] => Packet::UnsubAck(id(number)),
        ["PINGRESP"] => Packet::PingResp,
        ["PINGREQ"] => Packet::PingReq,
        _ => panic!("unknown input {words:?}"),
    }
}

fn show(output: &Output) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match output {
        Output::Send(packet) => show_packet(packet),
        Output::Answered { code, session_present } => format!("answered {code} {}", u8::from(*session_present)),
        Output::Settled { admitted, attempts, end } => {
            let end = match end {
                End::Acked => "acked".to_owned(),
                End::Rejected(Rejection::Broker(reason)) => format!("refused {}", reason.number()),
                End::Rejected(rejection) => format!("rejected: {rejection}"),
                End::Expired => "expired".to_owned(),
                End::Broken => "broken".to_owned(),
                other => panic!("{other:?}"),
            };
            format!("settled {} {end} after {attempts}", text(admitted.message.payload()))
        }
        Output::Deliver { publish, serial } => {
            let mut line = format!("deliver {}", text(&publish.payload));
            if publish.duplicate {
                line.push_str(" dup");
            }
            if let Some(serial) = serial {
                write!(line, " serial {serial}").unwrap();
            }
            line
        }
        Output::Granted { filter, qos } => format!("filter {filter} granted {}", qos.level()),
        Output::Gap { filter, reason } => format!("gap {filter} {reason:?}"),
        Output::Postponed { filter, code } => format!("filter {filter} postponed {code}"),
        Output::Refused { filter, code } => format!("filter {filter} refused {code}"),
        Output::QosLowered { filter: None, requested, granted } => {
            format!("publishing lowered {} {granted}", requested.level())
        }
        Output::QosLowered { filter: Some(filter), requested, granted } => {
            format!("filter {filter} lowered {} {granted}", requested.level())
        }
        Output::AnnouncementRefused(rejection) => format!("announcement refused: {rejection}"),
        Output::Stuck { topic, attempts } => format!("stuck {topic} {attempts}"),
        Output::PacketIdReused { id, first } => format!("reused {id}{}", if *first { "" } else { " again" }),
        Output::Acknowledged(_) => "measured".to_owned(),
        Output::ProbeAnswered => "probe answered".to_owned(),
        Output::StrayAck => "stray".to_owned(),
        Output::LateAck => "late".to_owned(),
        Output::Dismissed(reason) => format!("dismissed {}", reason.number()),
        Output::Violation(_) => "violation".to_owned(),
        other => panic!("{other:?}"),
    }
}

fn show_packet(packet: &Packet) -> String {
    match packet {
        Packet::Connect(connect) => format!("CONNECT {}", if connect.clean_session { "clean" } else { "persistent" }),
        Packet::Publish(publish) => {
            let number = publish.id.map_or(0, PacketId::number);
            let dup = if publish.duplicate { " dup" } else { "" };
            let payload = String::from_utf8_lossy(&publish.payload);
            let expiry = publish.properties.expiry_seconds.map_or(String::new(), |left| format!(" expires {left}"));
            format!("PUBLISH {number} {payload} {}{dup}{expiry}", publish.qos.level())
        }
        Packet::PubAck { id, .. } => format!("PUBACK {id}"),
        Packet::PubRec { id, .. } => format!("PUBREC {id}"),
        Packet::PubRel { id, code } => coded("PUBREL", *id, *code),
        Packet::PubComp { id, code } => coded("PUBCOMP", *id, *code),
        Packet::Subscribe { id, filters } => {
            let filters = filters.iter().map(|(filter, qos)| format!(" {filter}:{}", qos.level()));
            format!("SUBSCRIBE {id}{}", filters.collect::<String>())
        }
        Packet::Unsubscribe { id, filters } => {
            let filters = filters.iter().map(|filter| format!(" {filter}"));
            format!("UNSUBSCRIBE {id}{}", filters.collect::<String>())
        }
        Packet::PingReq => "PINGREQ".to_owned(),
        Packet::Disconnect(Reason::SUCCESS) => "DISCONNECT".to_owned(),
        Packet::Disconnect(reason) => format!("DISCONNECT {}", reason.number()),
        other => panic!("{other:?} is not a client's"),
    }
}

fn coded(name: &str, id: PacketId, code: u8) -> String {
    if code == 0 { format!("{name} {id}") } else { format!("{name} {id} {code}") }
}

/// `receive N`, `qos N`, `bytes N`, `unretained`, each once.
fn limits_of(words: &[&str]) -> Limits {
    let mut limits = Limits::default();
    match *words {
        [] => return limits,
        ["receive", number, ref rest @ ..] => {
            limits = Limits { receive_maximum: number.parse().unwrap(), ..limits_of(rest) }
        }
        ["qos", level, ref rest @ ..] => limits = Limits { max_qos: qos(level), ..limits_of(rest) },
        ["bytes", number, ref rest @ ..] => {
            limits = Limits { max_packet_bytes: Some(number.parse().unwrap()), ..limits_of(rest) }
        }
        ["no-wildcards", ref rest @ ..] => limits = Limits { wildcards_available: false, ..limits_of(rest) },
        ["unshared", ref rest @ ..] => limits = Limits { shared_available: false, ..limits_of(rest) },
        ["unretained", ref rest @ ..] => limits = Limits { retain_available: false, ..limits_of(rest) },
        _ => panic!("unknown limits {words:?}"),
    }
    limits
}

/// Plays one file: `case NAME [options]`, then `> input` and `< output` lines.
fn check(name: &str, text: &str) -> usize {
    let mut player: Option<Player> = None;
    let mut expected: Vec<String> = Vec::new();
    let mut cases = 0;
    let mut case = "";
    for (number, line) in text.lines().enumerate() {
        let at = || format!("{name}:{} in case '{case}'", number + 1);
        match line.split_at(line.len().min(2)) {
            ("> ", input) => {
                assert!(expected.is_empty(), "{}: still to come: {expected:?}", at());
                expected = player.as_mut().expect("a case first").play(input);
            }
            ("< ", output) => {
                assert!(!expected.is_empty(), "{}: nothing was said, expected '{output}'", at());
                assert_eq!(expected.remove(0), output, "{}", at());
            }
            ("ca", _) => {
                assert!(expected.is_empty(), "{}: still to come: {expected:?}", at());
                let (title, options) = line.trim_start_matches("case ").split_once('|').unwrap_or((&line[5..], ""));
                case = title.trim();
                player = Some(Player::new(options));
                cases += 1;
            }
            ("" | "# ", _) => {}
            _ => panic!("{}: not understood: {line}", at()),
        }
    }
    assert!(expected.is_empty(), "{name}: still to come at the end: {expected:?}");
    cases
}

#[test]
fn the_session_says_what_the_tables_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tables");
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            cases += check(&path.file_name().unwrap().to_string_lossy(), &std::fs::read_to_string(&path).unwrap());
        }
    }
    assert!(cases >= 20, "only {cases} cases were found");
}

/// What the session says to `given_up`, in which a message under identifier 1 is given up, and then to a QoS 2 message after
/// all other identifiers were used.
fn after_all_other_identifiers(given_up: impl Fn(&mut Player) -> Vec<String>) -> (Vec<String>, Vec<String>) {
    let mut player = Player::new("v5");
    player.play("greet 0");
    player.play("CONNACK 0");
    assert_eq!(player.play("publish a 2"), ["PUBLISH 1 a 2"]);
    let outputs = given_up(&mut player);
    for number in 2..=u16::MAX {
        assert_eq!(player.play("publish b 1"), [format!("PUBLISH {number} b 1")]);
        player.play(&format!("PUBACK {number}"));
    }
    (outputs, player.play("publish c 2"))
}

fn connect(player: &mut Player, connack: &str) -> Vec<String> {
    player.play("lost");
    player.play("greet 0");
    let mut outputs = player.play(connack);
    assert!(outputs.remove(0).starts_with("answered accepted"));
    outputs
}

fn reject(player: &mut Player) -> Vec<String> {
    let (message, reason) = (MessageId::new(0), Rejection::ClosesConnection { times: 3 });
    player.session.handle_input(player.now, Input::Reject { message, reason });
    player.outputs()
}

#[test]
fn what_was_given_up_half_way_is_released_on_the_next_connection_and_its_identifier_used_after_the_answer() {
    let (_, next) = after_all_other_identifiers(|player| {
        let settled = reject(player);
        assert!(matches!(&settled[..], [one] if one.starts_with("settled a rejected")), "{settled:?}");
        assert_eq!(connect(player, "CONNACK 1"), ["PUBREL 1"]);
        assert_eq!(connect(player, "CONNACK 1"), ["PUBREL 1"], "it was not answered");
        assert_eq!(player.play("PUBCOMP 1 146"), ["measured"; 0], "it was not written");
        assert_eq!(player.play("PUBCOMP 1 146"), ["stray"]);
        assert!(connect(player, "CONNACK 1").is_empty(), "it was answered");
        Vec::new()
    });
    assert_eq!(next, ["PUBLISH 1 c 2"]);

    let (_, next) = after_all_other_identifiers(|player| {
        reject(player);
        connect(player, "CONNACK 1")
    });
    assert_eq!(next, ["PUBLISH 2 c 2"], "the identifier is not free");

    let (refused, next) = after_all_other_identifiers(|player| player.play("PUBREC 1 135"));
    assert_eq!((refused, next), (vec!["settled a refused 135 after 1".to_owned()], vec!["PUBLISH 1 c 2".to_owned()]));

    let (outputs, next) = after_all_other_identifiers(|player| {
        reject(player);
        connect(player, "CONNACK 0")
    });
    assert!(outputs.is_empty(), "it went with its session: {outputs:?}");
    assert_eq!(next, ["PUBLISH 1 c 2"]);
}

#[test]
fn the_widest_window_leaves_identifiers_for_subscriptions_and_no_wish_is_lost_for_want_of_one() {
    let mut player = Player::new("v5");
    let mut config = Config::from_urls("table", ["mqtt://a"]).unwrap();
    (config.version, config.max_inflight) = (Some(Version::V5), u16::MAX);
    config.queue = config.queue.max_messages(70_000);
    (player.session, player.backlog) = (Session::new(&config), Backlog::new(config.queue));
    player.play("greet 0");
    player.play("CONNACK 0");
    for _ in 0..65_000 {
        assert_eq!(player.play("publish a 1").len(), 1);
    }
    assert_eq!(player.session.room(), 0);
    assert_eq!(player.play("subscribe kept 1"), ["SUBSCRIBE 65001 kept:1"]);
    assert_eq!(player.play("SUBACK 65001 1"), ["filter kept granted 1"]);

    let asked: Vec<_> = (0..535).flat_map(|number| player.play(&format!("subscribe f/{number} 1"))).collect();
    assert_eq!(asked.len(), 535, "all identifiers are taken");
    assert!(player.play("unsubscribe kept").is_empty());
    assert!(player.play("subscribe late 1").is_empty());
    let freed = player.play("SUBACK 65002 1");
    assert_eq!(freed, ["filter f/0 granted 1", "SUBSCRIBE 65002 late:1"]);
    assert_eq!(player.play("PUBACK 1"), ["settled a acked after 1", "UNSUBSCRIBE 1 kept"]);
}

/// NATS 2.9 closes the connection on a QoS 2 message, and on its PUBREL: once, not on each connection again.
#[test]
fn f29_a_broker_that_never_answered_qos_2_is_sent_one_release_of_what_was_given_up() {
    let mut player = Player::new("");
    player.play("greet 0");
    player.play("CONNACK 0");
    assert_eq!(player.play("publish a 2"), ["PUBLISH 1 a 2"]);
    reject(&mut player);
    assert_eq!(connect(&mut player, "CONNACK 1"), ["PUBREL 1"], "it may have no place for anything else");
    assert!(connect(&mut player, "CONNACK 1").is_empty(), "it may have closed on that");
    assert_eq!(player.play("publish b 2"), ["PUBLISH 2 b 2"]);
    assert_eq!(player.play("PUBREC 2"), ["PUBREL 1", "PUBREL 2"], "it knows QoS 2");
    assert_eq!(connect(&mut player, "CONNACK 1"), ["PUBREL 1", "PUBREL 2"], "neither was answered");
}

#[test]
fn the_release_of_what_was_left_open_is_waited_for() {
    let mut player = Player::new("v5");
    player.play("greet 0");
    player.play("CONNACK 0");
    player.play("publish a 2");
    reject(&mut player);
    assert_eq!(connect(&mut player, "CONNACK 1"), ["PUBREL 1"]);
    player.play("flushed 2");
    assert_eq!(player.session.waiting_since(), Some(player.now), "its silence counts as any other");
    assert_eq!(player.play("PUBCOMP 1"), ["measured"]);
    assert_eq!(player.session.waiting_since(), None);
}

#[test]
fn message_identities_only_grow() {
    let mut player = Player::new("");
    let mut last: Option<MessageId> = None;
    for _ in 0..100 {
        let Admission::Admitted { id, .. } = player.backlog.admit(player.now, &Message::new("t", "")) else { panic!() };
        assert!(last < Some(id));
        last = Some(id);
    }
}

#[test]
fn each_request_that_is_answered_is_said_to_be() {
    let mut player = Player::new("presence");
    player.play("greet 0");
    player.play("CONNACK 0");
    for (count, answer) in [(1, "PUBACK 1"), (2, "SUBACK 2 0"), (2, "SUBACK 2 0"), (2, "UNSUBACK 9")] {
        player.play(answer);
        assert_eq!(player.requests_answered, count, "{answer}");
    }
    player.play("subscribe a 0");
    player.play("SUBACK 3 0");
    player.play("unsubscribe a");
    player.play("UNSUBACK 4");
    assert_eq!(player.requests_answered, 4);
}

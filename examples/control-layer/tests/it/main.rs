//! What the program does before it needs any server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn start(pairs: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_control-layer"))
        .env_clear()
        .envs([("API_HOST", "127.0.0.1"), ("API_PORT", "0")])
        .env("DATABASE_URL", "postgresql://modax:geheim@127.0.0.1:1/modax")
        .envs(pairs.iter().copied())
        .output()
        .expect("the program starts")
}

#[test]
fn a_bad_value_stops_the_start_with_one_line_that_names_it_and_code_2() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let bad: &[(&str, &str)] = &[
        ("API_PORT", "http"),
        ("API_PORT", &port),
        // Of no machine: kept for documentation.
        ("API_HOST", "192.0.2.1"),
        ("API_HOST", "not a host"),
        ("MQTT_BROKERS", "nonsense"),
        ("MQTT_BROKERS", "mqtt://"),
        ("MQTT_BROKERS", "mqtt://a?version=4"),
        ("MQTT_CA_CERTS", "Cargo.toml"),
        ("DATABASE_URL", "mysql://nobody"),
        ("DATABASE_URL", "postgresql://modax:geheim@a:1,b:2/modax?port=1,2,3"),
        ("PATRONI_URLS", "db1:8008"),
        ("SAFETY_MAX_AGE", "soon"),
        ("AI_LAYER_URL", "not a URL"),
        ("RUST_LOG", "a=b=c"),
    ];
    for (name, value) in bad {
        let output = start(&[(name, value)]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(
            matches!(lines.as_slice(), [line] if line.starts_with(&format!("{name}: "))),
            "{name}={value}: {stderr}"
        );
        assert!(!stderr.contains("geheim"), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

/// A layer without any server, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(address: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: modax\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_log_that_nobody_reads_any_more_ends_nothing() {
    let child = Command::new(env!("CARGO_BIN_EXE_control-layer"))
        .env_clear()
        .envs([("API_HOST", "127.0.0.1"), ("API_PORT", "0"), ("DRAIN_TIME", "0"), ("RUST_LOG", "debug")])
        .env("DATABASE_URL", "postgresql://modax@127.0.0.1:1/modax")
        .env("MQTT_BROKERS", "mqtt://127.0.0.1:1")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut layer = Running(child);
    let mut log = BufReader::new(layer.0.stderr.take().expect("a log"));
    let mut line = String::new();
    while !line.contains("\"listening\"") {
        line.clear();
        assert!(log.read_line(&mut line).expect("a line") > 0, "it ended");
    }
    let address = line.split("\"addr\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an address");

    drop(log);

    let is_dropped = || !get(address, "/metrics").contains("modax_control_log_lines_dropped_total 0\n");
    wait_until("a line that nobody reads", is_dropped);
    let killed = Command::new("kill").arg(layer.0.id().to_string()).status().expect("kill");
    assert!(killed.success());
    let mut ended = None;
    wait_until("it stops", || {
        ended = layer.0.try_wait().expect("a child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "it drained and stopped in order");
}

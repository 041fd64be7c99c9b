//! What the program does before it needs any server.

use std::net::TcpListener;
use std::process::{Command, Output};

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

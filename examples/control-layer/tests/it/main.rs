//! What the program does before it needs any server.

use std::process::{Command, Output};

fn start(pairs: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_control-layer"))
        .env_clear()
        .env("DATABASE_URL", "postgresql://modax:geheim@127.0.0.1:1/modax")
        .envs(pairs.iter().copied())
        .output()
        .expect("the program starts")
}

#[test]
fn a_bad_value_stops_the_start_with_one_line_that_names_it_and_code_2() {
    let bad: &[(&str, &str)] = &[
        ("API_PORT", "http"),
        ("MQTT_BROKERS", "nonsense"),
        ("MQTT_BROKERS", "mqtt://"),
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
        // A refusal by one of the crates comes after the log was opened: the line is the last one, and no JSON.
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
        assert!(matches!(lines.as_slice(), [line] if line.starts_with(name)), "{name}={value}: {stderr}");
        assert!(!stderr.contains("geheim"), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

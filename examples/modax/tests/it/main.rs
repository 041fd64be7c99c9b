//! The command line without any server: usage, input that is broken, brokers and databases that are not there.

#[path = "usage.rs"]
mod usage;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn modax(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_modax"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that refuses its flags does not read its input.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input);
    child.wait_with_output().expect("the binary ends")
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).expect("output is text");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not a JSON line: {line}"))).collect()
}

const NOBODY: &str = "mqtt://127.0.0.1:9";

#[test]
fn help_is_for_people() {
    for command in ["pub", "sub", "queue", "write", "read", "topology", "outbox", "up", "demo"] {
        let output = modax(&[command, "--help"], b"");
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: modax"), "{command}");
    }
}

#[test]
fn every_line_has_exactly_one_final_line_also_without_a_broker() {
    let input = "plain\n{\"payload\":\"a\",\"topic\":\"t\"}\n{\"payload\":\"b\",\"qos\":7}\n{\"payload\":1}\n\n";
    let args =
        ["pub", "--brokers", NOBODY, "--client-id", "c", "--topic", "x", "--max-wait", "200ms", "--report-admitted"];

    let output = modax(&args, input.as_bytes());

    assert_eq!(output.status.code(), Some(1));
    let told = lines(&output.stdout);
    let of = |outcome: &str| -> Vec<u64> {
        let mut seqs: Vec<u64> =
            told.iter().filter(|line| line["outcome"] == outcome).map(|line| line["seq"].as_u64().unwrap()).collect();
        seqs.sort_unstable();
        seqs
    };
    assert_eq!(of("undelivered"), [0, 1, 3, 4]);
    assert_eq!(of("rejected"), [2]);
    assert_eq!(of("admitted"), [0, 1, 3, 4]);
    let payload = |seq: u64| {
        told.iter().find(|line| line["seq"] == seq && line["outcome"] == "admitted").unwrap()["payload"].clone()
    };
    assert_eq!(payload(0), "plain");
    assert_eq!(payload(1), "a");
    assert_eq!(payload(3), "{\"payload\":1}");
    assert_eq!(payload(4), "");
}

#[test]
fn a_line_that_could_not_be_sent_in_its_time_expires() {
    let rest = ["pub", "--brokers", NOBODY, "--client-id", "c", "--topic", "t"];
    let output = modax(&[&rest[..], &["--expires-in", "1s"]].concat(), b"a\n");
    assert_eq!(output.status.code(), Some(1));
    let told = lines(&output.stdout);
    assert_eq!((told.len(), &told[0]["outcome"]), (1, &Value::from("expired")));
    assert_eq!(told[0]["maybe_delivered"], false);
}

#[test]
fn plain_takes_every_line_as_it_stands() {
    let args = [
        "pub",
        "--brokers",
        NOBODY,
        "--client-id",
        "c",
        "--topic",
        "x",
        "--max-wait",
        "100ms",
        "--plain",
        "--report-admitted",
    ];
    let output = modax(&args, b"{\"payload\":\"a\"}\n\xff\xfe\n");
    let told = lines(&output.stdout);
    let admitted: Vec<&Value> = told.iter().filter(|line| line["outcome"] == "admitted").collect();
    assert_eq!(admitted[0]["payload"], "{\"payload\":\"a\"}");
    assert_eq!(admitted[1]["payload_base64"], "//4=");
}

#[test]
fn a_directory_without_a_queue_is_an_error_and_stays_as_it_is() {
    let directory = std::env::temp_dir().join(format!("modax-no-queue-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.to_str().unwrap();
    for action in ["inspect", "verify", "salvage"] {
        for path in [path, "/nonexistent/queue"] {
            let output = modax(&["queue", action, path], b"");
            assert_eq!(output.status.code(), Some(1), "{action} {path}");
            assert!(output.stdout.is_empty(), "{action} {path}");
            let told = lines(&output.stderr);
            assert_eq!((told.len(), &told[0]["queue"]), (1, &Value::from(path)));
        }
    }
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    std::fs::remove_dir(&directory).unwrap();
}

#[test]
fn a_line_without_a_topic_is_rejected_and_the_rest_goes_on() {
    let args = ["pub", "--brokers", NOBODY, "--client-id", "c", "--max-wait", "100ms"];
    let output = modax(&args, b"nowhere\n{\"payload\":\"a\",\"topic\":\"t\"}\n");
    let told = lines(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(told.len(), 2);
    assert!(told.iter().any(|line| line["seq"] == 0
        && line["outcome"] == "rejected"
        && line["error"].as_str().unwrap().contains("topic")));
    assert!(told.iter().any(|line| line["seq"] == 1 && line["outcome"] == "undelivered"));
}

#[test]
fn a_broken_line_of_sql_is_told_and_the_rest_goes_on() {
    let input = b"nonsense\n{\"params\":[]}\n\n[\"SELECT 1\",[]]\n{\"sql\":\"SELECT \xff\"}\n{\"sql\":\"\\u0000\"}\n\
        {\"sql\":\"a\",\"sql\":\"b\"}\n{\"sql\":\"a\"} b\n{\"sql\":\"SELECT 1\"}";
    let named = ["expected", "sql", "empty", "array", "unicode", "U+0000", "duplicate", "trailing", "no"];
    for command in ["write", "read"] {
        let args = [command, "--url", "postgresql://nobody@127.0.0.1:9/none", "--deadline", "200ms"];
        let output = modax(&args, input);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let told = lines(&output.stdout);
        assert_eq!(told.len(), named.len(), "{command}: {told:?}");
        for (seq, (line, named)) in told.iter().zip(named).enumerate() {
            assert_eq!(line["seq"], seq, "{command}");
            assert!(line["error"].as_str().unwrap().contains(named), "{command}: {line}");
        }
    }
}

#[test]
fn each_policy_of_a_full_queue_does_what_its_name_says() {
    let outcomes = |policy: &str| -> Vec<String> {
        let limits = ["--queue-max-messages", "2", "--when-full", policy];
        let rest = ["pub", "--brokers", NOBODY, "--client-id", "c", "--topic", "t", "--max-wait", "10ms"];
        let output = modax(&[&rest[..], &limits[..], &["--report-admitted"]].concat(), b"a\nb\nc\n");
        assert_eq!(output.status.code(), Some(1), "{policy}");
        let mut told = lines(&output.stdout);
        // What did not come in is not called admitted.
        let admitted = if matches!(policy, "reject" | "shed-newest") { 2 } else { 3 };
        let count = told.len();
        told.retain(|line| line["outcome"] != "admitted");
        assert_eq!(count - told.len(), admitted, "{policy}");
        told.sort_by_key(|line| line["seq"].as_u64());
        told.iter().map(|line| line["outcome"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(outcomes("reject"), ["undelivered", "undelivered", "rejected"]);
    assert_eq!(outcomes("shed-oldest"), ["shed", "undelivered", "undelivered"]);
    assert_eq!(outcomes("shed-newest"), ["undelivered", "undelivered", "shed"]);
    assert_eq!(outcomes("latest-per-topic"), ["shed", "undelivered", "undelivered"]);
}

//! What is wrong with a command line is one line that names the flag, and exit code 2; nothing is begun.

use crate::{NOBODY, lines, modax};

const DATABASE: &str = "postgresql://a@127.0.0.1:9/d";

fn refused(args: &[&str], named: &str) {
    let output = modax(args, b"");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty(), "{args:?}");
    let told = lines(&output.stderr);
    assert_eq!(told.len(), 1, "{args:?}: {told:?}");
    assert_eq!(told[0]["event"], "bad_usage");
    assert!(told[0]["error"].as_str().unwrap().contains(named), "{args:?}: {told:?}");
}

#[test]
fn a_command_that_is_missing_or_unknown_is_told() {
    for (args, named) in [
        (vec![], "topology"),
        (vec!["outbox"], "migrate"),
        (vec!["queue"], "salvage"),
        (vec!["writ"], "writ"),
        (vec!["outbox", "stop"], "stop"),
        (vec!["--verbose"], "--verbose"),
        (vec!["queue", "salvage"], "<DIR>"),
        (vec!["up", "extra"], "extra"),
        (vec!["demo", "--out", "/dev/null/demo"], "--out: /dev/null/demo"),
    ] {
        refused(&args, named);
    }
}

#[test]
fn a_flag_of_pub_or_sub_that_makes_no_sense_is_named() {
    let publish = ["pub", "--brokers", NOBODY, "--client-id", "c"];
    for flags in [
        "--qos 3",
        "--qos -1",
        "--qos 1 --qos 2",
        "--max-wait 30",
        "--max-wait -1s",
        "--max-wait 1.2.3s",
        "--max-wait 1000000000000h",
        "--expires-in 0s",
        "--topic a/#",
        "--queue-max-messages 0",
        "--queue-max-messages -5",
        "--queue-max-bytes 99999999999999999999",
        "--when-full panic",
        "--selection nearest",
        "--standby warm",
        "--failback-after 9000h",
        "--fsync-every x",
        "--tls-ca x",
        "--tls-server-name x",
        "--dedup x",
        "--stamp",
        "--plain=yes",
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        refused(&[&publish[..], &flags].concat(), flags[0].split('=').next().unwrap());
    }
    refused(&[&publish[..], &["--fsync-every", "5ms"]].concat(), "--queue");
    let too_late = ["--topic", "t", "--queue", "/dev/null/queue", "--fsync-every", "11s"];
    refused(&[&publish[..], &too_late[..]].concat(), "--fsync-every");
    refused(&[&publish[..], &["--tls-key", "x"]].concat(), "--tls-cert");
    refused(&[&publish[..], &["--topic", ""]].concat(), "--topic");
    refused(&["pub", "--brokers", "mqtts://h", "--client-id", "c", "--tls-ca", "/absent.pem"], "/absent.pem");
    refused(&["pub", "--client-id", "c"], "--brokers");
    refused(&["pub", "--brokers", NOBODY], "--client-id");
    refused(&["pub", "--brokers", NOBODY, "--client-id", ""], "--client-id");
    refused(&["pub", "--brokers", NOBODY, "--client-id", &"x".repeat(65_536)], "--client-id");
    let twice = format!("{NOBODY},{NOBODY}");
    for url in ["", ",", "h:1883", "http://h", "mqtt://", "mqtt://h:0", "mqtt://h:x", "mqtt://h/path", &twice] {
        refused(&["pub", "--brokers", url, "--client-id", "c"], "--brokers");
    }
    let subscribe = ["sub", "--brokers", NOBODY, "--client-id", "c"];
    refused(&subscribe, "--filter");
    for filter in ["", "a/#/b", "a+", "$share/a"] {
        refused(&[&subscribe[..], &["--filter", filter]].concat(), "--filter");
    }
    for (flags, named) in [
        ("--count 0", "--count"),
        ("--count -1", "--count"),
        ("--dedup-window 5", "--dedup"),
        ("--dedup a --dedup-window 0", "--dedup-window"),
        ("--dedup a,", "--dedup"),
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        refused(&[&subscribe[..], &["--filter", "f"], &flags].concat(), named);
    }
}

#[test]
fn a_flag_of_a_database_command_that_makes_no_sense_is_named() {
    refused(&["write"], "--url");
    for url in [
        "",
        "nonsense",
        "http://h",
        "postgresql://",
        "postgresql://h:x/d",
        "postgresql://a@127.0.0.1:0/d",
        "postgresql://a@127.0.0.1:1,127.0.0.1:1/d",
        "postgresql://a@127.0.0.1/d?sslmode=require",
        "postgresql://a@127.0.0.1/d?nope=1",
        "postgresql://a@example.org/d",
    ] {
        for command in [&["write"][..], &["topology"], &["outbox", "status"]] {
            refused(&[command, &["--url", url]].concat(), "--url");
        }
    }
    for (command, flags) in [
        ("write", "--deadline 0s"),
        ("write", "--deadline 30"),
        ("write", "--deadline -1s"),
        ("write", "--deadline 99999999999h"),
        ("write", "--concurrency 0"),
        ("write", "--concurrency -1"),
        ("write", "--concurrency 1001"),
        ("write", "--patroni https://h"),
        ("write", "--patroni http://h,"),
        ("write", "--preference primary"),
        ("write", "--url again"),
        ("read", "--preference Primary"),
        ("read", "--max-staleness 5"),
        ("read", "--at-least nonsense"),
        ("read", "--at-least w1-1-1"),
        ("read", "--deadline 0s"),
        ("read", "--concurrency 4"),
        ("topology", "--watch=1"),
        ("outbox status", "--deadline 0s"),
        ("outbox migrate", "--schema pg_x"),
        ("outbox relay", "--brokers http://h"),
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        let command: Vec<&str> = command.split(' ').collect();
        let args = [&command[..], &["--url", DATABASE], &flags].concat();
        refused(&args, flags[0].split('=').next().unwrap());
    }
    refused(&["read", "--url", DATABASE, "--preference", "nearest"], "--preference nearest");
    refused(&["outbox", "relay", "--url", DATABASE], "--brokers");
    refused(&["demo", "--only", "7"], "--only");
    refused(&["demo", "--only", "-1"], "--only");
}

#[test]
fn a_password_in_a_url_is_not_told_whatever_is_wrong_with_the_line() {
    let brokers = |url| ["pub", "--brokers", url, "--client-id", "c"];
    let mut told = String::new();
    for args in [
        &brokers("http://canary-user:canary@h")[..],
        &brokers("mqtt://canary-user:canary@h:x"),
        &brokers("mqtt://canary-user:canary@h/path"),
        &brokers("mqtt://canary-user:canary@h,mqtt://canary-user:canary@h"),
        &["pub", "--tls-ca", "x", "--client-id", "c", "--brokers", "mqtt://canary-user:canary@h"],
        // A blank where a comma belongs, and a URL where something else does.
        &["pub", "--client-id", "c", "--brokers", "mqtt://a", "mqtt://canary-user:canary@b"],
        &["pub", "--qos", "mqtt://canary-user:canary@h"],
        &["pub", "--brokers=mqtt://a", "--expires-in=mqtt://canary-user:canary@h"],
        &["mqtt://canary-user:canary@h"],
        &["write", "--url", "postgresql://canary-user:canary@h:x/d"],
        &["read", "postgresql://canary-user:canary@127.0.0.1:9/d"],
    ] {
        let output = modax(args, b"");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        told.push_str(std::str::from_utf8(&output.stderr).unwrap());
        assert!(output.stdout.is_empty() && !told.contains("canary"), "{args:?}: {told}");
    }
    assert!(told.contains("mqtt://…@b"), "where it stands is told: {told}");
}

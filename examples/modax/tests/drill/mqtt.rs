//! `pub` and `sub` against mosquitto.

use std::collections::BTreeSet;

use modax_testbed::{Ground, MosquittoOptions, pki::Authority};
use rustix::process::Signal;
use serde_json::Value;

use crate::running::Running;

fn seqs(lines: &[Value], outcome: &str) -> BTreeSet<u64> {
    lines.iter().filter(|line| line["outcome"] == outcome).filter_map(|line| line["seq"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_printed_by_the_subscriber() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    let url = broker.url();
    let mut sub =
        Running::start(&["sub", "--brokers", &url, "--client-id", "s", "--filter", "plant/#", "--count", "101"]);
    let mut publisher = Running::start(&["pub", "--brokers", &url, "--client-id", "p", "--topic", "plant/a"]);
    sub.event("subscribed").await;
    publisher.send("hello").await;
    assert_eq!(publisher.line().await["outcome"], "acked");
    let first = sub.line().await;
    assert_eq!((&first["topic"], &first["payload"], &first["qos"]), (&"plant/a".into(), &"hello".into(), &1.into()));

    for number in 0..100 {
        publisher.send(&format!("{{\"payload\":\"{number}\",\"qos\":{}}}", number % 2)).await;
    }
    let (outcomes, code) = publisher.end().await;

    assert_eq!(code, 0);
    assert_eq!(seqs(&outcomes, "acked"), (1..101).collect());
    assert!(outcomes.iter().all(|line| line["broker"].is_string() && line["latency_us"].is_u64()));
    let (received, code) = sub.rest().await;
    assert_eq!(code, 0);
    assert_eq!(received.len(), 100);
    // Each level in its order; between the two there is none.
    for level in [0, 1] {
        let of_level = received.iter().filter(|line| line["qos"] == level);
        let payloads: Vec<&str> = of_level.filter_map(|line| line["payload"].as_str()).collect();
        let expected: Vec<String> =
            (0..100).filter(|number| number % 2 == level).map(|number| number.to_string()).collect();
        assert_eq!(payloads, expected);
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_properties_go_through_with_mqtt_5_and_are_refused_without() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    let url = broker.url();
    let mut sub =
        Running::start(&["sub", "--mqtt5", "--brokers", &url, "--client-id", "s", "--filter", "t", "--count", "1"]);
    let line = "{\"topic\":\"t\",\"payload\":\"a\",\"user_properties\":{\"one\":\"1\",\"two\":[\"2\",\"3\"]}}";
    let mut publisher = Running::start(&["pub", "--mqtt5", "--brokers", &url, "--client-id", "p"]);
    let received = loop {
        publisher.send(line).await;
        assert_eq!(publisher.line().await["outcome"], "acked");
        if let Ok(line) = tokio::time::timeout(std::time::Duration::from_millis(100), sub.line()).await {
            break line;
        }
    };
    assert_eq!(received["user_properties"], serde_json::json!({ "one": "1", "two": ["2", "3"] }));

    let mut old = Running::start(&["pub", "--brokers", &url, "--client-id", "o"]);
    old.send(line).await;
    let refused = old.line().await;
    assert_eq!(refused["outcome"], "rejected");
    assert!(refused["error"].as_str().unwrap().contains("MQTT 5"), "{refused}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f29_lines_on_which_a_broker_closes_the_connection_are_rejected_and_the_rest_acknowledged() {
    let ground = Ground::start().await.unwrap();
    let options = MosquittoOptions { extra: "max_packet_size 300\nmax_qos 1".to_owned(), ..Default::default() };
    let broker = ground.mosquitto_with(options).await.unwrap();
    let url = broker.url();
    let mut publisher = Running::start(&["pub", "--brokers", &url, "--client-id", "p", "--topic", "t"]);

    publisher.send("1").await;
    publisher.send(&"x".repeat(4000)).await;
    publisher.send("{\"payload\":\"3\",\"qos\":2}").await;
    publisher.send("4").await;
    publisher.event("rejected").await;
    let (outcomes, _) = publisher.end().await;

    assert_eq!(seqs(&outcomes, "acked"), BTreeSet::from([0, 3]), "{outcomes:?}");
    assert_eq!(seqs(&outcomes, "rejected"), BTreeSet::from([1, 2]), "{outcomes:?}");
    let closes = |line: &&Value| line["error"].as_str().is_some_and(|error| error.contains("closes the connection"));
    assert_eq!(outcomes.iter().filter(closes).count(), 2, "{outcomes:?}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_a_killed_broker_costs_no_line_of_the_input() {
    let ground = Ground::start().await.unwrap();
    let (first, second) = (ground.mosquitto().await.unwrap(), ground.mosquitto().await.unwrap());
    let urls = format!("{},{}", first.url(), second.url());
    let mut publisher = Running::start(&["pub", "--brokers", &urls, "--client-id", "p", "--topic", "t"]);
    publisher.send("0").await;
    let line = publisher.line().await;
    assert_eq!(line["broker"], first.addr().to_string());

    first.kill().await;
    for number in 1..200 {
        publisher.send(&number.to_string()).await;
    }
    let (outcomes, code) = publisher.end().await;

    assert!(!first.process().is_running());
    assert_eq!(code, 0);
    assert_eq!(seqs(&outcomes, "acked"), (1..200).collect());
    assert!(outcomes.iter().all(|line| line["broker"] == second.addr().to_string()), "{outcomes:?}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_publisher_that_waits_and_every_line_has_its_outcome() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    let url = broker.url();
    let args =
        ["pub", "--brokers", &url, "--client-id", "p", "--topic", "t", "--max-wait", "300ms", "--report-admitted"];
    let mut publisher = Running::start(&args);
    publisher.send("a").await;
    assert_eq!(publisher.line().await["outcome"], "admitted");
    assert_eq!(publisher.line().await["outcome"], "acked");

    broker.stop();
    publisher.send("b").await;
    assert_eq!(publisher.line().await["outcome"], "admitted");
    publisher.signal(Signal::TERM);
    let (outcomes, code) = publisher.rest().await;

    broker.cont();
    assert_eq!(code, 1);
    assert_eq!(seqs(&outcomes, "undelivered"), BTreeSet::from([1]));
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_ends_at_a_signal_with_success() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    let mut publisher = Running::start(&["pub", "--brokers", &broker.url(), "--client-id", "p", "--topic", "t"]);
    let mut sub = Running::start(&["sub", "--brokers", &broker.url(), "--client-id", "s", "--filter", "t"]);
    loop {
        publisher.send("x").await;
        assert_eq!(publisher.line().await["outcome"], "acked");
        if tokio::time::timeout(std::time::Duration::from_millis(100), sub.line()).await.is_ok() {
            break;
        }
    }
    sub.signal(Signal::INT);
    assert_eq!(sub.rest().await.1, 0);
    assert_eq!(publisher.end().await.1, 0);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_certificates_open_a_broker_that_speaks_tls_and_asks_for_one() {
    let ground = Ground::start().await.unwrap();
    let authority = Authority::new("plant");
    let (shown, us) = (authority.issue(&["broker.plant"]), authority.issue(&["p"]));
    let file = |name: &str, text: &str| {
        let path = ground.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = file("ca.pem", authority.pem());
    let (shown, key) = (file("shown.pem", &shown.certificate), file("shown.key", &shown.key));
    let port = ground.port();
    let extra =
        format!("listener {port} 127.0.0.1\ncertfile {shown}\nkeyfile {key}\ncafile {ca}\nrequire_certificate true");
    let _broker = ground.mosquitto_with(MosquittoOptions { extra, ..Default::default() }).await.unwrap();
    let (certificate, key) = (file("us.pem", &us.certificate), file("us.key", &us.key));
    let url = format!("mqtts://127.0.0.1:{port}");
    let args = ["pub", "--brokers", &url, "--client-id", "p", "--topic", "t"];
    let files = ["--tls-ca", &ca, "--tls-cert", &certificate, "--tls-key", &key];

    let mut publisher = Running::start(&[&args[..], &files, &["--tls-server-name", "broker.plant"]].concat());
    publisher.send("over TLS").await;
    assert_eq!(publisher.line().await["outcome"], "acked");
    assert_eq!(publisher.end().await.1, 0);

    // Without --tls-ca the system's authorities count; this is how a system names another store.
    let args_of_the_system = [&args[..], &files[2..], &["--tls-server-name", "broker.plant"]].concat();
    let mut publisher = Running::start_with(&args_of_the_system, &[("SSL_CERT_FILE", &ca)]);
    publisher.send("trusted by the system").await;
    assert_eq!(publisher.line().await["outcome"], "acked");
    assert_eq!(publisher.end().await.1, 0);

    // The certificate is for another name than the URL's, and nothing was said about that.
    let mut publisher = Running::start(&[&args[..], &files, &["--max-wait", "1s"]].concat());
    publisher.send("to nobody").await;
    let (outcomes, code) = publisher.end().await;
    assert_eq!((outcomes[0]["outcome"].as_str(), code), (Some("undelivered"), 1));
    ground.stop().await;
}

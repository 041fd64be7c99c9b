//! A password that stands on the command line is not told on stdout or stderr.

use std::sync::Arc;
use std::time::Duration;

use modax_testbed::Ground;
use modax_testbed::broker::{Connack, Script, ScriptedBroker};
use modax_testbed::pki::Authority;
use modax_testbed::wait::until;
use rustix::process::Signal;
use serde_json::Value;

use crate::running::Running;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_keys_are_not_told_whatever_becomes_of_the_brokers() {
    let ground = Ground::start().await.unwrap();
    let broker = || ScriptedBroker::start(Script::new());
    let refuses = ScriptedBroker::start(Script::new().connack(Connack::Refuse(4))).await.unwrap();
    let (absent, first, second) = (broker().await.unwrap(), broker().await.unwrap(), broker().await.unwrap());
    absent.stop();
    let urls: Vec<_> = [&refuses, &absent, &first, &second]
        .map(|broker| broker.url().replace("://", "://canary-user:canary%40password@"))
        .into();
    let us = Authority::new("plant").issue(&["p"]);
    let files = [("us.pem", &us.certificate), ("us.key", &us.key)].map(|(name, text)| {
        let path = ground.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    });
    // A broker over TLS that is not there, so that the key is read.
    let urls = format!("{},mqtts://canary-user:canary%40password@127.0.0.1:9", urls.join(","));
    let both = ["--brokers", &urls, "--tls-cert", &files[0], "--tls-key", &files[1]];
    let mut publisher = Running::start(&[&["pub", "--client-id", "p", "--topic", "t"], &both[..]].concat());
    let mut sub = Running::start(&[&["sub", "--client-id", "s", "--filter", "t"], &both[..]].concat());
    let (publisher_tells, sub_tells) = (publisher.stderr(), sub.stderr());

    sub.event("subscribed").await;
    publisher.send("before").await;
    let mut stdout = vec![publisher.line().await, sub.line().await];
    first.stop();
    publisher.event("failed_over").await;
    sub.event("failed_over").await;
    assert!(second.wait_until(DEADLINE, |broker| !broker.subscribes().is_empty()).await);
    publisher.send("after").await;
    stdout.extend([publisher.line().await, sub.line().await]);
    assert!(stdout.iter().all(Value::is_object));
    sub.signal(Signal::INT);
    stdout.extend(sub.rest().await.0);
    stdout.extend(publisher.end().await.0);

    assert_eq!(refuses.connects()[0].username.as_deref(), Some("canary-user"), "it was sent");
    let key: Vec<_> = us.key.lines().filter(|line| !line.starts_with("-----")).collect();
    for tells in [publisher_tells, sub_tells] {
        let said = || tells.lock().unwrap().clone();
        until(DEADLINE, "all of stderr", || async { Arc::strong_count(&tells) == 1 }).await.unwrap();
        for event in ["parked", "connect_failed", "connected", "disconnected", "failed_over"] {
            assert!(said().contains(&format!("\"{event}\"")), "{event}: {}", said());
        }
        let all = format!("{}{stdout:?}", said());
        assert!(!all.contains("canary") && !key.iter().any(|line| all.contains(line)), "{all}");
    }
    ground.stop().await;
}
